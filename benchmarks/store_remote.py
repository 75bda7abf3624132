"""Push, pull and reading in place, against an S3 server of our own (moto), beside plain obstore on the same bytes.

    python benchmarks/store_remote.py            # 60 MB, half a minute
    python benchmarks/store_remote.py --full     # 1.2 GB
    python benchmarks/store_remote.py --json

The server is Python on the same cores, so MB/s say nothing about a real one; the ratio to plain `obstore` calls of
the same bytes says what checksums, claims, fsync and manifests cost.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np

from compal.stores.remotes.lazy import Lazy, open_remote
from compal.stores.remotes.objects import connect
from compal.stores.remotes.transfer import pull, push
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store
from compal.workspace import Remote

TOKENS, WIDTH, POOLED = 196, 768, 512
SERVER = (
    "from moto.server import ThreadedMotoServer as S; import logging, time; "
    "logging.getLogger('werkzeug').setLevel(40); s = S('127.0.0.1', 0, verbose=False); s.start(); "
    "print(s.get_host_and_port()[1], flush=True); time.sleep(3600)"
)


def make(folder: Path, parts: int, rows: int) -> Store:
    """A store of `parts` parts of `rows` images, 196 × 768 fp16 tokens each."""
    spec = FeatureSpec("benchmark", "seed-0", POOLED, image_shape=(TOKENS, WIDTH))
    store, draw = Store.create(folder / spec.folder, spec), np.random.default_rng(0)
    for part in range(parts):
        keys = [f"{part}-{row}" for row in range(rows)]
        tokens = draw.standard_normal((rows, TOKENS, WIDTH), np.float32).astype(np.float16)
        store.write_images(f"i-{part}", ImageRows(keys, keys, [(1, 1)] * rows, tokens, tokens[:, 0, :POOLED]))
    store.commit([f"i-{part}" for part in range(parts)])
    return store


def median(work: Callable[[int], object], repeats: int) -> float:
    """Median seconds; `work` gets the number of the round."""
    taken = []
    for number in range(repeats):
        started = time.perf_counter()
        work(number)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def measure(folder: Path, endpoint: str, full: bool) -> dict[str, float | str]:
    import obstore

    parts, rows, repeats = (4, 1024, 3) if full else (4, 50, 3)
    store = make(folder / "ann", parts, rows)
    name, size = store.spec.folder, store.info()["bytes"] / 1e6
    files = [path for part in store.parts for path in part.files]
    options = {"endpoint": endpoint, "allow_http": True}

    def remote(place: str) -> Remote:
        return Remote("bench", f"s3://bench/{place}", options)

    plain = connect(remote("plain")).store

    def plain_put(number: int) -> None:
        for file in files:
            obstore.put(plain, f"{number}/{file}", store.path / file)

    seconds = {
        "push": median(lambda n: push(store.path, remote(f"push-{n}")), repeats),
        "plain put": median(plain_put, repeats),
    }

    def plain_get(number: int) -> None:
        for file in files:
            target = folder / f"plain-{number}" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as out:
                for block in obstore.get(plain, f"0/{file}").stream(min_chunk_size=1 << 22):
                    out.write(memoryview(block))

    seconds["pull"] = median(lambda n: pull(remote("push-0"), name, folder / f"bob-{n}" / name), repeats)
    seconds["plain get"] = median(plain_get, repeats)
    figures: dict[str, float | str] = {"store_mb": round(size, 1)}
    figures |= {f"{what.replace(' ', '_')}_mb_s": round(size / taken, 1) for what, taken in seconds.items()}
    figures["push_vs_obstore"] = round(seconds["plain put"] / seconds["push"], 2)
    figures["pull_vs_obstore"] = round(seconds["plain get"] / seconds["pull"], 2)
    return figures | lazily(store, remote("push-0"), folder, plain, repeats)


def lazily(store: Store, remote: Remote, folder: Path, plain: object, repeats: int) -> dict[str, float | str]:
    """Random batches of 64 samples in place, the same ranges by plain obstore, and from the part cache."""
    import obstore

    draw, name = np.random.default_rng(1), store.spec.folder
    keys = sorted(store.keys("image"))
    batches = [[keys[at] for at in draw.choice(len(keys), 64, replace=False)] for _ in range(repeats)]
    size = 64 * TOKENS * WIDTH * 2 / 1e6
    out = store.image_buffer(64)
    started = time.perf_counter()
    lazy = open_remote(remote, name, folder / "cache")
    opened = time.perf_counter() - started
    lazy.image_tokens(batches[0][:1], store.image_buffer(1))
    in_place = median(lambda n: lazy.image_tokens(batches[n], out), repeats)
    assert (out == store.image_tokens(batches[-1])).all()
    sample = TOKENS * WIDTH * 2

    def ranges(number: int) -> None:
        for part in store.parts:
            rows = sorted(int(key.split("-")[1]) for key in batches[number] if f"i-{key.split('-')[0]}" == part.name)
            shard = next(path for path in part.files if "/tokens/c" in path)
            starts = [row * (-(-(sample + 4) // 4096) * 4096) for row in rows]
            obstore.get_ranges(plain, f"0/{shard}", starts=starts, lengths=[sample] * len(rows))

    by_hand = median(ranges, repeats)
    whole = open_remote(remote, name, folder / "cache", Lazy(whole=True))
    started = time.perf_counter()
    whole.image_tokens(keys[:: max(1, len(keys) // 64)])
    filled = time.perf_counter() - started
    cached = median(lambda n: whole.image_tokens(batches[n], out), repeats)
    return {
        "lazy_open_s": round(opened, 3),
        "lazy_mb_s": round(size / in_place, 1),
        "obstore_ranges_mb_s": round(size / by_hand, 1),
        "lazy_vs_obstore": round(by_hand / in_place, 2),
        "cache_fill_s": round(filled, 2),
        "cached_mb_s": round(size / cached, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="none")
    command = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    folder = Path(tempfile.mkdtemp(prefix="store-remote-"))
    try:
        assert server.stdout
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bench", method="PUT")).close()
        figures = measure(folder, endpoint, args.full)
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<24} {value}")


if __name__ == "__main__":
    main()
