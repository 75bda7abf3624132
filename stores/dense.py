"""Fixed-shape arrays, read row by row: Zarr shards by our own fast path, zarr-python for anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import VerificationError
from .buffers import Array
from .files import RESTORE, read_json
from .shard import Layout, Rows, Shard


class DenseArray(Protocol):
    """An array on disk that is read row by row."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """`out[positions] = array[rows]`, any order, duplicates allowed; `out` is C-contiguous of `dtype`.
        Raises `VerificationError` where bytes are not what was written."""


def open_array(folder: Path) -> DenseArray:
    """The fast reader where the bytes allow it, zarr-python otherwise: the same values, slower.
    Raises `VerificationError` if `zarr.json` or a shard's index is damaged."""
    layout = Layout.parse(read_json(folder / "zarr.json"))
    return ForeignArray(folder) if layout is None else ShardedArray(folder, layout)


class ShardedArray:
    """The fast reader, safe in threads and after a fork. A `Shard` is opened when first read."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.shape, self.dtype = layout.shape, layout.dtype
        self._shards: dict[int, Shard] = {}

    def read_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """See `DenseArray.read_into`."""
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise IndexError(f"{self.folder} has {self.shape[0]} rows, asked for {rows.min()} to {rows.max()}")
        order = np.argsort(rows, kind="stable")
        rows, positions = rows[order], positions[order]
        bounds = np.searchsorted(rows, np.arange(0, self.shape[0] + 1, self.layout.shard_rows))
        for number, (start, stop) in enumerate(zip(bounds, [*bounds[1:], len(rows)], strict=True)):
            if stop > start:
                local = rows[start:stop] - number * self.layout.shard_rows
                self._shard(number).read_into(local, out, positions[start:stop])

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            key = self.layout.separator.join(["c", str(number), *["0"] * (len(self.shape) - 1)])
            self._shards[number] = Shard(self.folder / key, self.layout)
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
        if not len(rows):
            return
        try:
            out[positions] = self._array.oindex[rows]
        except IndexError:
            raise
        except Exception as error:
            raise VerificationError(f"{self.folder} cannot be read: {error}", RESTORE) from None
