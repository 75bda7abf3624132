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

from .buffers import CRC_BYTES, Array, alignment
from .dtypes import ATTRIBUTE, STORED, NotFinite, all_finite, cast_into, first_not_finite
from .outfile import OutFile
from .shard import ABSENT

POOLED_CHUNK_ROWS = 1024
BLOCK_BYTES = 1 << 20  # cast and check in blocks that stay in the cache

Checksums = dict[Path, dict[str, Any]]


def write_array(
    folder: Path,
    array: Array,
    dtype: str,
    chunk_rows: int = 1,
    names: tuple[str, ...] = (),
    shard_rows: int = 0,
) -> Checksums:
    """Write an array of (N, …) as Zarr v3 into the new folder `folder`; returns file → size and xxh3_128.

    dtype       a name of `dtypes.STORED`; the array is cast in blocks, but for int8, whose values are given
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
    written: Checksums = {}
    for number, first in enumerate(range(0, len(array), shard_rows)):
        path = folder / ".".join(["c", str(number), *["0"] * (array.ndim - 1)])
        try:
            written[path] = _write_shard(path, array[first : first + shard_rows], dtype, (chunk_rows, shard_rows))
        except NotFinite as error:
            raise NotFinite(first + error.row, error.overflow) from None
    return written


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """Write the `zarr.json` of a group, so that other readers find the arrays below it."""
    folder.mkdir(parents=True, exist_ok=True)
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / "zarr.json").write_text(json.dumps(group, indent=2) + "\n")


def _metadata(
    shape: tuple[int, ...], dtype: str, chunk_rows: int, shard_rows: int, names: tuple[str, ...]
) -> dict[str, Any]:
    stored = STORED[dtype]
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
        "data_type": stored.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0 if stored.kind == "f" else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {} if stored.name == dtype else {ATTRIBUTE: dtype},
    }
    if names:
        metadata["dimension_names"] = list(names)
    return metadata


def _write_shard(path: Path, array: Array, dtype: str, rows: tuple[int, int]) -> dict[str, Any]:
    """Samples are cast, checked and hashed where they lie in the block that goes to the disk."""
    chunk_rows, shard_rows = rows
    stored = STORED[dtype]
    chunk_bytes = chunk_rows * int(np.prod(array.shape[1:], dtype=np.int64)) * stored.itemsize
    boundary = alignment(chunk_bytes)
    stride = -(-(chunk_bytes + CRC_BYTES) // boundary) * boundary
    index = np.full((shard_rows // chunk_rows, 2), ABSENT, "<u8")
    count = -(-len(array) // chunk_rows)
    index[:count, 0] = np.arange(count, dtype=np.uint64) * np.uint64(stride)
    index[:count, 1] = chunk_bytes + CRC_BYTES
    group = max(1, BLOCK_BYTES // stride)
    with OutFile(path, group * stride, count * stride) as file:
        for chunk in range(0, count, group):
            here = min(group, count - chunk)
            raw = file.room(here * stride).reshape(here, stride)
            block = array[chunk * chunk_rows : (chunk + here) * chunk_rows]
            try:
                _fill(raw[:, :chunk_bytes].view(stored).reshape(here, chunk_rows, -1), block, dtype)
            except NotFinite as error:
                raise NotFinite(chunk * chunk_rows + error.row, error.overflow) from None
            crcs = np.array([google_crc32c.value(row[:chunk_bytes]) for row in raw], "<u4")
            raw[:, chunk_bytes : chunk_bytes + CRC_BYTES] = crcs.view(np.uint8).reshape(here, CRC_BYTES)
            raw[:, chunk_bytes + CRC_BYTES :] = 0
        file.write(index.reshape(-1))
        file.write(google_crc32c.value(index).to_bytes(CRC_BYTES, "little"))
    return file.checksum


def _fill(out: Array, block: Array, dtype: str) -> None:
    """`out` (chunks, rows per chunk, …) from rows; zeros behind the last: Zarr stores the last chunk in full."""
    flat = block.reshape(len(block), -1)
    whole = len(block) // out.shape[1]
    cast_into(out[:whole], flat[: whole * out.shape[1]].reshape(whole, *out.shape[1:]), dtype)
    rest = flat[whole * out.shape[1] :]
    if len(rest):
        cast_into(out[whole, : len(rest)], rest, dtype)
        out[whole, len(rest) :] = 0
    if not all_finite(out, dtype):
        raise first_not_finite(out.reshape(-1, out.shape[2])[: len(block)], flat, dtype)
