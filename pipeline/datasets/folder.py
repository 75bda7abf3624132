"""A folder of images, each with its captions in a text file of the same name, one caption a line.

    ROOT/a.jpg  ROOT/a.txt  ROOT/more/b.png  ROOT/more/b.txt

Where ROOT has a folder `train`, `val` or `test`, its folders are the splits; otherwise all of it is `train`.
Images without captions are extracted; text files without an image are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ...stores.items import Item, Pair
from ._files import IMAGE_SUFFIXES, Photo, photo_items, photo_pairs, require_folder

INFO: dict[str, Any] = {
    "licence": "that of your files",
    "revision": "the folder given",
    "citation": "",
    "splits": ("train", "val", "test"),
}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images by path, each followed by its captions. Raises `InputError`, `UnknownName`."""
    return photo_items(_photos(root, split, limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(_photos(root, split, limit))


def splits(root: Path | None) -> list[str]:
    """The splits of `root`: its folders if `train`, `val` or `test` is among them, else `train` alone."""
    root = require_folder("folder", root)
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return folders if set(folders) & set(INFO["splits"]) else ["train"]


def _photos(root: Path | None, split: str, limit: int | None) -> list[Photo]:
    root = require_folder("folder", root)
    known = splits(root)
    if split not in known:
        raise UnknownName.among("split", split, known, f"To add it, make a folder {root / split}.")
    top = root / split if (root / split).is_dir() else root
    images = sorted(path for path in top.rglob("*") if _is_image(path, top))
    if not images:
        raise InputError(f"no images in {top}", f"Known endings: {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return [_photo(path, path.relative_to(root).as_posix()) for path in images[:limit]]


def _is_image(path: Path, top: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(top).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not path.is_dir()


def _photo(path: Path, name: str) -> Photo:
    captions: list[tuple[object, str]] = []
    beside = path.with_suffix(".txt")
    if beside.is_file():
        try:
            lines = beside.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise InputError(f"{beside} is not UTF-8 text", "Save it as UTF-8.") from None
        label = Path(name).with_suffix(".txt").as_posix()
        captions = [(line.strip(), f"{label}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    return Photo(path, name, tuple(captions))
