"""Two nouns, adjectives or noun phrases of a caption exchanged: the same words, another scene.

NegCLIP's negatives (Yuksekgonul et al., arXiv:2210.01936) with three rules more, since an exchange that leaves the
meaning or breaks the grammar teaches nothing: units joined by "and", "or", "next to" … are exchanged only if
something else sets them apart ("a cat and a dog"); adjectives must describe different things; and singular goes
with singular, plural with plural. NegCLIP's adverbs and verb phrases are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from ...errors import UsageError
from ._contract import Around, Caption, Negative, draw
from ._lexicon import lexicon
from ._tagger import Chunk, Tagged, Tagger, Unit, tag_all, version
from ._text import from_front, is_word, plain, rebuild, to_front

INFO = {
    "source": "NegCLIP, Yuksekgonul et al., ICLR 2023, arXiv:2210.01936",
    "version": "1",
    "licence": "that of the captions",
}

Type = Literal["noun", "adjective", "phrase"]
# Between two things these say the same in both directions.
SYMMETRIC = frozenset(
    {"and", "or", ",", "&", "next to", "beside", "near", "close to", "alongside", "adjacent to", "with", "nearby"}
)


@dataclass(frozen=True)
class Config:
    """Settings.

    types         what is exchanged
    per_type      how many negatives of each type a caption gets at most
    phrase_words  the fewest words of a noun phrase that is exchanged, articles included (NegCLIP: 3)
    tagger        "spacy", "own", or "auto": spaCy where its model is installed
    spacy_model   the model
    """

    types: tuple[Type, ...] = ("noun", "adjective", "phrase")
    per_type: int = 1
    phrase_words: int = 2
    tagger: Tagger = "auto"
    spacy_model: str = "en_core_web_sm"

    def __post_init__(self) -> None:
        if self.per_type < 1 or not self.types:
            raise UsageError("swap needs at least one type and per_type of at least 1")


def provenance(config: Config, around: Around) -> dict[str, str]:
    """The tagger and its version."""
    return {"tagger": version(config.tagger, config.spacy_model)}


def generate(captions: Sequence[Caption], config: Config, seed: int, around: Around) -> Iterator[Negative]:
    """Up to `per_type` negatives of each type per caption, in the captions' order."""
    tagged_all = tag_all((caption.text for caption in captions), config.tagger, config.spacy_model)
    for index, (caption, tagged) in enumerate(zip(captions, tagged_all, strict=True)):
        seen = {plain(caption.text)}
        reasons = []
        for kind in config.types:
            pairs, why = _pairs(tagged, kind, config.phrase_words)
            draw(seed, caption, kind).shuffle(pairs)
            if kind == "adjective":  # colours with colours first, sizes with sizes
                pairs.sort(key=lambda pair: not _akin(_text(tagged, pair[0]), _text(tagged, pair[1])))
            made = 0
            for one, other in pairs:
                if made == config.per_type:
                    break
                text = _exchanged(tagged, one, other)
                if plain(text) not in seen:
                    seen.add(plain(text))
                    made += 1
                    yield Negative(index, text, kind, f"{_text(tagged, one)} ↔ {_text(tagged, other)}")
            reasons += [why] if not made else []
        if len(seen) == 1:
            around.missed(index, "; ".join(dict.fromkeys(reasons)))
        around.tick(index + 1)


def _text(tagged: Tagged, chunk: Chunk) -> str:
    return tagged.text[tagged.units[chunk.first].start : tagged.units[chunk.last].end]


def _exchanged(tagged: Tagged, one: Chunk, other: Chunk) -> str:
    """The caption with two stretches of units exchanged, `one` before `other`."""
    begin = next((index for index, unit in enumerate(tagged.units) if is_word(unit.text)), 0)
    first, second = _text(tagged, one), _text(tagged, other)
    starts = one.first == begin
    changes = [
        (tagged.units[one.first].start, tagged.units[one.last].end, to_front(second, first) if starts else second),
        (tagged.units[other.first].start, tagged.units[other.last].end, from_front(first) if starts else first),
    ]
    return rebuild(tagged.text, changes)


def _pairs(tagged: Tagged, kind: Type, phrase_words: int) -> tuple[list[tuple[Chunk, Chunk]], str]:
    """The exchanges that change the meaning, and why there is none."""
    if kind == "adjective":
        return _adjectives(tagged)
    phrases = _phrases(tagged)
    if kind == "phrase":
        some = [one for one in phrases if one.last - one.first + 1 >= phrase_words]
        heads = [_head(tagged, one) for one in some]
        words = "two noun phrases"
    else:
        some = [one for one in phrases if not tagged.units[one.last].light]
        heads = [tagged.units[one.last] for one in some]
        words = "two nouns"
    if len(some) < 2:
        return [], f"not {words}"
    found = []
    for (one, head), (other, second) in combinations(zip(some, heads, strict=True), 2):
        differ = head.lemma != second.lemma and head.number == second.number
        if not differ or (_symmetric(tagged, one, other) and (kind == "phrase" or _alike(tagged, one, other))):
            continue
        if kind == "phrase":
            found.append((one, other))
        else:
            found.append((Chunk(one.last, one.last), Chunk(other.last, other.last)))
    return found, f"no {words} whose exchange changes the meaning"


def _phrases(tagged: Tagged) -> list[Chunk]:
    """The noun phrases; "a group" and "people" of "a group of people" are one."""
    found: list[Chunk] = []
    for chunk in tagged.chunks:
        last = found[-1] if found else None
        joined = last and tagged.units[last.last].light and chunk.first == last.last + 2
        if last and joined and tagged.units[last.last + 1].text.lower() == "of":
            found[-1] = Chunk(last.first, chunk.last)
        else:
            found.append(chunk)
    return [chunk for chunk in found if not tagged.units[chunk.last].light and not _owns(tagged, chunk)]


def _owns(tagged: Tagged, chunk: Chunk) -> bool:
    """Whether "of" follows: "a bottle" of "a bottle of water" cannot stand elsewhere."""
    return chunk.last + 1 < len(tagged.units) and tagged.units[chunk.last + 1].text.lower() == "of"


def _head(tagged: Tagged, phrase: Chunk) -> Unit:
    """The noun that the verb agrees with: "group" of "a group of people"."""
    of = [at for at in range(phrase.first, phrase.last) if tagged.units[at].text.lower() == "of"]
    head = tagged.units[of[0] - 1] if of else tagged.units[phrase.last]
    return head._replace(lemma=tagged.units[phrase.last].lemma)


def _symmetric(tagged: Tagged, one: Chunk, other: Chunk) -> bool:
    """Whether only conjunctions, symmetric prepositions and other nouns stand between the two."""
    inner = {at for chunk in tagged.chunks for at in range(chunk.first, chunk.last + 1)}
    between = [unit for at, unit in enumerate(tagged.units) if one.last < at < other.first and at not in inner]
    return all(unit.text.lower() in SYMMETRIC for unit in between)


def _alike(tagged: Tagged, one: Chunk, other: Chunk) -> bool:
    """Whether the two phrases say the same but for their heads and articles."""
    rest = [
        [unit.text.lower() for unit in tagged.units[chunk.first : chunk.last] if unit.tag != "determiner"]
        for chunk in (one, other)
    ]
    return rest[0] == rest[1]


def _adjectives(tagged: Tagged) -> tuple[list[tuple[Chunk, Chunk]], str]:
    some = [at for at, unit in enumerate(tagged.units) if unit.tag in ("adjective", "number") and unit.text != "1"]
    if len(some) < 2:
        return [], "not two adjectives"
    found = []
    for one, other in combinations(some, 2):
        first, second = tagged.units[one], tagged.units[other]
        apart = any(unit.tag == "noun" for unit in tagged.units[one + 1 : other])
        if apart and first.tag == second.tag and not _twice(tagged, one, other):
            found.append((Chunk(one, one), Chunk(other, other)))
    return found, "no two adjectives of different things"


def _twice(tagged: Tagged, one: int, other: int) -> bool:
    """Whether an adjective would come to where it stands already: "red" in "a big red bus and a red car"."""
    words = [unit.text.lower() for unit in tagged.units]
    for at, new in ((one, words[other]), (other, words[one])):
        near = [(chunk.first, chunk.last + 1) for chunk in tagged.chunks if chunk.first <= at <= chunk.last]
        first, last = near[0] if near else (at, at + 1)
        if new in words[first:last]:
            return True
    return False


def _akin(one: str, other: str) -> bool:
    """Whether the lexicon has the two in one group, or as opposites."""
    opposites = lexicon().opposites
    mine, theirs = (opposites.get(word.lower(), ()) for word in (one, other))
    groups = {found.why for found in mine} & {found.why for found in theirs} - {"opposite"}
    return bool(groups) or other.lower() in {found.word for found in mine}
