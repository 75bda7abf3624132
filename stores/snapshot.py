"""A snapshot: the features of one manifest, read by key.

What others commit later is not seen. Keys come in any order, duplicates allowed; a key that stands in two parts
is read from the one committed first. All errors are one line: `MissingFeatures` for keys that are not there,
`VerificationError` for bytes that are not what was written.

Sizes and, of small files, checksums are compared with the manifest when a part is first touched; samples carry
their own crc32c, checked as `reading.Reading` says.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from weakref import WeakSet

import numpy as np
import pyarrow as pa

from ..errors import InputError, MissingFeatures, VerificationError
from .buffers import Array, aligned_empty, sample_buffer
from .dense import DenseArray, open_array, read_batch
from .dtypes import READ, STORED, pooled_dtype
from .files import RESTORE, checked_path, checksum
from .index import KeyIndex, key_index
from .manifest import FOLDERS, Manifest, Part, done_names, read_done
from .quantized import open_ragged, open_tokens
from .ragged import RaggedFile
from .reading import Reading
from .rows import SCHEMAS, Quarantined, image_dim, is_ragged, quarantined_of, token_dim
from .shard import Rows
from .spec import FeatureSpec
from .tables import read_table

Kind = Literal["image", "text"]
OPEN_ARRAYS = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)  # one open file each; usually 512
Group = tuple[Part, Rows, Rows]  # a part, rows of it, and where in the output they belong


class Snapshot:
    """Features on disk as one manifest lists them. Open with `Store.open`.

    path      the store's folder
    spec      what shaped the features
    manifest  number of the snapshot, 0 before the first commit
    parts     what the manifest lists
    reading   how bytes are read and checked
    """

    def __init__(
        self, path: Path, spec: FeatureSpec, manifest: Manifest | None, reading: Reading | None = None
    ) -> None:
        self.path, self.spec = path, spec
        self._lock = Lock()
        _snapshots.add(self)
        self._asked = reading or Reading()
        self._bind(manifest)

    def _bind(self, manifest: Manifest | None) -> None:
        self.manifest = manifest.number if manifest else 0
        if manifest and manifest.spec != self.spec.fingerprint:
            raise VerificationError(f"{self.path / 'spec.json'} is not the spec its manifest names", RESTORE)
        self.parts = self._present(manifest) if manifest else ()
        self._parts = {kind: [part for part in self.parts if part.kind == kind] for kind in FOLDERS}
        self._indexes: dict[str, KeyIndex] = {}
        self._open: OrderedDict[str, Any] = OrderedDict()
        self.reading = self._asked.resolve(sum(part.bytes for part in self.parts), self.path)

    def _present(self, manifest: Manifest) -> tuple[Part, ...]:
        """Without parts whose done file was deleted: that is how a damaged part is made anew."""
        done = set(done_names(self.path))
        return tuple(part for part in manifest.parts if part.name in done)

    # --- what is there -------------------------------------------------------------------------------

    def count(self, kind: Kind) -> int:
        """How many items of a kind are committed."""
        return len(self._index(kind))

    def keys(self, kind: Kind) -> set[str]:
        """The keys of all committed items of a kind; of millions, ask `has` instead: a set of 5 million takes
        600 MB."""
        return set().union(*(self._table(part, ["key"]).column("key").to_pylist() for part in self._parts[kind]))

    def has(self, kind: Kind, keys: Sequence[str]) -> Array:
        """Which of the keys are committed, (N,) bool."""
        found: Array = self._index(kind).locate(keys) >= 0
        return found

    def lengths(self, kind: Kind, keys: Sequence[str]) -> Array:
        """How many vectors the ragged row of each key has, (N,) int64; no vector is read. Raises `MissingFeatures`."""
        found = np.zeros(len(keys), np.int64)
        for part, rows, positions in self._by_part(kind, self._locate(kind, keys)):
            found[positions] = self._ragged(part).lengths[rows]
        return found

    def parts_of(self, kind: Kind, keys: Sequence[str]) -> Rows:
        """The number of the part, among those of its kind, in which each key lies, (N,) int64. Raises
        `MissingFeatures`."""
        return self._locate(kind, keys) >> 32

    def __contains__(self, key: str) -> bool:
        return any(self._index(kind).place(key) >= 0 for kind in FOLDERS)

    def quarantined(self) -> list[Quarantined]:
        """Items of committed parts that could not be read, without those that a later part holds."""
        found: dict[str, Quarantined] = {}
        for part in self.parts:
            if part.quarantined:
                for item in quarantined_of(read_done(self.path, part.name)):
                    found.setdefault(item.key, item)
        return [item for item in found.values() if item.key not in self]

    def table(self, kind: Kind) -> pa.Table:
        """All rows of a kind: key, source, and width, height of images | caption, spans, pool_index,
        truncated, segments of texts."""
        tables = [self._table(part, None) for part in self._parts[kind]]
        return pa.concat_tables(tables) if tables else SCHEMAS[kind].empty_table()

    # --- reading -------------------------------------------------------------------------------------

    def image_buffer(self, count: int) -> Array:
        """A buffer (count, P, D) for `image_tokens` in which every sample starts on a page: what O_DIRECT fills
        without a copy. Allocate once and reuse."""
        return sample_buffer(count, self.spec.image_shape, READ[self.spec.dtype])

    def image_tokens(self, keys: Sequence[str], out: Array | None = None) -> Array:
        """Patch states (N, P, D), `dtypes.READ` of the spec's dtype. `out` is filled if given: same shape and
        dtype, each sample contiguous (`image_buffer`, `buffers.aligned_empty`); reuse it, fresh memory costs
        more than the read."""
        if self.spec.ragged_images or not image_dim(self.spec):
            raise self._lacks("image tokens")
        groups = self._by_part("image", self._locate("image", keys))
        shape, dtype = (len(keys), *self.spec.image_shape), READ[self.spec.dtype]
        if out is not None and (out.shape != shape or out.dtype != dtype or (keys and not out[0].flags.c_contiguous)):
            raise InputError(f"the buffer is {out.dtype} {out.shape}, this read needs {dtype} {shape}")
        for start in range(0, len(groups), OPEN_ARRAYS):
            # Opened first: a forged part is refused before memory is taken for what it claims.
            some = [(self._dense(part, "tokens"), rows, to) for part, rows, to in groups[start : start + OPEN_ARRAYS]]
            out = aligned_empty(shape, dtype) if out is None else out
            read_batch(some, out)
        return aligned_empty(shape, dtype) if out is None else out

    def image_regions(self, keys: Sequence[str], out: Array | None = None) -> tuple[Array, Array]:
        """Regions padded with zeros to the most of the batch: (N, R, D), and the mask (N, R) bool.
        `out` as in `text_tokens`."""
        if not self.spec.ragged_images:
            raise self._lacks("image regions")
        return self._padded("image", keys, image_dim(self.spec), out)

    def text_tokens(self, keys: Sequence[str], out: Array | None = None) -> tuple[Array, Array]:
        """Token states padded with zeros to the longest of the batch: (N, L, D), and the mask (N, L) bool.

        The result lies in the front of `out` if given: C-contiguous, `dtypes.READ` of the spec's dtype, any shape
        of at least N · L · D values (`context_length` bounds L). Reuse it: fresh memory costs more than the read.
        """
        if not self.spec.text_dim:
            raise self._lacks("text tokens")
        return self._padded("text", keys, self.spec.text_dim, out)

    def text_row(self, key: str) -> Array:
        """The token states (L, D) of one caption, read-only: a view of the mapped file (a copy, in an int8 store),
        in a tenth of the time of `text_tokens`."""
        if not self.spec.text_dim:
            raise self._lacks("text tokens")
        place = self._index("text").place(key)
        if place < 0:
            self._locate("text", [key])
        return self._ragged(self._parts["text"][place >> 32]).row(place & 0xFFFFFFFF)

    def pooled(self, kind: Kind, keys: Sequence[str]) -> Array:
        """Pooled embeddings (N, E) in the stored dtype (float16 of an int8 store). Raises `MissingFeatures` at level
        pixels, which has none."""
        if not self.spec.pooled_dim:
            raise self._lacks("pooled embeddings")
        out = aligned_empty((len(keys), self.spec.pooled_dim), self._pooled_dtype)
        groups = self._by_part(kind, self._locate(kind, keys))
        for part, rows, positions in groups:
            if is_ragged(self.spec, kind):
                self._ragged(part).pooled_into(rows, out, positions)
            else:
                self._dense(part, "pooled").read_into(rows, out, positions)
        return out

    @property
    def _pooled_dtype(self) -> np.dtype[Any]:
        return STORED[pooled_dtype(self.spec.dtype)]

    def _padded(self, kind: Kind, keys: Sequence[str], dim: int, buffer: Array | None) -> tuple[Array, Array]:
        requests = [
            (self._ragged(part), rows, positions)
            for part, rows, positions in self._by_part(kind, self._locate(kind, keys))
        ]
        longest = max((int(file.lengths[rows].max()) for file, rows, _ in requests), default=0)
        shape, dtype = (len(keys), longest, dim), READ[self.spec.dtype]
        size = len(keys) * longest * dim
        buffer = aligned_empty((size,), dtype) if buffer is None else buffer
        if buffer.size < size or buffer.dtype != dtype or not buffer.flags.c_contiguous:
            raise InputError(f"the buffer is {buffer.dtype} {buffer.shape}, this read needs {dtype} {shape}")
        out, mask = buffer.reshape(-1)[:size].reshape(shape), np.zeros((len(keys), longest), bool)
        for file, rows, positions in requests:
            file.read_into(rows, out, mask, positions)
        return out, mask

    # --- where it lies -------------------------------------------------------------------------------

    def _index(self, kind: str) -> KeyIndex:
        if kind not in self._indexes:
            parts = self._parts[kind]
            self._indexes[kind] = key_index(
                self.path,
                kind,
                [part.record for part in parts],
                sum(part.rows for part in parts),
                lambda number: self._table(parts[number], ["key"]).column("key"),
            )
        return self._indexes[kind]

    def _table(self, part: Part, columns: list[str] | None) -> pa.Table:
        path = self._checked(part, f"tables/{part.name}.parquet")
        table = read_table(path, columns)
        if table.num_rows != part.rows:
            raise VerificationError(f"{path} has {table.num_rows} rows in place of {part.rows}", RESTORE)
        return table

    def _locate(self, kind: Kind, keys: Sequence[str]) -> Rows:
        """The place of each key (N,), as `KeyIndex` says. Raises `MissingFeatures` naming up to three."""
        places = self._index(kind).locate(keys)
        if len(places) == 0 or places.min() >= 0:
            return places
        missing = list(dict.fromkeys(keys[position] for position in np.flatnonzero(places < 0).tolist()))
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise MissingFeatures(
            f"{self.path} lacks the features of {len(missing)} {kind}s: {named}",
            f"Add them: compal extract --backbone {self.spec.backbone} --data NAME",
        )

    def _by_part(self, kind: Kind, places: Rows) -> list[Group]:
        """The requests grouped by part, rows ascending."""
        if len(places) < 2:  # a fifth of the time of what follows
            numbered = [(int(place), np.zeros(1, np.int64)) for place in places]
            return [(self._parts[kind][place >> 32], at + (place & 0xFFFFFFFF), at) for place, at in numbered]
        order = np.argsort(places, kind="stable")
        ordered = places[order]
        numbers, rows = ordered >> 32, ordered & 0xFFFFFFFF
        starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(places)]
        listed = self._parts[kind]
        return [(listed[int(numbers[start])], rows[start:stop], order[start:stop]) for start, stop in pairwise(starts)]

    def _dense(self, part: Part, array: str) -> DenseArray:
        tokens = array == "tokens"
        prefix = f"images/{part.name}" + ("" if tokens else f"/{array}")

        def opener(folder: Path) -> DenseArray:
            found = open_tokens(folder, self.spec.dtype, self.reading) if tokens else open_array(folder, self.reading)
            inner = self.spec.image_shape if tokens else (self.spec.pooled_dim,)
            dtype = READ[self.spec.dtype] if tokens else self._pooled_dtype
            self._check_shape(prefix, (found.shape, found.dtype), ((part.rows, *inner), dtype))
            return found

        opened: DenseArray = self._opened(part, prefix, opener)
        return opened

    def _ragged(self, part: Part) -> RaggedFile:
        prefix = f"{FOLDERS[part.kind]}/{part.name}.arrow"

        def opener(path: Path) -> RaggedFile:
            found = open_ragged(path, self.spec.dtype, self.reading)
            pooled = ((part.rows, self.spec.pooled_dim), self._pooled_dtype)
            self._check_shape(prefix, (found.pooled.shape, found.pooled.dtype), pooled)
            dim = token_dim(self.spec, part.kind)
            if dim or found.tokens is not None:
                tokens = np.empty((0, 0)) if found.tokens is None else found.tokens
                self._check_shape(prefix, (tokens.shape[1:], tokens.dtype), ((dim,), STORED[self.spec.dtype]))
            return found

        opened: RaggedFile = self._opened(part, prefix, opener)
        return opened

    def _check_shape(self, prefix: str, found: tuple[Any, Any], wanted: tuple[Any, Any]) -> None:
        if found != wanted:
            what = f"{found[1]} {found[0]} in place of {wanted[1]} {wanted[0]}"
            raise VerificationError(f"{self.path / prefix} holds {what}", RESTORE)

    def _opened(self, part: Part, prefix: str, opener: Callable[[Path], Any]) -> Any:
        with self._lock:
            if prefix in self._open:
                self._open.move_to_end(prefix)
                return self._open[prefix]
            opened = self._open[prefix] = opener(self._checked(part, prefix))
            while len(self._open) > OPEN_ARRAYS:  # files close when the last read of them ends
                self._open.popitem(last=False)
            return opened

    def _checked(self, part: Part, prefix: str) -> Path:
        """The file or folder `prefix` of a part, once its files have the sizes they were written with, and small
        ones, which carry no checksum of their own, the checksums too."""
        files = {path: size for path, size in part.files.items() if f"{path}/".startswith(f"{prefix}/")}
        if not files:
            raise VerificationError(f"{self.path}: the manifest lists no {prefix}", RESTORE)
        for path, size in files.items():
            file = checked_path(self.path, path)
            actual = file.stat().st_size if file.is_file() else None
            if actual != size["bytes"]:
                found = "missing" if actual is None else f"{actual} bytes"
                raise VerificationError(f"{file} is {found}, {size['bytes']} bytes were written", RESTORE)
            if path.endswith((".json", ".parquet")) and checksum(file)["xxh3_128"] != size["xxh3_128"]:
                raise VerificationError(f"{file} is not what was written: its xxh3_128 differs", RESTORE)
        return checked_path(self.path, prefix)

    def _lacks(self, what: str) -> MissingFeatures:
        return MissingFeatures(
            f"{self.path} keeps no {what} (level {self.spec.level})",
            f"Extract them: compal extract --backbone {self.spec.backbone} --level tokens",
        )


_snapshots: WeakSet[Snapshot] = WeakSet()


def _renew_locks() -> None:
    """A fork may happen while another thread holds a lock, which then nobody in the child would release."""
    for snapshot in _snapshots:
        snapshot._lock = Lock()


os.register_at_fork(after_in_child=_renew_locks)
