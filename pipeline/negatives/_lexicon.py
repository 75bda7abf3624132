"""The lexicon of `assets/negatives`: co-hyponyms, opposites, prepositions, and how English words inflect."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent.parent.parent / "assets" / "negatives"
FILES = ("nouns.txt", "adjectives.txt", "prepositions.txt", "words.txt")
Number = Literal["singular", "plural", "mass"]
Entry = frozenset[str]


@dataclass(frozen=True)
class Candidate:
    """A word that may replace another, and how likely it is drawn."""

    word: str
    weight: float
    why: str


@dataclass(frozen=True)
class Lexicon:
    """What the files hold.

    nouns         form → (number, lemma); multi-word forms too
    noun_peers    lemma → candidates, by number ("mass" words only for mass words)
    adjectives    every adjective
    opposites     adjective → candidates
    prepositions  preposition → candidates
    words         section of words.txt → its words
    version       8 digits of sha256 over the files
    """

    nouns: dict[str, tuple[Number, str]]
    noun_peers: dict[tuple[str, Number], tuple[Candidate, ...]]
    plurals: dict[str, str]
    adjectives: frozenset[str]
    opposites: dict[str, tuple[Candidate, ...]]
    prepositions: dict[str, tuple[Candidate, ...]]
    words: dict[str, frozenset[str]]
    longest: int
    version: str


def plural_of(word: str) -> str:
    """The regular plural of the last word: boxes, puppies, dogs."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


@cache
def lexicon() -> Lexicon:
    """The lexicon, read once."""
    texts = {name: (FOLDER / name).read_text(encoding="utf-8") for name in FILES}
    digest = hashlib.sha256("\0".join(texts[name] for name in FILES).encode()).hexdigest()[:8]
    nouns = _Nouns()
    for line in _lines(texts["nouns.txt"]):
        nouns.add(line)
    opposites = _adjectives(texts["adjectives.txt"])
    words = {name: frozenset(listed) for name, listed in _sections(texts["words.txt"]).items()}
    adjectives = frozenset(opposites) | words["adjective"]
    prepositions = _prepositions(texts["prepositions.txt"])
    longest = max(len(form.split()) for form in (*nouns.forms, *prepositions, *adjectives))
    return Lexicon(
        nouns.forms, nouns.candidates(), nouns.plurals, adjectives, opposites, prepositions, words, longest, digest
    )


def _lines(text: str) -> list[str]:
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


class _Nouns:
    """Collects the groups of nouns.txt."""

    def __init__(self) -> None:
        self.forms: dict[str, tuple[Number, str]] = {}
        self.plurals: dict[str, str] = {}
        self._groups: list[tuple[str, Number, list[list[str]]]] = []
        self._same: dict[str, set[str]] = defaultdict(set)

    def add(self, line: str) -> None:
        name, _, listed = line.partition(":")
        number: Number = "singular"
        for mark, meant in (("[mass]", "mass"), ("[plural]", "plural")):
            if mark in name:
                number = meant  # type: ignore[assignment]
        name = name.partition("[")[0].strip()
        entries = [[self._form(variant, number) for variant in entry.split("|")] for entry in listed.split(",")]
        for entry in entries:
            for word in entry:
                self._same[word] |= set(entry)
        self._groups.append((name, number, entries))

    def _form(self, written: str, number: Number) -> str:
        singular, _, plural = written.strip().partition("/")
        self.forms.setdefault(singular, (number, singular))
        if number == "singular":
            self.plurals[singular] = plural or plural_of(singular)
            self.forms.setdefault(self.plurals[singular], ("plural", singular))
        return singular

    def candidates(self) -> dict[tuple[str, Number], tuple[Candidate, ...]]:
        found: dict[tuple[str, Number], dict[str, Candidate]] = defaultdict(dict)
        for name, number, entries in self._groups:
            for entry in entries:
                for word in entry:
                    for other in entries:
                        if other is not entry and not set(other) & self._same[word]:
                            found[word, number].setdefault(other[0], Candidate(other[0], 1.0, name))
        result = {key: tuple(candidates.values()) for key, candidates in found.items()}
        for (word, number), candidates in list(result.items()):
            if number == "singular":
                in_plural = tuple(Candidate(self.plurals[one.word], one.weight, one.why) for one in candidates)
                result[word, "plural"] = result.get((word, "plural"), ()) + in_plural
        return result


def _adjectives(text: str) -> dict[str, tuple[Candidate, ...]]:
    """Opposites weigh as much together as the whole group of peers: half of the draws are contradictions."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    same: dict[str, set[str]] = defaultdict(set)
    pairs = [line for line in _lines(text) if "<>" in line]
    for line in _lines(text):
        sides = line.split("<>") if "<>" in line else line.partition(":")[2].split(",")
        for side in sides:
            entry = [word.strip() for word in side.split("|")]
            for word in entry:
                same[word] |= set(entry)
    for line in pairs:
        left, right = ([word.strip() for word in side.split("|")] for side in line.split("<>"))
        for here, there in ((left, right), (right, left)):
            for word in here:
                groups[word] += [Candidate(other, 1.0 / (1 + place), "opposite") for place, other in enumerate(there)]
    for line in _lines(text):
        if line in pairs:
            continue
        name, _, listed = line.partition(":")
        entries = [[word.strip() for word in entry.split("|")] for entry in listed.split(",")]
        for entry in entries:
            for word in entry:
                groups[word] += [
                    Candidate(other[0], 1.0 / len(entries), name.strip())
                    for other in entries
                    if other is not entry and not set(other) & same[word]
                ]
    return {word: tuple(_distinct(found, same[word])) for word, found in groups.items()}


def _distinct(candidates: list[Candidate], same: set[str]) -> list[Candidate]:
    kept: dict[str, Candidate] = {}
    for one in candidates:
        if one.word not in same:
            kept.setdefault(one.word, one)
    return list(kept.values())


def _prepositions(text: str) -> dict[str, tuple[Candidate, ...]]:
    found: dict[str, list[Candidate]] = defaultdict(list)
    same: dict[str, set[str]] = defaultdict(set)
    section, sections = "", defaultdict(list)
    for line in _lines(text):
        if line.startswith("["):
            section = line.strip("[]")
            continue
        if line.startswith("!"):
            alike = {word.strip() for word in line[1:].split(",")}
            for word in alike:
                same[word] |= alike
            continue
        entry = [(word, float(weight)) for word, _, weight in (one.strip().rpartition(" ") for one in line.split(","))]
        sections[section].append(entry)
        for word, _ in entry:
            same[word] |= {other for other, _ in entry}
    for section, lines in sections.items():
        for entry in lines:
            for word, _ in entry:
                found[word] += [
                    Candidate(other, weight, section)
                    for line in lines
                    if line is not entry
                    for other, weight in line
                    if other not in same[word]
                ]
    return {word: tuple(_distinct(listed, same[word])) for word, listed in found.items()}


def _sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    section: list[str] = []
    for line in _lines(text):
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), [])
        else:
            section += line.split()
    return found
