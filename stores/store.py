"""Store: open, read by key, write a part, commit.

A `Store` is a snapshot of one manifest: what others commit later is seen by opening again (or after a commit
of one's own). Reading is by key, in any order, duplicates allowed; a key that stands in two parts is read
from the one committed first. All errors are one line: `MissingFeatures` for keys that are not there,
`VerificationError` for bytes that are not what was written.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..errors import InputError, MissingFeatures, SpecMismatch, VerificationError
from . import parts
from .buffers import Array, aligned_empty
from .dense import DenseArray, open_array
from .files import RESTORE, checked_path, create_only, disk_errors, read_json, sweep
from .manifest import (
    FOLDERS,
    Manifest,
    Part,
    advance_head,
    commit,
    done_names,
    newest,
    numbers,
    read_done,
    read_manifest,
)
from .ragged import RaggedFile
from .rows import (
    SCHEMAS,
    ImageRows,
    Quarantined,
    TextRows,
    image_dim,
    quarantined_of,
    ragged_images,
)
from .shard import DTYPES, Rows
from .spec import FORMAT_VERSION, FeatureSpec
from .tables import read_table

__all__ = ["ImageRows", "Quarantined", "Store", "TextRows"]

Kind = Literal["image", "text"]
OPEN_ARRAYS = 512  # one file each: below the usual limit of 1,024 open files


class Store:
    """Features on disk. Build with `Store.create` or `Store.open`.

    path      the store's folder
    spec      what shaped the features
    manifest  number of the snapshot, 0 before the first commit
    """

    def __init__(self, path: Path, spec: FeatureSpec, manifest: Manifest | None) -> None:
        self.path, self.spec = path, spec
        self._lock = Lock()
        self._bind(manifest)

    def _bind(self, manifest: Manifest | None) -> None:
        self.manifest = manifest.number if manifest else 0
        if manifest and manifest.spec != self.spec.fingerprint:
            raise VerificationError(f"{self.path / 'spec.json'} is not the spec its manifest names", RESTORE)
        # A part whose done file was deleted counts as absent: that is how a damaged part is made anew.
        done = set(done_names(self.path)) if manifest else set()
        self.parts: tuple[Part, ...] = tuple(p for p in manifest.parts if p.name in done) if manifest else ()
        self._index: dict[str, dict[str, int]] = {}
        self._open: OrderedDict[str, Any] = OrderedDict()

    @classmethod
    def create(cls, folder: Path, spec: FeatureSpec) -> Store:
        """Make a store in `folder`, or open the one that is there, for writing.

        Raises `SpecMismatch` if it holds features of another spec, `InputError` if the folder cannot be
        written or holds something else. What killed writers of this host left behind is deleted.
        """
        folder = Path(folder)
        _check_spec(spec)
        with disk_errors(f"the store {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "spec.json").exists():
                foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
                if foreign and not (folder / "spec.json").exists():  # or another process was first
                    raise InputError(f"{folder} holds {foreign[0]} and no store", "Choose an empty folder.")
                create_only(folder, folder / "spec.json", spec.to_json())
            sweep(folder)
        store = cls.open(folder)
        if store.spec != spec:
            raise SpecMismatch(
                f"{folder} holds features of another spec ({_difference(store.spec, spec)})",
                f"Use the folder {spec.folder}.",
            )
        with disk_errors(f"the store {folder}"):
            advance_head(folder)
        return store

    @classmethod
    def open(cls, path: Path, manifest: int | None = None) -> Store:
        """Open for reading: the newest manifest, or the one of a given number.

        Raises `InputError` if `path` is not a store, `VerificationError` if its description is damaged.
        """
        path = Path(path)
        if not (path / "spec.json").is_file():
            raise InputError(f"{path} is not a store: it has no spec.json", "See: compal ls stores")
        data = read_json(path / "spec.json")
        if data.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path} has format {data.get('format_version')!r}, this version reads {FORMAT_VERSION}",
                "Upgrade compal.",
            )
        try:
            spec = FeatureSpec.from_json(data)
            _check_spec(spec)
        except Exception as error:
            raise VerificationError(f"{path / 'spec.json'} is damaged: {error}", RESTORE) from None
        return cls(path, spec, newest(path) if manifest is None else read_manifest(path, manifest))

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path, self.manifest or None)

    # --- what is there -------------------------------------------------------------------------------

    def keys(self, kind: Kind) -> set[str]:
        """The keys of all committed items of a kind."""
        return set(self._rows(kind))

    def __contains__(self, key: str) -> bool:
        return key in self._rows("image") or key in self._rows("text")

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
        tables = [self._table(part, None) for part in self._parts(kind)]
        return pa.concat_tables(tables) if tables else SCHEMAS[kind].empty_table()

    def info(self) -> dict[str, Any]:
        """Counts, bytes, spec, manifests and quarantine by reason, for people and for `--json`."""
        sizes = [size["bytes"] for part in self.parts for size in part.files.values()]
        return {
            "path": str(self.path),
            "fingerprint": self.spec.fingerprint,
            "spec": dataclasses.asdict(self.spec),
            "images": len(self._rows("image")),
            "texts": len(self._rows("text")),
            "parts": len(self.parts),
            "files": len(sizes),
            "bytes": sum(sizes),
            "manifest": self.manifest,
            "manifests": len(numbers(self.path)),
            "uncommitted": self.uncommitted(),
            "quarantined": dict(sorted(Counter(item.reason for item in self.quarantined()).items())),
        }

    # --- writing -------------------------------------------------------------------------------------

    def part_done(self, name: str) -> bool:
        """Whether the part is complete on disk, committed or not."""
        return (self.path / "done" / f"{name}.json").exists()

    def write_images(
        self,
        name: str,
        rows: ImageRows,
        quarantined: Iterable[Quarantined] = (),
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Write a part of images; it is complete or absent. An existing part of the same items is kept.

        `provenance` (device, versions, …) is kept in the done file beside host and time and is not part of
        the store's identity. Raises `InputError` for NaN or infinite values (also after the cast to the
        stored dtype) naming the item, for duplicate keys, shapes that differ from the spec, a full disk.
        """
        parts.write_images(self._origin(name, quarantined, provenance), rows)

    def write_texts(
        self,
        name: str,
        rows: TextRows,
        quarantined: Iterable[Quarantined] = (),
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Write a part of captions; see `write_images`."""
        parts.write_texts(self._origin(name, quarantined, provenance), rows)

    def _origin(self, name: str, quarantined: Iterable[Quarantined], provenance: dict[str, Any] | None) -> parts.Origin:
        return parts.Origin(self.path, self.spec, name, tuple(quarantined), provenance or {})

    def uncommitted(self) -> list[str]:
        """Complete parts that the newest manifest does not list with their present content, sorted."""
        listed = {part.name: part.record for part in self.parts}
        return [
            name
            for name in done_names(self.path)
            if listed.get(name) != Part.of_done(self.path, read_done(self.path, name)).record
        ]

    def commit(self, parts: Iterable[str]) -> int:
        """Make complete parts visible: a new manifest on top of the newest. Returns its number.

        Safe against other committers: the loser of a race commits again on top. Committing what is
        already there changes nothing. Raises `InputError` for a part that is not complete.
        """
        number = commit(self.path, self.spec.fingerprint, parts)
        self._bind(read_manifest(self.path, number) if number else None)
        return number

    # --- reading -------------------------------------------------------------------------------------

    def image_tokens(self, keys: Sequence[str], out: Array | None = None) -> Array:
        """Patch states (N, P, D) in the stored dtype. `out` is filled if given: C-contiguous, same shape and
        dtype; reuse one from `dense.aligned_empty`, fresh memory costs more than the read."""
        if ragged_images(self.spec) or not image_dim(self.spec):
            raise self._lacks("image tokens")
        places = self._locate("image", keys)
        shape, dtype = (len(keys), *self.spec.image_shape), DTYPES[self.spec.dtype]
        if out is None:
            out = aligned_empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise InputError(f"the buffer is {out.dtype} {out.shape}, this read needs {dtype} {shape}")
        for part, rows, positions in self._by_part("image", places):
            self._dense(part, "tokens").read_into(rows, out, positions)
        return out

    def image_regions(self, keys: Sequence[str], out: Array | None = None) -> tuple[Array, Array]:
        """Regions padded with zeros to the most of the batch: (N, R, D), and the mask (N, R) bool.
        `out` as in `text_tokens`."""
        if not ragged_images(self.spec):
            raise self._lacks("image regions")
        return self._padded("image", keys, image_dim(self.spec), out)

    def text_tokens(self, keys: Sequence[str], out: Array | None = None) -> tuple[Array, Array]:
        """Token states padded with zeros to the longest of the batch: (N, L, D), and the mask (N, L) bool.

        The result lies in the front of `out` if given: C-contiguous, the stored dtype, any shape of at least
        N · L · D values (`context_length` bounds L). Reuse it: fresh memory costs more than the read.
        """
        if not self.spec.text_dim:
            raise self._lacks("text tokens")
        return self._padded("text", keys, self.spec.text_dim, out)

    def pooled(self, kind: Kind, keys: Sequence[str]) -> Array:
        """Pooled embeddings (N, E) in the stored dtype."""
        out = aligned_empty((len(keys), self.spec.pooled_dim), DTYPES[self.spec.dtype])
        for part, rows, positions in self._by_part(kind, self._locate(kind, keys)):
            if kind == "text" or ragged_images(self.spec):
                self._ragged(part).pooled_into(rows, out, positions)
            else:
                self._dense(part, "pooled").read_into(rows, out, positions)
        return out

    def _padded(self, kind: Kind, keys: Sequence[str], dim: int, buffer: Array | None) -> tuple[Array, Array]:
        requests = [
            (self._ragged(part), rows, positions)
            for part, rows, positions in self._by_part(kind, self._locate(kind, keys))
        ]
        longest = max((int(file.lengths[rows].max()) for file, rows, _ in requests), default=0)
        shape, dtype = (len(keys), longest, dim), DTYPES[self.spec.dtype]
        size = len(keys) * longest * dim
        buffer = aligned_empty((size,), dtype) if buffer is None else buffer
        if buffer.size < size or buffer.dtype != dtype or not buffer.flags.c_contiguous:
            raise InputError(f"the buffer is {buffer.dtype} {buffer.shape}, this read needs {dtype} {shape}")
        out, mask = buffer.reshape(-1)[:size].reshape(shape), np.zeros((len(keys), longest), bool)
        for file, rows, positions in requests:
            file.read_into(rows, out, mask, positions)
        return out, mask

    def _parts(self, kind: Kind) -> list[Part]:
        return [part for part in self.parts if part.kind == kind]

    def _rows(self, kind: Kind) -> dict[str, int]:
        """key → number of the part among its kind · 2³² + row: an int takes a third of a tuple's memory."""
        if kind not in self._index:
            index: dict[str, int] = {}
            for number, part in enumerate(self._parts(kind)):
                keys = self._table(part, ["key"]).column("key").to_pylist()
                for row, key in enumerate(keys):
                    index.setdefault(key, number << 32 | row)
            self._index[kind] = index
        return self._index[kind]

    def _table(self, part: Part, columns: list[str] | None) -> pa.Table:
        path = self._checked(part, f"tables/{part.name}.parquet")
        table = read_table(path, columns)
        if table.num_rows != part.rows:
            raise VerificationError(f"{path} has {table.num_rows} rows in place of {part.rows}", RESTORE)
        return table

    def _locate(self, kind: Kind, keys: Sequence[str]) -> Rows:
        """Where each key lies (N,), as `_rows` says. Raises `MissingFeatures` naming up to three."""
        index = self._rows(kind)
        try:
            return np.array([index[key] for key in keys], np.int64)
        except KeyError:
            missing = list(dict.fromkeys(key for key in keys if key not in index))
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise MissingFeatures(
            f"{self.path} lacks the features of {len(missing)} {kind}s: {named}",
            f"Add them: compal extract --backbone {self.spec.backbone} --data NAME",
        )

    def _by_part(self, kind: Kind, places: Rows) -> list[tuple[Part, Rows, Rows]]:
        """The requests grouped by part: (part, rows in it, positions in the output)."""
        listed, grouped = self._parts(kind), []
        numbers, rows = places >> 32, places & 0xFFFFFFFF
        for number in np.unique(numbers).tolist():
            positions = np.flatnonzero(numbers == number)
            grouped.append((listed[number], rows[positions], positions))
        return grouped

    def _dense(self, part: Part, array: str) -> DenseArray:
        prefix = f"images/{part.name}/{array}"
        found: DenseArray = self._opened(part, prefix, open_array)
        inner = self.spec.image_shape if array == "tokens" else (self.spec.pooled_dim,)
        self._check_shape(prefix, (found.shape, found.dtype), (part.rows, *inner))
        return found

    def _ragged(self, part: Part) -> RaggedFile:
        prefix = f"{FOLDERS[part.kind]}/{part.name}.arrow"
        found: RaggedFile = self._opened(part, prefix, RaggedFile)
        self._check_shape(prefix, (found.pooled.shape, found.pooled.dtype), (part.rows, self.spec.pooled_dim))
        dim = self.spec.text_dim if part.kind == "text" else image_dim(self.spec)
        if dim or found.tokens is not None:
            tokens = np.empty((0, 0)) if found.tokens is None else found.tokens
            self._check_shape(prefix, (tokens.shape, tokens.dtype), (len(tokens), dim))
        return found

    def _check_shape(self, prefix: str, found: tuple[tuple[int, ...], Any], shape: tuple[int, ...]) -> None:
        if found != (shape, DTYPES[self.spec.dtype]):
            what = f"{found[1]} {found[0]} in place of {self.spec.dtype} {shape}"
            raise VerificationError(f"{self.path / prefix} holds {what}", RESTORE)

    def _opened(self, part: Part, prefix: str, opener: Callable[[Path], Any]) -> Any:
        with self._lock:
            if prefix not in self._open:
                self._open[prefix] = opener(self._checked(part, prefix))
            self._open.move_to_end(prefix)
            while len(self._open) > OPEN_ARRAYS:  # files close when the last read of them ends
                self._open.popitem(last=False)
            return self._open[prefix]

    def _checked(self, part: Part, prefix: str) -> Path:
        """The file or folder `prefix` of a part, once its files have the sizes they were written with."""
        files = {path: size for path, size in part.files.items() if f"{path}/".startswith(f"{prefix}/")}
        if not files:
            raise VerificationError(f"{self.path}: the manifest lists no {prefix}", RESTORE)
        for path, size in files.items():
            file = checked_path(self.path, path)
            actual = file.stat().st_size if file.is_file() else None
            if actual != size["bytes"]:
                found = "missing" if actual is None else f"{actual} bytes"
                raise VerificationError(f"{file} is {found}, {size['bytes']} bytes were written", RESTORE)
        return checked_path(self.path, prefix)

    def _lacks(self, what: str) -> MissingFeatures:
        return MissingFeatures(
            f"{self.path} keeps no {what} (level {self.spec.level})",
            f"Extract them: compal extract --backbone {self.spec.backbone} --level tokens",
        )


def _check_spec(spec: FeatureSpec) -> None:
    if spec.dtype not in DTYPES:
        raise InputError(f"features cannot be stored as {spec.dtype}", f"Choose one of {', '.join(DTYPES)}.")


def _difference(one: FeatureSpec, other: FeatureSpec) -> str:
    names = [field.name for field in dataclasses.fields(one)]
    return ", ".join(
        f"{name} {getattr(one, name)!r} there, {getattr(other, name)!r} here"
        for name in names
        if getattr(one, name) != getattr(other, name)
    )
