"""COCO captions, 2014 and 2017 files: captions_SPLIT.json and a folder of images.

    ROOT/annotations/captions_val2017.json  or  ROOT/captions_val2017.json
    ROOT/val2017/000000000139.jpg           or  ROOT/images/…  or  ROOT/…

A split is what stands in the file's name (`val2017`), or its letters (`val`) where that is one file. Image
files that are missing are kept as items, so that extraction lists them in the quarantine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ...stores.items import Item, Pair
from ._files import Photo, Told, photo_items, photo_pairs, read_json, require_folder
from ._places import image_folders, locate

INFO: dict[str, Any] = {
    "licence": "annotations CC BY 4.0; each image under its own Flickr licence",
    "revision": "the captions_*.json given (2014 or 2017)",
    "citation": "Chen et al., Microsoft COCO Captions, arXiv:1504.00325",
    "splits": ("train", "val", "test"),
}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images, each followed by its captions. Raises `InputError`, `UnknownName`."""
    return photo_items(_photos(root, split, limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(_photos(root, split, limit))


def splits(root: Path | None) -> list[str]:
    """The splits that `root` has annotations for."""
    return sorted(_annotation_files(require_folder("coco", root)))


def _annotation_files(root: Path) -> dict[str, Path]:
    files = [*root.glob("captions_*.json"), *(root / "annotations").glob("captions_*.json")]
    if not files:
        cure = "Point --data coco:FOLDER at the folder that holds annotations/."
        raise InputError(f"no captions_*.json in {root} or {root / 'annotations'}", cure)
    return {file.stem.removeprefix("captions_"): file for file in sorted(files)}


def _letters(name: str) -> str:
    return re.split(r"[^a-z]", name, maxsplit=1)[0]


def files(root: Path | None, split: str) -> list[Path]:
    """The files that say what the split holds."""
    return [_choose(require_folder("coco", root), split)[1]]


def _choose(root: Path, split: str) -> tuple[str, Path]:
    """The full name of a split and its annotation file."""
    files = _annotation_files(root)
    names = [split] if split in files else [name for name in files if _letters(name) == split]
    if not names:
        raise UnknownName.among("split", split, {*files, *map(_letters, files)} - {""}, f"Looked in {root}.")
    if len(names) > 1:
        raise InputError(f"split '{split}' could be {' or '.join(names)}", f"Say which, e.g. --split {names[-1]}.")
    return names[0], files[names[0]]


def _photos(root: Path | None, split: str, limit: int | None) -> list[Photo]:
    root = require_folder("coco", root)
    name, file = _choose(root, split)
    folders = image_folders(root, _labels(name))
    return [
        Photo(
            locate(folders, image.file),
            f"coco/{name}/{image.file}",
            tuple(Told(caption, f"coco/{name}/annotation {number}") for number, caption in image.captions),
        )
        for image in _read(file, file.stat().st_mtime_ns)[:limit]
    ]


def _labels(name: str) -> tuple[str, str, str]:
    year = re.match(r"[a-z]+\d*", name)
    return name, year.group() if year else name, _letters(name)


@dataclass(frozen=True)
class _Image:
    file: str
    captions: tuple[tuple[object, object], ...]


@lru_cache(maxsize=2)
def _read(file: Path, mtime_ns: int) -> tuple[_Image, ...]:
    """The images of an annotation file in its order, each with (annotation id, caption)."""
    data = read_json(file)
    names = _image_names(file, data)
    captions: dict[object, list[tuple[object, object]]] = {number: [] for number in names}
    for annotation in _rows(file, data, "annotations", ("image_id",)):
        number = annotation["image_id"]
        if number not in captions:
            what = f"{file}: annotation {annotation.get('id')} is of image {number}, which is not in 'images'"
            raise InputError(what, "Add the image to the list or remove the annotation.")
        captions[number].append((annotation.get("id"), annotation.get("caption")))
    return tuple(_Image(name, tuple(captions[number])) for number, name in names.items())


def _image_names(file: Path, data: Any) -> dict[object, str]:
    names: dict[object, str] = {}
    for image in _rows(file, data, "images", ("id", "file_name")):
        number, name = image["id"], str(image["file_name"])
        if names.setdefault(number, name) != name:
            what = f"{file}: image id {number} stands for both {names[number]} and {name}"
            raise InputError(what, "Give each image its own id.")
    return names


def _rows(file: Path, data: Any, table: str, required: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = data.get(table) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{file} has no list '{table}'", "It must be in the COCO captions format.")
    for index, row in enumerate(rows):
        lacking = [key for key in required if not isinstance(row, dict) or not isinstance(row.get(key), int | str)]
        if lacking:
            raise InputError(f"{file}: {table}[{index}] has no {', '.join(lacking)}", "Add what is missing.")
    return rows
