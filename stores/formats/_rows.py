"""Formats that hold items one by one (WebDataset, Hugging Face datasets): from what stands in them to rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..buffers import Array
from ..rows import image_rows, text_rows, token_dim
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


def features(importer: Importer, kind: Kind) -> set[str]:
    """Which of "tokens" and "pooled" items of a kind have, by the spec."""
    sizes = {"tokens": token_dim(importer.spec, kind), "pooled": importer.spec.pooled_dim}
    return {name for name, size in sizes.items() if size}


def add_rows(importer: Importer, kind: Kind, notes: Sequence[Any], arrays: tuple[Any, Array | None]) -> None:
    """Hand one part to the importer. `notes` are N rows of the kind's table as dicts, `arrays` its tokens and pooled
    embeddings, None for what is not kept. Raises `InputError` for rows that are not what an export writes."""
    label = importer.label
    for note in notes:
        _check(label, note, COLUMNS[kind])
    columns = {name: [note[name] for note in notes] for name in COLUMNS[kind]}
    tokens, pooled = arrays
    pooled = np.empty((len(notes), 0), np.uint8) if pooled is None else pooled
    if kind == "image":
        if not all(0 <= side < 1 << 31 for side in (*columns["width"], *columns["height"])):
            raise refuse(label, "an image has a size that no image has")
        importer.images(image_rows(columns, tokens, pooled))
        return
    for note in notes:
        for span in note["spans"]:
            _check(label, span, {"start": int, "end": int})
        for segment in note["segments"]:
            _check(label, segment, {"start": int, "end": int, "kind": str})
        if not -1 <= note["pool_index"] < 1 << 31:
            raise refuse(label, f"caption {note['key']} pools the token {note['pool_index']}")
    rows = text_rows(columns, tokens, pooled)
    check_spans(label, rows)
    importer.texts(rows)


def _check(label: Path | str, note: Any, types: dict[str, type]) -> None:
    if not isinstance(note, dict) or not all(type(note.get(name)) is kind for name, kind in types.items()):
        raise refuse(label, f"an item lacks one of {', '.join(types)}, or it has another type")
