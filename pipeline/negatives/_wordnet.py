"""Co-hyponyms and antonyms out of WordNet, read by nltk from its data or from a folder of WordNet's files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import InputError
from ._lexicon import Candidate

INSTALL = 'Install it: pip install "compal[wordnet]" && python -m nltk.downloader wordnet; or lexicon=own.'


@cache
def reader(lexicon: str, folder: str) -> Any:
    """nltk's WordNet; None if `lexicon` is "own", or "auto" and it is not installed. Raises `InputError` where it
    is asked for and missing."""
    if lexicon == "own":
        return None
    try:
        return _open(folder)
    except (ImportError, LookupError, OSError, AssertionError, ValueError) as error:
        if lexicon == "auto" and not folder:
            return None
        what = "nltk is not installed" if isinstance(error, ImportError) else "WordNet's data is not installed"
        raise InputError(f"no WordNet in {folder}: {error}" if folder else what, INSTALL) from None


def _open(folder: str) -> Any:
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class English(WordNetCorpusReader):  # type: ignore[misc]
        """Without the map to other languages, which needs nltk's own copy beside the folder given."""

        def map_wn(self, version: str = "wordnet") -> None:
            return None

    root = Path(folder).expanduser() if folder else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other languages are missing
        if root is None:
            return English(nltk.data.find("corpora/wordnet"), None)
        if not (root / "data.noun").is_file():
            raise OSError("it has no data.noun")
        if str(root) not in nltk.data.path:  # nltk reads below these folders only
            nltk.data.path.append(str(root))
        return English(nltk.data.FileSystemPathPointer(str(root)), None)


def version(wordnet: Any) -> str:
    """ "WordNet 3.0 (nltk 3.9)"."""
    import nltk

    return f"WordNet {wordnet.get_version() or 'of unknown version'} (nltk {nltk.__version__})"


@cache
def nouns(wordnet: Any, word: str, senses: int = 1, least: int = 1) -> tuple[Candidate, ...]:
    """Words below the hypernym of a hypernym of the word, siblings included, that share no sense with it. Their
    weight is how often WordNet counted them, at least 1; those counted less than `least` times are left out."""
    lemma = wordnet.morphy(word.replace(" ", "_"), "n") or word.replace(" ", "_")
    own = wordnet.synsets(lemma, "n")
    cousins = (cousin for sense in own[:senses] for cousin in _cousins(sense))
    antonyms = (opposite.synset() for sense in own[:senses] for one in sense.lemmas() for opposite in one.antonyms())
    return _candidates(wordnet, own, _named((("antonym", antonyms), ("co-hyponym", cousins))), least)


@cache
def adjectives(wordnet: Any, word: str, senses: int = 1, least: int = 1) -> tuple[Candidate, ...]:
    """Antonyms, those of similar adjectives too, and adjectives that are cousins as nouns are: red, as a colour."""
    own = wordnet.synsets(word, "a")
    looked = own[:senses]
    near = [*looked, *(similar for sense in looked for similar in sense.similar_tos())]
    antonyms = (opposite.synset() for sense in near for one in sense.lemmas() for opposite in one.antonyms())
    related = {
        form.synset()
        for sense in looked
        for one in sense.lemmas()
        if one.name() == word.replace(" ", "_")
        for form in one.derivationally_related_forms()
        if form.synset().pos() == "n"
    }
    cousins = (
        adjective
        for noun in sorted(related, key=lambda sense: str(sense.name()))
        for cousin in _cousins(noun)
        for one in cousin.lemmas()
        for adjective in wordnet.synsets(one.name(), "a")[:1]
    )
    return _candidates(wordnet, own, _named((("antonym", antonyms), ("co-hyponym", cousins))), least)


def _named(sources: Iterable[tuple[str, Iterable[Any]]]) -> Iterator[tuple[str, Any]]:
    for why, synsets in sources:
        for synset in synsets:
            yield why, synset


def _cousins(sense: Any) -> Iterator[Any]:
    """What has a grandparent in common with the sense; siblings too, and the sense's own children never."""
    seen = {sense, *sense.hypernyms(), *sense.closure(lambda one: one.hyponyms())}
    for parent in sense.hypernyms():
        for family in (parent, *(uncle for grand in parent.hypernyms() for uncle in grand.hyponyms())):
            for cousin in family.hyponyms():
                if cousin not in seen:
                    seen.add(cousin)
                    yield cousin


def _candidates(
    wordnet: Any, own: Iterable[Any], found: Iterable[tuple[str, Any]], least: int
) -> tuple[Candidate, ...]:
    """The words of the synsets, without names and whatever shares a synset with the original."""
    own = set(own)
    same = {one.name().lower() for sense in own for one in sense.lemmas()}
    kept: dict[str, Candidate] = {}
    for why, synset in found:
        for one in synset.lemmas():
            name = one.name()
            if name in same or name != name.lower() or not name.replace("_", "").replace("-", "").isalpha():
                continue
            if own & set(wordnet.synsets(name, synset.pos().replace("s", "a"))):
                continue
            count = int(one.count())
            if count >= least or why == "antonym":
                kept.setdefault(name, Candidate(name.replace("_", " "), float(max(count, 1)), why))
    return tuple(kept.values())
