"""What a language model answered: cleaned, and judged by the rules of its prompt."""

from __future__ import annotations

import difflib
import re
import unicodedata

from ._text import bag, is_word, plain, words_of

QUOTES = "\"'“”‘’«»`*"
REFUSAL = re.compile(
    r"(i['’]?m sorry|i am sorry|sorry\b|i apologi[sz]e|i can(no|['’])t\b|i am (not able|unable)"
    r"|i['’]m (not able|unable)|as an ai\b|unfortunately|i won['’]t|i will not)",
    re.I,
)
PREFIX = re.compile(
    r"(here (is|are)|here['’]s|sure\b|certainly|of course|okay\b|new caption|caption\b\s*:|rewritten|rewrite\b"
    r"|answer\b\s*:|output\b\s*:|result\b\s*:|note\b\s*:|negative\b\s*:|original\b\s*:)",
    re.I,
)
SAME_WORDS = frozenset({"reshuffle", "swap-nouns", "swap-adjectives"})
FEW_CHANGES = frozenset({"replace-nouns", "replace-adjectives"})
IN_PLACE = frozenset({"swap-nouns", "swap-adjectives", *FEW_CHANGES})
SHORTEST, LONGEST = 0.6, 1.6  # words of the answer as shares of the original's; two more or fewer are always allowed


def cleaned(answer: str) -> str:
    """Without white space and quotation marks around it."""
    text = answer.strip()
    while len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
        text = text[1:-1].strip()
    return text


def judge(original: str, answer: str, kind: str) -> str:
    """Why a cleaned answer is no negative of type `kind`; "" if it is one. Types that we do not ship are only held
    to what holds for all: one line, no refusal, no preamble, another text in the same script and of like length."""
    if not answer:
        return "empty"
    if len(answer.splitlines()) > 1:
        return "several lines"
    if REFUSAL.match(answer):
        return "a refusal"
    if PREFIX.match(answer) and not PREFIX.match(original):
        return "a preamble"
    if plain(answer) == plain(original):
        return "the original"
    if not scripts(answer) <= scripts(original):
        return "another script"
    before, after = bag(original).total(), bag(answer).total()
    if abs(before - after) > max(2, before * (1 - SHORTEST)) or after > max(before + 2, before * LONGEST):
        return "another length"
    return _rule(original, answer, kind)


def _rule(original: str, answer: str, kind: str) -> str:
    if kind in SAME_WORDS and bag(original) != bag(answer):
        return "not the same words"
    if kind in FEW_CHANGES and bag(original) == bag(answer):
        return "nothing replaced"
    if kind in IN_PLACE:
        kept = difflib.SequenceMatcher(None, _words(original), _words(answer), autojunk=False).ratio()
        if kept < 0.5:
            return "too much changed"
    return ""


def _words(text: str) -> list[str]:
    return [word.text.casefold() for word in words_of(text) if is_word(word.text)]


def scripts(text: str) -> set[str]:
    """The scripts of a text's letters: LATIN, CYRILLIC, CJK, …"""
    return {unicodedata.name(letter, "UNKNOWN").split(" ")[0] for letter in text if letter.isalpha()}
