"""Whole stores in the order of the disk, read ahead by a thread: for statistics, conversions, first epochs.

Parts are planned in shuffled order, so a scan is a shuffled epoch already, at the speed of sequential reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import InputError
from .buffers import Array, aligned_empty, sample_buffer
from .dense import DenseArray
from .ragged import RaggedFile
from .rows import is_ragged, token_dim
from .shard import Rows

if TYPE_CHECKING:
    from .manifest import Part
    from .store import Store

Kind = Literal["image", "text"]
What = Literal["tokens", "pooled"]
Batch = tuple[list[str], dict[str, Array]]
Slot = dict[str, Array]


def scan(
    store: Store, kind: Kind, batch: int = 256, what: Sequence[What] = ("tokens", "pooled"), ahead: int = 2
) -> Iterator[Batch]:
    """All rows of a kind, each key once, part by part: (n keys, arrays by name), n ≤ `batch`, fewer at the end
    of a part.

    tokens  (n, P, D) of images; (n, L, D) of captions and regions, zeros behind the tokens
    mask    (n, L) bool, where tokens are, beside the tokens of captions and regions
    pooled  (n, E)

    A thread reads up to `ahead` batches ahead into `ahead + 1` buffers that are used again and again: the
    arrays of a batch are valid until the next one is asked for. Copy what is kept. Raises `InputError` for a
    batch or `ahead` below 1, tokens or pooled embeddings of a store that keeps none, and a scan that is continued
    after a fork; `VerificationError` where bytes are not what was written.
    """
    if batch < 1 or ahead < 1 or not set(what) <= {"tokens", "pooled"}:
        raise InputError(f"a scan of {what} with batches of {batch}, {ahead} ahead", "Both must be at least 1.")
    if "tokens" in what and not token_dim(store.spec, kind):
        raise InputError(f"{store.path} keeps no {kind} tokens (level {store.spec.level})", "Scan the pooled ones.")
    if "pooled" in what and not store.spec.pooled_dim:
        raise InputError(f"{store.path} keeps no pooled embeddings (level {store.spec.level})", "Scan the tokens.")
    return _read_ahead(lambda slot: _batches(store, kind, batch, what, slot), ahead)


def _read_ahead(start: Callable[[Callable[[], Slot]], Iterator[Batch]], ahead: int) -> Iterator[Batch]:
    """What `start(slot)` yields, made in a thread. It calls `slot` for the memory of each batch."""
    free: SimpleQueue[Slot | None] = SimpleQueue()
    ready: SimpleQueue[tuple[Slot, Batch] | BaseException | None] = SimpleQueue()
    for _ in range(ahead + 1):
        free.put({})
    used: list[Slot] = []
    stopped = Event()

    def slot() -> Slot:
        found = free.get()
        if found is None or stopped.is_set():
            raise _Stopped
        used.append(found)
        return found

    def work() -> None:
        try:
            for made in start(slot):
                ready.put((used.pop(), made))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread, owner = Thread(target=work, name="compal-scan", daemon=True), os.getpid()
    thread.start()
    try:
        while True:
            if os.getpid() != owner:
                raise InputError("a scan cannot be continued after a fork", "Begin it in the child process.")
            found = ready.get()
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found[1]
            free.put(found[0])
    finally:
        if os.getpid() == owner:
            stopped.set()
            free.put(None)
            thread.join()


class _Stopped(Exception):
    """The reader of a scan has left."""


def _batches(store: Store, kind: Kind, batch: int, what: Sequence[What], slot: Callable[[], Slot]) -> Iterator[Batch]:
    ragged = is_ragged(store.spec, kind)
    for number, part in enumerate(store._parts[kind]):
        if not part.rows:
            continue
        keys = store._table(part, ["key"]).column("key").to_pylist()
        for start in range(0, part.rows, batch):
            rows = _own(store, kind, number, keys, range(start, min(start + batch, part.rows)))
            if len(rows):
                memory = slot()
                arrays = (_ragged if ragged else _dense)(store, part, rows, what, (memory, batch))
                yield [keys[row] for row in rows.tolist()], arrays


def _own(store: Store, kind: Kind, number: int, keys: list[str], rows: range) -> Rows:
    """The rows of part `number` that a read by key would return; a key may stand in an earlier part too."""
    here = np.arange(rows.start, rows.stop)
    own: Rows = here[store._locate(kind, keys[rows.start : rows.stop]) == (number << 32 | here)]
    return own


def _dense(store: Store, part: Part, rows: Rows, what: Sequence[What], memory: tuple[Slot, int]) -> dict[str, Array]:
    slot, batch = memory
    found: dict[str, Array] = {}
    for name in what:
        array: DenseArray = store._dense(part, name)
        if name not in slot:
            make = sample_buffer if name == "tokens" else _contiguous
            slot[name] = make(batch, array.shape[1:], array.dtype)
        found[name] = slot[name][: len(rows)]
        array.read_into(rows, found[name], np.arange(len(rows)))
    return found


def _ragged(store: Store, part: Part, rows: Rows, what: Sequence[What], memory: tuple[Slot, int]) -> dict[str, Array]:
    slot, batch = memory
    file: RaggedFile = store._ragged(part)
    positions = np.arange(len(rows))
    found: dict[str, Array] = {}
    if "tokens" in what and file.tokens is not None:
        longest, dim = int(file.lengths[rows].max()), file.tokens.shape[1]
        size = len(rows) * longest * dim
        if "tokens" not in slot or slot["tokens"].size < size:  # to a power of two: grown a few times at most
            slot["tokens"] = aligned_empty((1 << (size - 1).bit_length(),), file.dtype)
        found["tokens"] = slot["tokens"][:size].reshape(len(rows), longest, dim)
        found["mask"] = np.empty((len(rows), longest), bool)
        file.read_into(rows, found["tokens"], found["mask"], positions)
    if "pooled" in what:
        if "pooled" not in slot:
            slot["pooled"] = _contiguous(batch, file.pooled.shape[1:], file.pooled.dtype)
        found["pooled"] = slot["pooled"][: len(rows)]
        file.pooled_into(rows, found["pooled"], positions)
    return found


def _contiguous(count: int, inner: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    return aligned_empty((count, *inner), dtype)
