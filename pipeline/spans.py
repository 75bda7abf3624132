"""Which characters of a caption a token came from, though the tokenizer cleaned the caption first."""

from __future__ import annotations

import difflib
import string
from collections.abc import Sequence

Span = tuple[int, int]
NO_SPAN: Span = (-1, -1)

# What cleaning may drop: white space (collapsed) and ASCII punctuation (open_clip's "canonicalize").
_DROPPED = frozenset(string.punctuation)


def lowered_with_origin(text: str) -> tuple[str, list[int]]:
    """The lower-cased text and, for each of its characters, the index of the one it came from.

    Lower-casing may lengthen a text ("İ" becomes two characters).
    """
    origin = [index for index, character in enumerate(text) for _ in character.lower()]
    return text.lower(), origin


def align(original: str, cleaned: str) -> list[Span]:
    """For each character of `cleaned` the (start, end) characters of `original` that it came from.

    Cleaning lower-cases, collapses white space, may drop punctuation, and repairs mojibake, typographic
    quotes and HTML entities. The first three are followed exactly; a repaired passage maps to the whole
    passage it replaces.
    """
    lowered, origin = lowered_with_origin(original)
    for source, places in ((original, range(len(original))), (lowered, origin)):
        found = _as_subsequence(source, cleaned)
        if found is not None:
            return [(places[index], places[index] + 1) for index in found]
    return [(origin[start], origin[end - 1] + 1) for start, end in _by_difference(lowered, cleaned)]


def _as_subsequence(source: str, cleaned: str) -> list[int] | None:
    """Where each character of `cleaned` stands in `source`, if all that is left out may be left out."""
    found, index = [], 0
    for character in cleaned:
        while index < len(source) and not _same(source[index], character):
            if not (source[index].isspace() or source[index] in _DROPPED):
                return None
            index += 1
        if index == len(source):
            return None
        found.append(index)
        index += 1
    rest_is_dropped = all(left.isspace() or left in _DROPPED for left in source[index:])
    return found if rest_is_dropped else None


def _same(character: str, cleaned: str) -> bool:
    return character == cleaned or (cleaned == " " and (character.isspace() or character == "_"))


def _by_difference(source: str, cleaned: str) -> list[Span]:
    spans: list[Span] = []
    matcher = difflib.SequenceMatcher(None, source, cleaned, autojunk=False)
    for kind, start, end, first, last in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and end - start == last - first):
            spans += [(start + step, start + step + 1) for step in range(last - first)]
        elif kind == "replace":
            spans += [(start, end)] * (last - first)
        elif kind == "insert":  # nothing stands there: the character before it
            spans += [(max(start - 1, 0), max(start, 1))] * (last - first)
        elif spans and source[start:end].strip(string.punctuation).isalnum():  # "amp;" of the "&" before it
            spans[-1] = (spans[-1][0], end)
    return spans


def join(places: Sequence[Span], start: int, end: int) -> Span:
    """The span in the original of characters [start, end) of the cleaned text; `NO_SPAN` if there is none."""
    return (places[start][0], places[end - 1][1]) if start < end else NO_SPAN
