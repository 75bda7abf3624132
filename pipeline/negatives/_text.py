"""Words of a caption and what changing them asks for: casing, a or an, the form of a sentence's beginning."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\s]", re.UNICODE)
_ARTICLE = re.compile(r"\b(an?)(\s+)([^\W_]+(?:-[^\W_]+)*)", re.I)
# Letters whose names begin with a vowel sound: "an SUV", "a UFO".
_VOWEL_LETTERS = frozenset("AEFHILMNORSX")
_SPOKEN_VOWEL = ("hour", "honest", "honor", "honour", "heir")
_SPOKEN_CONSONANT = re.compile(
    r"(one(?![a-z])|once|ones|one-|uni(?!n|m)|use|using|usual|utensil|utility|uk(ul|ra)|europ|eu[crl]|ewe|ufo|u-)", re.I
)


class Word(NamedTuple):
    """A word or one other character of a caption, and where it stands."""

    text: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """The words (letters and digits, joined by hyphens and apostrophes) and single other characters of a text."""
    return [Word(found[0], found.start(), found.end()) for found in _WORD.finditer(text)]


def is_word(text: str) -> bool:
    """Whether a piece of `words_of` is a word, not punctuation."""
    return text[:1].isalnum()


def bag(text: str) -> Counter[str]:
    """The words of a text with their counts, case folded; "an" counts as "a"."""
    folded = (word.text.casefold() for word in words_of(text) if is_word(word.text))
    return Counter("a" if word == "an" else word for word in folded)


def plain(text: str) -> str:
    """The text for comparing: its words alone, case folded, in Unicode's composed form."""
    return " ".join(word.text.casefold() for word in words_of(unicodedata.normalize("NFC", text)) if is_word(word.text))


def rebuild(text: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """The text with the spans (start, end) replaced, articles before what changed corrected.

    Spans do not overlap.
    """
    shift, result, starts = 0, text, []
    for start, end, new in sorted(changes):
        result = result[: start + shift] + new + result[end + shift :]
        starts.append((start + shift, start + shift + len(new)))
        shift += len(new) - (end - start)
    return correct_articles(result, starts)


def correct_articles(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Make "a" or "an" fit the word behind it, where article or word touches one of the spans."""

    loud = text.isupper()  # then no word is an abbreviation

    def fit(found: re.Match[str]) -> str:
        touched = any(start < found.end() and found.start() < end for start, end in spans)
        right = wanted_article(found[3].lower() if loud else found[3])
        if not touched or right == found[1].lower():
            return found[0]
        return (right.upper() if loud else right.capitalize() if found[1][0].isupper() else right) + found[2] + found[3]

    return _ARTICLE.sub(fit, text)


def wanted_article(word: str) -> str:
    """ "a" or "an", by the sound that the word begins with."""
    if len(word) > 1 and word.isupper():
        vowel = word[0] in _VOWEL_LETTERS
    elif _SPOKEN_CONSONANT.match(word):
        vowel = False
    else:
        vowel = word.lower().startswith(_SPOKEN_VOWEL) or word[0].lower() in "aeiou"
    return "an" if vowel else "a"


def wrong_articles(text: str) -> int:
    """How often "a" or "an" does not fit the word behind it."""
    words = ((found[1].lower(), found[3]) for found in _ARTICLE.finditer(text))
    return sum(article != wanted_article(word.lower() if text.isupper() else word) for article, word in words)


def cased_like(new: str, old: str) -> str:
    """`new` in the casing of `old`: ALL CAPITALS (an abbreviation such as "TV" is none), Capitalised, or as it is."""
    letters = [letter for letter in old if letter.isalpha()]
    if len(letters) > 3 and all(letter.isupper() for letter in letters):
        return new.upper()
    if letters and letters[0].isupper() and not (len(letters) > 1 and letters[1].isupper()):
        return new[:1].upper() + new[1:]
    return new


def to_front(new: str, old: str) -> str:
    """`new` at the beginning of a caption that began with `old`: a capital belongs to the place."""
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def from_front(new: str) -> str:
    """`new` as it stands inside a caption that began with it: without its capital, unless it has more of them, as
    abbreviations and some names have ("TV", "McDonald"); other names lose it."""
    word = new.split(" ")[0]
    return new if word == "I" or any(letter.isupper() for letter in word[1:]) else new[:1].lower() + new[1:]


def repeated_words(text: str) -> int:
    """How often a word follows itself."""
    found = [word.text.casefold() for word in words_of(text)]
    return sum(one == other and is_word(one) for one, other in pairwise(found))
