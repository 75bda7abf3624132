"""Fixed-shape arrays as Zarr v3 shards, written by our own fast path.

One array is a folder with `zarr.json` and one shard file (`c.0.0.0`); in the shard every sample is one inner
chunk: C order, little endian, followed by its crc32c; the index of (offset, bytes) pairs and its crc32c stand
at the end. zarr-python, zarrs and tensorstore open the same bytes; zarr-python 3.1 reads them shuffled at
60 MB/s, `dense.open_array` at 5,800.

Where a sample starts. On a 4,096-byte boundary if the padding costs at most a sixteenth (50 × 512 fp16: 4 %,
196 × 768: 0.7 %): then O_DIRECT and zero-copy strided maps are possible. Below that the gain is nil and the
price is not: 64 × 96 fp16 is 3 pages exactly, its 4 bytes of crc32c would cost a fourth page, 33 %; so small
samples start on 64 bytes (0.5 % there), which still avoids the slow copies between addresses that differ by
1–31 bytes (2–3 GB/s in place of 9–15 on Zen 3 and 4).

Pooled rows of 1 KB take 1,024 rows to an inner chunk: a checksum and an index entry for every row would
double what is read to fetch one, and a 1 MB chunk is checked in 0.1 ms on first touch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from .buffers import PAGE, Array
from .shard import ABSENT, CRC_BYTES, DTYPES

CACHE_LINE = 64
POOLED_CHUNK_ROWS = 1024
BLOCK_BYTES = 1 << 20  # cast and check in blocks that stay in the cache


class NotFinite(ValueError):
    """A row holds NaN or infinity; `overflow` if the value was finite before the cast to the stored dtype."""

    def __init__(self, row: int, overflow: bool) -> None:
        super().__init__(f"row {row}")
        self.row, self.overflow = row, overflow


def alignment(chunk_bytes: int) -> int:
    """The boundary on which inner chunks of `chunk_bytes` start, 4096 or 64 bytes; why: the module's text."""
    padding = -(chunk_bytes + CRC_BYTES) % PAGE
    return PAGE if padding * 16 <= chunk_bytes else CACHE_LINE


def to_finite(block: Array, dtype: np.dtype[Any], first: int = 0) -> Array:
    """`block` as a C-contiguous array of `dtype`. Raises `NotFinite` with the row, counted from `first`."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(block, dtype=dtype)
    if dtype.itemsize == 2:  # the exponent bits alone: np.isfinite on float16 runs at 0.8 GB/s
        finite = bool((cast.view(np.uint16) & 0x7C00).max(initial=0) != 0x7C00)
    else:
        finite = bool(np.isfinite(cast).all())
    if not finite:
        row = int(np.argmin(np.isfinite(cast.reshape(len(cast), -1)).all(axis=1)))
        raise NotFinite(first + row, overflow=bool(np.isfinite(block[row]).all()))
    return cast


def write_array(
    folder: Path,
    array: Array,
    dtype: str,
    chunk_rows: int = 1,
    names: tuple[str, ...] = (),
    shard_rows: int = 0,
) -> None:
    """Write an array of (N, …) as Zarr v3 into the new folder `folder`.

    dtype       "float16" or "float32"; the array is cast in blocks
    chunk_rows  rows per inner chunk (1 for samples, up to 1,024 for pooled rows)
    names       dimension names for other readers
    shard_rows  rows per shard file, rounded up to whole chunks; 0 puts all into one
    Raises `NotFinite` for NaN and infinity, also after the cast. The caller syncs and publishes.
    """
    chunk_rows = max(1, min(chunk_rows, len(array)))
    wanted = shard_rows or max(1, len(array))
    shard_rows = -(-wanted // chunk_rows) * chunk_rows
    folder.mkdir(parents=True)
    metadata = _metadata(array.shape, dtype, chunk_rows, shard_rows, names)
    (folder / "zarr.json").write_text(json.dumps(metadata, indent=2) + "\n")
    for number, first in enumerate(range(0, len(array), shard_rows)):
        path = folder / ".".join(["c", str(number), *["0"] * (array.ndim - 1)])
        _write_shard(path, array, first, DTYPES[dtype], (chunk_rows, shard_rows))


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """Write the `zarr.json` of a group, so that other readers find the arrays below it."""
    folder.mkdir(parents=True, exist_ok=True)
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / "zarr.json").write_text(json.dumps(group, indent=2) + "\n")


def _metadata(
    shape: tuple[int, ...], dtype: str, chunk_rows: int, shard_rows: int, names: tuple[str, ...]
) -> dict[str, Any]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = [little, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [chunk_rows, *shape[1:]],
        "codecs": checked,
        "index_codecs": checked,
        "index_location": "end",
    }
    metadata: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
    }
    if names:
        metadata["dimension_names"] = list(names)
    return metadata


def _write_shard(path: Path, array: Array, first: int, dtype: np.dtype[Any], rows: tuple[int, int]) -> None:
    chunk_rows, shard_rows = rows
    row_bytes = int(np.prod(array.shape[1:], dtype=np.int64)) * dtype.itemsize
    chunk_bytes = chunk_rows * row_bytes
    boundary = alignment(chunk_bytes)
    padding = bytes(-(chunk_bytes + CRC_BYTES) % boundary)
    index = np.full((shard_rows // chunk_rows, 2), ABSENT, "<u8")
    block_rows = max(1, BLOCK_BYTES // max(1, chunk_bytes)) * chunk_rows
    end = min(first + shard_rows, len(array))
    chunk = 0
    with open(path, "xb", buffering=BLOCK_BYTES) as file:
        for start in range(first, end, block_rows):
            block = to_finite(array[start : min(start + block_rows, end)], dtype, start)
            short = -len(block) % chunk_rows
            if short:  # Zarr stores the last chunk in full
                block = np.concatenate([block, np.zeros((short, *block.shape[1:]), dtype)])
            for payload in block.reshape(-1, chunk_rows, *block.shape[1:]):
                index[chunk] = (chunk * (chunk_bytes + CRC_BYTES + len(padding)), chunk_bytes + CRC_BYTES)
                file.write(payload)
                file.write(google_crc32c.value(payload).to_bytes(CRC_BYTES, "little") + padding)
                chunk += 1
        file.write(index.data)
        file.write(google_crc32c.value(index).to_bytes(CRC_BYTES, "little"))
