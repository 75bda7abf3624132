"""Rows of unequal length (the valid tokens of captions, the regions of images) in memory-mapped Arrow IPC.

One file per part: one record batch, uncompressed, so that a row is a slice of the file: 3 µs, where Parquet
needs 163 ms. Columns: `tokens` List<FixedSizeList<half, D>> where tokens are kept, `pooled`
FixedSizeList<half, E> where pooled embeddings are, and a crc32c of each row's bytes of either, since Arrow
itself carries none.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from ..errors import InputError, VerificationError
from .buffers import Array
from .files import RESTORE
from .messages import check_file
from .reading import Checks, Reading
from .shard import Rows


class RaggedFile:
    """A mapped part, safe in threads and after a fork.

    lengths  (N,) int64, tokens per row (zeros without tokens)
    tokens   (all tokens, D) as stored, unchecked, or None
    pooled   (N, E) as stored, unchecked; (N, 0) without pooled embeddings

    `reading` says when a row's crc32c is checked; the file is mapped in every mode. Raises
    `VerificationError` if the file is damaged.

    A subclass whose reads return float32 made from what is stored sets `encoded`, and overrides `_bind`,
    `_checksum` and `_decode`.
    """

    encoded = False

    def __init__(self, path: Path, reading: Reading | None = None) -> None:
        self.path, self._reading = path, reading or Reading()
        try:
            self._map = _mapped(path)
            self._size = len(self._map)
            check_file(memoryview(self._map))
            with pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map))) as reader:
                if reader.num_record_batches != 1:
                    raise pa.ArrowInvalid(f"{reader.num_record_batches} record batches in place of one")
                batch = reader.get_batch(0)
            batch.validate()
            self._bind(batch)
        except (OSError, KeyError, AttributeError, ValueError, pa.ArrowException) as error:
            raise VerificationError(f"{path} is not a readable Arrow part: {error}", RESTORE) from None

    def _bind(self, batch: Any) -> None:
        self._batch = batch  # keeps the columns alive
        self.rows = batch.num_rows
        names = batch.schema.names
        self.pooled = _matrix(batch.column("pooled")) if "pooled" in names else np.empty((self.rows, 0), np.uint8)
        self._pooled_crc = batch.column("pooled_crc32c").to_numpy() if "pooled" in names else np.zeros(self.rows)
        self._pooled_checks = Checks(self._reading, self.rows)
        self.tokens: Array | None = None
        self.lengths = np.zeros(self.rows, np.int64)
        if "tokens" in names:
            column = batch.column("tokens")
            self.offsets = column.offsets.to_numpy().astype(np.int64)
            self.lengths = np.diff(self.offsets)
            self.tokens = _matrix(column.values)
            if self.offsets[0] < 0 or (self.lengths < 0).any() or self.offsets[-1] > len(self.tokens):
                raise pa.ArrowInvalid("the list offsets are out of order")
            self._values = self.tokens.reshape(-1)
            self._tokens_crc = batch.column("tokens_crc32c").to_numpy()
            self._tokens_checks = Checks(self._reading, self.rows)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the tokens that reads return."""
        return np.dtype(np.float32) if self.encoded or self.tokens is None else self.tokens.dtype

    def row(self, index: int) -> Array:
        """The tokens of one row (L, D): a view of the file, or decoded."""
        assert self.tokens is not None
        self._check_size()
        values = self.tokens[self.offsets[index] : self.offsets[index + 1]]
        if self._tokens_checks.due_one(index):
            self._check_tokens(index, values)
        return self._decode(index, values) if self.encoded else values

    def read_into(self, rows: Rows, out: Array, mask: Array, positions: Rows) -> None:
        """Copy rows to the front of `out[positions]` (·, L, D), zeros behind them, and set `mask[positions]`
        (·, L) to where tokens are. `out` is C-contiguous and of the type that `row` returns."""
        assert self.tokens is not None
        if len(rows) == 1:
            self._read_one(int(rows[0]), out, mask, int(positions[0]))
            return
        self._check_size()
        lengths, dim, width = self.lengths[rows], self.tokens.shape[1], out.shape[1]
        fits = out.dtype == self.dtype and out.shape[2:] == (dim,) and out.flags.c_contiguous
        if not fits or lengths.max(initial=0) > width:
            raise InputError(f"rows of up to {lengths.max(initial=0)} tokens do not fit {out.dtype} {out.shape}")
        mask[positions] = np.arange(width) < lengths[:, None]
        # One dimension and plain integers: what numpy spends per row would exceed the copy of 20 KB.
        flat, values, decoded = out.reshape(len(out), -1), self._values, self.encoded
        starts = (self.offsets[rows] * dim).tolist()
        due = self._tokens_checks.due(rows)
        for index, start, size, position, checked in zip(
            rows.tolist(), starts, (lengths * dim).tolist(), positions.tolist(), due, strict=True
        ):
            target, source = flat[position], values[start : start + size]
            if decoded:
                stored = source.reshape(-1, dim)
                if checked:
                    self._check_tokens(index, stored)
                target[:size] = self._decode(index, stored).reshape(-1)
            else:
                target[:size] = source
                if checked:  # the copy: it is in the cache now
                    self._check_tokens(index, target[:size])
            target[size:] = 0

    def _read_one(self, index: int, out: Array, mask: Array, position: int) -> None:
        """`read_into` of one row: a third of the time."""
        values = self.row(index)
        target, size = out[position], len(values)
        if size > len(target) or out.dtype != values.dtype or target.shape[1:] != values.shape[1:]:
            raise InputError(f"rows of up to {size} tokens do not fit {out.dtype} {out.shape}")
        target[:size] = values
        target[size:] = 0
        mask[position, :size] = True
        mask[position, size:] = False

    def pooled_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """`out[positions] = pooled[rows]`."""
        self._check_size()
        for index, due in zip(rows.tolist(), self._pooled_checks.due(rows), strict=True):
            if due:
                self._check(index, "pooled", google_crc32c.value(self.pooled[index]), self._pooled_crc)
                self._pooled_checks.passed(index)
        out[positions] = self.pooled[rows]

    def _checksum(self, index: int, values: Array) -> int:
        """The crc32c of a row's tokens as they are stored."""
        crc: int = google_crc32c.value(values)
        return crc

    def _decode(self, index: int, values: Array) -> Array:
        """(L, D) values of a row as reads return them, from those stored."""
        raise NotImplementedError

    def _check_tokens(self, index: int, values: Array) -> None:
        self._check(index, "tokens", self._checksum(index, values), self._tokens_crc)
        self._tokens_checks.passed(index)

    def _check(self, index: int, what: str, found: int, stored: Array) -> None:
        if found != int(stored[index]):
            raise VerificationError(f"{self.path}: the crc32c of {what} row {index} does not match", RESTORE)

    def _check_size(self) -> None:
        """To touch a map behind the end of its file would end the process."""
        if self._map.size() < self._size:
            raise VerificationError(f"{self.path} ends early: {self._map.size()} of {self._size} bytes", RESTORE)


def _mapped(path: Path) -> mmap.mmap:
    """The whole file; the map keeps a descriptor of its own, which tells if the file is cut off later."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return mmap.mmap(handle, 0, prot=mmap.PROT_READ)
    finally:
        os.close(handle)


def _matrix(column: Any) -> Array:
    """FixedSizeList<half, D> as (N, D), without a copy."""
    values: Array = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)
