"""How fast a store is read, beside what the machine can do and what others do with the same samples.

    python benchmarks/store_read.py [--full] [--json] [--folder build]

Samples of 196 × 768 float16 (301 KB): 1,024 in 2 parts by default (308 MB, about a minute), 4,096 in 4 with
--full. Shuffled batches of 256 are read by key through `Store.image_tokens` into one reused, page-aligned buffer. All
candidates take turns in each round, so that whatever else the machine does hits all alike; a ratio is the median of
the ratios within a round.

warm     the files have been read once in sequence; the limit is memcpy of the same bytes, from memory as large as
         the store into the same kind of buffer. `checked`: every crc32c at every read
vs_…     the store as it opens by default (a memory map here, crc32c checked at first touch) over the peer, warm
cold     the files are dropped from the page cache before each read (posix_fadvise DONTNEED), the store is open;
         O_DIRECT with 8 threads into `image_buffer`; the limit is a sequential O_DIRECT read of the same files with
         4 or 8 threads, whichever is faster
write    `Store.write_images` of a part (checks, crc32c, xxh3, fsync, link), over an O_DIRECT write of its token
         bytes and fsync
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _store_limits import (
    GB,
    cached,
    direct_one,
    direct_sequential,
    direct_write,
    drop,
    figures,
    in_turns,
    machine,
    percentiles,
    ratio,
    raw_preadv,
)
from _store_peers import PEERS
from _store_texts import texts

from compal.stores.buffers import Array, aligned_empty, sample_buffer
from compal.stores.reading import Check, Mode, Reading
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store

SHAPE = (196, 768)
BATCH = 256
SAMPLE = 2 * SHAPE[0] * SHAPE[1]
SPEC = FeatureSpec("benchmark", "seed-0", pooled_dim=768, image_shape=SHAPE)
CHECKS: tuple[Check, ...] = ("never", "sampled", "first", "always")


class Bench:
    """A store of random values, and how its batches are read."""

    def __init__(self, folder: Path, samples: int, parts: int, say: Callable[[str], None]) -> None:
        self.folder, self.samples, self.parts, self.say = folder, samples, parts, say
        self.draw = np.random.default_rng(0)
        self.values = aligned_empty((samples, *SHAPE), np.uint16)
        for row in range(samples):
            self.values[row] = self.draw.integers(0, 0x7C00, SHAPE, np.uint16)
        self.values = self.values.view(np.float16)
        self.keys = [hashlib.blake2b(b"%d" % row, digest_size=16).hexdigest() for row in range(samples)]
        self.out = aligned_empty((BATCH, *SHAPE), np.float16)
        self.out[:] = 0

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "store").glob("images/*/tokens/c.*"))

    def write(self, rounds: int) -> dict[str, Any]:
        """Write the store's parts, and further ones that are deleted, in turns with O_DIRECT writes of the same."""
        each, found = self.samples // self.parts, []
        for number in range(rounds):
            kept = number < self.parts
            store = Store.create(self.folder / ("store" if kept else "further"), SPEC)
            part = number % self.parts
            here = slice(part * each, (part + 1) * each)
            tokens, keys = self.values[here], self.keys[here]
            rows = ImageRows(keys, keys, [(224, 224)] * each, tokens, tokens[:, 0].copy())
            disk = direct_write(self.folder / "disk", tokens)
            (self.folder / "disk").unlink()
            os.sync()  # what deleting costs the disk is not the next writer's
            started = time.perf_counter()
            store.write_images(f"i-{part}", rows)
            found.append((disk, time.perf_counter() - started, tokens.nbytes / GB))
            if kept:
                store.commit([f"i-{part}"])
            else:
                shutil.rmtree(self.folder / "further")
        return {
            "write_vs_disk": round(statistics.median(disk / ours for disk, ours, _ in found), 3),
            "write_gbps": round(statistics.median(size / ours for _, ours, size in found), 3),
            "disk_write_gbps": round(statistics.median(size / disk for disk, _, size in found), 3),
        }

    def open(self, mode: Mode, check: Check) -> Store:
        return Store.open(self.folder / "store", reading=Reading(mode, check))

    def by_key(self, store: Store, out: Array, before: Callable[[], None] = lambda: None) -> Callable[[], float]:
        """A call reads a shuffled batch and returns GB/s."""

        def run() -> float:
            keys = [self.keys[row] for row in self.draw.permutation(self.samples)[:BATCH].tolist()]
            before()
            started = time.perf_counter()
            store.image_tokens(keys, out)
            return BATCH * SAMPLE / GB / (time.perf_counter() - started)

        return run

    def by_row(self, read: Callable[[Array], None]) -> Callable[[], float]:
        def run() -> float:
            rows = self.draw.permutation(self.samples)[:BATCH]
            started = time.perf_counter()
            read(rows)
            return BATCH * SAMPLE / GB / (time.perf_counter() - started)

        return run

    def copy(self, rows: Array) -> None:
        start = int(rows[0]) // BATCH * BATCH
        np.copyto(self.out, self.values[start : start + BATCH])

    def warm(self, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
        cached(self.files)
        stores: dict[str, Store] = {}
        for mode in ("map", "pread"):
            for check in CHECKS:
                stores[f"{mode}, {check}"] = self.open(mode, check)  # type: ignore[arg-type]
        step = sample_buffer(1, SHAPE, np.float16).strides[0]  # as samples lie in the files
        candidates = {"memcpy": self.by_row(self.copy), "preadv": self.by_row(raw_preadv(self.files, step, self.out))}
        candidates |= {name: self.by_key(store, self.out) for name, store in stores.items()}
        for store in stores.values():  # all pages mapped, all crc32c checked once
            for start in range(0, self.samples, BATCH):
                store.image_tokens(self.keys[start : start + BATCH], self.out)
        np.testing.assert_array_equal(self.out, self.values[-BATCH:])
        found = in_turns(candidates, rounds)
        first = [self.by_key(self.open("map", "first"), self.out)() for _ in range(5)]
        named = {
            "warm_mmap_vs_memcpy": ratio(found, "map, first", "memcpy"),
            "warm_pread_vs_memcpy": ratio(found, "pread, first", "memcpy"),
            "warm_checked_vs_memcpy": ratio(found, "pread, always", "memcpy"),
            "warm_checked_mmap_vs_memcpy": ratio(found, "map, always", "memcpy"),
            "warm_pread_vs_preadv": ratio(found, "pread, first", "preadv"),
        }
        return named, figures(found) | {"map, first: first touch": round(statistics.median(first), 3)}

    def peers(self, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays = sorted((self.folder / "store").glob("images/*/tokens"))
        store = Store.open(self.folder / "store")
        store.image_tokens(self.keys, aligned_empty(self.values.shape, np.float16))
        candidates = {"ours": self.by_key(store, self.out)}
        for name, make in PEERS.items():
            self.say(f"{name}: preparing")
            (self.folder / name).mkdir()
            try:
                read = make(self.folder / name, arrays, self.values, self.out)
            except ImportError as error:
                self.say(f"{name}: left out, {error}")
                continue
            rows = self.draw.permutation(self.samples)[:BATCH]
            read(rows)
            np.testing.assert_array_equal(self.out, self.values[rows])
            candidates[name] = self.by_row(read)
        cached(self.files)
        found = in_turns(candidates, rounds)
        short = {"zarr-python": "zarr", "np.memmap": "memmap"}
        named = {f"vs_{short.get(name, name.lower())}": ratio(found, "ours", name) for name in list(candidates)[1:]}
        return named, figures(found)

    def cold(self, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
        gc.collect()  # maps of the warm stores keep pages in the cache

        def dropped() -> None:
            drop(self.files)

        limits = {f"O_DIRECT sequential, {threads}": direct_sequential(self.files, threads) for threads in (4, 8)}
        candidates = dict(limits)
        for mode, check in (("direct", "never"), ("direct", "first"), ("direct", "always"), ("pread", "always")):
            store = self.open(mode, check)  # type: ignore[arg-type]
            out = store.image_buffer(BATCH)
            out[:] = 0
            store.image_tokens(self.keys[:: self.samples // BATCH], out)  # shards open, threads started
            candidates[f"{mode}, {check}"] = self.by_key(store, out, dropped)
        found = in_turns(candidates, rounds)
        limit = max(limits, key=lambda name: statistics.median(found[name]))
        named = {
            "cold_vs_odirect": ratio(found, "direct, never", limit),
            "cold_checked_vs_odirect": ratio(found, "direct, always", limit),
        }
        return named, figures(found)

    def single(self, count: int) -> dict[str, Any]:
        """One random sample by key: warm as the store opens by default, and by positioned reads; cold by O_DIRECT."""
        named: dict[str, Any] = {}
        for label, reading in (("cold", Reading("direct")), ("warm_pread", Reading("pread")), ("warm", Reading())):
            store = Store.open(self.folder / "store", reading=reading)
            out, seconds, raw = store.image_buffer(1), [], []
            limit = direct_one(self.files)
            if label == "cold":
                store.image_tokens(self.keys[:: self.samples // BATCH], store.image_buffer(BATCH))
                drop(self.files)
            else:
                store.image_tokens(self.keys, aligned_empty(self.values.shape, np.float16))
            for row in self.draw.permutation(self.samples)[:count].tolist():
                key = [self.keys[row]]
                started = time.perf_counter()
                store.image_tokens(key, out)
                seconds.append(time.perf_counter() - started)
                if label == "cold":
                    raw.append(limit(row))
            if raw:
                named |= {f"single_odirect_{name}_ms": value for name, value in percentiles(raw, 1e3).items()}
            named |= {f"single_{label}_{name}_ms": value for name, value in percentiles(seconds, 1e3).items()}
        return named


def measure(folder: Path, full: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures; `folder` is new and may be deleted."""
    bench = Bench(folder, *((4096, 4) if full else (1024, 2)), say)
    say("write")
    written = bench.write(8 if full else 5)
    say("cold")
    cold, cold_rates = bench.cold(30 if full else 10)
    say("single samples")
    single = bench.single(1000 if full else 300)
    say("warm")
    warm, warm_rates = bench.warm(40 if full else 15)
    versus, peer_rates = bench.peers(10 if full else 3)
    say("captions")
    text = texts(folder, 40_000 if full else 12_000, 200 if full else 60)
    rates = {"warm": warm_rates, "peers, warm": peer_rates, "cold": cold_rates}
    size = sum(path.stat().st_size for path in bench.files)
    facts = {"machine": machine(folder), "samples": bench.samples, "store_bytes": size}
    return facts | warm | versus | cold | single | written | text | {"gbps": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="where the temporary store goes")
    args = parser.parse_args()
    begun = time.perf_counter()

    def say(line: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {line}", file=sys.stderr, flush=True)

    args.folder.mkdir(parents=True, exist_ok=True)
    folder = args.folder / f"store_read-{time.time_ns()}"
    folder.mkdir()
    try:
        found = measure(folder, args.full, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        print(json.dumps(found))
        return
    rates = found.pop("gbps")
    for name, value in found.pop("machine").items():
        print(f"{name:<32} {value}")
    for name, value in found.items():
        print(f"{name:<32} {value}")
    for group, medians in rates.items():
        print(f"\n{group}, GB/s (medians)")
        for name, value in medians.items():
            print(f"    {name:<28} {value}")


if __name__ == "__main__":
    main()
