"""Others that read the same samples: zarr-python and tensorstore on the store's own files, np.memmap, HDF5 and Lance
on copies. Each is a function `(folder, arrays, values, out) → read(rows)` that fills `out` with rows in any order.

`arrays` are the folders of the store's token arrays, of equal numbers of rows; `values` (N, P, D) is what they hold.
Each uses the fastest way its documentation offers for a batch of random rows. A peer that is not installed raises
ImportError.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from compal.stores.buffers import Array

Read = Callable[[Array], None]


def by_part(rows: Array, each: int) -> list[tuple[int, Array, Array]]:
    """(part, rows in it, positions), rows ascending."""
    order = np.argsort(rows, kind="stable")
    parts = rows[order] // each
    found = []
    for part in np.unique(parts).tolist():
        positions = order[parts == part]
        found.append((part, rows[positions] % each, positions))
    return found


def zarr_python(folder: Path, arrays: list[Path], values: Array, out: Array) -> Read:
    import zarr

    opened = [zarr.open_array(str(path), mode="r") for path in arrays]

    def read(rows: Array) -> None:
        for part, local, positions in by_part(rows, opened[0].shape[0]):
            out[positions] = opened[part].oindex[local]

    return read


def tensorstore(folder: Path, arrays: list[Path], values: Array, out: Array) -> Read:
    import tensorstore as ts

    def spec(path: Path) -> dict[str, object]:
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}

    opened = [ts.open(spec(path), open=True).result() for path in arrays]

    def read(rows: Array) -> None:
        waiting = [
            (positions, opened[part][local].read()) for part, local, positions in by_part(rows, opened[0].shape[0])
        ]
        for positions, future in waiting:
            out[positions] = future.result()

    return read


def memmap(folder: Path, arrays: list[Path], values: Array, out: Array) -> Read:
    np.save(folder / "memmap.npy", values)
    mapped = np.load(folder / "memmap.npy", mmap_mode="r")

    def read(rows: Array) -> None:
        for position, row in enumerate(rows.tolist()):
            out[position] = mapped[row]

    return read


def hdf5(folder: Path, arrays: list[Path], values: Array, out: Array) -> Read:
    import h5py

    path = folder / "peer.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", data=values, chunks=(1, *values.shape[1:]))
    dataset = h5py.File(path, "r")["tokens"]

    def read(rows: Array) -> None:
        for position, row in enumerate(rows.tolist()):
            dataset.read_direct(out, np.s_[row], np.s_[position])

    return read


def lance(folder: Path, arrays: list[Path], values: Array, out: Array) -> Read:
    import lance as library
    import pyarrow as pa

    size = values[0].nbytes

    def batches() -> object:
        for start in range(0, len(values), 128):
            block = values[start : start + 128]
            column = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(size), len(block), [None, pa.py_buffer(np.ascontiguousarray(block))]
            )
            yield pa.record_batch([column.cast(pa.large_binary())], ["tokens"])

    schema = pa.schema([("tokens", pa.large_binary())])
    dataset = library.write_dataset(batches(), str(folder / "peer.lance"), schema=schema)
    flat = out.reshape(len(out), -1).view(np.uint8)

    def read(rows: Array) -> None:
        position = 0
        for chunk in dataset.take(rows.tolist(), columns=["tokens"]).column("tokens").chunks:
            offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :]
            data = np.frombuffer(chunk.buffers()[2], np.uint8)
            for start, end in zip(offsets[: len(chunk)].tolist(), offsets[1 : len(chunk) + 1].tolist(), strict=True):
                flat[position] = data[start:end]
                position += 1

    return read


PEERS = {
    "zarr-python": zarr_python,
    "tensorstore": tensorstore,
    "np.memmap": memmap,
    "HDF5": hdf5,
    "Lance": lance,
}
