"""How fast a part is written, beside what the disk takes and what others make of the same bytes.

    python benchmarks/store_write.py [--full] [--json] [--folder build/write]

Payload: one part, 1,024 patch states of 196 × 768 float16 (308 MB); 5 turns by default, 15 with --full. `disk` is
the limit: one thread that writes the same bytes by O_DIRECT, 8 MiB at a time, and fsync. `ours` is
`Store.write_images`: check of every value, crc32c of each sample, xxh3_128 of each file, table, statistics, fsync
of files and folders, link. All others end with fsync, too, and check nothing. The candidates take turns, so that
whatever else the machine does hits all alike; figures are medians, and `ratio` is the median of the ratios to the
`disk` of the same turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import mmap
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compal.stores.buffers import aligned_empty
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store

SHAPE = (196, 768)
SPEC = FeatureSpec("benchmark", "seed-0", pooled_dim=768, image_shape=SHAPE)
BLOCK = 8 << 20


def payload(samples: int) -> ImageRows:
    """Values of every exponent but those of NaN and infinity."""
    tokens = aligned_empty((samples, *SHAPE), np.uint16)
    draw = np.random.default_rng(0)
    for row in range(samples):
        tokens[row] = draw.integers(0, 0x7C00, SHAPE, np.uint16)
    values = tokens.view(np.float16)
    keys = [f"{row:032x}" for row in range(samples)]
    return ImageRows(keys, keys, [(224, 224)] * samples, values, values[:, 0].copy())


def synced(path: Path) -> None:
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        handle = os.open(each, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def disk(folder: Path, rows: ImageRows) -> None:
    block = mmap.mmap(-1, BLOCK)
    block.write(np.asarray(rows.tokens).reshape(-1).view(np.uint8)[:BLOCK].tobytes())
    size = np.asarray(rows.tokens).nbytes
    handle = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_DIRECT", 0))
    for offset in range(0, size, BLOCK):
        length = min(BLOCK, size - offset) // 4096 * 4096
        os.pwrite(handle, memoryview(block)[:length], offset)
    os.fsync(handle)
    os.close(handle)


def ours(folder: Path, rows: ImageRows) -> None:
    Store.open(folder / "store").write_images("i-0", rows)


def np_save(folder: Path, rows: ImageRows) -> None:
    np.save(folder / "tokens.npy", np.asarray(rows.tokens))
    synced(folder / "tokens.npy")


def zarr_python(folder: Path, rows: ImageRows) -> None:
    """One shard of one sample to a chunk with crc32c, as ours."""
    import zarr

    tokens = np.asarray(rows.tokens)
    array = zarr.create_array(
        str(folder / "zarr"),
        shape=tokens.shape,
        dtype=tokens.dtype,
        chunks=(1, *SHAPE),
        shards=tokens.shape,
        compressors=[zarr.codecs.Crc32cCodec()],
    )
    array[:] = tokens
    synced(folder / "zarr")


def hdf5(folder: Path, rows: ImageRows) -> None:
    """One sample to a chunk with HDF5's own checksum (fletcher32)."""
    import h5py

    with h5py.File(folder / "tokens.h5", "w") as file:
        file.create_dataset("tokens", data=rows.tokens, chunks=(1, *SHAPE), fletcher32=True)
    synced(folder / "tokens.h5")


CANDIDATES: dict[str, tuple[str, Callable[[Path, ImageRows], None]]] = {
    "disk": ("", disk),
    "ours": ("", ours),
    "np.save": ("", np_save),
    "zarr-python": ("zarr", zarr_python),
    "HDF5": ("h5py", hdf5),
}


def measure(samples: int, turns: int, folder: Path, names: tuple[str, ...] = tuple(CANDIDATES)) -> dict[str, Any]:
    """Median MB/s, CPU seconds per GB, and ratio to `disk`, of each candidate that is installed."""
    rows = payload(samples)
    size = np.asarray(rows.tokens).nbytes
    known = [name for name in names if not CANDIDATES[name][0] or importlib.util.find_spec(CANDIDATES[name][0])]
    walls: dict[str, list[float]] = {name: [] for name in known}
    cpus: dict[str, list[float]] = {name: [] for name in known}
    for turn in range(turns + 1):  # the first warms up
        for name in known:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            Store.create(folder / "store", SPEC)
            os.sync()  # what the one before left to do is not this one's
            started, busy = time.perf_counter(), time.process_time()
            CANDIDATES[name][1](folder, rows)
            if turn:
                walls[name].append(time.perf_counter() - started)
                cpus[name].append(time.process_time() - busy)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        name: {
            "mb_per_s": size / 1e6 / statistics.median(walls[name]),
            "cpu_s_per_gb": statistics.median(cpus[name]) / size * 1e9,
            "ratio": statistics.median(raw / own for raw, own in zip(walls["disk"], walls[name], strict=True)),
        }
        for name in known
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="15 turns in place of 5")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/write"), help="on the disk to be measured; must not exist"
    )
    asked = parser.parse_args()
    if asked.folder.exists():
        parser.error(f"{asked.folder} exists")
    samples, turns = 1024, 15 if asked.full else 5
    found = measure(samples, turns, asked.folder)
    if asked.json:
        facts = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "samples": samples, "turns": turns}
        print(json.dumps({**facts, "write_vs_disk": found["ours"]["ratio"], "candidates": found}))
        return
    print("| writer | MB/s | of the disk | CPU s per GB |")
    print("|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['mb_per_s']:,.0f} | {row['ratio']:.2f} | {row['cpu_s_per_gb']:.2f} |")


if __name__ == "__main__":
    main()
