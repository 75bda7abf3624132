"""npz: one file that `numpy.load` opens, uncompressed; others' files by a mapping of names.

Arrays are what `_columns` lists, texts `<U` arrays. Written and read in blocks, never through pickle, and each
member carries the CRC-32 of its zip entry. bfloat16 is stored as its bits (uint16), as in the store.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...errors import InputError
from ..buffers import Array
from ..store import Store
from ._columns import Column, Strings, columns
from ._common import Exported, admit, chosen, notes_of, publishing, reading, refuse, runs
from ._items import load_columns
from ._mapping import resolve

SUFFIX = ".npz"
COMPRESSION = 100  # more than any features compress: what claims more is a trap
LARGEST_HEADER = 10_000


def export(store: Store, path: Path, keys: Sequence[str] | None = None) -> Exported:
    """Write all items, or those of `keys`, to the new file `path`. Raises `InputError` if it exists."""
    path, tables = Path(path), chosen(store, keys)
    notes = [Column.of(name, np.array([text])) for name, text in notes_of(store, keys).items()]
    with publishing(path) as staged, zipfile.ZipFile(staged, "x", zipfile.ZIP_STORED) as archive:
        for column in [*notes, *columns(store, tables)]:
            array = _characters(column) if isinstance(column, Strings) else column
            member = zipfile.ZipInfo(f"{array.name}.npy")  # dated 1980: equal stores make equal files
            with archive.open(member, "w", force_zip64=True) as file:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_2_0(file, header)
                for block in array.blocks():
                    file.write(np.ascontiguousarray(block).tobytes())
    return Exported.of(path, "npz", tables)


def _characters(column: Strings) -> Column:
    if any(value.endswith("\0") for value in column.values):
        what = f"{column.name} holds a text that ends in NUL, which NumPy drops"
        raise InputError(what, "Export as safetensors.")
    count, longest = len(column.values), max(map(len, column.values), default=0)
    dtype = np.dtype(f"<U{max(1, longest)}")
    return Column(
        column.name, (count,), dtype, lambda: (np.array(column.values[run], dtype) for run in runs(count, 1 << 14))
    )


def load(path: Path, folder: Path, mapping: dict[str, str] | None = None) -> Path:
    """Write what `path` holds as a store below `folder` and return the store's folder.

    Files that `export` wrote need no `mapping`; for others it says which array is what: see `_mapping`.
    Raises `InputError` for what is damaged or does not fit, and for pickled objects.
    """
    path = Path(path)
    with reading(path), zipfile.ZipFile(path) as archive, closing(_Source(archive, path)) as source:
        source.read_notes()
        spec, names = resolve(source, mapping)
        return load_columns(source, Path(folder), spec, names)


class Member:
    """One array of an archive, read forwards. Raises `InputError` for objects and for claims."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, size: int) -> None:
        self.path, self.name = path, info.filename
        held = min(info.compress_size, size)
        admit(path, self.name, info.file_size, held, 1 if info.compress_type == zipfile.ZIP_STORED else COMPRESSION)
        self.file: IO[bytes] = archive.open(info)
        self.next = 0
        try:
            self.shape, self.dtype = read_header(path, self.name, self.file, info.file_size)
        except BaseException:
            self.file.close()
            raise

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` (the next unread one) to `stop`."""
        assert start == self.next
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        raw = self.file.read((stop - start) * row)
        if len(raw) != (stop - start) * row:
            raise refuse(self.path, f"{self.name} ends early")
        self.next = stop
        if stop == self.shape[0] and self.file.read(1):  # also makes zipfile compare the CRC-32
            raise refuse(self.path, f"{self.name} is longer than its shape")
        return np.frombuffer(raw, self.dtype).reshape(stop - start, *self.shape[1:])


def read_header(path: Path, name: str, file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an `.npy` stream of `size` bytes. Raises `InputError` for objects, Fortran order of
    more than one axis, and claims beyond the size."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise refuse(path, f"{name} has version {version} of npy")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file, max_header_size=LARGEST_HEADER)
    if dtype.kind not in "fiubU" or dtype.subdtype or dtype.itemsize == 0:
        raise refuse(path, f"{name} holds {dtype}, which is neither numbers nor texts", "Objects are never unpickled.")
    if fortran and len(shape) > 1:
        raise refuse(path, f"{name} is stored in Fortran order", "Save it again with numpy.ascontiguousarray.")
    claimed = int(dtype.itemsize)
    for n in shape:  # Python's integers: a product cannot overflow
        claimed *= int(n)
    if min(shape, default=0) < 0:
        raise refuse(path, f"{name} has the shape {shape}")
    admit(path, name, claimed, size)
    return tuple(int(n) for n in shape), dtype


class _Source:
    """An open archive; see `_columns.Source`."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.label = archive, path
        self.size = path.stat().st_size
        self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(self.members) < len(archive.infolist()):
            raise refuse(path, "it holds two arrays of one name")
        self.open: dict[str, Member] = {}
        self.notes: dict[str, str] = {}

    def read_notes(self) -> None:
        """Read what an export says of itself."""
        for name in ("compal_format", "spec", "quarantined"):
            if name in self.members:
                self.notes[name] = (self.strings(name) or [""])[0]

    def close(self) -> None:
        """Close the members that are open."""
        for member in self.open.values():
            member.file.close()

    def _member(self, name: str) -> Member:
        if name not in self.open:
            if name not in self.members:
                raise refuse(self.label, f"{name} is not in it")
            self.open[name] = Member(self.archive, self.members[name], self.label, self.size)
        return self.open[name]

    def names(self) -> set[str]:
        return set(self.members)

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        member = self._member(name)
        return member.shape, member.dtype

    def rows(self, name: str, start: int, stop: int) -> Array:
        member = self._member(name)
        if start < member.next:  # somebody reads it a second time
            member.file.close()
            del self.open[name]
            member = self._member(name)
        return member.rows(start, stop)

    def strings(self, name: str) -> list[str]:
        shape, dtype = self.describe(name)
        if len(shape) != 1 or dtype.kind not in "Uiu":
            raise refuse(self.label, f"{name} is {dtype} {shape}, not a column of texts")
        return [str(value) for value in self.rows(name, 0, shape[0]).tolist()]
