"""BiSCoR-Ctrl: 2 rendered images × 2 captions that swap colours, materials, sizes or quantities.

The official set was not released when this was written: what is read is a folder in Winoground's format whose rows
name a category, so that it scores the day it appears and any set of the kind scores now. Images differ by the swap
alone, so that the words tell nothing: the group score is the one to quote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ...errors import UnknownName
from ...stores.items import Item
from ..sources import Group, Sources, limited
from . import _quads
from ._files import Images, keyed, keyed_items

CATEGORIES = ("color", "material", "size", "quantity")

INFO = {
    "title": "BiSCoR-Ctrl format",
    "metric": "quads",
    "chance": _quads.CHANCE,
    "citation": "BiSCoR-Ctrl, arXiv:2506.09691 and arXiv:2604.11496 (HiTZ)",
    "licence": "that of your files; the official set is not released",
    "url": "https://arxiv.org/abs/2604.11496",
    "files": "Put examples.jsonl, .json or .csv (id, image_0, image_1, caption_0, caption_1, category) in ROOT and the "
    "images in ROOT/images.",
    "splits": (),
    "revision": "no official files yet; the format alone",
    "tie_rule": "lose",
}
AVERAGES = {"4-category": CATEGORIES}
LAYOUT = _quads.Layout(
    "biscor-ctrl",
    "BiSCoR-Ctrl",
    str(INFO["files"]),
    ("examples.jsonl", "examples.json", "examples.csv", "*.parquet", "data/*.parquet"),
    category="category",
)


def _named(sources: Sources) -> tuple[list[Group], Images]:
    """Categories are told apart by their small letters: published tables write Color, files may write color."""
    groups, images = _quads.named(LAYOUT, dataclasses.replace(sources, split=None, limit=None))
    groups = [dataclasses.replace(group, category=group.category.lower()) for group in groups]
    if sources.split is not None:
        known = sorted({group.category for group in groups})
        if sources.split.lower() not in known:
            raise UnknownName.among("category of biscor-ctrl", sources.split, known)
        groups = [group for group in groups if group.category == sources.split.lower()]
    return list(limited(groups, sources.limit)), images


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "biscor-ctrl")


def groups(sources: Sources) -> Iterator[Group]:
    """Two images × two captions per row. A split is a category. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
