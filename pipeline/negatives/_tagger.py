"""Parts of speech of captions: by spaCy where its model is installed, else by a small tagger over our lexicon.

The small tagger is a few rules over closed lists. It is made for captions of photographs (present tense, short
noun phrases) and prefers to say "other" where it does not know, since a word that is taken for a noun wrongly
makes a bad negative and a noun that is missed makes none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ...errors import InputError
from ._lexicon import Lexicon, Number, lexicon
from ._text import Word, is_word, words_of

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

Tag = Literal[
    "noun", "adjective", "preposition", "verb", "determiner", "conjunction", "pronoun", "adverb", "number", "other"
]
Tagger = Literal["auto", "spacy", "own"]
MANY = frozenset({"some", "many", "several", "few", "these", "those", "all", "both", "various", "multiple", "most"})
NO_GERUND = frozenset({"thing", "king", "ring", "wing", "string", "ceiling", "building", "morning", "evening", "bling"})


class Unit(NamedTuple):
    """A word, or several that stand for one ("traffic light", "next to").

    number  of nouns: "singular", "plural" or "mass"; "" where unknown or no noun
    lemma   of nouns: the singular, lower case
    light   of nouns: says little by itself ("group", "side") and is never exchanged
    """

    text: str
    start: int
    end: int
    tag: Tag
    number: Number | Literal[""] = ""
    lemma: str = ""
    light: bool = False


class Chunk(NamedTuple):
    """A noun phrase: units [first, last], of which `last` is its head."""

    first: int
    last: int


class Tagged(NamedTuple):
    """A caption's units and noun phrases."""

    text: str
    units: tuple[Unit, ...]
    chunks: tuple[Chunk, ...]


def tag_all(texts: Iterable[str], tagger: Tagger = "auto", model: str = "en_core_web_sm") -> Iterator[Tagged]:
    """Tag captions, one after the other. Raises `InputError` if spaCy is asked for and is not installed."""
    nlp = _spacy(model) if tagger != "own" else None
    if nlp is None and tagger == "spacy":
        cure = f'Install it: pip install "compal[spacy]" && python -m spacy download {model}'
        raise InputError(f"spaCy's model {model} is not installed", cure)
    if nlp is None:
        yield from map(tag, texts)
    else:
        yield from map(from_spacy, nlp.pipe(texts))


def version(tagger: Tagger, model: str) -> str:
    """What tags: spaCy's model and its version, or the version of our lexicon."""
    nlp = _spacy(model) if tagger != "own" else None
    if nlp is None:
        return f"own {lexicon().version}"
    return f"spacy {nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']}"


@cache
def _spacy(model: str) -> Language | None:
    """spaCy's pipeline; None where the library or the model is missing, which is seen without importing spaCy: a
    model is a package or a folder."""
    if not Path(model).is_dir() and ("." in model or importlib.util.find_spec(model) is None):
        return None
    try:
        import spacy

        return spacy.load(model, exclude=["ner", "lemmatizer"])
    except (ImportError, OSError):
        return None


# --- our own ---------------------------------------------------------------------------------------------


def tag(text: str) -> Tagged:
    """Tag one caption by the lexicon."""
    known = lexicon()
    units: list[Unit] = []
    pieces = words_of(text)
    lowered = [piece.text.lower() for piece in pieces]
    at = 0
    while at < len(pieces):
        unit, used = _longest(known, text, pieces, lowered, at)
        units.append(unit)
        at += used
    for place in range(len(units)):
        units[place] = _resolved(known, units, place)
    chunks = tuple(_chunks(units))
    for chunk in chunks:
        units[chunk.last] = _counted(known, units, chunk)
    return Tagged(text, tuple(units), chunks)


def _counted(known: Lexicon, units: Sequence[Unit], chunk: Chunk) -> Unit:
    """The head; "sheep" is one only behind a word that says so, or may."""
    head, first = units[chunk.last], units[chunk.first]
    invariant = head.number == "singular" and known.plurals.get(head.lemma) == head.text.lower()
    some = first.tag in ("number", "noun", "adjective") or first.text.lower() in MANY
    return head._replace(number="plural") if invariant and some else head


def _longest(known: Lexicon, text: str, pieces: Sequence[Word], lowered: Sequence[str], at: int) -> tuple[Unit, int]:
    """The longest entry of the lexicon that begins here, and of how many words it is."""
    for size in range(min(known.longest, len(pieces) - at), 1, -1):
        form = " ".join(lowered[at : at + size])
        start, end = pieces[at].start, pieces[at + size - 1].end
        if text[start:end].lower() != form:  # other white space or punctuation between
            continue
        if form in known.prepositions:
            return Unit(text[start:end], start, end, "preposition"), size
        if form in known.nouns:
            number, lemma = known.nouns[form]
            return Unit(text[start:end], start, end, "noun", number, lemma), size
    piece = pieces[at]
    return Unit(piece.text, piece.start, piece.end, "other"), 1


def _resolved(known: Lexicon, units: Sequence[Unit], place: int) -> Unit:
    """The unit with its tag; those before it have theirs."""
    unit = units[place]
    if unit.tag != "other" or not is_word(unit.text):
        return unit
    word = unit.text.lower()
    before = units[place - 1].tag if place else "other"
    after = units[place + 1].text.lower() if place + 1 < len(units) else ""
    after_tag = units[place + 1].tag if place + 1 < len(units) else "other"
    tagged = _tag_of(known, word, before, after, after_tag)
    if tagged != "noun":
        return unit._replace(tag=tagged)
    number, lemma = known.nouns.get(word) or _guessed(word)
    return unit._replace(tag="noun", number=number, lemma=lemma, light=lemma in known.words["light noun"])


def _guessed(word: str) -> tuple[Number, str]:
    if word.endswith(("ches", "shes", "xes")):
        return "plural", word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return "plural", word[:-1]
    return "singular", word


def _tag_of(known: Lexicon, word: str, before: Tag, after: str, after_tag: Tag) -> Tag:
    words = known.words
    for section, tagged in (("determiner", "determiner"), ("conjunction", "conjunction"), ("pronoun", "pronoun")):
        if word in words[section]:
            return tagged  # type: ignore[return-value]
    if word in words["auxiliary"]:
        return "verb"
    nominal = before in ("determiner", "adjective", "number", "preposition", "noun")
    before_noun = after_tag == "noun" or _may_be(known, after, "noun") or _may_be(known, after, "adjective")
    is_noun, is_adjective = _may_be(known, word, "noun"), _may_be(known, word, "adjective")
    is_verb = _may_be(known, word, "verb")
    if word.isdigit() or (is_adjective and any(one.why == "number" for one in known.opposites.get(word, ()))):
        return "number"
    if word in known.prepositions or word in words["preposition"]:
        opens = before_noun or after in words["determiner"] or after in words["pronoun"] or after.isdigit()
        if opens or _may_be(known, after, "number") or word not in words["adverb"]:
            return "preposition"
    if word in words["adverb"] or (word.endswith("ly") and len(word) > 4 and not is_adjective and not is_noun):
        return "adverb"
    if is_adjective and (not is_noun or before_noun) and not (is_verb and before in ("noun", "pronoun")):
        return "adjective"
    if is_verb and (not is_noun or before in ("noun", "pronoun", "adverb")) and not _inside_phrase(before, after_tag):
        return "verb"
    if is_noun:
        return "noun"
    if is_verb or (word.endswith(("ing", "ed")) and len(word) > 4 and word not in NO_GERUND):
        return "verb"
    ends = not after or not after[0].isalnum() or after in known.prepositions or after in words["auxiliary"]
    if nominal and before != "noun" and (ends or after in words["conjunction"] or _may_be(known, after, "verb")):
        return "noun"
    return "other"


def _inside_phrase(before: Tag, after_tag: Tag) -> bool:
    return before in ("determiner", "adjective", "number") and after_tag != "noun"


def _may_be(known: Lexicon, word: str, tagged: str) -> bool:
    words = known.words
    if tagged == "noun":
        if word in known.nouns or word in words["noun"] or word in words["light noun"]:
            return True
        stems = [word.removesuffix(ending) for ending in ("s", "es") if word.endswith(ending)]
        return any(stem in words["noun"] or stem in words["light noun"] for stem in stems)
    if tagged == "adjective":
        return word in known.adjectives
    if tagged == "number":
        return any(one.why == "number" for one in known.opposites.get(word, ()))
    return word in words["irregular verb"] or _verb_stem(known, word)


def _verb_stem(known: Lexicon, word: str) -> bool:
    verbs = known.words["verb"]
    if word in verbs:
        return True
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending):
            stem = word[: -len(ending)]
            if stem in verbs or stem + "e" in verbs or (len(stem) > 2 and stem[-1] == stem[-2] and stem[:-1] in verbs):
                return True
    return False


def _chunks(units: Sequence[Unit]) -> Iterator[Chunk]:
    """[determiner] (number | adjective | noun | participle)* noun, as long as it goes."""
    at = 0
    while at < len(units):
        start = at
        while at < len(units) and units[at].tag == "determiner":
            at += 1
        inner, head = at, -1
        while at < len(units) and _belongs(units, at, inner):
            head = at if units[at].tag == "noun" else head
            at += 1
        if head >= 0:
            yield Chunk(start, head)
            at = head + 1
        else:
            at = max(at, start + 1)


def _belongs(units: Sequence[Unit], at: int, inner: int) -> bool:
    """Whether the unit goes on with a phrase; a participle only right behind the determiner: "a parked car"."""
    unit = units[at]
    if unit.tag == "verb":
        follows = at + 1 < len(units) and units[at + 1].tag in ("noun", "adjective")
        return follows and at == inner and inner > 0 and units[inner - 1].tag == "determiner"
    return unit.tag in ("number", "adjective", "noun")


# --- spaCy's ---------------------------------------------------------------------------------------------

_SPACY_TAGS: dict[str, Tag] = {
    "NOUN": "noun", "PROPN": "noun", "ADJ": "adjective", "ADP": "preposition", "VERB": "verb", "AUX": "verb",
    "DET": "determiner", "CCONJ": "conjunction", "SCONJ": "conjunction", "PRON": "pronoun", "ADV": "adverb",
    "NUM": "number",
}  # fmt: skip


def from_spacy(doc: Doc) -> Tagged:
    """spaCy's tags and noun chunks; our own multi-word nouns and prepositions stay together."""
    known, text = lexicon(), doc.text
    pieces = [Word(token.text, token.idx, token.idx + len(token.text)) for token in doc if not token.is_space]
    tokens = [token for token in doc if not token.is_space]
    lowered = [piece.text.lower() for piece in pieces]
    units: list[Unit] = []
    owner: dict[int, int] = {}
    at = 0
    while at < len(pieces):
        unit, used = _longest(known, text, pieces, lowered, at)
        for token in tokens[at : at + used]:
            owner[token.i] = len(units)
        units.append(unit if used > 1 else _unit_of(known, tokens[at], unit))
        at += used
    chunks = []
    for span in doc.noun_chunks:
        inside = sorted({owner[token.i] for token in span if token.i in owner})
        if inside and units[inside[-1]].tag == "noun":
            chunks.append(Chunk(inside[0], inside[-1]))
    return Tagged(text, tuple(units), tuple(chunks))


def _unit_of(known: Lexicon, token: Any, unit: Unit) -> Unit:
    tagged = _SPACY_TAGS.get(token.pos_, "other")
    if tagged != "noun":
        return unit._replace(tag=tagged)
    word = unit.text.lower()
    number, lemma = known.nouns.get(word) or _guessed(word)
    if token.tag_ in ("NNS", "NNPS") and number == "singular":
        number = "plural"
    return unit._replace(tag="noun", number=number, lemma=lemma, light=lemma in known.words["light noun"])
