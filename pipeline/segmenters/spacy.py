"""Noun chunks and subject-verb-object relations by a spaCy model (spacy[:MODEL], en_core_web_sm by default).

A noun chunk with an adjective is an "object", without one a "phrase"; pronouns and the picture itself ("a photo of")
are none. A relation runs from a subject to its object or to the object of a preposition ("a man riding a wave",
"a cat on a mat"). The model and its version are part of the segmenter's version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from ...errors import InputError
from ...stores.items import Segment
from . import _words as words

VERSION = "1"
MODEL = "en_core_web_sm"
SUBJECTS = ("nsubj", "nsubjpass", "nsubj:pass")
OBJECTS = ("dobj", "obj", "attr", "dative", "iobj")
PREPOSITIONAL = ("pobj", "obl", "nmod")
# A participle that says what its noun does: "a man riding", "a dog that runs".
CLAUSES = ("acl", "relcl", "acl:relcl")


def version(argument: str = "") -> str:
    """The rules' version, the model and the model's. Raises `InputError` if spaCy or the model is not there."""
    meta = _pipeline(argument or MODEL).meta
    return f"{VERSION}-{meta['lang']}_{meta['name']}-{meta['version']}"


def segment(captions: Sequence[str], argument: str = "") -> list[tuple[Segment, ...]]:
    """The segments of each caption: chunks in their order, then relations. Raises as `version`."""
    return [segments_of(doc) for doc in _pipeline(argument or MODEL).pipe(captions)]


@cache
def _pipeline(model: str) -> Any:
    try:
        import spacy
    except ImportError:
        raise InputError("segmenter 'spacy' needs spaCy", 'Install it: pip install "compal[spacy]"') from None
    try:
        loaded = spacy.load(model, exclude=["ner", "textcat"])
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        cure = f'Fetch it: python -m spacy download {model} (spaCy itself: pip install "compal[spacy]")'
        raise InputError(f"spaCy cannot load the model '{model}': {reason}", cure) from None
    if not loaded.has_pipe("parser"):
        raise InputError(f"the spaCy model '{model}' has no parser", f"Choose one that has: spacy:{MODEL}")
    return loaded


def segments_of(doc: Any) -> tuple[Segment, ...]:
    """The segments of a parsed document."""
    chunks = {chunk.root.i: chunk for chunk in doc.noun_chunks if _names_something(chunk)}
    named = [(*_characters(chunk), _kind(chunk)) for chunk in chunks.values()]
    related = [
        (min(start, other), max(end, last), "relation")
        for subject, target in _relations(doc, chunks)
        for (start, end), (other, last) in [(_characters(chunks[subject]), _characters(chunks[target]))]
    ]
    return (*sorted(named), *sorted(set(related)))


def _characters(chunk: Any) -> tuple[int, int]:
    return chunk.start_char, chunk.end_char


def _kind(chunk: Any) -> str:
    return "object" if any(token.pos_ == "ADJ" or token.dep_ == "amod" for token in chunk) else "phrase"


def _names_something(chunk: Any) -> bool:
    root = chunk.root
    if root.pos_ == "PRON" or not any(character.isalnum() for character in chunk.text):
        return False
    told = any(child.lower_ in ("of", "with") for child in root.children) or root.dep_ in SUBJECTS
    inside = root.dep_ in PREPOSITIONAL and root.head.lower_ == "in"
    return root.lower_ not in words.PICTURES or not (told or inside)


def _relations(doc: Any, chunks: dict[int, Any]) -> Iterator[tuple[int, int]]:
    """Pairs of chunks' roots: who does or stands how, to what."""
    for token in doc:
        if token.pos_ in ("VERB", "AUX"):
            subjects = [child.i for child in token.children if child.dep_ in SUBJECTS and child.i in chunks]
            if not subjects and token.dep_ in CLAUSES and token.head.i in chunks:
                subjects = [token.head.i]
        else:
            # Of "of" and "with" alone no relation is made: they name one thing, or list.
            subjects = [token.i] if token.i in chunks else []
        for subject in subjects:
            yield from ((subject, target) for target in _targets(token, chunks) if target != subject)


def _targets(token: Any, chunks: dict[int, Any]) -> Iterator[int]:
    verb = token.pos_ in ("VERB", "AUX")
    for child in token.children:
        if verb and child.dep_ in OBJECTS and child.i in chunks:
            yield child.i
        elif child.dep_ in ("prep", "agent") and (verb or child.lower_ not in words.LISTING):
            yield from (some.i for some in child.children if some.dep_ in PREPOSITIONAL and some.i in chunks)
