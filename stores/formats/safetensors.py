"""safetensors: one file of named tensors, bfloat16 as such, the spec in its metadata.

Tensors are what `_columns` lists; texts are their UTF-8 bytes behind each other (`images.keys`, uint8) with
`images.keys.ends` (N,) int64. The format is a header of JSON and plain bytes, written and read here in
blocks: the library's own writer takes all tensors in memory at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..buffers import Array
from ..store import Store
from ._columns import Column, Strings, columns
from ._common import Exported, chosen, notes_of, publishing, reading, refuse
from ._items import load_columns
from ._mapping import resolve

SUFFIX = ".safetensors"
LARGEST_HEADER = 100_000_000  # the library's own limit
CODES = {"U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"}
DTYPES = CODES | {"BOOL": "|b1", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items() if name != "BF16"}


def export(store: Store, path: Path, keys: Sequence[str] | None = None) -> Exported:
    """Write all items, or those of `keys`, to the new file `path`. Raises `InputError` if it exists."""
    path, tables = Path(path), chosen(store, keys)
    with publishing(path) as staged, open(staged, "xb") as file:
        found: list[Column] = []
        for column in columns(store, tables):
            found += _encoded(column) if isinstance(column, Strings) else [column]
        found.sort(key=lambda column: (-column.dtype.itemsize, column.name))  # each tensor on its own alignment
        file.write(_header(store, found, notes_of(store, keys)))
        for column in found:
            for block in column.blocks():
                file.write(np.ascontiguousarray(block).data)
    return Exported.of(path, "safetensors", tables)


def _header(store: Store, found: list[Column], notes: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": notes}
    end = 0
    for column in found:
        bits = store.spec.dtype == "bfloat16" and column.name.endswith((".tokens", ".pooled"))
        name = "BF16" if bits else NAMES[column.dtype.newbyteorder("<")]
        header[column.name] = {"dtype": name, "shape": list(column.shape), "data_offsets": [end, end + column.bytes]}
        end += column.bytes
    raw = json.dumps(header, ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _encoded(column: Strings) -> list[Column]:
    raw = [value.encode() for value in column.values]
    ends = np.cumsum([len(value) for value in raw], dtype=np.int64)
    joined = np.frombuffer(b"".join(raw), np.uint8)
    return [Column.of(column.name, joined), Column.of(f"{column.name}.ends", ends.astype(np.int64))]


def load(path: Path, folder: Path, mapping: dict[str, str] | None = None) -> Path:
    """Write what `path` holds as a store below `folder` and return the store's folder.

    Files that `export` wrote need no `mapping`; for others it says which tensor is what: see `_mapping`.
    Raises `InputError` for what is damaged or does not fit.
    """
    path = Path(path)
    with reading(path), open(path, "rb") as file:
        source = _Source(file, path)
        spec, names = resolve(source, mapping)
        return load_columns(source, Path(folder), spec, names)


class _Source:
    """An open safetensors file; see `_columns.Source`."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.label = file, path
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(LARGEST_HEADER, size - 8):
            raise refuse(path, f"its header claims {length:,} bytes of {size:,}")
        header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise refuse(path, "its header is not an object")
        notes = header.pop("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
            raise refuse(path, "its metadata are not texts")
        self.notes: dict[str, str] = notes
        self.data = 8 + length
        self.tensors = {name: self._tensor(name, entry, size - self.data) for name, entry in header.items()}

    def _tensor(self, name: str, entry: Any, held: int) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        if not isinstance(entry, dict) or entry.get("dtype") not in list(DTYPES):
            raise refuse(self.label, f"the tensor {name} has no dtype that this version reads")
        shape: Any
        offsets: Any
        dtype, shape, offsets = np.dtype(DTYPES[entry["dtype"]]), entry.get("shape"), entry.get("data_offsets")
        lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if not lists or not all(type(n) is int and n >= 0 for n in [*shape, *offsets]):
            raise refuse(self.label, f"the tensor {name} has no shape or place")
        size = dtype.itemsize
        for n in shape:  # Python's integers: a product cannot overflow
            size *= n
        if offsets[1] - offsets[0] != size or offsets[1] > held:
            raise refuse(self.label, f"the tensor {name} of {size:,} bytes lies at {offsets} of {held:,}")
        return tuple(shape), dtype, offsets[0]

    def names(self) -> set[str]:
        return set(self.tensors)

    def describe(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if name not in self.tensors:
            raise refuse(self.label, f"{name} is not in it")
        shape, dtype, _ = self.tensors[name]
        return shape, dtype

    def rows(self, name: str, start: int, stop: int) -> Array:
        shape, dtype, offset = self.tensors[name]
        row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self.file.seek(self.data + offset + start * row)
        raw = self.file.read((stop - start) * row)
        return np.frombuffer(raw, dtype).reshape(stop - start, *shape[1:])

    def strings(self, name: str) -> list[str]:
        (count, *inner), dtype = self.describe(name) if len(self.describe(name)[0]) else ((0, 0), np.dtype("u1"))
        if inner:
            raise refuse(self.label, f"{name} is not a column of texts")
        if f"{name}.ends" not in self.tensors and dtype.kind in "iu" and dtype.itemsize > 1:
            return [str(value) for value in self.rows(name, 0, count).tolist()]  # numbered items
        ends_shape, ends_dtype = self.describe(f"{name}.ends")
        if dtype != np.uint8 or len(ends_shape) != 1 or ends_dtype != np.int64:
            raise refuse(self.label, f"{name} and {name}.ends are not a column of texts")
        raw = self.rows(name, 0, count).tobytes()
        ends = self.rows(f"{name}.ends", 0, ends_shape[0])
        if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if len(ends) else 0) != count:
            raise refuse(self.label, f"{name}.ends does not cut {name} into texts")
        return [raw[start:stop].decode("utf-8") for start, stop in pairwise([0, *ends.tolist()])]
