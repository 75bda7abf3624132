"""One shard file of a Zarr v3 array: its layout, its index, its checksums.

A shard is a run of inner chunks, each followed by its crc32c, and an index of (offset, bytes) pairs with a
crc32c at the end. How the samples of a batch are fetched from it: `requests`.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import VerificationError
from .buffers import CRC_BYTES as CRC_BYTES
from .buffers import PAGE, Array, Bytes
from .dtypes import STORED
from .files import RESTORE
from .reading import O_DIRECT, Checks, Reading
from .reading import Rows as Rows

INDEX_ENTRY = 16
ABSENT = 2**64 - 1  # Zarr's mark for a chunk that holds the fill value
NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
# By the names of Zarr; bfloat16 is stored as uint16, see `dtypes`.
DTYPES: dict[str, np.dtype[Any]] = {dtype.name: dtype for dtype in STORED.values()}


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
            shape = tuple(_sizes(metadata["shape"]))
            (outer,) = metadata["codecs"]
            sharding = outer["configuration"]
            shard = _sizes(metadata["chunk_grid"]["configuration"]["chunk_shape"])
            chunk = _sizes(sharding["chunk_shape"])
            separator = metadata["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
            checked = ["bytes", "crc32c"]
            ours = (
                metadata["data_type"] in DTYPES
                and separator in (".", "/")  # anything else could lead out of the store
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


def _sizes(values: Any) -> list[int]:
    if not all(type(n) is int for n in values):
        raise TypeError("sizes are whole numbers")
    return list(values)


class Shard:
    """One open shard file: its index, which chunks are checked, its map.

    Samples of a shard under "map", and chunks of many rows always, are read from a map: a system call for a
    row of 1 KB costs more than the copy. Under "direct" the file is read past the page cache, if its file
    system allows that. Either way it holds one file descriptor.
    """

    def __init__(self, path: Path, layout: Layout, reading: Reading = Reading()) -> None:  # noqa: B008 (frozen)
        self.path, self.layout, self.reading = path, layout, reading
        self.payload = layout.chunk_rows * layout.row_bytes
        try:
            self.handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise VerificationError(f"{path} cannot be opened: {error.strerror}", RESTORE) from None
        self._close = weakref.finalize(self, os.close, self.handle)
        self.size = os.fstat(self.handle).st_size
        self.offsets = self._read_index()
        self.checks = Checks(reading, len(self.offsets))
        self._unfetched: NDArray[np.bool_] | None = None
        self._map: mmap.mmap | None = None
        if reading.mode == "map" or layout.chunk_rows > 1:
            self._map, self._bytes = self._mapped()
            self._close()  # the map has a descriptor of its own
        elif reading.mode == "direct":
            self._bypass_cache(True)

    def _bypass_cache(self, wanted: bool) -> None:
        flags = fcntl.fcntl(self.handle, fcntl.F_GETFL) & ~O_DIRECT
        with suppress(OSError):  # a file system without O_DIRECT: the same reads go through the page cache
            fcntl.fcntl(self.handle, fcntl.F_SETFL, flags | (O_DIRECT if wanted else 0))

    def _read_index(self) -> NDArray[np.int64]:
        count = self.layout.shard_rows // self.layout.chunk_rows
        start = self.size - count * INDEX_ENTRY - CRC_BYTES
        if start < 0:
            raise VerificationError(f"{self.path} is truncated: {self.size} bytes", RESTORE)
        raw = bytearray(self.size - start)
        self.pread([raw], start, len(raw))
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

    def check(self, chunk: int, payload: Array, stored: bytes) -> None:
        """Raises `VerificationError` unless the crc32c of the contiguous `payload` is the `stored` one."""
        if google_crc32c.value(payload) != int.from_bytes(stored, "little"):
            raise VerificationError(f"{self.path}: the crc32c of chunk {chunk} does not match", RESTORE)
        self.checks.passed(chunk)

    # --- by memory map ---------------------------------------------------------------------------------

    def _mapped(self) -> tuple[mmap.mmap, Bytes]:
        try:
            source = mmap.mmap(self.handle, self.size, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is shorter now
            raise VerificationError(f"{self.path} cannot be mapped, or ends early: {error}", RESTORE) from None
        present = self.offsets[self.offsets >= 0]
        probes = present[[0, len(present) // 2, -1]].tolist() if len(present) else []
        if not all(self._cached(offset) for offset in probes):
            self._unfetched = np.ones(len(self.offsets), bool)
        return source, np.frombuffer(source, np.uint8)

    def mapped(self) -> Bytes:
        """The whole file. Raises `VerificationError` if it was cut off since: to touch what lies behind its
        end would end the process."""
        assert self._map is not None
        size = self._map.size()
        if size < self.size:
            raise VerificationError(f"{self.path} ends early: {size} of {self.size} bytes", RESTORE)
        return self._bytes

    def _cached(self, offset: int) -> bool:
        try:
            return bool(NOWAIT) and os.preadv(self.handle, [bytearray(1)], offset, NOWAIT) == 1
        except OSError:
            return False

    def fetch(self, chunks: Rows) -> None:
        """Start to bring chunks into the page cache, all at once, before a map faults on them one by one:
        0.2 GB/s becomes 1 where the file is not cached. Free where it is."""
        unfetched = self._unfetched
        if unfetched is None or self._map is None:
            return
        fresh = chunks[unfetched[chunks]]
        for offset in self.offsets[fresh].tolist():
            start = offset // PAGE * PAGE
            if offset >= 0:
                self._map.madvise(mmap.MADV_WILLNEED, start, offset + self.payload - start)
        unfetched[fresh] = False
        if not unfetched.any():
            self._unfetched = None

    def chunk(self, chunk: int) -> Array:
        """A chunk of many rows, (chunk_rows, …), a view of the map, checked if that is due."""
        offset, shape = int(self.offsets[chunk]), (self.layout.chunk_rows, *self.layout.shape[1:])
        if offset < 0:
            return np.zeros(shape, self.layout.dtype)
        view = self.mapped()
        payload = view[offset : offset + self.payload]
        if self.checks.due_one(chunk):
            self.check(chunk, payload, view[offset + self.payload :][:CRC_BYTES].tobytes())
        return payload.view(self.layout.dtype).reshape(shape)

    # --- by positioned reads ---------------------------------------------------------------------------

    def pread_cached(self, buffers: Sequence[Any], offset: int) -> int:
        """Fill `buffers` from the page cache; the bytes that were there, possibly none. Never waits."""
        try:
            return os.preadv(self.handle, buffers, offset, NOWAIT) if NOWAIT else 0
        except OSError:  # nothing cached, or a file system that cannot tell
            return 0

    def advise(self, offset: int, length: int) -> None:
        """Start to bring bytes into the page cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.handle, offset, length, os.POSIX_FADV_WILLNEED)

    def pread(self, buffers: Sequence[Any], offset: int, wanted: int, got: int = 0) -> None:
        """Fill `buffers` with the `wanted` bytes at `offset`, of which `got` are there. The kernel may return
        less than asked; zero: the file ended, `VerificationError`.

        Bytes beyond `wanted` may be filled too. Past the page cache a read goes on at a page it has begun.
        """
        rest, at = [memoryview(buffer) for buffer in buffers], 0
        try:
            while got < wanted:
                step = got // PAGE * PAGE if self.reading.mode == "direct" else got
                rest, at = _behind(rest, step - at), step
                more = self._preadv(rest, offset + step)
                if step + more <= got:
                    raise VerificationError(f"{self.path} ends early: no byte {offset + got}", RESTORE)
                got = step + more
        except OSError as error:
            raise VerificationError(f"{self.path} cannot be read: {error.strerror}", RESTORE) from None

    def _preadv(self, buffers: list[memoryview], offset: int) -> int:
        try:
            return os.preadv(self.handle, buffers, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or self.reading.mode != "direct":
                raise
        self._bypass_cache(False)  # a file system that takes the flag and not the read
        return os.preadv(self.handle, buffers, offset)


def _behind(buffers: list[memoryview], skip: int) -> list[memoryview]:
    """What lies behind the first `skip` bytes of `buffers`."""
    for number, buffer in enumerate(buffers):
        if skip < len(buffer):
            return [buffer[skip:], *buffers[number + 1 :]]
        skip -= len(buffer)
    return []
