"""Rows of features: read from the store each time, or held in memory, padded to the longest of those asked for.

Shapes as in `batches`. Rows come in the stored dtype; `float32` takes them to the device of the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..stores.buffers import Array, aligned_empty, whole

READ_ROWS = 1024  # rows read at a time while a table is filled: 75 MB of CLIP ViT-B/32 patch states
SPARE = 4  # buffers are made a quarter larger than asked for, since the sizes of batches differ a little

# of rows found: values (n, S, D) or (n, E) as stored, mask (n, S) bool; None = all of the same length
Found = tuple[Tensor, Tensor | None]
Reader = Callable[[list[str], "Staging | None"], tuple[np.ndarray, np.ndarray | None]]


class Staging:
    """Page-aligned host memory that reads and gathers land in, allocated once and reused: fresh memory caps a reader
    near 1 GB/s. What lies in it is valid until it is asked for again.

    pinned  registered with CUDA, so that copies to the device run beside the program. `close` undoes that
    copied  seconds spent issuing copies to another device
    """

    def __init__(self, pinned: bool = False) -> None:
        self.pinned, self.copied = pinned, 0.0
        self._kept: dict[str, Array] = {}

    def rows(self, name: str, count: int, make: Callable[[int], Array]) -> Array:
        """The first `count` rows of the buffer `name`, which `make(rows)` makes (`Snapshot.image_buffer`)."""
        kept = self._kept.get(name)
        if kept is None or len(kept) < count:
            self._release(name)
            kept = self._kept[name] = make(count + count // SPARE + 1)
            if self.pinned:
                _register(kept)
        return kept[:count]

    def values(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        """A contiguous array in the front of the buffer `name`."""
        size = math.prod(shape)
        return self.rows(name, size, lambda count: aligned_empty((count,), dtype)).reshape(shape)

    def close(self) -> None:
        """Give the memory back. No copy out of it may be under way."""
        for name in list(self._kept):
            self._release(name)

    def _release(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None and self.pinned:
            torch.cuda.cudart().cudaHostUnregister(kept.ctypes.data)  # type: ignore[no-untyped-call]


def _register(memory: Array) -> None:
    cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = cuda.cudaHostRegister(memory.ctypes.data, whole(memory).nbytes, 0)
    if int(code):
        raise InputError(
            f"CUDA cannot pin {whole(memory).nbytes:,} bytes of memory (error {int(code)})",
            "Raise the limit of locked memory (ulimit -l), or lower data.batch_size.",
        )


def float32(values: Tensor, device: torch.device, shape: tuple[int, ...], staging: Staging | None) -> Tensor:
    """Rows (n, …) as a fresh float32 tensor of `shape` on `device`. Rows may have a tail that is cut off there. The
    copy is asynchronous where `values` are pinned; `staging` counts its time."""
    started = time.perf_counter()
    moved = values.to(device, non_blocking=True)  # in the stored dtype: half the bytes on the bus
    if staging is not None and values.device != device:
        staging.copied += time.perf_counter() - started
    if moved.shape != shape:
        moved = moved[:, : math.prod(shape[1:])].reshape(shape)
    return torch.empty(shape, dtype=torch.float32, device=device).copy_(moved)


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    """A stored array as a tensor of the stored dtype; numpy has no bfloat16, so its bits come as uint16."""
    if array.dtype == np.uint16 and dtype == "bfloat16":
        return torch.from_numpy(array).view(torch.bfloat16)
    return torch.from_numpy(array)


class Stored:
    """Rows read from the store each time they are asked for."""

    def __init__(self, reader: Reader, keys: list[str], dtype: str) -> None:
        self.reader, self.keys, self.dtype = reader, keys, dtype

    def take(self, rows: np.ndarray, device: torch.device, staging: Staging | None = None) -> tuple[Tensor, Tensor]:
        """(n, S, D) float32 and (n, S) bool, zeros behind the tokens; vectors give (n, E) and a mask that says
        nothing. With `staging` the reads land there, and nothing of it is in the result."""
        values, mask = self.reader([self.keys[row] for row in rows.tolist()], staging)
        # In one piece, gaps included: a strided copy to a device would go through memory that is not pinned.
        block = values if values.flags.c_contiguous or device.type == "cpu" else whole(values)
        known = np.ones(values.shape[:2], dtype=bool) if mask is None else mask
        return float32(_tensor(block, self.dtype), device, values.shape, staging), torch.from_numpy(known).to(device)


class Dense:
    """Rows of equal shape in memory, in the stored dtype."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def read(cls, reader: Reader, keys: list[str], dtype: str, device: torch.device) -> Dense:
        """All `keys`, `READ_ROWS` at a time into one allocation."""
        values, staging = torch.empty(0), Staging()
        for start in range(0, len(keys), READ_ROWS):
            part = _tensor(reader(keys[start : start + READ_ROWS], staging)[0], dtype)
            if start == 0:
                values = torch.empty((len(keys), *part.shape[1:]), dtype=part.dtype, device=device)
            values[start : start + len(part)] = part.to(device)
        return cls(values)

    def take(self, rows: np.ndarray, device: torch.device, staging: Staging | None = None) -> tuple[Tensor, Tensor]:
        """As `Stored.take`."""
        values = _gathered(self.values, torch.from_numpy(rows), device, staging)
        found = float32(values, device, values.shape, staging)
        return found, torch.ones(values.shape[:2], dtype=torch.bool, device=device)


class Ragged:
    """Rows of unequal length in memory, laid end to end without padding, in the stored dtype."""

    def __init__(self, flat: Tensor, lengths: Tensor) -> None:
        self.flat, self.lengths = flat, lengths
        self.starts = lengths.cumsum(0) - lengths

    @classmethod
    def read(cls, reader: Reader, keys: list[str], dtype: str, device: torch.device) -> Ragged:
        """All `keys`, `READ_ROWS` at a time."""
        flat, lengths = [], []
        for start in range(0, len(keys), READ_ROWS):
            values, mask = reader(keys[start : start + READ_ROWS], None)
            known = np.ones(values.shape[:2], dtype=bool) if mask is None else mask
            flat.append(_tensor(values[known], dtype).to(device))
            lengths.append(torch.from_numpy(known.sum(axis=1)))  # on the host: a batch's width is asked for at once
        return cls(torch.cat(flat), torch.cat(lengths))

    def take(self, rows: np.ndarray, device: torch.device, staging: Staging | None = None) -> tuple[Tensor, Tensor]:
        """As `Stored.take`."""
        index = torch.from_numpy(rows)
        lengths = self.lengths[index]
        slots = torch.arange(int(lengths.max()) if len(rows) else 0)
        mask = slots < lengths[:, None]
        where = torch.where(mask, self.starts[index][:, None] + slots, 0)
        values = _gathered(self.flat, where.reshape(-1), device, staging)
        here = mask.to(device)
        shape = (*mask.shape, self.flat.shape[1])
        return float32(values, device, values.shape, staging).view(shape).masked_fill_(~here[..., None], 0), here


def _gathered(values: Tensor, index: Tensor, device: torch.device, staging: Staging | None) -> Tensor:
    """Rows of a table, on the table's device; from the host to another device, in pinned memory."""
    if staging is None or not staging.pinned or values.device == device:
        return values.index_select(0, index.to(values.device))
    memory = staging.values(f"gather-{values.data_ptr()}", (len(index), *values.shape[1:]), _numpy_dtype(values))
    return torch.index_select(values, 0, index, out=torch.from_numpy(memory).view(values.dtype))


def _numpy_dtype(values: Tensor) -> np.dtype[np.generic]:
    """The type of the same size that numpy knows."""
    return np.dtype(f"i{values.element_size()}")


Rows = Stored | Dense | Ragged
