"""int8 tokens: standardised per channel, scaled per token, dequantized to float32 when they are read.

    x ≈ q · scale[token] · std[channel] + mean[channel]        |x - x̂| ≤ scale[token] · std[channel] / 2

A few channels of a vision transformer are 20 times as large as the rest; scaled with them, the others would
keep three bits. So channels are standardised first, by the mean and deviation of the whole part; then each
token's largest value becomes 127.

Images: `tokens` (N, P, D) int8, `scales` (N, P) float32 in chunks of 1,024 rows and `channels` (2, D) float32,
mean and std, are three Zarr arrays. Rows of unequal length: the Arrow columns `tokens` and `scales`, with one
crc32c per row over both, in this order; the channels stand in the schema's metadata, base64 of (2, D)
little-endian float32, with their crc32c in hex.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa

from ..errors import VerificationError
from .buffers import Array, aligned_empty
from .dense import DenseArray, open_array
from .dtypes import READ, STORED, NotFinite, to_finite, to_float32
from .files import RESTORE
from .ragged import RaggedFile
from .ragged_writer import fixed, row_offsets, write_columns
from .reading import Reading
from .shard import Rows
from .statistics import moments
from .writer import Checksums, write_array

TOKEN_AXES = ("sample", "token", "channel")
SCALE_CHUNK_ROWS = 1024
LIMIT = 127
BLOCK_BYTES = 1 << 20  # quantize in blocks that stay in the cache
READ_BYTES = 16 << 20  # enough to keep all threads of a direct reader busy
CHANNELS = "compal_channels"


def channels_of(rows: Iterable[Array]) -> Array:
    """Mean and std of each channel over all tokens: (2, D) float32. `rows` are (L, D) of any stored float
    dtype. Raises `NotFinite` with the row's number."""

    def finite() -> Iterable[Array]:
        for number, row in enumerate(rows):
            values = to_float32(row)
            if not np.isfinite(values).all():
                raise NotFinite(number, overflow=False)
            yield values

    mean, std, _ = moments(finite())
    with np.errstate(over="ignore"):
        return np.stack([mean, std]).astype(np.float32)


def quantize(values: Array, channels: Array) -> tuple[Array, Array]:
    """(…, D) floats as int8 of the same shape and float32 scales (…). A channel without deviation is its mean;
    a token that is the mean has scale 0. Scales are not finite where the values are beyond float32."""
    mean, std = channels
    inverse = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    with np.errstate(over="ignore", invalid="ignore"):
        standard = (to_float32(values) - mean) * inverse
        scales = np.abs(standard).max(axis=-1) / np.float32(LIMIT)
        standard /= np.where(scales > 0, scales, 1)[..., None]
        np.rint(standard, out=standard)
        return np.clip(standard, -LIMIT, LIMIT).astype(np.int8), scales


def dequantize_into(out: Array, quantized: Array, scales: Array, channels: Array) -> None:
    """`out` (…, D) float32 from int8 (…, D), scales (…) and channels (2, D)."""
    np.multiply(quantized, scales[..., None], out=out)
    out *= channels[1]
    out += channels[0]


def write_tokens(folder: Path, tokens: Array) -> Checksums:
    """Quantize (N, P, D) into the arrays `tokens`, `scales` and `channels` of `folder`. Raises `NotFinite`."""
    channels = channels_of(tokens)
    quantized, scales = np.empty(tokens.shape, np.int8), np.empty(tokens.shape[:2], np.float32)
    step = max(1, BLOCK_BYTES // max(1, tokens[0].size * 4))
    for start in range(0, len(tokens), step):
        here = slice(start, start + step)
        quantized[here], scales[here] = quantize(tokens[here], channels)
    _check_scales(scales)
    return {
        **write_array(folder / "tokens", quantized, "int8", names=TOKEN_AXES),
        **write_array(folder / "scales", scales, "float32", SCALE_CHUNK_ROWS, TOKEN_AXES[:2]),
        **write_array(folder / "channels", channels, "float32", 2, ("moment", "channel")),
    }


def write_ragged(path: Path, tokens: Sequence[Array], pooled: Array, dim: int) -> dict[str, Any]:
    """Quantize N arrays of (L_i, dim) into one Arrow part; see `ragged_writer.write_ragged`."""
    vectors = to_finite(pooled, "float16")
    channels = channels_of(tokens)
    offsets = row_offsets(tokens)
    values, scales = np.empty((int(offsets[-1]), dim), np.int8), np.empty(int(offsets[-1]), np.float32)
    crcs = np.empty(len(tokens), np.uint32)
    for row, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        values[start:stop], scales[start:stop] = quantize(tokens[row], channels)
        if not np.isfinite(scales[start:stop]).all():
            raise NotFinite(row, overflow=True)
        crcs[row] = _crc(values[start:stop], scales[start:stop])
    places = pa.array(offsets)
    columns = {
        "tokens": pa.ListArray.from_arrays(places, fixed(values, dim)),
        "scales": pa.ListArray.from_arrays(places, pa.array(scales)),
        "tokens_crc32c": pa.array(crcs),
    }
    raw = channels.astype("<f4").tobytes()
    written = {
        CHANNELS: base64.b64encode(raw).decode(),
        f"{CHANNELS}_crc32c": f"{google_crc32c.value(raw):08x}",
    }
    return write_columns(path, columns, vectors, written)


def _check_scales(scales: Array) -> None:
    finite = np.isfinite(scales).all(axis=1)
    if not finite.all():
        raise NotFinite(int(np.argmin(finite)), overflow=True)


def _crc(values: Array, scales: Array) -> int:
    return int(google_crc32c.extend(google_crc32c.value(values.tobytes()), scales.tobytes()))


# --- reading ---------------------------------------------------------------------------------------------


def open_tokens(folder: Path, dtype: str, reading: Reading | None = None) -> DenseArray:
    """The tokens (N, P, D) of the part of images in `folder`, of a store of `dtype`; reads give
    `dtypes.READ[dtype]`. Raises `VerificationError` as `dense.open_array` does."""
    reading = reading or Reading()
    return QuantizedTokens(folder, reading) if dtype == "int8" else open_array(folder / "tokens", reading)


class QuantizedTokens:
    """int8 tokens, read as float32. Safe in threads and after a fork, as the arrays below it."""

    def __init__(self, folder: Path, reading: Reading) -> None:
        self.folder = folder
        self._tokens, self._scales = (open_array(folder / name, reading) for name in ("tokens", "scales"))
        self.shape, self.dtype = self._tokens.shape, READ["int8"]
        moments = open_array(folder / "channels", reading)
        expected = {
            "tokens": (self._tokens, (*self.shape[:2], self.shape[-1]), STORED["int8"]),
            "scales": (self._scales, self.shape[:2], self.dtype),
            "channels": (moments, (2, self.shape[-1]), self.dtype),
        }
        for name, (array, shape, dtype) in expected.items():
            if (array.shape, array.dtype) != (shape, dtype):
                what = f"{folder / name} holds {array.dtype} {array.shape} in place of {dtype} {shape}"
                raise VerificationError(what, RESTORE)
        self._channels = np.empty(moments.shape, self.dtype)
        moments.read_into(np.arange(2), self._channels, np.arange(2))
        self._own = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _own=threading.local())

    def read_into(self, rows: Rows, out: Array, positions: Rows) -> None:
        """See `DenseArray.read_into`."""
        step = max(1, READ_BYTES // max(1, int(np.prod(self.shape[1:]))))
        for start in range(0, len(rows), step):
            here = rows[start : start + step]
            quantized, scales = self._buffers(min(step, max(64, len(rows))))
            local = np.arange(len(here))
            self._tokens.read_into(here, quantized[: len(here)], local)
            self._scales.read_into(here, scales[: len(here)], local)
            for number, position in enumerate(positions[start : start + step].tolist()):
                dequantize_into(out[position], quantized[number], scales[number], self._channels)

    def _buffers(self, count: int) -> tuple[Array, Array]:
        """This thread's own memory, reused: fresh memory would cost more than the read."""
        kept = getattr(self._own, "buffers", None)
        if kept is None or len(kept[0]) < count:
            inner = self.shape[1:]
            kept = aligned_empty((count, *inner), np.int8), aligned_empty((count, inner[0]), np.float32)
            self._own.buffers = kept
        return kept


def open_ragged(path: Path, dtype: str, reading: Reading | None = None) -> RaggedFile:
    """The Arrow part at `path` of a store of `dtype`; reads of its tokens give `dtypes.READ[dtype]`. Raises
    `VerificationError` as `RaggedFile` does."""
    return (QuantizedFile if dtype == "int8" else RaggedFile)(path, reading)


class QuantizedFile(RaggedFile):
    """A `RaggedFile` whose tokens are int8 in the file (`tokens`) and float32 where they are read."""

    encoded = True

    def _bind(self, batch: Any) -> None:
        super()._bind(batch)
        if self.tokens is None:
            return
        column = batch.column("scales")
        self._scales = column.values.to_numpy(zero_copy_only=True)
        offsets = column.offsets.to_numpy()
        if (self.tokens.dtype, self._scales.dtype) != (STORED["int8"], READ["int8"]):
            raise pa.ArrowInvalid(f"tokens of {self.tokens.dtype} with scales of {self._scales.dtype}")
        if not np.array_equal(offsets, self.offsets) or self.offsets[-1] > len(self._scales):
            raise pa.ArrowInvalid("its scales are not one to a token")
        self._channels = _read_channels(batch.schema.metadata or {}, self.tokens.shape[1])

    def _row_scales(self, index: int) -> Array:
        scales: Array = self._scales[self.offsets[index] : self.offsets[index + 1]]
        return scales

    def _checksum(self, index: int, values: Array) -> int:
        return _crc(values, self._row_scales(index))

    def _decode(self, index: int, values: Array) -> Array:
        out = np.empty(values.shape, READ["int8"])
        dequantize_into(out, values, self._row_scales(index), self._channels)
        return out


def _read_channels(metadata: dict[bytes, bytes], dim: int) -> Array:
    """The channels (2, D) of an Arrow part. Raises `ValueError` if they are missing or damaged."""
    raw = base64.b64decode(metadata[CHANNELS.encode()], validate=True)
    if google_crc32c.value(raw) != int(metadata[f"{CHANNELS}_crc32c".encode()], 16) or len(raw) != 8 * dim:
        raise ValueError("the crc32c of its channels does not match")
    return np.frombuffer(raw, "<f4").reshape(2, dim)
