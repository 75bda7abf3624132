"""COCO captions, 2014 and 2017 files: captions_SPLIT.json and a folder of images.

    ROOT/annotations/captions_val2017.json  or  ROOT/captions_val2017.json
    ROOT/val2017/000000000139.jpg           or  ROOT/images/…  or  ROOT/…

A split is what stands in the file's name (`val2017`), or its letters (`val`) where that is one file. Image
files that are missing are kept as items, so that extraction lists them in the quarantine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ...stores.items import Item, Pair
from ._files import Photo, photo_items, photo_pairs, require_folder

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


def _photos(root: Path | None, split: str, limit: int | None) -> list[Photo]:
    root = require_folder("coco", root)
    files = _annotation_files(root)
    names = [split] if split in files else [name for name in files if _letters(name) == split]
    if not names:
        raise UnknownName.among("split", split, {*files, *map(_letters, files)} - {""}, f"Looked in {root}.")
    if len(names) > 1:
        raise InputError(f"split '{split}' could be {' or '.join(names)}", f"Say which, e.g. --split {names[-1]}.")
    file = files[names[0]]
    images = _read(file, file.stat().st_mtime_ns)
    folders = _image_folders(root, names[0])
    return [
        Photo(_locate(folders, image.file), f"coco/{names[0]}/{image.file}", _captions(names[0], image))
        for image in images[:limit]
    ]


def _captions(split: str, image: _Image) -> tuple[tuple[object, str], ...]:
    return tuple((caption, f"coco/{split}/annotation {number}") for number, caption in image.captions)


def _image_folders(root: Path, name: str) -> list[Path]:
    """Where images may lie, the most specific place first."""
    year = re.match(r"[a-z]+\d*", name)
    labels = dict.fromkeys((name, year.group() if year else name, _letters(name)))
    places = [base / label for label in labels if label for base in (root, root / "images")]
    return [folder for folder in (*places, root / "images", root) if folder.is_dir()]


def _locate(folders: list[Path], file: str) -> Path:
    """The first place that has the image, also without 2014's prefix; the first place if none has."""
    plain = re.sub(r"^COCO_[a-z]+2014_", "", file)
    for folder in folders:
        for name in (file, plain):
            if (folder / name).is_file():
                return folder / name
    return folders[0] / file


@dataclass(frozen=True)
class _Image:
    file: str
    captions: tuple[tuple[object, object], ...]


@lru_cache(maxsize=2)
def _read(file: Path, mtime_ns: int) -> tuple[_Image, ...]:
    """The images of an annotation file in its order, each with (annotation id, caption)."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is not a JSON file: {error}", "Download it again.") from None
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
