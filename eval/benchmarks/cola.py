"""Cola, the multi-object part: 2 images × 2 captions whose attributes are exchanged, on Visual Genome.

The paper asks a caption for its image alone (t2i); i2t and group are what the same four scores give beside it. The
single-object part, average precision over 320 labels, is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from ...stores.items import Item
from ..sources import QUAD_TRUTH, Group, Sources
from ._files import FolderImages, keyed, keyed_items, present, read_json

TABLE = "COLA_multiobjects_matching_benchmark.json"
FIELDS = ("image_url_1", "caption_1", "image_url_2", "caption_2")

INFO = {
    "title": "Cola (multi-object)",
    "metric": "quads",
    "chance": {"i2t": 25.0, "t2i": 25.0, "group": 100 / 6},
    "citation": "Ray et al., Cola: A Benchmark for Compositional Text-to-image Retrieval, NeurIPS 2023, "
    "arXiv:2305.03689",
    "licence": "MIT (annotations); Visual Genome images: CC BY 4.0",
    "url": "https://github.com/arijitray1993/COLA",
    "files": f"Put data/{TABLE} of github.com/arijitray1993/COLA in ROOT and the Visual Genome images that it names, "
    "2390970.jpg and so on, in ROOT/images.",
    "size": 210,
    "revision": "arijitray1993/COLA 1fa52fba9cff",
    "tie_rule": "lose",
    "headline": "t2i",
}


def _rows(path: Path) -> Iterator[Group]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path} is not a list of rows", str(INFO["files"]))
    for number, row in enumerate(rows):
        where = f"{path} row {number}"
        if not isinstance(row, list) or len(row) != len(FIELDS):
            raise InputError(f"{where} is not a list of {', '.join(FIELDS)}")
        for field, value in zip(FIELDS, row, strict=True):
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{where}: '{field}' is no text")
        first, caption, second, other = row
        # A row names addresses; the photograph keeps its Visual Genome name.
        images = (first.rpartition("/")[2], second.rpartition("/")[2])
        yield Group(str(number), images, (caption, other), QUAD_TRUTH, "", where)


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    root = sources.folder("cola", str(INFO["files"]))
    folder = root.parent if root.is_file() else root
    tables = (root,) if root.is_file() else (root / TABLE, root / "data" / TABLE)
    path = next((table for table in tables if table.is_file()), None)
    if path is None:
        raise InputError(f"Cola: {root} lacks {TABLE}", str(INFO["files"]))
    given = [sources.images] if sources.images else []
    places = ("images", "vg_gqa_images", "VG_100K", "VG_100K_2", "")
    images = FolderImages("cola", [*given, *(folder / place for place in places)])
    return present(sources, list(_rows(path)), images, "Cola", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "cola")


def groups(sources: Sources) -> Iterator[Group]:
    """Two images × two captions per row. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
