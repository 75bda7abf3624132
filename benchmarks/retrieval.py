"""Retrieval at scale: how long candidates take, what re-ranking them costs, and what a gallery of any size holds.

    python benchmarks/retrieval.py              # a tenth of COCO's test split in each side; a minute or two
    python benchmarks/retrieval.py --full       # all 5,000 photographs × 25,010 captions
    python benchmarks/retrieval.py --json

Features are drawn, at the sizes of CLIP ViT-B/32 (50 × 512 tokens a photograph, 13 × 512 a caption, 512 pooled,
float16). Re-ranking is of whole processes, `compal eval coco-retrieval --head maxsim --rerank 100`, from the start of
Python to the printed table; wall time needs a quiet machine, CPU seconds (of all threads) much less so.

    rerank_s, rerank_cpu_s   of the process; rerank_mib: the most memory it held
    pairs, ms_a_pair         pairs of both directions, each scored once
    rerank_full_s            scaled: what COCO whole takes, from ms_a_pair and its most pairs, 3,001,000
    search_I_cpu_s           100 candidates of every caption and photograph by the index I; recall_I of the exact ones
    stream_cpu_s, stream_mib 100 candidates of 1,000 queries in a gallery that is drawn part by part and never held:
                             time, and what memory grew by; gallery_mib is what holding it would take
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from compal.eval.candidates import Gallery, nearest
from compal.workspace import Workspace

K, WIDTH = 100, 512
WHOLE = (5000, 25_010)


def rerank(folder: Path, photographs: int) -> Iterator[tuple[str, Any]]:
    """MaxSim over the candidates of so many photographs and five captions of each."""
    evaluate.GALLERY, evaluate.CAPTIONS = photographs, photographs * WHOLE[1] // WHOLE[0]
    root = folder / "coco"
    root.mkdir()
    evaluate.coco(root)
    workspace = Workspace(folder / "work")
    evaluate.fill(workspace, "coco-retrieval", root, "tokens")
    command = ["eval", "coco-retrieval", "--root", str(root), "--backbone", evaluate.BACKBONE, "--head", "maxsim"]
    command += ["--rerank", str(K), "--json", "--work", str(workspace.path)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "compal", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = next(row["retrieval"] for row in json.loads(done.stdout)["results"] if row.get("retrieval"))
    yield "photographs", photographs
    yield "rerank_s", round(time.perf_counter() - started, 1)
    yield "rerank_cpu_s", round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
    yield "rerank_mib", after.ru_maxrss // 1024
    yield "pairs", facts["pairs_scored"]
    yield "ms_a_pair", round(facts["ms_a_pair"], 4)
    yield "rerank_full_s", round(facts["ms_a_pair"] * K * sum(WHOLE) / 1000, 1)


def drawn(seed: int, count: int) -> np.ndarray:
    """Unit vectors about a hundred centres, as real ones gather."""
    centres = np.random.default_rng(0).standard_normal((100, WIDTH), np.float32)
    rng = np.random.default_rng([1, seed])
    rows = centres[rng.integers(0, len(centres), count)] + rng.standard_normal((count, WIDTH), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def search(photographs: int) -> Iterator[tuple[str, Any]]:
    """Both directions by every index."""
    images, captions = drawn(0, photographs), drawn(1, photographs * WHOLE[1] // WHOLE[0])
    exact: list[np.ndarray] = []
    for index in ("flat", "ivf", "hnsw"):
        started = time.process_time()
        found = [
            nearest(one, Gallery.of(other), K, index)[0] for one, other in ((images, captions), (captions, images))
        ]
        yield f"search_{index}_cpu_s", round(time.process_time() - started, 2)
        exact = exact or found
        if index != "flat":
            shared = [
                np.mean([np.isin(*rows).mean() for rows in zip(*pair, strict=True)])
                for pair in zip(found, exact, strict=True)
            ]
            yield f"recall_{index}", round(float(np.mean(shared)), 4)


def stream(count: int) -> Iterator[tuple[str, Any]]:
    """A gallery of which only one part is ever held."""
    queries = drawn(2, 1000)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    nearest(queries, Gallery(count, lambda start, stop: drawn(start, stop - start)), K)
    yield "stream_cpu_s", round(time.process_time() - started, 1)
    yield "stream_mib", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    yield "gallery_mib", count * WIDTH * 4 >> 20


def measure(folder: Path, full: bool) -> Iterator[tuple[str, Any]]:
    photographs = WHOLE[0] if full else WHOLE[0] // 10
    yield from stream(1_000_000 if full else 200_000)  # first: memory that others took would hide its growth
    yield from search(photographs)
    yield from rerank(folder, photographs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {}
        for name, value in measure(Path(folder), args.full):
            figures[name] = value
            if not args.json:
                print(f"{name:<22} {value}", flush=True)
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
