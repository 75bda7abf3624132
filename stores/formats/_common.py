"""What the formats share: where an export may go, which rows it holds, and how imported rows become parts."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa

from ...errors import CompalError, InputError, MissingFeatures
from ..buffers import Array
from ..dtypes import to_float32
from ..files import disk_errors, sync, sync_tree
from ..rows import ImageRows, Quarantined, TextRows, is_ragged, quarantined_of, spans_inside
from ..spec import FORMAT_VERSION, LEVEL, FeatureSpec
from ..store import Store

Kind = Literal["image", "text"]
KINDS: tuple[Kind, ...] = ("image", "text")
PLURAL = {"image": "images", "text": "texts"}
BLOCK_BYTES = 1 << 25  # of tokens read at a time: enough to coalesce, small beside a part
NOTES = "compal.json"
LARGEST_NOTE = 1 << 28  # bytes; the quarantine of a million items has a tenth
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
AGAIN = "Get the file again from its source."


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    path           the file or folder
    format         the format's name
    images, texts  how many items of each kind
    files, bytes   what it takes on disk
    """

    path: Path
    format: str
    images: int
    texts: int
    files: int
    bytes: int

    @classmethod
    def of(cls, path: Path, name: str, tables: dict[Kind, pa.Table]) -> Exported:
        """Count what lies at `path`."""
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
        return cls(path, name, tables["image"].num_rows, tables["text"].num_rows, len(files), size)


def library(name: str, extra: str = "interop") -> Any:
    """Import an optional library. Raises `InputError` naming the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"this needs the library {name}", f'pip install "compal[{extra}]"') from None


# --- export ----------------------------------------------------------------------------------------------


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; moved to `path` at the end, whole, and never over something that exists.
    Raises `InputError` if `path` exists or cannot be written."""
    taken = InputError(f"{path} exists", "Choose another name; nothing is overwritten.")
    if os.path.lexists(path):
        raise taken
    staged = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}")
    with disk_errors(str(path)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield staged
            if staged.is_dir():
                sync_tree(staged)
            else:
                sync(staged)
            if not _move(staged, path):
                raise taken
            sync(path.parent)
        finally:
            if staged.is_dir():
                shutil.rmtree(staged, ignore_errors=True)
            else:
                staged.unlink(missing_ok=True)


def _move(staged: Path, path: Path) -> bool:
    if staged.is_file():
        try:
            os.link(staged, path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
    if os.path.lexists(path):  # folders, and file systems without hard links, have no create-only move
        return False
    os.rename(staged, path)
    return True


def chosen(store: Store, keys: Sequence[str] | None) -> dict[Kind, pa.Table]:
    """The rows to export, by kind: all in the order of the store, or those of `keys` in their order; each key
    once. Raises `MissingFeatures` for keys that are in neither kind, `InputError` if there is nothing."""
    tables: dict[Kind, pa.Table] = {}
    left = set(keys or ())
    for kind in KINDS:
        table = store.table(kind)
        rows: dict[str, int] = {}
        for row, key in enumerate(table.column("key").to_pylist()):
            rows.setdefault(key, row)
        wanted = list(rows) if keys is None else [key for key in dict.fromkeys(keys) if key in rows]
        left -= set(wanted)
        table = table if len(wanted) == table.num_rows and keys is None else table.take([rows[key] for key in wanted])
        tables[kind] = table.combine_chunks()
    if left:
        named = ", ".join(sorted(left)[:3]) + (", …" if len(left) > 3 else "")
        raise MissingFeatures(f"{store.path} lacks the features of {len(left)} items: {named}", "Leave them out.")
    if not any(table.num_rows for table in tables.values()):
        raise InputError(f"{store.path} holds nothing to export", "Extract into it: compal extract")
    return tables


def row_tokens(store: Store, kind: Kind, keys: Sequence[str]) -> list[Array]:
    """The tokens of some items, (L_i, D) each, as the store reads them."""
    if not is_ragged(store.spec, kind):
        return list(store.image_tokens(keys))
    padded, mask = store.text_tokens(keys) if kind == "text" else store.image_regions(keys)
    return [values[valid] for values, valid in zip(padded, mask, strict=True)]


def runs(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` of `count` rows."""
    for start in range(0, count, max(1, size)):
        yield slice(start, min(start + max(1, size), count))


def notes_of(store: Store, keys: Sequence[str] | None) -> dict[str, str]:
    """What an export says of itself: the format's version, the spec, and with all keys the quarantine."""
    refused = [] if keys is not None else [dataclasses.asdict(item) for item in store.quarantined()]
    return {
        "compal_format": str(FORMAT_VERSION),
        "spec": store.spec.to_json().decode(),
        "quarantined": json.dumps(refused, ensure_ascii=False),
    }


def write_notes(folder: Path, store: Store, keys: Sequence[str] | None) -> None:
    """`compal.json` of an export that is a folder."""
    (folder / NOTES).write_text(json.dumps(notes_of(store, keys), ensure_ascii=False), encoding="utf-8")


# --- import ----------------------------------------------------------------------------------------------


def refuse(path: Path | str, what: str, cure: str = AGAIN) -> InputError:
    """An import that is not done, and why."""
    return InputError(f"{path} is not imported: {what}", cure)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a parser of a foreign file raises into an `InputError` of one line."""
    try:
        yield
    except CompalError:
        raise
    except MemoryError:
        raise refuse(path, "it asks for more memory than there is") from None
    except Exception as error:  # h5py, zipfile, tarfile, arrow and numpy fail in their own ways
        raise refuse(path, f"it cannot be read ({type(error).__name__}: {error})") from None


def admit(path: Path | str, name: str, claimed: int, held: int, ratio: int = 1) -> None:
    """Refuse an array that claims more bytes than the file can hold, before memory is allocated for it.
    `ratio` is the compression that is believed."""
    if claimed < 0 or claimed > held * ratio:
        raise refuse(path, f"{name} claims {claimed:,} bytes, {held:,} are stored")


def read_notes(folder: Path) -> dict[str, str]:
    """What `write_notes` wrote. Raises `InputError`."""
    path = folder / NOTES
    if path.is_file() and path.stat().st_size > LARGEST_NOTE:
        raise refuse(path, f"it has {path.stat().st_size:,} bytes")
    notes = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise refuse(path, "it is not an object of texts")
    return notes


def spec_of(path: Path | str, notes: dict[str, str]) -> FeatureSpec:
    """The spec that an export holds. Raises `InputError` if this version cannot make a store of it."""
    if notes.get("compal_format") != str(FORMAT_VERSION):
        found = notes.get("compal_format")
        what = "it holds no spec of ours" if found is None else f"it has format {found}, this version {FORMAT_VERSION}"
        raise refuse(path, what, "Say with a mapping which of its arrays hold keys, tokens and pooled embeddings.")
    try:
        spec = FeatureSpec.from_json(json.loads(notes["spec"]))
    except (CompalError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refuse(path, f"its spec is damaged: {error}") from None
    check_spec(path, spec)
    return spec


def check_spec(path: Path | str, spec: FeatureSpec) -> None:
    """Raises `InputError` for a spec whose folder could lie elsewhere, or whose store cannot be written."""
    if not LEVEL.fullmatch(spec.level) or spec.format_version != FORMAT_VERSION:
        raise refuse(path, f"its spec has the level {spec.level!r} and the format {spec.format_version}")
    if spec.dtype == "int8":
        cure = "Import an export of the store it was cast from, then: compal store cast STORE --dtype int8"
        raise refuse(path, "int8 features are made from others", cure)


def quarantined_in(path: Path | str, notes: dict[str, str]) -> list[Quarantined]:
    """The quarantine that an export holds."""
    try:
        return quarantined_of({"quarantined": json.loads(notes.get("quarantined", "[]")), "part": "of the export"})
    except (CompalError, ValueError, RecursionError):
        raise refuse(path, "its list of quarantined items is damaged") from None


def first_twice(keys: Sequence[str]) -> str | None:
    """A key that stands twice, None if all differ."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None


def check_spans(label: Path | str, rows: TextRows) -> None:
    """Raises `InputError` for spans and segments outside their caption, as `verify` would find them."""
    for key, caption, spans, segments in zip(rows.keys, rows.captions, rows.spans, rows.segments, strict=True):
        if not spans_inside(caption, spans, [(start, end) for start, end, _ in segments]):
            raise refuse(label, f"caption {key} has a span outside its {len(caption)} characters")


class Importer:
    """Writes imported rows as parts of the store of `spec` below `folder`, and commits them all at the end.

    A part is named by its content, so an import that was interrupted continues; items that the store holds
    already are left as they are.
    """

    def __init__(self, label: Path | str, folder: Path, spec: FeatureSpec, refused: Sequence[Quarantined] = ()) -> None:
        self.label, self.spec = label, spec
        self.store = Store.create(Path(folder) / spec.folder, spec)
        self.known = {kind: self.store.keys(kind) for kind in KINDS}
        known = {item.key for item in self.store.quarantined()}.union(*self.known.values())
        self.refused = {
            kind: [item for item in refused if item.kind == kind and item.key not in known] for kind in KINDS
        }
        self.seen: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        self.names: list[str] = []

    def images(self, rows: ImageRows) -> None:
        """Write a part of images, tokens and pooled as the store reads them."""
        rows = cast(ImageRows, self._fresh("image", rows))
        self._write(
            "image", rows.keys, lambda name, refused: self.store.write_images(name, rows, refused, self._origin)
        )

    def texts(self, rows: TextRows) -> None:
        """Write a part of captions."""
        rows = cast(TextRows, self._fresh("text", rows))
        self._write("text", rows.keys, lambda name, bad: self.store.write_texts(name, rows, bad, self._origin))

    def finish(self) -> Path:
        """Commit, and return the store's folder. Raises `InputError` if nothing was imported and nothing was there."""
        for kind in KINDS:
            if self.refused[kind]:  # their kind had no rows
                empty = np.zeros((0, self.spec.pooled_dim), np.float32)
                if kind == "image":
                    self.images(ImageRows([], [], [], None, empty))
                else:
                    self.texts(TextRows([], [], [], None, empty))
        if not self.names and not any(self.seen.values()):
            raise refuse(self.label, "it holds no items")
        self.store.commit(self.names)
        return self.store.path

    @property
    def _origin(self) -> dict[str, Any]:
        return {"imported_from": Path(self.label).name}

    def _fresh(self, kind: Kind, rows: ImageRows | TextRows) -> ImageRows | TextRows:
        twice = self.seen[kind].intersection(rows.keys)
        if twice:
            raise refuse(self.label, f"the key {min(twice)} stands twice among its {PLURAL[kind]}")
        self.seen[kind].update(rows.keys)
        left = [row for row, key in enumerate(rows.keys) if key not in self.known[kind]]
        changed = {}
        for field in dataclasses.fields(rows):
            values = getattr(rows, field.name)
            if values is None or (len(left) == len(rows.keys) and field.name not in ("tokens", "pooled")):
                changed[field.name] = values
            elif isinstance(values, np.ndarray):
                changed[field.name] = self._values(values if len(left) == len(rows.keys) else values[left])
            else:
                kept = [values[row] for row in left]
                changed[field.name] = [self._values(value) for value in kept] if field.name == "tokens" else kept
        return type(rows)(**changed)

    def _values(self, values: Array) -> Array:
        return to_float32(values) if values.dtype == np.uint16 else values

    def _write(self, kind: Kind, keys: list[str], write: Callable[[str, list[Quarantined]], None]) -> None:
        refused, self.refused[kind] = self.refused[kind], []
        if not keys and not refused:
            return
        digest = hashlib.sha256(self.spec.fingerprint.encode())
        for key in [*keys, *(item.key for item in refused)]:
            digest.update(b"\0" + key.encode())
        name = f"{kind[0]}-{digest.hexdigest()[:16]}"
        write(name, refused)
        self.names.append(name)
