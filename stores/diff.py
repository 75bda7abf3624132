"""How two stores differ: specs field by field, keys, and the values of what both hold.

Parts whose files have the same checksums are equal without being read, so two stores that were copied from each
other, wholly or in part, are compared as fast as their tables are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .buffers import Array
from .dtypes import to_float32
from .manifest import KINDS, Part
from .rows import is_ragged, token_dim
from .spec import FeatureSpec
from .store import Store

FIRST = 10  # keys named of each difference; more say nothing new
BATCH_BYTES = 1 << 26


@dataclass(frozen=True)
class FieldDifference:
    """A field of the spec, here and there."""

    name: str
    here: Any
    there: Any


@dataclass(frozen=True)
class KeyDifference:
    """The keys of a kind: how many stand in both, only here, only there; up to ten of those by name."""

    kind: str
    common: int
    only_here: int
    only_there: int
    first_only_here: tuple[str, ...]
    first_only_there: tuple[str, ...]


@dataclass(frozen=True)
class ValueDifference:
    """What the items that both hold say of themselves.

    kind        "image" or "text"
    what        "tokens", "pooled", or "table" (size | caption, spans, pool index, truncated, segments)
    equal       items in parts with the same checksums, which were not read
    compared    items whose values were compared
    different   of these, the items with a value beyond the tolerance or another number of tokens
    max_abs     the largest |here - there|
    max_rel     the largest |here - there| / max(|here|, |there|)
    min_cosine  the smallest cosine of two vectors (a token, a pooled embedding)
    first       up to ten keys of `different`
    note        why nothing was compared, or ""
    """

    kind: str
    what: str
    equal: int
    compared: int
    different: int
    max_abs: float
    max_rel: float
    min_cosine: float
    first: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """All of it. `equal`: same spec, same keys, and no value beyond the tolerance among those compared."""

    here: str
    there: str
    equal: bool
    spec: tuple[FieldDifference, ...]
    keys: tuple[KeyDifference, ...]
    values: tuple[ValueDifference, ...]


def diff(a: Path, b: Path, atol: float = 0.0, rtol: float = 0.0, limit: int | None = None) -> Difference:
    """Compare the newest snapshots of the stores at `a` (here) and `b` (there).

    A value is within the tolerance if |here - there| ≤ atol + rtol · |there|. At most `limit` items of a kind
    are compared by value. Values of dtype bfloat16 and int8 are compared as the numbers that reads give. Raises
    `InputError` if one is not a store, `VerificationError` where bytes are not what was written.
    """
    if not (atol >= 0 and rtol >= 0 and (limit is None or limit >= 0)):
        raise InputError("tolerances and the limit cannot be negative")
    here, there = Store.open(Path(a)), Store.open(Path(b))
    names = [one.name for one in dataclasses.fields(FeatureSpec)]
    pairs = [FieldDifference(name, getattr(here.spec, name), getattr(there.spec, name)) for name in names]
    spec = tuple(one for one in pairs if one.here != one.there)
    keys, values = [], []
    for kind in KINDS:
        found = _Kind(here, there, kind, (atol, rtol), limit)
        found.run()
        keys.append(found.keys())
        values += [tally.result(kind, found.equal) for tally in found.tallies.values()]
    same = not spec and all(not (one.only_here or one.only_there) for one in keys)
    equal = same and all(not (one.different or one.note) for one in values)
    return Difference(str(a), str(b), equal, spec, tuple(keys), tuple(values))


@dataclass
class _Tally:
    """Sums over batches of one array."""

    what: str
    compared: int = 0
    different: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    min_cosine: float = 1.0
    first: list[str] = field(default_factory=list)
    note: str = ""

    def add(self, keys: Sequence[str], wrong: Array) -> None:
        """`wrong` (N,) bool: which of the items are beyond the tolerance."""
        self.compared += len(keys)
        self.different += int(wrong.sum())
        room = max(0, FIRST - len(self.first))
        self.first += [keys[row] for row in np.flatnonzero(wrong)[:room].tolist()]

    def add_values(self, keys: Sequence[str], x: Array, y: Array, tolerance: tuple[float, float], skip: Array) -> None:
        """Batches (N, …, D) of float32; `skip` (N,) are different for another reason and not compared."""
        wrong = skip.copy()
        unlike = np.flatnonzero(~skip & (x != y).reshape(len(keys), -1).any(axis=1))
        if len(unlike):
            one, other = x[unlike].astype(np.float64), y[unlike].astype(np.float64)
            gap = np.abs(one - other)
            beyond = gap > tolerance[0] + tolerance[1] * np.abs(other)
            wrong[unlike] = beyond.reshape(len(unlike), -1).any(axis=1)
            larger = np.maximum(np.abs(one), np.abs(other))
            self.max_abs = max(self.max_abs, float(gap.max()))
            self.max_rel = max(self.max_rel, float((gap / np.where(larger > 0, larger, 1)).max()))
            self.min_cosine = min(self.min_cosine, _least_cosine(one, other))
        self.add(keys, wrong)

    def result(self, kind: str, equal: int) -> ValueDifference:
        """As it is reported."""
        rest = (self.compared, self.different, self.max_abs, self.max_rel, self.min_cosine)
        return ValueDifference(kind, self.what, equal, *rest, tuple(self.first), self.note)


def _least_cosine(x: Array, y: Array) -> float:
    """Over the last axis; two zero vectors are alike, one is not like any other."""
    lengths = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    both = ~(x.any(axis=-1) | y.any(axis=-1))
    cosines = np.where(both, 1.0, (x * y).sum(axis=-1) / np.where(lengths > 0, lengths, 1))
    return float(np.clip(cosines, -1, 1).min())


class _Kind:
    """The comparison of the images or the captions of two stores, part by part."""

    def __init__(self, here: Store, there: Store, kind: Any, tolerance: tuple[float, float], limit: int | None) -> None:
        self.here, self.there, self.kind, self.tolerance = here, there, kind, tolerance
        self.left = limit
        self.common, self.equal = 0, 0
        self.only: dict[str, tuple[int, list[str]]] = {}
        self.tallies = {name: _Tally(name) for name in ("table", "tokens", "pooled")}
        self._signatures = {part.name: _signature(part) for part in there.parts}
        self._readers = self._comparable()

    def keys(self) -> KeyDifference:
        """What `run` found of the keys."""
        (here, first), (there, second) = self.only["here"], self.only["there"]
        return KeyDifference(self.kind, self.common, here, there, tuple(first), tuple(second))

    def run(self) -> None:
        """Count the keys and compare the values."""
        for name, one, other in (("here", self.here, self.there), ("there", self.there, self.here)):
            count, first = 0, list[str]()
            for part, keys in _held(one, self.kind):
                lacking = ~other.has(self.kind, keys)
                count += int(lacking.sum())
                first += [keys[row] for row in np.flatnonzero(lacking)[: FIRST - len(first)].tolist()]
                if name == "here":
                    self._part(part, [key for key, gone in zip(keys, lacking.tolist(), strict=True) if not gone])
            self.only[name] = count, first

    def _part(self, part: Part, keys: list[str]) -> None:
        """Compare what a part here and the other store both hold."""
        self.common += len(keys)
        if not keys:
            return
        signature, listed = _signature(part), self.there._parts[self.kind]
        numbers = self.there._locate(self.kind, keys) >> 32
        alike = {n for n in np.unique(numbers).tolist() if self._signatures[listed[n].name] == signature}
        unread = [key for key, number in zip(keys, numbers.tolist(), strict=True) if number not in alike]
        self.equal += len(keys) - len(unread)
        if self.left is not None:
            unread = unread[: self.left]
            self.left -= len(unread)
        step = max(1, BATCH_BYTES // self._row_bytes())
        for start in range(0, len(unread), step):
            batch = unread[start : start + step]
            for name, compare in self._readers.items():
                compare(self.tallies[name], batch)

    def _row_bytes(self) -> int:
        spec = self.here.spec
        tokens = int(np.prod(spec.image_shape)) if self.kind == "image" else spec.context_length * spec.text_dim
        return max(1, 8 * (tokens + spec.pooled_dim))

    def _comparable(self) -> dict[str, Callable[[_Tally, list[str]], None]]:
        """What both stores keep, and how it is compared; of the rest the tally says why not."""
        readers: dict[str, Callable[[_Tally, list[str]], None]] = {"table": self._compare_tables}
        here, there = self.here.spec, self.there.spec
        shapes = [_token_shape(spec, self.kind) for spec in (here, there)]
        if shapes[0] != shapes[1]:
            self.tallies["tokens"].note = f"tokens are {shapes[0] or 'not kept'} here, {shapes[1] or 'not kept'} there"
        elif shapes[0] is None:
            del self.tallies["tokens"]
        else:
            readers["tokens"] = self._compare_ragged if is_ragged(here, self.kind) else self._compare_dense
        if here.pooled_dim != there.pooled_dim:
            sizes = [spec.pooled_dim or "not kept" for spec in (here, there)]
            self.tallies["pooled"].note = f"pooled embeddings are {sizes[0]} here, {sizes[1]} there"
        elif not here.pooled_dim:
            del self.tallies["pooled"]
        else:
            readers["pooled"] = self._compare_pooled
        return readers

    def _compare_tables(self, tally: _Tally, keys: list[str]) -> None:
        here, there = (_rows(store, self.kind, keys) for store in (self.here, self.there))
        tally.add(keys, np.array([one != other for one, other in zip(here, there, strict=True)], bool))

    def _compare_pooled(self, tally: _Tally, keys: list[str]) -> None:
        x, y = (to_float32(store.pooled(self.kind, keys)) for store in (self.here, self.there))
        tally.add_values(keys, x, y, self.tolerance, np.zeros(len(keys), bool))

    def _compare_dense(self, tally: _Tally, keys: list[str]) -> None:
        x, y = (to_float32(store.image_tokens(keys)) for store in (self.here, self.there))
        tally.add_values(keys, x, y, self.tolerance, np.zeros(len(keys), bool))

    def _compare_ragged(self, tally: _Tally, keys: list[str]) -> None:
        read = Store.text_tokens if self.kind == "text" else Store.image_regions
        (x, mask), (y, other) = (read(store, keys) for store in (self.here, self.there))
        length = min(mask.shape[1], other.shape[1])
        unequal = mask.sum(axis=1) != other.sum(axis=1)
        tally.add_values(keys, to_float32(x[:, :length]), to_float32(y[:, :length]), self.tolerance, unequal)


def _held(store: Store, kind: Any) -> Iterator[tuple[Part, list[str]]]:
    """Each part with the keys that are read from it: not those that an earlier part holds too."""
    for number, part in enumerate(store._parts[kind]):
        keys = store._table(part, ["key"]).column("key").to_pylist()
        first = (store._locate(kind, keys) >> 32) == number
        yield part, [key for key, own in zip(keys, first.tolist(), strict=True) if own]


def _signature(part: Part) -> tuple[tuple[str, str], ...]:
    """Equal for parts of equal files, whatever the parts are named."""
    files = ((file.replace(part.name, ""), size["xxh3_128"]) for file, size in part.files.items())
    return tuple(sorted(files))


def _token_shape(spec: FeatureSpec, kind: str) -> tuple[int, ...] | None:
    dim = token_dim(spec, kind)
    if not dim:
        return None
    return (dim,) if is_ragged(spec, kind) else tuple(spec.image_shape)


def _rows(store: Store, kind: Any, keys: list[str]) -> list[dict[str, Any]]:
    """The table's rows of some keys, in their order, without where they come from."""
    found: dict[int, dict[str, Any]] = {}
    for part, rows, positions in store._by_part(kind, store._locate(kind, keys)):
        table = store._table(part, None).drop_columns(["source"]).take(rows)
        found |= dict(zip(positions.tolist(), table.to_pylist(), strict=True))
    return [found[position] for position in range(len(keys))]
