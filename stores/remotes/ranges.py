"""A dense array of a remote store, read by ranged GETs: neighbours in one, every chunk's crc32c checked."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ...errors import VerificationError
from ..buffers import Array
from ..shard import ABSENT, CRC_BYTES, INDEX_ENTRY, Layout, Rows
from .shared import DAMAGED, TRIES, SharedStore

GAP = 1 << 20  # bytes: a second request costs more than reading over a gap of this size
LONGEST = 16 << 20  # bytes of one request: what is longer is better read by two at once


def coalesce(spans: Sequence[tuple[int, int]], gap: int = GAP, longest: int = LONGEST) -> list[tuple[int, int]]:
    """Ascending (start, stop) joined to fewer: over gaps of at most `gap`, to at most `longest` bytes; a single
    span may be longer."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and start - joined[-1][1] <= gap and stop - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


class RemoteArray:
    """See `dense.DenseArray`. Safe in threads. `sizes` are the bytes of the shard files by name."""

    def __init__(self, shared: SharedStore, folder: str, layout: Layout, sizes: dict[str, int]) -> None:
        self.shared, self.folder, self.layout, self.sizes = shared, folder, layout, sizes
        self.shape, self.dtype = layout.shape, layout.dtype
        self.payload = layout.chunk_rows * layout.row_bytes
        self._offsets: dict[int, NDArray[np.int64]] = {}
        self._lock = Lock()

    def read_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """See `DenseArray.read_into`."""
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise IndexError(f"{self.folder} has {self.shape[0]} rows, asked for {rows.min()} to {rows.max()}")
        shards = rows // self.layout.shard_rows
        for number in np.unique(shards).tolist():
            here = np.flatnonzero(shards == number)
            self._read_shard(number, rows[here] - number * self.layout.shard_rows, out, positions[here])

    def _read_shard(self, number: int, rows: Rows, out: Array, positions: Rows) -> None:
        chunks, within = np.divmod(rows, self.layout.chunk_rows)
        offsets = self._index(number)[chunks]
        out[positions[offsets < 0]] = 0
        size = self.payload + CRC_BYTES
        starts = np.unique(offsets[offsets >= 0]).tolist()
        for block in _batches(coalesce([(start, start + size) for start in starts])):
            for (start, stop), data in zip(block, self._checked(number, block, starts, size), strict=True):
                # Every chunk of the run is copied from the answer to all rows that asked for it.
                mine = np.flatnonzero((offsets >= start) & (offsets + size <= stop))
                values = np.frombuffer(data, np.uint8)
                for position, offset, row in zip(positions[mine], offsets[mine] - start, within[mine], strict=True):
                    chunk = values[offset : offset + self.payload].view(self.dtype)
                    out[position] = chunk.reshape(self.layout.chunk_rows, *self.shape[1:])[row]

    def _checked(self, number: int, block: list[tuple[int, int]], starts: list[int], size: int) -> list[bytes]:
        """The bytes of several ranges, once each chunk asked for in them is what was written."""
        wrong = -1
        for _ in range(TRIES):
            found = self.shared.objects.get_ranges(self.shared.at(self._path(number)), block)
            wrong = -1
            for (begin, end), data in zip(block, found, strict=True):
                values = np.frombuffer(data, np.uint8)
                for start in (start for start in starts if begin <= start and start + size <= end):
                    chunk = values[start - begin : start - begin + size]
                    stored = int.from_bytes(chunk[self.payload :].tobytes(), "little")
                    if google_crc32c.value(chunk[: self.payload]) != stored:
                        wrong = start
            if wrong < 0:
                return found
        what = f"{self.shared.url}/{self._path(number)}: the crc32c of the chunk at byte {wrong} does not match"
        raise VerificationError(what, DAMAGED)

    def _path(self, number: int) -> str:
        key = self.layout.separator.join(["c", str(number), *["0"] * (len(self.shape) - 1)])
        return f"{self.folder}/{key}"

    def _index(self, number: int) -> NDArray[np.int64]:
        with self._lock:
            if number not in self._offsets:
                self._offsets[number] = self._read_index(number)
            return self._offsets[number]

    def _read_index(self, number: int) -> NDArray[np.int64]:
        path, count = self._path(number), self.layout.shard_rows // self.layout.chunk_rows
        size = self.sizes.get(path, 0)
        start = size - count * INDEX_ENTRY - CRC_BYTES
        if start < 0:
            raise VerificationError(f"{self.shared.url}/{path} is too short for its index", DAMAGED)
        for _ in range(TRIES):
            (raw,) = self.shared.objects.get_ranges(self.shared.at(path), [(start, size)])
            if google_crc32c.value(raw[:-CRC_BYTES]) == int.from_bytes(raw[-CRC_BYTES:], "little"):
                return self._sound(path, np.frombuffer(raw[:-CRC_BYTES], "<u8").reshape(count, 2), start)
        raise VerificationError(f"{self.shared.url}/{path}: the crc32c of the index does not match", DAMAGED)

    def _sound(self, path: str, index: NDArray[Any], end: int) -> NDArray[np.int64]:
        present = index[:, 0] != ABSENT
        length = self.payload + CRC_BYTES
        inside = (index[present, 1] == length) & (index[present, 0] <= max(0, end - length))
        if not inside.all() or (present.any() and end < length):
            raise VerificationError(f"{self.shared.url}/{path}: the index points outside the file", DAMAGED)
        offsets: NDArray[np.int64] = np.where(present, index[:, 0], 0).astype(np.int64)
        offsets[~present] = -1
        return offsets


def _batches(spans: list[tuple[int, int]], most: int = 8 * LONGEST) -> list[list[tuple[int, int]]]:
    """Runs of spans of at most `most` bytes: what is in memory beside the caller's buffer."""
    batches: list[list[tuple[int, int]]] = []
    held = most
    for start, stop in spans:
        if held + stop - start > most:
            batches.append([])
            held = 0
        batches[-1].append((start, stop))
        held += stop - start
    return batches
