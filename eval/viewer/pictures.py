"""The pictures and captions of items, for people: small WebP files, texts with the characters of each token."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ... import registry
from ...errors import CompalError
from ...stores.items import Box, Item
from ...stores.store import Store
from ..sources import Sources

SIDE = 224  # pixels of the longer side
QUALITY = 82
Roots = Callable[[str], tuple[Path | None, Path | None]]
"""Benchmark → where its files and photographs lie, None where nobody said."""


@dataclass(frozen=True)
class Picture:
    """A WebP file, its size in pixels, and boxes as fractions of width and height."""

    data: bytes
    width: int
    height: int
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Told:
    """A caption: its text, the characters (start, end) of each of its tokens, (-1, -1) for one that is none of it, and
    (start, end, kind) of its segments."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    segments: tuple[tuple[int, int, str], ...] = ()


def captions(stores: Iterable[Path], wanted: set[str]) -> dict[str, Told]:
    """Captions by key, from the stores that are there, the first that has one."""
    found: dict[str, Told] = {}
    for path in stores:
        lacking = wanted - found.keys()
        if lacking and (path / "spec.json").is_file():
            found |= _captions(Store.open(path), lacking)
    return found


def _captions(store: Store, wanted: set[str]) -> dict[str, Told]:
    table = store.table("text")
    rows = table.filter(pc.is_in(table["key"], pa.array(sorted(wanted), pa.string())))
    columns = {
        name: rows[name].to_pylist() for name in ("key", "caption", "spans", "segments") if name in rows.schema.names
    }
    count = rows.num_rows
    spans, segments = columns.get("spans", [None] * count), columns.get("segments", [None] * count)
    return {
        key: Told(
            text,
            tuple((one["start"], one["end"]) for one in spans[row] or ()),
            tuple((one["start"], one["end"], one["kind"]) for one in segments[row] or ()),
        )
        for row, (key, text) in enumerate(zip(columns["key"], columns["caption"], strict=True))
    }


def listed(meta: Mapping[str, Any], wanted: set[str], roots: Roots) -> dict[str, Item]:
    """The images of a table by key, as its benchmark lists them; what cannot be listed here is left out."""
    name = str(meta["benchmark"])
    root, images = roots(name)
    sources = Sources(root, images, True, meta.get("split") or None, meta.get("limit"), meta.get("variant") or None)
    found: dict[str, Item] = {}
    try:
        for item in registry.load("benchmarks", name).items(sources):
            if item.kind == "image" and item.key in wanted:
                found[item.key] = item
    except (CompalError, OSError):
        return found
    return found


def picture(item: Item) -> Picture | None:
    """The image as a small file; None if it cannot be read."""
    from PIL import Image

    try:
        content = item.content
        if callable(content):
            image = Image.fromarray(np.asarray(content(), np.uint8))
        elif isinstance(content, Path):
            image = Image.open(content)
        else:
            image = Image.open(io.BytesIO(content.read()))  # type: ignore[union-attr]
        image = image.convert("RGB")
    except (OSError, ValueError):
        return None
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return Picture(buffer.getvalue(), *image.size, tuple(item.boxes))


def covered(width: int, height: int, preprocess: Mapping[str, str]) -> list[float]:
    """The part of a picture that the encoder's grid lies over, (x0, y0, x1, y1) in fractions of it: all where it was
    squashed, its centre where it was cropped, more than all where it was padded."""
    how = preprocess.get("resize", "shortest")
    if how == "squash" or width == height:
        return [0.0, 0.0, 1.0, 1.0]
    side = min(width, height) if how == "shortest" else max(width, height)
    across, down = side / width, side / height
    return [round(edge, 4) for edge in ((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)]


def batches(things: list[Any], size: int) -> Iterator[list[Any]]:
    """Runs of at most `size`."""
    for start in range(0, len(things), size):
        yield things[start : start + size]
