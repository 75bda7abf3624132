"""One shard file of a Zarr v3 array: its layout, its index, and checked reads by row.

A shard is a run of inner chunks, each followed by its crc32c, and an index of (offset, bytes) pairs with a
crc32c at the end. Samples (one row to a chunk) are read by `preadv`, neighbours in one system call; pooled
rows (many to a chunk) through a memory map. A chunk's crc32c is checked when it is first touched.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import VerificationError
from .buffers import PAGE, Array
from .files import RESTORE

Rows = NDArray[np.int64]
CRC_BYTES = 4
INDEX_ENTRY = 16
ABSENT = 2**64 - 1  # Zarr's mark for a chunk that holds the fill value
RUN = 256  # samples per preadv: two buffers each stay below IOV_MAX = 1,024
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


@dataclass(frozen=True)
class Layout:
    """What `zarr.json` says, for the arrays the fast reader understands."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    shard_rows: int
    separator: str

    @classmethod
    def parse(cls, metadata: dict[str, Any]) -> Layout | None:
        """None for an array that is legal Zarr but not ours: compressed, transposed, cut along other axes."""
        try:
            shape = tuple(int(n) for n in metadata["shape"])
            (outer,) = metadata["codecs"]
            sharding = outer["configuration"]
            shard = [int(n) for n in metadata["chunk_grid"]["configuration"]["chunk_shape"]]
            chunk = [int(n) for n in sharding["chunk_shape"]]
            separator = metadata["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
            checked = ["bytes", "crc32c"]
            ours = (
                metadata["data_type"] in DTYPES
                and metadata["fill_value"] == 0
                and metadata["chunk_grid"]["name"] == "regular"
                and metadata["chunk_key_encoding"]["name"] == "default"
                and outer["name"] == "sharding_indexed"
                and [codec["name"] for codec in sharding["codecs"]] == checked
                and [codec["name"] for codec in sharding["index_codecs"]] == checked
                and sharding["codecs"][0]["configuration"]["endian"] == "little"
                and sharding["index_codecs"][0]["configuration"]["endian"] == "little"
                and sharding.get("index_location", "end") == "end"
                and not metadata.get("storage_transformers")
                and shard[1:] == chunk[1:] == list(shape[1:])
                and len(shape) >= 2
                and min(shape[1:]) > 0
                and chunk[0] > 0
                and shard[0] > 0
                and shard[0] % chunk[0] == 0
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return None
        return cls(shape, DTYPES[metadata["data_type"]], chunk[0], shard[0], separator) if ours else None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


class Shard:
    """One open shard file: its index, and which chunks have been checked."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.payload = layout.chunk_rows * layout.row_bytes
        try:
            self.handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise VerificationError(f"{path} cannot be opened: {error.strerror}", RESTORE) from None
        weakref.finalize(self, os.close, self.handle)
        self.size = os.fstat(self.handle).st_size
        self.offsets = self._read_index()
        self.checked = bytearray(len(self.offsets))
        self._mapped: Array | None = None

    def _read_index(self) -> NDArray[np.int64]:
        count = self.layout.shard_rows // self.layout.chunk_rows
        start = self.size - count * INDEX_ENTRY - CRC_BYTES
        if start < 0:
            raise VerificationError(f"{self.path} is truncated: {self.size} bytes", RESTORE)
        raw = bytearray(self.size - start)
        self._pread([raw], start, len(raw))
        stored, body = int.from_bytes(raw[-CRC_BYTES:], "little"), bytes(raw[:-CRC_BYTES])
        if google_crc32c.value(body) != stored:
            raise VerificationError(f"{self.path}: the crc32c of the shard's index does not match", RESTORE)
        index = np.frombuffer(body, "<u8").reshape(count, 2)
        present = index[:, 0] != ABSENT
        sound = (index[present, 1] == self.payload + CRC_BYTES) & (
            index[present, 0] <= max(0, start - self.payload - CRC_BYTES)
        )
        if not sound.all():
            raise VerificationError(f"{self.path}: the shard's index points outside the file", RESTORE)
        offsets: NDArray[np.int64] = np.where(present, index[:, 0], 0).astype(np.int64)
        offsets[~present] = -1
        return offsets

    def read_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """`out[positions] = shard[rows]` for ascending `rows`; see `DenseArray.read_into`."""
        if self.layout.chunk_rows > 1:
            return self._read_mapped(rows, out, positions)
        fresh = np.ones(len(rows), bool)
        fresh[1:] = rows[1:] != rows[:-1]
        first = positions[fresh]
        self._read_samples(rows[fresh], out, first)
        if not fresh.all():
            again = ~fresh
            out[positions[again]] = out[first[np.cumsum(fresh)[again] - 1]]
        return None

    def _read_samples(self, rows: Rows, out: Array, positions: Rows) -> None:
        """Distinct samples in the order of the file: neighbours in one call, padding into a scratch."""
        offsets = self.offsets[rows]
        order = np.argsort(offsets, kind="stable")
        rows, positions, offsets = rows[order], positions[order], offsets[order]
        flat = out.reshape(len(out), -1).view(np.uint8)
        present = int(np.searchsorted(offsets, 0))
        flat[positions[:present]] = 0
        gaps = np.diff(offsets, append=0) - self.payload
        apart = (gaps < CRC_BYTES) | (gaps > PAGE)  # not neighbours: another sample lies between
        apart[-1:] = True
        gaps[apart] = CRC_BYTES
        # Plain lists from here: per sample, indexing numpy scalars would cost more than the system call.
        samples = list(zip(rows.tolist(), positions.tolist(), gaps.tolist(), strict=True))
        start = present
        for end in (np.flatnonzero(apart[present:]) + present + 1).tolist():
            while start < end:
                stop = min(start + RUN, end)
                self._read_run(samples[start:stop], int(offsets[start]), flat)
                start = stop

    def _read_run(self, samples: list[tuple[int, int, int]], offset: int, flat: Array) -> None:
        """Adjacent samples, each (row, position in `flat`, bytes up to the next sample)."""
        buffers: list[Any] = []
        wanted = len(samples) * self.payload
        for _, position, gap in samples:
            buffers += (flat[position], bytearray(gap))
            wanted += gap
        self._pread(buffers, offset, wanted)
        for number, (row, _, _) in enumerate(samples):
            if not self.checked[row]:
                self._check(row, buffers[2 * number], buffers[2 * number + 1][:CRC_BYTES])

    def _read_mapped(self, rows: Rows, out: Array, positions: Rows) -> None:
        """Rows of chunks of many rows, by memory map: a system call for 1 KB costs more than the copy."""
        chunks, within = np.divmod(rows, self.layout.chunk_rows)
        edges = np.flatnonzero(np.diff(chunks)) + 1
        for start, stop in zip([0, *edges], [*edges, len(rows)], strict=True):
            if stop > start:
                out[positions[start:stop]] = self._chunk(int(chunks[start]))[within[start:stop]]

    def _chunk(self, chunk: int) -> Array:
        if self._mapped is None:
            self._mapped = np.frombuffer(mmap.mmap(self.handle, self.size, prot=mmap.PROT_READ), np.uint8)
        offset, shape = int(self.offsets[chunk]), (self.layout.chunk_rows, *self.layout.shape[1:])
        if offset < 0:
            return np.zeros(shape, self.layout.dtype)
        payload = self._mapped[offset : offset + self.payload]
        if not self.checked[chunk]:
            self._check(chunk, payload, self._mapped[offset + self.payload :][:CRC_BYTES].tobytes())
        return payload.view(self.layout.dtype).reshape(shape)

    def _check(self, chunk: int, payload: Array, stored: bytes) -> None:
        if google_crc32c.value(payload) != int.from_bytes(stored, "little"):
            raise VerificationError(f"{self.path}: the crc32c of chunk {chunk} does not match", RESTORE)
        self.checked[chunk] = 1

    def _pread(self, buffers: list[Any], offset: int, wanted: int) -> None:
        """Fill all buffers from `offset`. The kernel may return less than asked; zero: the file ended."""
        try:
            got = os.preadv(self.handle, buffers, offset)
            if got == wanted:
                return
            rest = [memoryview(buffer) for buffer in buffers]
            while rest:
                if got == 0:
                    raise VerificationError(f"{self.path} ends early: no byte {offset}", RESTORE)
                offset += got
                while rest and got >= len(rest[0]):
                    got -= len(rest.pop(0))
                if rest:
                    rest[0] = rest[0][got:]
                    got = os.preadv(self.handle, rest, offset)
        except OSError as error:
            raise VerificationError(f"{self.path} cannot be read: {error.strerror}", RESTORE) from None
