"""One noun, adjective or preposition of a caption replaced by another of its sort: a cousin or an opposite.

CLoVe's REPLACE (Castro et al., arXiv:2402.15021): co-hyponyms by the hypernym of the hypernym and antonyms from
WordNet, drawn by how often the word occurs, words that share a sense with the original left out; prepositions
from a weighted list. Where WordNet's data is not installed a lexicon of our own stands in, of everyday things in
groups that exclude one another. Inflection, casing and articles are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

from ...errors import UsageError
from . import _wordnet
from ._contract import Around, Caption, Negative, draw
from ._lexicon import Candidate, lexicon, plural_of
from ._tagger import Tagged, Tagger, Unit, tag_all, version
from ._text import bag, cased_like, plain, rebuild

INFO = {
    "source": "CLoVe, Castro et al., arXiv:2402.15021; WordNet, doi:10.1145/219717.219748",
    "version": "1",
    "licence": "that of the captions; WordNet's where it is used",
}

Type = Literal["noun", "adjective", "preposition"]
OBJECT = frozenset({"determiner", "noun", "adjective", "number", "pronoun"})


@dataclass(frozen=True)
class Config:
    """Settings.

    types           what is replaced
    per_type        how many negatives of each type a caption gets at most
    lexicon         "wordnet", "own", or "auto": WordNet where nltk and its data are installed
    wordnet_folder  folder of WordNet's files (index.noun, data.noun, …); nltk's own if empty
    min_count       how often WordNet must have counted a word; 0 (CLoVe) lets in "solenodon" for a dog
    senses          how many of a word's senses are looked at, the most frequent first
    tagger          "spacy", "own", or "auto": spaCy where its model is installed
    spacy_model     the model
    """

    types: tuple[Type, ...] = ("noun", "adjective", "preposition")
    per_type: int = 1
    lexicon: Literal["auto", "wordnet", "own"] = "auto"
    wordnet_folder: str = ""
    min_count: int = 1
    senses: int = 1
    tagger: Tagger = "auto"
    spacy_model: str = "en_core_web_sm"

    def __post_init__(self) -> None:
        if self.per_type < 1 or self.senses < 1 or not self.types:
            raise UsageError("replace needs at least one type, and per_type and senses of at least 1")


def provenance(config: Config, around: Around) -> dict[str, str]:
    """The tagger, and the lexicon that the words come from."""
    reader = _wordnet.reader(config.lexicon, config.wordnet_folder)
    words = f"own {lexicon().version}"
    return {
        "tagger": version(config.tagger, config.spacy_model),
        "lexicon": f"{_wordnet.version(reader)}, prepositions {words}" if reader else words,
    }


def generate(captions: Sequence[Caption], config: Config, seed: int, around: Around) -> Iterator[Negative]:
    """Up to `per_type` negatives of each type per caption, in the captions' order."""
    source = _Source(config)
    tagged_all = tag_all((caption.text for caption in captions), config.tagger, config.spacy_model)
    for index, (caption, tagged) in enumerate(zip(captions, tagged_all, strict=True)):
        seen, known = {plain(caption.text)}, bag(caption.text)
        for kind in config.types:
            rng, made = draw(seed, caption, kind), 0
            places = [at for at in range(len(tagged.units)) if source.is_of(kind, tagged, at)]
            for at in rng.sample(places, len(places)):
                if made == config.per_type:
                    break
                unit = tagged.units[at]
                candidates = list(source.candidates(kind, unit))
                if kind != "preposition":  # "a woman and a woman"
                    candidates = [one for one in candidates if not bag(one.word) & known]
                if not candidates:
                    continue
                chosen = _drawn(candidates, rng)
                text = rebuild(tagged.text, [(unit.start, unit.end, cased_like(chosen.word, unit.text))])
                if plain(text) not in seen:
                    seen.add(plain(text))
                    made += 1
                    yield Negative(index, text, kind, f"{unit.text} → {chosen.word} ({chosen.why})")
        if len(seen) == 1:
            around.missed(index, "no word that the lexicon can replace")
        around.tick(index + 1)


def _drawn(candidates: Sequence[Candidate], rng: Random) -> Candidate:
    return rng.choices(candidates, [one.weight for one in candidates])[0]


class _Source:
    """Where candidates come from: WordNet or our lexicon; prepositions always from ours."""

    def __init__(self, config: Config) -> None:
        reader = _wordnet.reader(config.lexicon, config.wordnet_folder)
        self._own = lexicon()
        self._nouns = partial(_wordnet.nouns, reader, senses=config.senses, least=config.min_count) if reader else None
        self._adjectives = (
            partial(_wordnet.adjectives, reader, senses=config.senses, least=config.min_count) if reader else None
        )

    def is_of(self, kind: Type, tagged: Tagged, at: int) -> bool:
        """Whether the unit is one that this type replaces."""
        unit = tagged.units[at]
        if kind == "noun":
            return unit.tag == "noun" and not unit.light
        if kind == "adjective":
            return unit.tag in ("adjective", "number")
        return unit.tag == "preposition" and at + 1 < len(tagged.units) and tagged.units[at + 1].tag in OBJECT

    def candidates(self, kind: Type, unit: Unit) -> Sequence[Candidate]:
        """What may replace the unit, in its number."""
        word = unit.text.lower()
        if kind == "preposition":
            return self._own.prepositions.get(word, ())
        if kind == "adjective":
            return self._adjectives(word) if self._adjectives else self._own.opposites.get(word, ())
        if self._nouns is None:
            return self._own.noun_peers.get((unit.lemma, unit.number or "singular"), ())
        found = self._nouns(unit.lemma)
        if unit.number != "plural":
            return found
        return [Candidate(self._own.plurals.get(one.word) or plural_of(one.word), one.weight, one.why) for one in found]
