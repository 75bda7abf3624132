"""Where a key lies: sorted 128-bit digests of all keys of a kind, looked up by bisection.

A content key is 32 hex digits, so its 16 bytes are its digest; any other key is taken by its blake2b. A key and
its place cost 24 bytes (a Python dict of strings: 250), and 256 keys are found among 5 million in 0.1 ms.

Reading the keys of 1,600 parts takes a second, so the index of a large store is kept in `<store>/.index`. It is
derived data: named by the parts it covers, checked by xxh3 when it is opened, made anew where it is missing or
damaged, extended where parts were appended, and neither shared nor listed by a manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from .files import staging

U64 = NDArray[np.uint64]
FOLDER = ".index"
KEPT_FROM = 1 << 16  # keys; a smaller index is built in 0.1 s
FEW = 8  # an append of an eighth or less is inserted, which takes a tenth of sorting all anew
MAGIC = b"compalk1"
HEADER = len(MAGIC) + 8 + 16
HEX = 32
NIBBLE = np.full(256, 255, np.uint8)
NIBBLE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)
# key column of one part, in the order of its rows
ReadKeys = Callable[[int], pa.ChunkedArray]


class KeyIndex:
    """digest → place = number of the part among its kind · 2³² + row; a key that stands twice has the place of
    the part committed first."""

    def __init__(self, high: U64, low: U64, places: U64) -> None:
        self.high, self.low, self.places = high, low, places

    def __len__(self) -> int:
        return len(self.high)

    def locate(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The place of each key (N,), -1 where there is none."""
        if len(keys) == 1:
            return np.array([self.place(keys[0])], np.int64)
        found = np.full(len(keys), -1, np.int64)
        if not len(self) or not len(keys):
            return found
        high, low = digests(keys)
        at = np.searchsorted(self.high, high)
        here = np.minimum(at, len(self) - 1)
        same = (at < len(self)) & (self.high[here] == high)
        match = same & (self.low[here] == low)
        found[match] = self.places[here[match]]
        for position in np.flatnonzero(same & ~match).tolist():  # digests that share their first 64 bits
            found[position] = self._within(int(here[position]), high[position], low[position])
        return found

    def place(self, key: str) -> int:
        """The place of one key, -1 if there is none: a fifth of the time of `locate` for one."""
        digest = _digest(key)
        high, low = np.uint64(int.from_bytes(digest[:8])), np.uint64(int.from_bytes(digest[8:]))
        at = int(self.high.searchsorted(high))
        if at == len(self) or self.high[at] != high:
            return -1
        return int(self.places[at]) if self.low[at] == low else self._within(at, high, low)

    def _within(self, start: int, high: np.uint64, low: np.uint64) -> int:
        """The place of a digest among those from `start` that share its first half: their second halves ascend."""
        stop = int(self.high.searchsorted(high, "right"))
        at = start + int(self.low[start:stop].searchsorted(low))
        return int(self.places[at]) if at < stop and self.low[at] == low else -1

    @classmethod
    def build(cls, first: int, columns: Sequence[pa.ChunkedArray]) -> KeyIndex:
        """The index of the key columns of the parts `first`, `first + 1`, …"""
        pairs, places = [], []
        for number, column in enumerate(columns, first):
            pairs.append(_column_digests(column))
            places.append(np.arange(len(column), dtype=np.uint64) | np.uint64(number << 32))
        if not pairs:
            empty = np.zeros(0, np.uint64)
            return cls(empty, empty, empty)
        return cls(
            np.concatenate([high for high, _ in pairs]),
            np.concatenate([low for _, low in pairs]),
            np.concatenate(places),
        )._sorted()

    def extended(self, later: KeyIndex) -> KeyIndex:
        """This index and one of later parts."""
        joined = zip(self._arrays(), later._arrays(), strict=True)
        if len(later) * FEW > len(self):
            return KeyIndex(*(np.concatenate(pair) for pair in joined))._sorted()
        at = np.searchsorted(self.high, later.high, "right")
        return KeyIndex(*(np.insert(old, at, new) for old, new in joined))._distinct()

    def _arrays(self) -> tuple[U64, U64, U64]:
        return self.high, self.low, self.places

    def _sorted(self) -> KeyIndex:
        order = np.argsort(self.high, kind="stable")  # 5 million: 0.4 s, a third of lexsort over both halves
        return KeyIndex(*(array[order] for array in self._arrays()))._distinct()

    def _distinct(self) -> KeyIndex:
        """Of twins, the one committed first. Digests with equal first halves stand in the order of their parts."""
        high, low, places = self._arrays()
        twin = high[1:] == high[:-1]
        if not twin.any():
            return self
        runs = np.flatnonzero(np.append(twin, False) | np.append(False, twin))
        inner = runs[np.lexsort((low[runs], high[runs]))]  # stable: equal keys stay in the order of their parts
        low[runs], places[runs] = low[inner], places[inner]
        keep = np.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))
        return KeyIndex(high[keep], low[keep], places[keep])

    # --- on disk -------------------------------------------------------------------------------------

    def save(self, root: Path, path: Path) -> None:
        """Write beside and rename. A store that cannot be written keeps no index: the next reader builds it."""
        body = [np.ascontiguousarray(array, "<u8").view(np.uint8).data for array in self._arrays()]
        digest = xxhash.xxh3_128()
        for block in body:
            digest.update(block)
        try:
            with staging(root, "index") as folder:
                with open(folder / "new", "xb") as file:
                    file.write(MAGIC + len(self).to_bytes(8, "little") + digest.digest())
                    file.writelines(body)
                path.parent.mkdir(exist_ok=True)
                os.replace(folder / "new", path)
        except Exception:
            return

    @classmethod
    def load(cls, path: Path) -> KeyIndex | None:
        """The index in `path`, memory-mapped; None if there is none, or it is not as it was written."""
        try:
            mapped = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError):
            return None
        if len(mapped) < HEADER or mapped[: len(MAGIC)].tobytes() != MAGIC:
            return None
        count = int.from_bytes(mapped[len(MAGIC) : HEADER - 16].tobytes(), "little")
        body = mapped[HEADER:]
        if len(body) != 24 * count or xxhash.xxh3_128_digest(body.data) != mapped[HEADER - 16 : HEADER].tobytes():
            return None
        high, low, places = np.asarray(body).view("<u8").reshape(3, count)
        return cls(high, low, places)


def key_index(root: Path, kind: str, records: Sequence[str], rows: int, read: ReadKeys) -> KeyIndex:
    """The index over the parts of a kind.

    records  what identifies each part's content, in the order in which the parts were committed
    rows     of all parts together
    read     the key column of part i
    """
    if rows < KEPT_FROM:
        return KeyIndex.build(0, [read(number) for number in range(len(records))])
    folder = root / FOLDER
    path = folder / _name(kind, records)
    index = KeyIndex.load(path)
    if index is None:
        covered, index = _best_prefix(folder, kind, records)
        later = KeyIndex.build(covered, [read(number) for number in range(covered, len(records))])
        index = index.extended(later) if index else later
        index.save(root, path)
        for old in folder.glob(f"{kind}-*"):  # a reader that has one mapped keeps it
            if old != path:
                old.unlink(missing_ok=True)
    return index


def _best_prefix(folder: Path, kind: str, records: Sequence[str]) -> tuple[int, KeyIndex | None]:
    """An index that covers the first parts: what an append leaves of the one before."""
    for path in folder.glob(f"{kind}-*"):
        covered = int(path.name.split("-")[1]) if path.name.split("-")[1].isdecimal() else 0
        if 0 < covered < len(records) and path.name == _name(kind, records[:covered]):
            index = KeyIndex.load(path)
            if index is not None:
                return covered, index
    return 0, None


def _name(kind: str, records: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(records).encode()).hexdigest()[:24]
    return f"{kind}-{len(records)}-{digest}"


# --- digests ---------------------------------------------------------------------------------------------


def digests(keys: Sequence[str]) -> tuple[U64, U64]:
    """The two halves (N,) of the digest of each key."""
    if all(map(_plain, keys)):
        raw = np.frombuffer("".join(keys).encode(), np.uint8).reshape(-1, HEX)
        pair, sound = _hex_digests(raw)
        if sound.all():
            return pair
    halves = np.frombuffer(b"".join(map(_digest, keys)), ">u8").reshape(-1, 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


def _plain(key: str) -> bool:
    return len(key) == HEX and key.isascii()


def _digest(key: str) -> bytes:
    if _plain(key):
        try:
            digest = bytes.fromhex(key)
        except ValueError:
            digest = b""
        if digest.hex() == key:  # fromhex takes capitals and spaces too
            return digest
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _hex_digests(raw: NDArray[np.uint8]) -> tuple[tuple[U64, U64], NDArray[np.bool_]]:
    """(N, 32) characters → both halves, and which rows are lower-case hex digits."""
    nibbles = NIBBLE[raw]
    sound: NDArray[np.bool_] = (nibbles != 255).all(axis=1)
    halves: NDArray[Any] = ((nibbles[:, ::2] << 4) | nibbles[:, 1::2]).view(">u8")
    return (halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)), sound


def _column_digests(column: pa.ChunkedArray) -> tuple[U64, U64]:
    """`digests` of an Arrow column of strings, without a Python object per key."""
    pairs = [_chunk_digests(chunk) for chunk in column.chunks]
    empty = [np.zeros(0, np.uint64)]
    return np.concatenate([high for high, _ in pairs] or empty), np.concatenate([low for _, low in pairs] or empty)


def _chunk_digests(chunk: Any) -> tuple[U64, U64]:
    offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    if len(chunk) and chunk.buffers()[2] is not None and (np.diff(offsets) == HEX).all():
        data = np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        pair, sound = _hex_digests(data.reshape(-1, HEX))
        if sound.all():
            return pair
    return digests(chunk.to_pylist())
