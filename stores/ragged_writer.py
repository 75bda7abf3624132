"""Rows of unequal length on their way to disk: one Arrow IPC file per part; the layout: `ragged`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from .buffers import Array
from .dtypes import NotFinite, to_finite
from .outfile import OutFile


def write_ragged(path: Path, tokens: Sequence[Array] | None, pooled: Array, dtype: str, dim: int = 0) -> dict[str, Any]:
    """Write one part: `tokens` are N arrays of (L_i, dim) with L_i ≥ 1, `pooled` is (N, E).

    Values are cast to `dtype`: float16, float32 or bfloat16; uint8 is stored as given. No column `pooled` if E is 0.
    Returns size and xxh3_128. Raises `NotFinite`
    naming the row for NaN and infinity, also after the cast. The caller syncs and publishes.
    """
    columns: dict[str, pa.Array] = {}
    vectors = to_finite(pooled, dtype)
    if tokens is not None:
        offsets = row_offsets(tokens)
        try:
            values = to_finite(np.concatenate(tokens), dtype)
        except NotFinite as error:
            raise NotFinite(int(np.searchsorted(offsets, error.row, "right")) - 1, error.overflow) from None
        columns["tokens"] = pa.ListArray.from_arrays(pa.array(offsets), fixed(values, dim))
        columns["tokens_crc32c"] = _crcs(np.split(values, offsets[1:-1]))
    return write_columns(path, columns, vectors)


def write_columns(
    path: Path, columns: Mapping[str, pa.Array], pooled: Array, metadata: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write token columns as they are and, unless E is 0, `pooled` (N, E) with its checksums: one record batch."""
    every = dict(columns)
    if pooled.shape[1]:
        every |= {"pooled": fixed(pooled, pooled.shape[1]), "pooled_crc32c": _crcs(pooled)}
    batch = pa.RecordBatch.from_pydict(every, metadata=metadata)
    with (
        OutFile(path, expect=batch.nbytes) as file,
        pa.PythonFile(_Sink(file), "w") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    return file.checksum


def row_offsets(rows: Sequence[Array]) -> Array:
    """Where each row begins when they lie end to end, and where the last ends: (N + 1,) int32."""
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return offsets


def fixed(values: Array, dim: int) -> pa.Array:
    """(N, dim) as FixedSizeList, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)


def _crcs(rows: Iterable[Array]) -> pa.Array:
    return pa.array(np.array([google_crc32c.value(row) for row in rows], np.uint32))


class _Sink:
    """An `OutFile` as the file object that Arrow writes to; who opened it closes it."""

    closed = False

    def __init__(self, file: OutFile) -> None:
        self.write, self.tell = file.write, file.tell

    def flush(self) -> None:
        """Arrow flushes at the end; blocks go to the disk when they are full."""

    def close(self) -> None:
        """The `OutFile` is left open."""
