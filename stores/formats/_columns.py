"""Formats that hold named arrays (HDF5, safetensors, npz): which arrays a store becomes.

Of images: keys, sources, sizes (N, 2), pooled (N, E), tokens (N, P, D). Of texts: keys, sources, captions,
pooled, tokens (T, D) of all captions behind each other with offsets (N + 1,), spans (S, 2) with span_offsets,
pool_index, truncated, and segments (S, 2) with segment_offsets and segment_kinds. Regions are laid out as the
tokens of texts. A name is the kind's plural, a dot and one of these: `images.keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..buffers import Array
from ..rows import is_ragged, token_dim
from ..store import Store
from ._common import BLOCK_BYTES, KINDS, PLURAL, Kind, row_tokens, runs

FIELDS = {
    "image": ("keys", "sources", "sizes", "pooled", "tokens", "offsets", "lengths"),
    "text": (
        *("keys", "sources", "captions", "pooled", "tokens", "offsets", "lengths", "spans", "span_offsets"),
        *("pool_index", "truncated", "segments", "segment_offsets", "segment_kinds"),
    ),
}
MEAN = "=mean"  # in a mapping: no array, the mean of the tokens
PIECE = 1 << 16  # rows of a small column written at a time


@dataclass(frozen=True)
class Column:
    """One array of an export; `blocks()` yields its rows in order."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[Array]]

    @property
    def bytes(self) -> int:
        """What it takes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, values: Array) -> Column:
        """From an array in memory."""
        return cls(name, values.shape, values.dtype, lambda: (values[run] for run in runs(len(values), PIECE)))


@dataclass(frozen=True)
class Strings:
    """One column of texts, which each format holds in its own way."""

    name: str
    values: list[str]


class Source(Protocol):
    """A file of named arrays, opened for import. Every answer is checked against the size of the file before
    memory is allocated; `rows` are asked for in ascending order."""

    label: Path
    notes: dict[str, str]

    def names(self) -> set[str]:
        """The names of its arrays."""

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype, without reading. Raises `InputError` for objects, claims and links."""

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows of an array."""

    def strings(self, name: str) -> list[str]:
        """A whole column of texts."""


def columns(store: Store, tables: dict[Kind, pa.Table]) -> list[Column | Strings]:
    """The arrays that hold the rows of `tables`, small ones first in memory, features as they are read."""
    found: list[Column | Strings] = []
    for kind in KINDS:
        if tables[kind].num_rows:
            found += _of_table(kind, tables[kind])
            found += _of_features(store, kind, tables[kind])
    return found


def _of_table(kind: Kind, table: pa.Table) -> list[Column | Strings]:
    plural = PLURAL[kind]

    def numbers(name: str, dtype: Any) -> Array:
        return np.asarray(table.column(name).to_numpy(), dtype)

    found: list[Column | Strings] = [
        Strings(f"{plural}.keys", table.column("key").to_pylist()),
        Strings(f"{plural}.sources", table.column("source").to_pylist()),
    ]
    if kind == "image":
        sizes = np.stack([numbers("width", np.int32), numbers("height", np.int32)], axis=1)
        return [*found, Column.of(f"{plural}.sizes", sizes)]
    spans, segments = (table.column(name).combine_chunks() for name in ("spans", "segments"))
    found += [
        Strings(f"{plural}.captions", table.column("caption").to_pylist()),
        Column.of(f"{plural}.pool_index", numbers("pool_index", np.int32)),
        Column.of(f"{plural}.truncated", numbers("truncated", np.uint8)),
        Column.of(f"{plural}.span_offsets", offsets_of(spans)),
        Column.of(f"{plural}.spans", _pairs(spans)),
        Column.of(f"{plural}.segment_offsets", offsets_of(segments)),
        Column.of(f"{plural}.segments", _pairs(segments)),
        Strings(f"{plural}.segment_kinds", segments.flatten().field("kind").to_pylist()),
    ]
    return found


def offsets_of(lists: Any) -> Array:
    """(N + 1,) int64: list i is values[offsets[i] : offsets[i + 1]] of `lists.flatten()`."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _pairs(lists: Any) -> Array:
    values = lists.flatten()
    both = [values.field(name).to_numpy(zero_copy_only=False) for name in ("start", "end")]
    return np.stack(both, axis=1).astype(np.int32)


def _of_features(store: Store, kind: Kind, table: pa.Table) -> list[Column]:
    keys = table.column("key").to_pylist()
    found = [_pooled(store, kind, keys)] if store.spec.pooled_dim else []
    if not token_dim(store.spec, kind):
        return found
    first = row_tokens(store, kind, keys[:1])[0]
    step = max(1, BLOCK_BYTES // max(1, first.nbytes if kind == "image" else 64 * first[0].nbytes))
    shape: tuple[int, ...] = (len(keys), *first.shape)
    if is_ragged(store.spec, kind):
        lengths = _lengths(store, kind, table, step)
        found.append(Column.of(f"{PLURAL[kind]}.offsets", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)))
        shape = (int(lengths.sum()), first.shape[1])

    def blocks() -> Iterator[Array]:
        for run in runs(len(keys), step):
            if is_ragged(store.spec, kind):
                yield np.concatenate(row_tokens(store, kind, keys[run]))
            else:
                yield store.image_tokens(keys[run])

    return [*found, Column(f"{PLURAL[kind]}.tokens", shape, first.dtype, blocks)]


def _pooled(store: Store, kind: Kind, keys: list[str]) -> Column:
    first = store.pooled(kind, keys[:1])
    step = BLOCK_BYTES // max(1, first.nbytes)
    return Column(
        f"{PLURAL[kind]}.pooled",
        (len(keys), *first.shape[1:]),
        first.dtype,
        lambda: (store.pooled(kind, keys[run]) for run in runs(len(keys), step)),
    )


def _lengths(store: Store, kind: Kind, table: pa.Table, step: int) -> Array:
    """Tokens per item: a caption has one span per token; regions must be read once to be counted."""
    if kind == "text":
        return np.diff(offsets_of(table.column("spans").combine_chunks()))
    keys = table.column("key").to_pylist()
    counts = [store.image_regions(keys[run])[1].sum(axis=1) for run in runs(len(keys), step)]
    return np.concatenate(counts)
