"""EqBen: two frames or renderings that differ as little as can be, and a caption of each; five sources, seven parts.

Reads the whole annotation, the 10 % subset and the files of the parts, all in Winoground's form with the names
image0, image1, caption0, caption1: a list of rows, or rows below the names of videos and subjects. Where captions are
lists the first is taken. A part is what the image's path begins with. YouCook2's frames are arrays (.npy) whose
channels are blue, green, red; images of the light edition end in .jpg where the annotation says .png.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item, content_key
from ..sources import QUAD_TRUTH, Group, Sources
from . import _quads
from ._files import FolderImages, keyed, keyed_items, present, read_json, text_of

# Rows of the whole annotation, from the official evaluate_eqben_locally.py.
PARTS = {
    "eqbenag": 195_872,
    "eqbenyoucook2": 45_849,
    "eqbengebc": 1_814,
    "eqbenkubric_loc": 2_000,
    "eqbenkubric_attr": 2_000,
    "eqbenkubric_cnt": 2_000,
    "eqbensd": 1_513,
}

INFO = {
    "title": "EqBen",
    "metric": "quads",
    "chance": _quads.CHANCE,
    "citation": "Wang et al., Equivariant Similarity for Vision-Language Foundation Models, ICCV 2023, "
    "arXiv:2303.14465",
    "licence": "Apache-2.0 (annotations); frames: the terms of Action Genome, YouCook2 and Kinetics-GEBC",
    "url": "https://github.com/Wangt-CN/EqBen",
    "files": "Put the annotation JSON that github.com/Wangt-CN/EqBen names (whole, or the 10 % subset) in ROOT and "
    "the unpacked images, folders eqbenag, eqbenyoucook2 and so on, in ROOT or ROOT/images.",
    "splits": tuple(PARTS),
    "size": sum(PARTS.values()),
    "revision": "Wangt-CN/EqBen ab6c79a3c346",
    "tie_rule": "lose",
}
AVERAGES = {"7-part": tuple(PARTS)}
FIELDS = ("image0", "image1", "caption0", "caption1")


class Frames(FolderImages):
    """Images as files: also arrays, and .jpg for .png."""

    def path(self, name: str) -> Path | None:
        return super().path(name) or (super().path(f"{name[:-4]}.jpg") if name.endswith(".png") else None)

    def item(self, name: str) -> Item:
        found = self.path(name)
        if found is None or found.suffix != ".npy":
            return super().item(name)
        if name not in self._items:
            key = content_key("image-array-bgr", found.read_bytes())
            self._items[name] = Item(key, "image", f"{self.benchmark}/{name}", functools.partial(_frame, found))
        return self._items[name]


def _frame(path: Path) -> Any:
    """(H, W, 3) uint8, red first. Nothing in it is unpickled."""
    import numpy as np

    frame = np.load(path, allow_pickle=False)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"{path} holds {frame.dtype} {frame.shape}, not uint8 (height, width, 3)")
    return np.ascontiguousarray(frame[:, :, ::-1])


def _rows(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows below any number of names and lists, each with where it stands."""
    if isinstance(value, dict) and "image0" in value:
        yield where, value
        return
    if not isinstance(value, dict | list):
        raise InputError(f"{where} is not a row of {', '.join(FIELDS)}", str(INFO["files"]))
    places = value.items() if isinstance(value, dict) else enumerate(value)
    for place, below in places:
        yield from _rows(below, f"{where} {'row ' if isinstance(place, int) else ''}{place}")


def _quad(row: dict[str, Any], where: str, stem: str) -> Group:
    said = [row.get(field) for field in FIELDS[2:]]
    flat = row | {f: text[0] for f, text in zip(FIELDS[2:], said, strict=True) if isinstance(text, list) and text}
    first, second, *captions = (text_of(flat, field, where) for field in FIELDS)
    # Paths read `eqbenkubric/loc/…` or `eqbenkubric_loc/…`; else the file is named after its part.
    told = (first.replace("/", "_"), stem)
    part = next((part for name in told for part in PARTS if name.startswith(part)), first.split("/")[0])
    return Group(f"{first}|{second}", (first, second), tuple(captions), QUAD_TRUTH, part, where)


def _numbered(groups: Iterator[Group]) -> Iterator[Group]:
    """Ids are the two images; where pairs of images come again with other captions, they are told apart by number."""
    seen: dict[str, int] = {}
    for group in groups:
        seen[group.id] = number = seen.get(group.id, 0) + 1
        yield group if number == 1 else dataclasses.replace(group, id=f"{group.id}#{number}")


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    # An annotation after randomising has one caption a row and hides what belongs together.
    found = [path for path in sorted(root.glob("*.json")) if not path.name.startswith("private")]
    if not found:
        raise InputError(f"EqBen: {root} has no annotation *.json", str(INFO["files"]))
    return found


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    root = sources.folder("eqben", str(INFO["files"]))
    files = _files(root)
    layout = _quads.Layout("eqben", "EqBen", str(INFO["files"]), (), category="part", categories=tuple(PARTS))
    read = (_quad(row, where, path.stem) for path in files for where, row in _rows(read_json(path), str(path)))
    found = list(_quads.of_category(_numbered(read), layout, sources))
    given = [sources.images] if sources.images else []
    images = Frames("eqben", [*given, files[0].parent, files[0].parent / "images"])
    return present(sources, found, images, "EqBen", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "eqben")


def groups(sources: Sources) -> Iterator[Group]:
    """Two images × two captions per row, by part. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
