"""How a store grows: time and memory to open it and to find keys, from 1,000 images to a million.

    python benchmarks/store_growth.py [--full] [--json] [--folder build/growth]

Features are tiny (8 numbers), keys, parts and manifests are those of a real store: five captions an image, 1,024
images or 8,192 captions a part. Every measurement is a process of its own: `first` opens a store that was never
looked into (it builds and keeps the key index), `open` one that was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store, TextRows

SIZES = (1_000, 10_000, 100_000)
SPEC = FeatureSpec("growth", "seed-0", pooled_dim=8, level="pooled")
LOOK = r"""
import json, re, sys, time
from compal.stores.store import Store
import numpy as np
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
keys = json.load(open(sys.argv[2]))
before, times = peak(), []
started = time.perf_counter(); store = Store.open(sys.argv[1]); opened = time.perf_counter() - started
started = time.perf_counter(); store.has("image", keys["image"][0]); store.has("text", keys["text"][0])
first = time.perf_counter() - started
for number in range(1, 50):
    for kind in ("image", "text"):
        started = time.perf_counter(); found = store.has(kind, keys[kind][number])
        times.append(time.perf_counter() - started); assert found.all()
print(json.dumps({"open": opened, "index": first, "lookup": float(np.median(times)),
                  "imports_mib": before, "peak_mib": peak(), "counts": [store.count("image"), store.count("text")]}))
"""


def hexes(draw: np.random.Generator, count: int) -> list[str]:
    digits = draw.bytes(16 * count).hex()
    return [digits[32 * row : 32 * row + 32] for row in range(count)]


def build(folder: Path, images: int) -> dict[str, list[list[str]]]:
    """A store of `images` and five times as many captions, and 50 batches of 256 of its keys of either kind."""
    draw, store, names = np.random.default_rng(images), Store.create(folder, SPEC), []
    asked = {}
    for kind, total, rows in (("image", images, 1024), ("text", 5 * images, 8192)):
        keys = hexes(draw, total)
        asked[kind] = [[keys[row] for row in draw.integers(0, total, 256)] for _ in range(50)]
        for start in range(0, total, rows):
            own = keys[start : start + rows]
            pooled = np.full((len(own), 8), start % 100, np.float32)
            name = f"{kind[0]}-{start}"
            if kind == "image":
                store.write_images(name, ImageRows(own, own, [(640, 480)] * len(own), None, pooled))
            else:
                store.write_texts(name, TextRows(own, ["a caption of eleven words"] * len(own), own, None, pooled))
            names.append(name)
    store.commit(names)
    return asked


def look(folder: Path, asked: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", LOOK, folder, asked], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(folder: Path, images: int) -> dict[str, float]:
    place, asked = folder / str(images), folder / f"{images}.json"
    started = time.perf_counter()
    asked.write_text(json.dumps(build(place, images)))
    written = time.perf_counter() - started
    shutil.rmtree(place / ".index", ignore_errors=True)
    first = look(place, asked)
    runs = [look(place, asked) for _ in range(5)]
    middle = {name: statistics.median(run[name] for run in runs) for name in ("open", "index", "lookup", "peak_mib")}
    manifest = max((place / "manifests").iterdir(), key=lambda path: int(path.stem))
    return {
        "images": first["counts"][0],
        "captions": first["counts"][1],
        "write_s": written,
        "manifest_mib": manifest.stat().st_size / 2**20,
        "first_open_s": first["open"] + first["index"],
        "first_peak_mib": first["peak_mib"],
        "open_s": middle["open"] + middle["index"],
        "lookup_256_ms": 1e3 * middle["lookup"],
        "peak_mib": middle["peak_mib"],
        "imports_mib": first["imports_mib"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="up to a million images and five million captions")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/growth"))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    os.fsync = lambda handle: None  # the disk's latency is not what is measured
    try:
        rows = [measure(asked.folder, images) for images in (*SIZES, *((1_000_000,) if asked.full else ()))]
    finally:
        shutil.rmtree(asked.folder, ignore_errors=True)
    if asked.json:
        print(json.dumps({"machine": f"{platform.machine()}, {os.cpu_count()} cores", "rows": rows}))
        return
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:,}" if isinstance(v, int) else f"{v:,.3g}" for v in row.values()) + " |")


if __name__ == "__main__":
    main()
