"""Flickr30k: 31,014 images with five captions each, in Karpathy's splits or as first released.

    ROOT/dataset_flickr30k.json        Karpathy's splits: train 29,000 images, val 1,014, test 1,000
    ROOT/flickr_annotations_30k.csv    the same as columns raw (a JSON list), filename and split
    ROOT/results_20130124.token        31,783 images, `1000092795.jpg#0 TAB caption`; one split, `all`
    ROOT/flickr30k-images/1000092795.jpg   or in ROOT/flickr30k_images, ROOT/images, ROOT, or ?images=FOLDER

The first of the three that is there is read; ROOT may also be the file itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item, Pair
from . import _karpathy
from ._files import Photo, decoded, photo_items, photo_pairs, require_root
from ._tables import open_table

INFO: dict[str, Any] = {
    "licence": "non-commercial research and educational use; each image under Flickr's terms",
    "revision": "the annotation file given",
    "citation": "Young et al., From image descriptions to visual denotations, TACL 2014, "
    "doi:10.1162/tacl_a_00166; splits: arXiv:1412.2306",
    "splits": ("train", "val", "test"),
}

NAMES = ("dataset_flickr30k.json", "flickr_annotations_30k.csv", "results_20130124.token")
COLUMNS = {"image": ("filename",), "caption": ("raw",), "split": ("split",)}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images, each followed by its captions. Raises `InputError`, `UnknownName`."""
    return photo_items(_photos(root, split, limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(_photos(root, split, limit))


def splits(root: Path | None) -> list[str]:
    """The splits that the file names; `all` for the token file, which names none."""
    return _karpathy.splits(_entries(_find(root)))


def files(root: Path | None, split: str) -> list[Path]:
    """The files that say what the split holds."""
    return [_find(root).file]


def _find(root: Path | None) -> _karpathy.Source:
    labels = ("flickr30k-images", "flickr30k_images")
    return _karpathy.find("flickr30k", require_root("flickr30k", root, "FOLDER"), NAMES, labels)


def _photos(root: Path | None, split: str, limit: int | None) -> list[Photo]:
    source = _find(root)
    return _karpathy.photos(source, _entries(source), split, limit)


def _entries(source: _karpathy.Source) -> tuple[_karpathy.Entry, ...]:
    if source.file.suffix == ".json":
        return _karpathy.entries(source)
    return _read(source.file, source.file.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(file: Path, mtime_ns: int) -> tuple[_karpathy.Entry, ...]:
    return tuple(_read_csv(file) if file.suffix == ".csv" else _read_token(file))


def _read_csv(file: Path) -> Iterator[_karpathy.Entry]:
    table = open_table("flickr30k", [file], COLUMNS, tuple(COLUMNS), {})
    for where, row in table.rows():
        captions = tuple((f"{where}, {number}", told.text) for number, told in enumerate(table.told(where, row), 1))
        yield _karpathy.Entry(str(row["filename"]), "", str(row["split"]), captions)


def _read_token(file: Path) -> Iterator[_karpathy.Entry]:
    captions: dict[str, list[tuple[object, object]]] = {}
    for number, line in enumerate(decoded(file.read_bytes()).split("\n"), 1):
        if not line.strip():
            continue
        name, tab, caption = line.rstrip("\r").partition("\t")
        image, mark, _ = name.rpartition("#")
        if not tab or not mark or "\0" in image:
            raise InputError(f"{file}, line {number} is not IMAGE#NUMBER, TAB, CAPTION", "Correct the line.")
        captions.setdefault(image, []).append((name, caption))
    return (_karpathy.Entry(image, "", "all", tuple(said)) for image, said in captions.items())
