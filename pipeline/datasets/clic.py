"""CLIC's pictures: two of another dataset as one, captions of both, and a word exchanged between them.

    --data clic:shapes                        of the embedded world
    --data clic:coco:/data/coco               of COCO; its splits, its options behind the same ?
    --data 'clic:coco:/data/coco?seed=1&more=2&side=224&tagger=own'

After Peleg et al. (arXiv 2505.24424, section 3; github.com/AmitPeleg/CLIC, data_loading.py). Each picture comes by
itself with its first sentence (pairs of category `single`), and joined to another of its orientation: wide ones one
above the other, high ones side by side, in a random order, each squeezed to half of a square. The captions of the
joined picture: both first sentences (category `concatenated`), the same in the other order, and up to `more` further
sentences or captions of both (category `further`). Its negative: both first sentences, a word of one exchanged for a
word of the same kind of the other, wherever it stands; words of both are left alone.

Ours: partners are drawn among the 1,024 pictures around, by the seed and the picture's key, so that `--limit` takes the
first of the same pictures; nouns are exchanged for nouns of the same number; and where no word can be exchanged, or the
exchange says the same (two captions that differ by that word alone), there is no negative. The authors exchange any two
words then. A generated picture counts as wide: those of `shapes` are square.
"""

from __future__ import annotations

import io
import json
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from ... import registry
from ...errors import UnknownName, UsageError
from ...stores.items import Item, Pair
from ...workspace import Workspace
from .. import listing
from ..negatives._lexicon import lexicon
from ..negatives._tagger import Tagged, Tagger, Unit, tag_all
from ..negatives._text import from_front, is_word, plain, rebuild, to_front
from ._files import require_root

INFO: dict[str, Any] = {
    "licence": "that of the dataset within",
    "revision": "1",  # raise it when the same pictures come to give others
    "citation": "Peleg et al., CLIC, arXiv:2505.24424",
    "splits": ("train", "validation"),
}

BLOCK = 1024  # pictures among which partners are drawn
TRIES = 8  # partners that are looked at for one that says something else
EXCHANGED = frozenset({"noun", "adjective", "number", "preposition", "verb", "adverb", "pronoun"})
# A capital after a full stop begins a sentence, unless that ends a title or an initial.
_SENTENCE = re.compile(r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\b[A-Z]\.)(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class Options:
    """What may follow a `?`.

    seed    of partners, orders and exchanges
    more    further captions of a joined picture, at most
    side    of the joined picture, pixels, even
    tagger  of words: "own", or "spacy" where its model is installed
    """

    seed: int = 0
    more: int = 2
    side: int = 224
    tagger: Tagger = "own"

    def __post_init__(self) -> None:
        if self.side < 2 or self.side % 2 or self.more < 0:
            cure = "side is even and at least 2, more at least 0."
            raise UsageError(f"clic options side = {self.side}, more = {self.more}", cure)
        if self.tagger not in get_args(Tagger):
            raise UnknownName.among("tagger", self.tagger, get_args(Tagger))


@dataclass(frozen=True, eq=False)
class _Picture:
    """A picture of the dataset within, what it says first as an item, all its sentences; `wide` None: unreadable."""

    image: Item
    caption: Item
    sentences: tuple[str, ...]
    wide: bool | None


@dataclass(frozen=True)
class _Told:
    """Items of one picture, and its pairs."""

    items: tuple[Item, ...]
    pairs: tuple[Pair, ...]


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """Of each of the first `limit` pictures: itself, its caption, the joined picture, its captions, its negative."""
    for told in _told(root, split, limit):
        yield from told.items


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """Of each picture the pair `single`, then of the joined one `concatenated` and `further`, with its negative."""
    for told in _told(root, split, limit):
        yield from told.pairs


def splits(root: Path | None) -> list[str]:
    """Those of the dataset within."""
    _, dataset, inner, _ = _within(root)
    return list(dataset.splits(inner) if hasattr(dataset, "splits") else dataset.INFO["splits"])


def about(root: Path | None, split: str) -> dict[str, str]:
    """Licence, revision and citation of the dataset within, and how its pictures were joined."""
    from ..provenance import describe

    name, _, inner, options = _within(root)
    said = describe(f"{name}:{inner}" if inner else name, split)
    how = f"{name} {said['revision']}, joined by version {INFO['revision']} with {options}"
    return {"licence": said["licence"], "revision": how, "citation": f"{INFO['citation']}; {said['citation']}"}


def _within(root: Path | None) -> tuple[str, ModuleType, Path | None, Options]:
    """The dataset within, its root, and our options; those that are not ours stay with its root."""
    text = str(require_root("clic", root, "DATASET"))
    place, *rest = re.split(r"\?(?=\w+=)", text, maxsplit=1)
    given = [part for part in "".join(rest).split("&") if part]
    known = {field.name: field for field in fields(Options)}
    ours = dict(part.split("=", 1) for part in given if part.partition("=")[0] in known)
    theirs = [part for part in given if part.partition("=")[0] not in known]
    name, argument = registry.split_argument(place)
    dataset = registry.load("datasets", name)
    if theirs and not argument:
        option = theirs[0].partition("=")[0]
        raise UnknownName.among("clic option", option, known, f"Example: 'clic:{place}?seed=1'.")
    values: dict[str, Any] = {}
    for option, value in ours.items():
        if option != "tagger" and not re.fullmatch(r"-?\d+", value):
            raise UsageError(f"clic option {option} = {value!r} is no number", f"Example: 'clic:{place}?{option}=2'.")
        values[option] = value if option == "tagger" else int(value)
    _, inner = Workspace.in_use().dataset(f"{place}?{'&'.join(theirs)}" if theirs else place)
    return name, dataset, inner, Options(**values)


def _told(root: Path | None, split: str, limit: int | None) -> Iterator[_Told]:
    _, dataset, inner, options = _within(root)
    yield from islice(_joined(_pictures(dataset, inner, split), options), limit)


def _pictures(dataset: ModuleType, root: Path | None, split: str) -> Iterator[_Picture]:
    """Each picture once, in the order of its pairs, with the captions that stand together there."""
    listed: Iterator[Item] = iter(dataset.items(root, split))
    held: dict[str, Item] = {}

    def found(key: str) -> Item | None:
        while key not in held:
            item = next(listed, None)
            if item is None:
                return None
            held.setdefault(item.key, item)
        return held[key]

    seen: set[str] = set()
    for key, group in groupby(dataset.pairs(root, split), key=lambda pair: pair.image):
        image, captions = found(key), [found(pair.caption) for pair in group]
        said = [item for item in captions if item and _readable(item.content)]
        if image is None or key in seen or not said:
            continue
        seen.add(key)
        sentences = tuple(dict.fromkeys(one for item in said for one in _sentences(str(item.content))))
        whole = said[0].content == sentences[0]
        caption = said[0] if whole else Item.caption(sentences[0], f"{said[0].source}, first sentence")
        yield _Picture(image, caption, sentences, _wide(image))


def _readable(content: object) -> bool:
    """Whether a caption would not end in the quarantine."""
    # Lone surrogates stand for bytes that are not UTF-8.
    return isinstance(content, str) and bool(content.strip()) and not re.search("[\ud800-\udfff]", content)


def _sentences(text: str) -> list[str]:
    return [one for part in _SENTENCE.split(text) if (one := part if part == text else part.strip())]


def _wide(item: Item) -> bool | None:
    """Whether a picture is at least as wide as high, from its file's head."""
    from PIL import Image

    content: Any = item.content
    if callable(content):
        return True
    path = content if isinstance(content, Path) else getattr(content, "path", None)

    def look() -> bool:
        with Image.open(content if isinstance(content, Path) else io.BytesIO(content.read())) as image:
            return bool(image.width >= image.height)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return listing.patiently(path, look)
        # Pillow's plugins raise almost anything for malformed bytes; the quarantine says what when it is decoded.
        except (OSError, ValueError, SyntaxError, LookupError, ArithmeticError, Image.DecompressionBombError):
            return None


def _joined(pictures: Iterator[_Picture], options: Options) -> Iterator[_Told]:
    while block := list(islice(pictures, BLOCK)):
        first = [picture.sentences[0] for picture in block]
        tagged = dict(zip(first, tag_all(first, options.tagger), strict=True))
        alike = {wide: [picture for picture in block if picture.wide is wide] for wide in (True, False)}
        for own in block:
            items, pairs = [own.image, own.caption], [Pair(own.image.key, own.caption.key, category="single")]
            rng = random.Random(f"{options.seed}/{own.image.key}")
            other = _partner(own, alike, rng)
            if other is not None:
                image = _picture(own, other, rng, options.side)
                source = image.source
                captions = [Item.caption(text, source) for text in _captions(own, other, rng, options.more)]
                text = _negative(tagged[own.sentences[0]], tagged[other.sentences[0]], rng)
                wrong = [] if text is None else [Item.caption(text, f"{source}, negative")]
                items += [image, *captions, *wrong]
                keys = tuple(item.key for item in wrong)
                kinds = ["concatenated"] + ["further"] * (len(captions) - 1)
                pairs += [
                    Pair(image.key, caption.key, keys, category=kind)
                    for caption, kind in zip(captions, kinds, strict=True)
                ]
            yield _Told(tuple(items), tuple(pairs))


def _partner(own: _Picture, alike: dict[bool, list[_Picture]], rng: random.Random) -> _Picture | None:
    """Another picture of the same orientation that says something else."""
    if own.wide is None:
        return None
    for _ in range(TRIES):
        other = rng.choice(alike[own.wide])
        if plain(other.sentences[0]) != plain(own.sentences[0]):
            return other
    return None


def _picture(own: _Picture, other: _Picture, rng: random.Random, side: int) -> Item:
    """Both as one, keyed by what they are of."""
    two = [own.image, other.image]
    rng.shuffle(two)
    recipe = json.dumps(["clic", INFO["revision"], *(item.key for item in two), own.wide, side])
    source = f"clic/{own.image.source} + {other.image.source}"
    return Item.rendered(recipe.encode(), partial(_render, two[0], two[1], bool(own.wide), side), source)


def _render(first: Item, second: Item, stacked: bool, side: int) -> Any:
    """(side, side, 3) uint8: each squeezed to half of it. Raises what `decode.open_image` raises."""
    import numpy as np
    from PIL import Image

    from ..decode import open_image

    size = (side, side // 2) if stacked else (side // 2, side)
    halves = [np.asarray(open_image(item).resize(size, Image.Resampling.BICUBIC)) for item in (first, second)]
    return np.concatenate(halves, axis=0 if stacked else 1)


def _captions(own: _Picture, other: _Picture, rng: random.Random, more: int) -> list[str]:
    """Both first sentences, the same in the other order, and further ones of both."""
    first, second = own.sentences[0], other.sentences[0]
    count = min(more, len(own.sentences) - 1, len(other.sentences) - 1)
    drawn = [rng.sample(picture.sentences[1:], count) for picture in (own, other)]
    further = []
    for two in zip(*drawn, strict=True):
        either = list(two)
        rng.shuffle(either)
        further.append(_together(either))
    return list(dict.fromkeys([_together([first, second]), _together([second, first]), *further]))


def _together(texts: Sequence[str]) -> str:
    """Sentences one after the other, each with its full stop."""
    ended = [text.rstrip() if text.rstrip().endswith((".", "!", "?")) else f"{text.rstrip()}." for text in texts]
    return " ".join(text.lstrip() for text in ended)


def _negative(one: Tagged, other: Tagged, rng: random.Random) -> str | None:
    """Both with a word of the same kind exchanged, in a random order; None if nothing can be."""
    mine, theirs = _words(one), _words(other)
    tags = sorted({tag for tag, _ in mine} & {tag for tag, _ in theirs})
    rng.shuffle(tags)
    said = {plain(one.text), plain(other.text)}
    for tag in tags:
        choices = [
            (word, new)
            for kind in mine
            if kind[0] == tag and kind in theirs
            for name, word in mine[kind].items()
            for other_name, new in theirs[kind].items()
            if name not in theirs[kind] and other_name not in mine[kind]
        ]
        rng.shuffle(choices)
        for word, new in choices:
            halves = [_exchanged(one, word, other, new), _exchanged(other, new, one, word)]
            if {plain(half) for half in halves} != said:
                rng.shuffle(halves)
                return _together(halves)
    return None


def _words(tagged: Tagged) -> dict[tuple[str, str], dict[str, Unit]]:
    """The words that may be exchanged, by tag and number, each by what makes it the same as another."""
    found: dict[tuple[str, str], dict[str, Unit]] = {}
    auxiliary = lexicon().words["auxiliary"]
    for unit in tagged.units:
        word = unit.text.casefold()
        if unit.tag in EXCHANGED and is_word(unit.text) and not unit.light and word not in auxiliary:
            found.setdefault((unit.tag, unit.number), {}).setdefault(unit.lemma or word, unit)
    return found


def _exchanged(tagged: Tagged, old: Unit, source: Tagged, new: Unit) -> str:
    """The caption with `new`, a word of `source`, wherever `old` stands."""
    begin, from_begin = _front(tagged), _front(source)
    word = from_front(new.text) if new.start == from_begin else new.text
    changes = [
        (unit.start, unit.end, to_front(word, unit.text) if unit.start == begin else word)
        for unit in tagged.units
        if unit.text.casefold() == old.text.casefold()
    ]
    return rebuild(tagged.text, changes)


def _front(tagged: Tagged) -> int:
    """Where the first word begins."""
    return next((unit.start for unit in tagged.units if is_word(unit.text)), 0)
