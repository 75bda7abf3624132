"""Fixed-shape arrays, read row by row: Zarr shards by our own fast path, zarr-python for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import InputError, VerificationError
from .buffers import Array
from .files import RESTORE, read_json
from .reading import Reading
from .requests import Request, carry_out
from .shard import Layout, Rows, Shard


class DenseArray(Protocol):
    """An array on disk that is read row by row."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """`out[positions] = array[rows]`, any order, duplicates allowed; `out` is of `dtype`, each row
        contiguous; the rows may lie apart, as those of `buffers.sample_buffer`, where O_DIRECT reads land
        without a copy. Raises `VerificationError` where bytes are not what was written, `InputError` for an
        `out` of another type, `IndexError` for rows or positions that do not exist."""


def open_array(folder: Path, reading: Reading | None = None) -> DenseArray:
    """The fast reader where the bytes allow it, zarr-python otherwise: the same values, slower.

    `reading` decides how bytes are read and checked; "auto" by the size of this array alone, so resolve it
    for the store. Raises `VerificationError` if `zarr.json` is damaged; a shard's index is read, and checked,
    with its first row.
    """
    layout = Layout.parse(read_json(folder / "zarr.json"))
    if layout is None:
        return ForeignArray(folder)
    reading = reading or Reading()
    if reading.mode == "auto":
        reading = reading.resolve(layout.shape[0] * layout.row_bytes, folder)
    return ShardedArray(folder, layout, reading)


def read_batch(requests: Sequence[tuple[DenseArray, Rows, Rows]], out: Array) -> None:
    """`out[positions] = array[rows]` for each (array, rows, positions), see `DenseArray.read_into`.

    A shuffled batch takes a row here and there of many parts: their reads share one pool of threads and are
    in flight together.
    """
    found: list[Request] = []
    for array, rows, positions in requests:
        if isinstance(array, ShardedArray):
            found += array.requests(rows, out, positions)
        else:
            array.read_into(rows, out, positions)
    carry_out(found, out)


class ShardedArray:
    """The fast reader, safe in threads and after a fork. A `Shard` is opened when first read."""

    def __init__(self, folder: Path, layout: Layout, reading: Reading) -> None:
        self.folder, self.layout, self.reading = folder, layout, reading
        self.shape, self.dtype = layout.shape, layout.dtype
        self._shards: dict[int, Shard] = {}

    def read_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """See `DenseArray.read_into`."""
        carry_out(self.requests(rows, out, positions), out)

    def requests(self, rows: Rows, out: Array, positions: Rows) -> list[Request]:
        """The rows by shard, ascending. Raises as `DenseArray.read_into` does."""
        _check_request(self, rows, out, positions)
        size = self.layout.shard_rows
        if len(rows) == 1:
            number = int(rows[0]) // size
            return [Request(self._shard(number), rows - number * size if number else rows, positions)]
        order = np.argsort(rows, kind="stable")
        rows, positions = rows[order], positions[order]
        found, start = [], 0
        while start < len(rows):
            number = int(rows[start]) // size
            stop = int(np.searchsorted(rows, (number + 1) * size)) if self.shape[0] > size else len(rows)
            found.append(Request(self._shard(number), rows[start:stop] - number * size, positions[start:stop]))
            start = stop
        return found

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            key = self.layout.separator.join(["c", str(number), *["0"] * (len(self.shape) - 1)])
            # Of two threads that open it at once, both use the one that is kept.
            return self._shards.setdefault(number, Shard(self.folder / key, self.layout, self.reading))
        return self._shards[number]


class ForeignArray:
    """Any other Zarr array, through zarr-python (imported here: it costs 0.4 s)."""

    def __init__(self, folder: Path) -> None:
        import zarr

        self.folder = folder
        try:
            array = zarr.open_array(str(folder), mode="r")
        except Exception as error:  # zarr's errors share no base class
            raise VerificationError(f"{folder} is not a Zarr array: {error}", RESTORE) from None
        self.shape, self.dtype = tuple(array.shape), np.dtype(str(array.dtype))
        self._array = array

    def read_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """See `DenseArray.read_into`."""
        _check_request(self, rows, out, positions)
        if not len(rows):
            return
        try:
            out[positions] = self._array.oindex[rows]
        except Exception as error:
            raise VerificationError(f"{self.folder} cannot be read: {error}", RESTORE) from None


def _check_request(array: ShardedArray | ForeignArray, rows: Rows, out: Array, positions: Rows) -> None:
    if out.dtype != array.dtype or out.shape[1:] != array.shape[1:] or len(rows) != len(positions):
        what = f"{len(rows)} rows of {array.dtype} {array.shape} into {len(positions)} of {out.dtype} {out.shape}"
        raise InputError(f"{array.folder} cannot be read so: {what}")
    for indices, count, name in ((rows, array.shape[0], "rows"), (positions, len(out), "positions in the buffer")):
        if len(indices) == 1 and 0 <= indices[0] < count:
            continue
        if len(indices) and (indices.min() < 0 or indices.max() >= count):
            raise IndexError(f"{array.folder}: {count} {name}, asked for {indices.min()} to {indices.max()}")
