"""Memory that reads land in: page-aligned, allocated once, reused.

All of it is plain host memory of one allocation, so that a training loop can pin it once
(`cudaHostRegister`, or `torch.cuda.cudart().cudaHostRegister`) and copy from it without a staging copy.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ..errors import InputError

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
PAGE = 4096
CACHE_LINE = 64
CRC_BYTES = 4


class SampleMemory(np.ndarray[Any, Any]):
    """The rows of a `sample_buffer` as (count, bytes of a row) uint8: the type marks that the gaps between
    them are scratch, which a read may run over."""


def alignment(chunk_bytes: int) -> int:
    """The boundary on which chunks of `chunk_bytes` start, in files and in `sample_buffer`: a page where the
    padding costs at most a sixteenth, else 64 bytes."""
    padding = -(chunk_bytes + CRC_BYTES) % PAGE
    return PAGE if padding * 16 <= chunk_bytes else CACHE_LINE


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array that starts on a page. Allocate once and reuse: fresh memory costs a page fault
    for every 4 KiB, which caps a reader near 1 GB/s."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    aligned: Array = _on_page(size).view(dtype).reshape(shape)
    return aligned


def sample_buffer(count: int, inner_shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array (count, *inner_shape) whose rows lie as samples lie in a file: each starts on a
    page, with room for its crc32c behind it, so that O_DIRECT lands in place. `whole` is the same memory as
    one block. Samples that do not lie on pages (see `alignment`) get a contiguous array."""
    dtype = np.dtype(dtype)
    row = int(np.prod(inner_shape, dtype=np.int64)) * dtype.itemsize
    if alignment(row) != PAGE:
        return aligned_empty((count, *inner_shape), dtype)
    stride = -(-(row + CRC_BYTES) // PAGE) * PAGE
    rows = _on_page(count * stride).view(SampleMemory).reshape(count, stride)[:, :row]
    buffer: Array = rows.view(np.ndarray).view(dtype).reshape(count, *inner_shape)
    return buffer


def whole(buffer: Array) -> Array:
    """The memory of a `sample_buffer`, gaps included, as a contiguous (count, values) array: what to pin, and
    what to copy to a device in one piece before it is cut to shape there."""
    values = (buffer.strides[0] if len(buffer) > 1 else _row_bytes(buffer)) // buffer.itemsize
    return as_strided(buffer, (len(buffer), values), (values * buffer.itemsize, buffer.itemsize))


def row_views(out: Array) -> Bytes:
    """`out` as (rows, bytes of a row) uint8 in the same memory. Raises `InputError` unless each row is
    contiguous and writable; the rows may lie apart, as those of `sample_buffer`."""
    if not len(out):
        return np.empty((0, _row_bytes(out)), np.uint8)
    if not out[0].flags.c_contiguous or not out.flags.writeable or out.strides[0] < _row_bytes(out):
        raise InputError("the rows of the buffer are not contiguous, writable memory", "Use sample_buffer.")
    return out.reshape(len(out), -1).view(np.uint8)


def rooms(out: Array) -> Bytes | None:
    """The rows of a `sample_buffer` as (rows, bytes from row to row), crc32c and padding included; None for
    other memory, whose gaps, if any, are not ours to write."""
    owner = out.base
    while owner is not None and not isinstance(owner, SampleMemory):
        owner = getattr(owner, "base", None)
    if owner is None or owner.ndim != 2 or not len(out) or _row_bytes(out) != owner.shape[1]:
        return None
    stride = owner.strides[0]
    if out.strides[0] != stride or (out.ctypes.data - owner.ctypes.data) % stride:
        return None
    return as_strided(row_views(out), (len(out), stride), (stride, 1))


_threads = threading.local()


def scratch(size: int) -> Bytes:
    """This thread's own page-aligned bytes, the same memory at every call, for reads that cannot land where
    their samples go. At least 1 MiB; it grows with the largest request and stays."""
    kept: Bytes | None = getattr(_threads, "scratch", None)
    if kept is None or len(kept) < size:
        kept = _threads.scratch = _on_page(max(size, 1 << 20))
    return kept[:size]


def _row_bytes(array: Array) -> int:
    return math.prod(array.shape[1:]) * array.itemsize


def _on_page(size: int) -> Bytes:
    raw = np.empty(size + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    return raw[start : start + size]
