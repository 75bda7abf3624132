"""Words of a caption in another order: ARO's perturbations, and FSC-CLIP's shuffled bigrams.

Sources: ARO's order tasks (Yuksekgonul et al., arXiv:2210.01936) and FSC-CLIP (Oh et al., arXiv:2410.05210).
Punctuation stays where it is, and so does a sentence's capital: else the first letter gives the order away. Such
negatives are the easiest to tell from captions without any image; see the report's blindness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ...errors import UsageError
from ._contract import MAX_TRIES, Around, Caption, Negative, draw
from ._tagger import Tagged, Tagger, tag_all, version
from ._text import from_front, is_word, plain, to_front

INFO = {
    "source": "ARO, Yuksekgonul et al., ICLR 2023, arXiv:2210.01936; FSC-CLIP, arXiv:2410.05210",
    "version": "1",
    "licence": "that of the captions",
}

Type = Literal["words", "bigrams", "trigrams", "within-trigrams", "nouns-adjectives", "others"]
Order = list[int]


@dataclass(frozen=True)
class Config:
    """Settings.

    types        words: all words; bigrams, trigrams: groups of two or three as wholes; within-trigrams: inside
                 each group of three; nouns-adjectives: these alone; others: all but these
    per_type     how many negatives of each type a caption gets at most
    tagger       of nouns and adjectives: "spacy", "own", or "auto": spaCy where its model is installed
    spacy_model  the model
    """

    types: tuple[Type, ...] = ("words", "trigrams", "nouns-adjectives")
    per_type: int = 1
    tagger: Tagger = "auto"
    spacy_model: str = "en_core_web_sm"

    def __post_init__(self) -> None:
        if self.per_type < 1 or not self.types:
            raise UsageError("shuffle needs at least one type and per_type of at least 1")


def provenance(config: Config, around: Around) -> dict[str, str]:
    """The tagger and its version, where a type needs one."""
    return {"tagger": version(config.tagger, config.spacy_model)} if _needs_tags(config) else {}


def _needs_tags(config: Config) -> bool:
    return not {"nouns-adjectives", "others"}.isdisjoint(config.types)


def generate(captions: Sequence[Caption], config: Config, seed: int, around: Around) -> Iterator[Negative]:
    """Up to `per_type` negatives of each type per caption, in the captions' order."""
    texts = (caption.text for caption in captions)
    tagged_all = tag_all(texts, config.tagger if _needs_tags(config) else "own", config.spacy_model)
    for index, (caption, tagged) in enumerate(zip(captions, tagged_all, strict=True)):
        seen = {plain(caption.text)}
        for kind in config.types:
            rng, made = draw(seed, caption, kind), 0
            for _ in range(MAX_TRIES * config.per_type):
                if made == config.per_type:
                    break
                text = _shuffled(tagged, kind, rng)
                if plain(text) not in seen:
                    seen.add(plain(text))
                    made += 1
                    yield Negative(index, text, kind)
        if len(seen) == 1:
            around.missed(index, "no other order of its words")
        around.tick(index + 1)


def _shuffled(tagged: Tagged, kind: Type, rng: Random) -> str:
    """The caption with its words in a new order. A word of `tagged` may be several: "traffic light"."""
    places = [at for at, unit in enumerate(tagged.units) if is_word(unit.text)]
    if kind in ("nouns-adjectives", "others"):
        chosen = {at for at in places if tagged.units[at].tag in ("noun", "adjective", "number")}
        places = [at for at in places if (at in chosen) == (kind == "nouns-adjectives")]
        order = _any_order(len(places), rng)
    else:
        order = _ORDERS[kind](len(places), rng)
    begin = next((at for at, unit in enumerate(tagged.units) if is_word(unit.text)), 0)
    text, done = "", 0
    sources = dict(zip(places, (places[at] for at in order), strict=True))
    for at, unit in enumerate(tagged.units):
        source = sources.get(at, at)
        new = tagged.units[source].text
        if at != source and begin == at:
            new = to_front(new, unit.text)
        elif at != source and begin == source:
            new = from_front(new)
        text += tagged.text[done : unit.start] + new
        done = unit.end
    return text + tagged.text[done:]


def _any_order(count: int, rng: Random) -> Order:
    return rng.sample(range(count), count)


def _groups(size: int) -> Callable[[int, Random], Order]:
    def order(count: int, rng: Random) -> Order:
        starts = rng.sample(range(0, count, size), -(-count // size))
        return [at for start in starts for at in range(start, min(start + size, count))]

    return order


def _within(count: int, rng: Random) -> Order:
    groups = [list(range(start, min(start + 3, count))) for start in range(0, count, 3)]
    return [at for group in groups for at in rng.sample(group, len(group))]


_ORDERS: dict[str, Callable[[int, Random], Order]] = {
    "words": _any_order,
    "bigrams": _groups(2),
    "trigrams": _groups(3),
    "within-trigrams": _within,
}
