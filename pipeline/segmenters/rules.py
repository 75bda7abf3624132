"""Noun phrases and relations of simple English captions by closed word lists: no model, the same everywhere.

A noun phrase is determiners, numbers and adjectives before one or more nouns; a noun is what no list holds. It is an
"object" where a determiner, a number or an adjective says which, and a "phrase" where none does ("grass"). "A bowl of
soup" is one phrase, "a star with stripes" too; "a picture of" names no object. Two phrases with nothing but verbs,
prepositions and adverbs between them make a "relation", from the start of the first to the end of the second;
"with", "next to" and "of" alone make none, as they list ("a cup next to a plate").

On the captions of the embedded world it finds exactly the segments of the grammar. On natural captions it errs where
a word is a noun or a verb by context; `tests/pipeline/test_segmenters.py` keeps such cases.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UsageError
from ...stores.items import Segment
from . import _words as words

VERSION = "1"
_COMPOUND = "|".join(re.escape(one).replace(r"\ ", r"\s+") for one in sorted(words.COMPOUND, key=len, reverse=True))
_TOKEN = re.compile(rf"\b(?:{_COMPOUND})\b|[^\W_]+(?:['’\-][^\W_]+)*|[^\w\s]", re.IGNORECASE)
_BEFORE_NOUN = ("determiner", "number", "adjective")


@dataclass
class Token:
    """A word, or a preposition of several; `tag` is its part of speech."""

    start: int
    end: int
    text: str
    tag: str = ""


@dataclass(frozen=True)
class Phrase:
    """Tokens [first, last] of a noun phrase whose head is token `head`; `told` where something precedes the noun."""

    first: int
    head: int
    last: int
    told: bool


def version(argument: str = "") -> str:
    """The version of the rules and their words. Raises `UsageError` for an argument: they take none."""
    if argument:
        raise UsageError(f"segmenter 'rules' takes no argument, not '{argument}'", "Say --segments rules.")
    return VERSION


def segment(captions: Sequence[str], argument: str = "") -> list[tuple[Segment, ...]]:
    """The segments of each caption: objects and phrases in their order, then relations."""
    return [_segments(caption) for caption in captions]


def _segments(caption: str) -> tuple[Segment, ...]:
    tokens = tagged(caption)
    phrases = [phrase for phrase in _phrases(tokens) if not _names_picture(tokens, phrase)]
    named = [(tokens[one.first].start, tokens[one.last].end, "object" if one.told else "phrase") for one in phrases]
    related = [
        (tokens[one.first].start, tokens[other.last].end, "relation")
        for one, other in itertools.pairwise(phrases)
        if _relates(tokens[one.last + 1 : other.first])
    ]
    return (*named, *related)


def tagged(caption: str) -> list[Token]:
    """The tokens of a caption with their parts of speech."""
    tokens = [
        Token(found.start(), found.end(), re.sub(r"\s+", " ", found[0].lower())) for found in _TOKEN.finditer(caption)
    ]
    for token in tokens:
        token.tag = _closed(token.text)
    for index, token in enumerate(tokens):
        before = tokens[index - 1].tag if index else ""
        after = tokens[index + 1].tag if index + 1 < len(tokens) else ""
        plural = bool(index) and _is_plural(tokens[index - 1].text)
        if token.text in ("that", "this", "these", "those"):
            token.tag = "pronoun" if before == "noun" or after not in ("", *_BEFORE_NOUN) else "determiner"
        elif (token.text in words.EITHER and before == "noun") or (token.text == "one" and before == "adjective"):
            token.tag = "noun"
        elif not token.tag:
            token.tag = _open(token.text, before, after, plural)
    return tokens


def _closed(word: str) -> str:
    """The part of speech that a word of a list has, "" for others. -ly makes adverbs."""
    if word in words.COMPOUND or word in words.PREPOSITIONS:
        return "preposition"
    for tag, known in (
        ("determiner", words.DETERMINERS),
        ("adjective", words.ADJECTIVES),
        ("conjunction", words.CONJUNCTIONS),
        ("pronoun", words.PRONOUNS),
        ("adverb", words.ADVERBS),
        ("verb", words.AUXILIARIES),
    ):
        if word in known:
            return tag
    if word in words.NUMBERS or word.isdigit():
        return "number"
    if not word[0].isalnum():
        return "mark"
    return "adverb" if word.endswith("ly") and len(word) > 4 and word not in ("family", "butterfly") else ""


def _open(word: str, before: str, after: str, plural: bool) -> str:
    """Verb, adjective or noun by the ending and the neighbours; `after` is "" for a word that is in no list yet."""
    follows = after in ("", "adjective", "noun")
    if word in words.NOUNS:
        return "noun"
    if word in words.VERBS:
        agrees = plural != word.endswith("s")  # "cows stand", "a cow stands"
        subject = before in ("pronoun", "adverb", "verb") or (before == "noun" and (agrees or not follows))
        return "verb" if subject or not before else "noun"
    if word.endswith("ing") and len(word) > 4:
        if before in _BEFORE_NOUN:
            return "adjective" if after in ("", "adjective") else "noun"
        return "verb"
    if word.endswith("ed") and len(word) > 3:
        return "adjective" if before not in ("noun", "pronoun", "verb", "adverb") and follows else "verb"
    return "noun"


def _is_plural(word: str) -> bool:
    return word in words.PLURALS or (word.endswith("s") and not word.endswith("ss"))


def _phrases(tokens: Sequence[Token]) -> list[Phrase]:
    found: list[Phrase] = []
    index = 0
    while index < len(tokens):
        phrase = _phrase_at(tokens, index)
        if phrase is None:
            index += 1
            continue
        found.append(phrase)
        index = phrase.last + 1
    return found


def _phrase_at(tokens: Sequence[Token], first: int) -> Phrase | None:
    """The noun phrase that starts at a token, with what belongs behind its noun; None if there is none."""
    tags = [token.tag for token in tokens] + ["", ""]
    index = first
    while tags[index] in _BEFORE_NOUN or (index > first and tags[index : index + 2] == ["adverb", "adjective"]):
        index += 1
        # "black and white", "red, white": more of the same before the noun
        if tags[index - 1] == "adjective" and tags[index + 1] == "adjective":
            index += tokens[index].text in ("and", ",")
    head = index
    while tags[head] == "noun":
        head += 1
    head -= 1
    if head < index:
        return None
    told = index > first
    after = tokens[head + 1].text if head + 1 < len(tokens) else ""
    if after == "with" and head + 2 < len(tokens) and tokens[head + 2].text in words.PATTERNS:
        return Phrase(first, head, head + 2, told)
    if after == "of" and tokens[head].text in words.QUANTITIES:
        inner = _phrase_at(tokens, head + 2) if head + 2 < len(tokens) else None
        if inner is not None:
            return Phrase(first, inner.head, inner.last, told)
    return Phrase(first, head, head, told)


def _names_picture(tokens: Sequence[Token], phrase: Phrase) -> bool:
    """Whether the phrase is the picture: "a picture of …", "… in an image", "this drawing shows …"."""
    if tokens[phrase.head].text not in words.PICTURES:
        return False
    before = tokens[phrase.first - 1].text if phrase.first else ""
    after = tokens[phrase.last + 1].text if phrase.last + 1 < len(tokens) else ""
    return before == "in" or after in ("of", "with") or after.startswith(("show", "look"))


def _relates(between: Sequence[Token]) -> bool:
    """Whether what stands between two phrases relates them."""
    plain = [token for token in between if token.text not in words.RELATIVES]
    tags = {token.tag for token in plain}
    if tags - {"verb", "preposition", "adverb"}:
        return False
    return "verb" in tags or any(token.tag == "preposition" and token.text not in words.LISTING for token in plain)
