"""COCO in Karpathy's splits: dataset_coco.json, and the images of COCO 2014.

    ROOT/dataset_coco.json  (or in ROOT/annotations or ROOT/karpathy; or ROOT is the file)
    ROOT/train2014/COCO_train2014_000000057870.jpg  ROOT/val2014/…   or in ROOT/images, or ?images=FOLDER

Splits: train 82,783 images, restval 30,504, val 5,000, test 5,000. What papers call the training set of 113,287
is `train+restval`. Images may also lie under their names of 2017, without the prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...stores.items import Item, Pair
from . import _karpathy
from ._files import Photo, photo_items, photo_pairs, require_root

INFO: dict[str, Any] = {
    "licence": "captions CC BY 4.0; each image under its own Flickr licence; the splits: unknown",
    "revision": "the dataset_coco.json given",
    "citation": "Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, arXiv:1412.2306; Chen et al., arXiv:1504.00325",
    "splits": ("train", "restval", "val", "test"),
    "fit": ("train+restval", "val"),
}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images, each followed by its captions. Raises `InputError`, `UnknownName`."""
    return photo_items(_photos(root, split, limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(_photos(root, split, limit))


def splits(root: Path | None) -> list[str]:
    """The splits that the file names."""
    return _karpathy.splits(_karpathy.entries(_find(root)))


def files(root: Path | None, split: str) -> list[Path]:
    """The files that say what the split holds."""
    return [_find(root).file]


def _find(root: Path | None) -> _karpathy.Source:
    years = ("train2014", "val2014", "train2017", "val2017")
    return _karpathy.find("coco-karpathy", require_root("coco-karpathy", root, "FOLDER"), ("dataset_coco.json",), years)


def _photos(root: Path | None, split: str, limit: int | None) -> list[Photo]:
    source = _find(root)
    return _karpathy.photos(source, _karpathy.entries(source), split, limit)
