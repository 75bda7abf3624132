"""HDF5: one file with arrays, keys and spec (h5py); others' files by a mapping of names.

Groups `images` and `texts` hold what `_columns` lists (`images/keys`, `images/tokens`, …), `spec` the spec.
All is chunked, uncompressed, with HDF5's own fletcher32 checksum, so a flipped bit is an error at read; texts
have one length (UTF-8, padded with NUL), since the heap that HDF5 keeps variable ones in has no checksum.
bfloat16 is stored as its bits (uint16), as in the store.

The file is parsed by the HDF5 library, in which forged files have found faults before: of strangers' files,
those of the other formats are the safer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..buffers import Array
from ..store import Store
from ._columns import Column, Strings, columns
from ._common import Exported, admit, chosen, library, notes_of, publishing, reading, refuse, runs
from ._items import load_columns
from ._mapping import resolve

SUFFIX = ".h5"
CHUNK_BYTES = 1 << 20
PADDING, SMALL = 16, 1 << 28  # one text of 100 KB among a million short ones: then they have their own lengths
COMPRESSION = 100  # more than any features compress: what claims more is a trap
LARGEST_CHUNK = 1 << 26  # of an array that can grow; HDF5 allocates a chunk to read any of it
STRINGS = 256  # texts read at a time: each can be as large as the file


def export(store: Store, path: Path, keys: Sequence[str] | None = None) -> Exported:
    """Write all items, or those of `keys`, to the new file `path`. Raises `InputError` if it exists."""
    h5py = library("h5py")
    path, tables = Path(path), chosen(store, keys)
    with publishing(path) as staged, h5py.File(staged, "w") as file:
        for name, text in notes_of(store, keys).items():
            _write_strings(h5py, file, Strings(name, [text]))
        for column in columns(store, tables):
            if isinstance(column, Strings):
                _write_strings(h5py, file, column)
            else:
                _write(file, column)
    return Exported.of(path, "hdf5", tables)


def _write(file: Any, column: Column) -> None:
    row = max(1, column.bytes // max(1, column.shape[0]))
    chunk = (min(max(1, CHUNK_BYTES // row), max(1, column.shape[0])), *column.shape[1:])
    dataset = file.create_dataset(
        column.name.replace(".", "/"),
        column.shape,
        column.dtype,
        chunks=chunk if column.bytes else None,
        fletcher32=bool(column.bytes),
    )
    start = 0
    for block in column.blocks():
        dataset[start : start + len(block)] = block
        start += len(block)


def _write_strings(h5py: Any, file: Any, column: Strings) -> None:
    raw = [value.encode() for value in column.values]
    if any(b"\0" in value for value in raw):
        raise InputError(f"{column.name} holds a NUL character, which HDF5 cannot", "Export as safetensors.")
    count, longest = len(raw), max(1, *map(len, raw), 1)
    padded = count * longest <= PADDING * sum(map(len, raw)) + SMALL
    chunk = (min(count, max(1, CHUNK_BYTES // longest)),) if padded and count else None
    dataset = file.create_dataset(
        column.name.replace(".", "/"),
        (count,),
        h5py.string_dtype("utf-8", longest if padded else None),
        chunks=chunk,
        fletcher32=chunk is not None,
    )
    for run in runs(count, 1 << 14):
        dataset[run] = np.array(raw[run], dataset.dtype)


def load(path: Path, folder: Path, mapping: dict[str, str] | None = None) -> Path:
    """Write what `path` holds as a store below `folder` and return the store's folder.

    Files that `export` wrote need no `mapping`; for others it says which dataset is what: see `_mapping`.
    Raises `InputError` for what is damaged, does not fit, or points to other files.
    """
    h5py, path = library("h5py"), Path(path)
    with reading(path), h5py.File(path, "r") as file:
        source = _Source(h5py, file, path)
        spec, names = resolve(source, mapping)
        return load_columns(source, Path(folder), spec, names)


class _Source:
    """An open HDF5 file; see `_columns.Source`."""

    def __init__(self, h5py: Any, file: Any, path: Path) -> None:
        self.h5py, self.file, self.label = h5py, file, path
        self.size = path.stat().st_size
        self.notes: dict[str, str] = {}
        for name in ("compal_format", "spec", "quarantined"):
            if name in file:
                self.notes[name] = (self.strings(name, fixed=True) or [""])[0]

    def names(self) -> set[str]:
        found: list[str] = []
        self.file.visititems(lambda name, item: found.append(name) if isinstance(item, self.h5py.Dataset) else None)
        return {name.replace("/", ".") for name in found}

    def _dataset(self, name: str) -> Any:
        """The dataset of a name, by hard links alone: soft and external links lead to other places."""
        node: Any = self.file
        for step in name.replace(".", "/").strip("/").split("/"):
            link = node.get(step, getlink=True) if isinstance(node, self.h5py.Group) else None
            if not isinstance(link, self.h5py.HardLink):
                raise refuse(self.label, f"{name} is {'a link' if link else 'not in it'}")
            node = node[step]
        if not isinstance(node, self.h5py.Dataset) or node.shape is None:
            raise refuse(self.label, f"{name} is not an array")
        if node.is_virtual or node.external:
            raise refuse(self.label, f"{name} lies in other files", "Copy it into one file: h5repack")
        return node

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        dataset = self._dataset(name)
        if dataset.dtype.kind not in "fiub" or dataset.dtype.subdtype:
            raise refuse(self.label, f"{name} holds {dataset.dtype}, which is no plain number")
        self._admit(name, dataset)
        return tuple(dataset.shape), dataset.dtype

    def _admit(self, name: str, dataset: Any) -> None:
        claimed = int(np.prod([float(n) for n in dataset.shape])) * dataset.dtype.itemsize
        chunk = int(np.prod([float(n) for n in dataset.chunks or ()])) * dataset.dtype.itemsize
        held = min(dataset.id.get_storage_size(), self.size)
        filters = dataset.id.get_create_plist().get_nfilters()
        admit(self.label, name, claimed, held, COMPRESSION if filters else 1)
        admit(self.label, f"a chunk of {name}", chunk, max(claimed, LARGEST_CHUNK))

    def rows(self, name: str, start: int, stop: int) -> Array:
        values: Array = self._dataset(name)[start:stop]
        return values

    def strings(self, name: str, fixed: bool = False) -> list[str]:
        dataset = self._dataset(name)
        self._admit(name, dataset)
        kind = self.h5py.check_string_dtype(dataset.dtype)
        if len(dataset.shape) != 1 or (kind is None and dataset.dtype.kind not in "iu"):
            raise refuse(self.label, f"{name} is {dataset.dtype} {dataset.shape}, not a column of texts")
        if fixed and (kind is None or kind.length is None):
            raise refuse(self.label, f"{name} is not one of an export")
        found: list[str] = []
        total = 0
        for run in runs(dataset.shape[0], STRINGS):
            block = [self._text(name, value) for value in dataset[run].tolist()]
            found += block
            total += sum(map(len, block))
            admit(self.label, name, total, self.size, COMPRESSION)
        return found

    def _text(self, name: str, value: Any) -> str:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str | int):
            return str(value)
        raise refuse(self.label, f"{name} holds objects, not texts")
