"""Formats that hold items one by one (WebDataset, Hugging Face datasets): from what stands in them to rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..buffers import Array
from ..rows import ImageRows, TextRows, image_dim
from ._common import Importer, Kind, check_spans, refuse

COLUMNS = {
    "image": {"key": str, "source": str, "width": int, "height": int},
    "text": {
        "key": str,
        "source": str,
        "caption": str,
        "spans": list,
        "pool_index": int,
        "truncated": bool,
        "segments": list,
    },
}


def has_tokens(importer: Importer, kind: Kind) -> bool:
    """Whether items of a kind have tokens, by the spec."""
    return bool(importer.spec.text_dim if kind == "text" else image_dim(importer.spec))


def ragged(importer: Importer, kind: Kind) -> bool:
    """Whether items of a kind have unequal numbers of tokens, by the spec."""
    return kind == "text" or importer.spec.ragged_images


def add_rows(importer: Importer, kind: Kind, notes: Sequence[Any], features: tuple[Any, Array]) -> None:
    """Hand one part to the importer. `notes` are N rows of the kind's table as dicts, `features` its tokens (or
    None) and pooled embeddings. Raises `InputError` for rows that are not what an export writes."""
    label = importer.label
    for note in notes:
        _check(label, note, COLUMNS[kind])
    keys, sources = [note["key"] for note in notes], [note["source"] for note in notes]
    tokens, pooled = features
    if kind == "image":
        sizes = [(note["width"], note["height"]) for note in notes]
        if not all(0 <= side < 1 << 31 for size in sizes for side in size):
            raise refuse(label, "an image has a size that no image has")
        importer.images(ImageRows(keys, sources, sizes, tokens, pooled))
        return
    for note in notes:
        for span in note["spans"]:
            _check(label, span, {"start": int, "end": int})
        for segment in note["segments"]:
            _check(label, segment, {"start": int, "end": int, "kind": str})
        if not -1 <= note["pool_index"] < 1 << 31:
            raise refuse(label, f"caption {note['key']} pools the token {note['pool_index']}")
    rows = TextRows(
        keys=keys,
        captions=[note["caption"] for note in notes],
        sources=sources,
        tokens=tokens,
        pooled=pooled,
        spans=[[(span["start"], span["end"]) for span in note["spans"]] for note in notes],
        pool_index=[note["pool_index"] for note in notes],
        truncated=[note["truncated"] for note in notes],
        segments=[tuple((one["start"], one["end"], one["kind"]) for one in note["segments"]) for note in notes],
    )
    check_spans(label, rows)
    importer.texts(rows)


def _check(label: Path | str, note: Any, types: dict[str, type]) -> None:
    if not isinstance(note, dict) or not all(type(note.get(name)) is kind for name, kind in types.items()):
        raise refuse(label, f"an item lacks one of {', '.join(types)}, or it has another type")
