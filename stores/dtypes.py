"""The dtypes of a store: what a spec calls them, what lies on disk, what a read returns.

float16 and float32 are stored as they are, and so is uint8: pixels, and the bytes of token ids. numpy and Zarr have
no bfloat16 that every reader knows: its bits are stored as uint16, with the attribute `compal_dtype`. int8 is
derived from another store by `cast`; its tokens are dequantized on the way out, its pooled embeddings are float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .buffers import Array

STORED: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("|i1"),
    "uint8": np.dtype("|u1"),
}
READ: dict[str, np.dtype[Any]] = {**STORED, "int8": np.dtype("<f4")}
ATTRIBUTE = "compal_dtype"
# The bits of infinity: those of the exponent. All of them are set in NaN, too.
_EXPONENT = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}


class NotFinite(ValueError):
    """A row holds NaN or infinity; `overflow` if the value was finite before the cast to the stored dtype."""

    def __init__(self, row: int, overflow: bool) -> None:
        super().__init__(f"row {row}")
        self.row, self.overflow = row, overflow


def pooled_dtype(dtype: str) -> str:
    """The dtype of the pooled embeddings of a store of `dtype`."""
    return "float16" if dtype == "int8" else dtype


def to_bfloat16(values: Array) -> Array:
    """The bits (uint16) of the nearest bfloat16, ties to even, as torch rounds. float64 is rounded to float32
    first. Values beyond 3.39e38 become infinite, NaN stays NaN."""
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(values, np.float32)
    bits, unknown = floats.view(np.uint32), np.isnan(floats)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    if unknown.any():  # rounding carries the largest payloads of NaN into the sign
        rounded[unknown] = 0x7FC0
    return rounded.astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """float32 of the bits of bfloat16, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def to_float32(values: Array) -> Array:
    """float32 of values as they are stored or read: uint16 are the bits of bfloat16. What is too large becomes
    infinite; float32 is not copied."""
    if values.dtype == np.uint16:
        return from_bfloat16(values)
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def cast_into(out: Array, values: Array, dtype: str) -> None:
    """`out[...] = values` as the stored form of `dtype`. uint16 values are the bits of bfloat16 already;
    other dtypes round to the nearest, ties to even. Says nothing of what overflows."""
    if dtype == "bfloat16" and values.dtype != np.uint16:
        values = to_bfloat16(values)
    elif dtype != "bfloat16" and values.dtype == np.uint16:
        values = from_bfloat16(values)
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, values, casting="unsafe")


def all_finite(stored: Array, dtype: str) -> bool:
    """Whether no stored value is NaN or infinite. Of each sign, these are the largest bit patterns: two maxima
    of integers, 20 GB/s, where np.isfinite takes float16 at 0.8."""
    if dtype in ("int8", "uint8"):
        return True
    size, first = stored.dtype.itemsize, _EXPONENT[dtype]
    positive, negative = stored.view(f"i{size}").max(initial=0), stored.view(f"u{size}").max(initial=0)
    return int(positive) < first and int(negative) < first | 1 << (8 * size - 1)


def finite_rows(values: Array) -> Array:
    """Which rows of (N, …) stored or read values hold neither NaN nor infinity, (N,) bool."""
    dtype = "bfloat16" if values.dtype == np.uint16 else values.dtype.name
    if all_finite(values, dtype):
        return np.ones(len(values), bool)
    return np.asarray(np.isfinite(to_float32(values)).reshape(len(values), -1).all(axis=1))


def first_not_finite(stored: Array, values: Array, dtype: str) -> NotFinite:
    """The error for a block (N, …) of which `all_finite` is false, its row counted from the block's first."""
    mask = _EXPONENT[dtype]
    bits: Array = np.ascontiguousarray(stored).view(np.uint32 if dtype == "float32" else np.uint16)
    row = int(np.argmax((np.bitwise_and(bits.reshape(len(bits), -1), mask) == mask).any(axis=1)))
    given = from_bfloat16(values[row]) if values.dtype == np.uint16 else values[row]
    return NotFinite(row, overflow=bool(np.isfinite(given).all()))


def to_finite(values: Array, dtype: str) -> Array:
    """`values` (N, …) in the stored form of `dtype`, C-contiguous. Raises `NotFinite` with the row."""
    stored = np.empty(values.shape, STORED[dtype])
    cast_into(stored, values, dtype)
    if not all_finite(stored, dtype):
        raise first_not_finite(stored, values, dtype)
    return stored
