"""From cache to table: how long a complete benchmark takes, and whether its intervals hold what they promise.

    python benchmarks/evaluate.py            # SugarCrepe by cosine and by MaxSim, COCO 5k retrieval, coverage; minutes
    python benchmarks/evaluate.py --full     # more rounds and more samples, for the record
    python benchmarks/evaluate.py --json

Sizes are the real ones: 7,511 rows on 1,560 images in the official seven files, 5,000 images with 25,010 captions in
Karpathy's file; captions, pictures and features (50 × 512 tokens, 512 pooled, float16) are drawn. The times of `compal
eval` are of whole processes, from the start of Python to the printed table: files read, photographs looked for and
hashed, every reference scored, 2,000 resamples, scores written.

    sugarcrepe_cosine_s   `compal eval sugarcrepe`: random, text-only and cosine
    sugarcrepe_maxsim_s   the same with `--head maxsim`
    official_path_s       7,511 × the median row of SugarCrepe's own way, with an untrained ViT-B/32: an image and
                          two captions encoded at a time, though there are 1,560 images; `official_ratio` is to ours,
                          once the features are there
    coco5k_exact_s        `eval.score.evaluate` of coco-retrieval by cosine: files read, 125 million cosines, ranks both
                          ways, intervals, scores written; exact. coco5k_process_s: the process, every reference with it
    coverage              of 95 % intervals over photographs with several captions each; coverage_naive: over captions
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compal import registry
from compal.eval import intervals
from compal.eval.score import Options, evaluate
from compal.eval.sources import Sources
from compal.pipeline.encoder import resolve
from compal.stores.store import ImageRows, Store, TextRows
from compal.workspace import Workspace

SUBSETS = {"add_att": 692, "add_obj": 2062, "replace_att": 788, "replace_obj": 1652, "replace_rel": 1406,
           "swap_att": 666, "swap_obj": 245}  # fmt: skip
PHOTOGRAPHS, GALLERY, CAPTIONS = 1560, 5000, 25_010
BACKBONE = "random:50x512"
WORDS = ("a", "man", "dog", "red", "blue", "two", "cat", "on", "table", "street", "car", "with", "small", "old", "tree")


def caption(rng: np.random.Generator, number: int) -> str:
    """Eleven words, no two captions alike."""
    return " ".join([*rng.choice(WORDS, 10), str(number)])


def photograph(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path, format="PNG")


def sugarcrepe(root: Path) -> None:
    """The seven official files, complete in number."""
    rng, number = np.random.default_rng(0), 0
    names = [f"{n:012d}.jpg" for n in range(PHOTOGRAPHS)]
    for name in names:
        photograph(root / "val2017" / name, rng)
    for subset, count in SUBSETS.items():
        rows = {}
        for key in range(count):
            told = {"caption": caption(rng, number), "negative_caption": caption(rng, number + 1)}
            # The official swap_obj has no row 108.
            name = str(key + (subset == "swap_obj" and key >= 108))
            rows[name] = {"filename": names[number // 2 % PHOTOGRAPHS], **told}
            number += 2
        (root / f"{subset}.json").write_text(json.dumps(rows))


def coco(root: Path) -> None:
    """Karpathy's file with its test split."""
    rng, images, sentence = np.random.default_rng(1), [], 0
    for number in range(GALLERY):
        name = f"COCO_val2014_{number:012d}.jpg"
        photograph(root / "val2014" / name, rng)
        count = 5 + (number < CAPTIONS - 5 * GALLERY)
        told = [{"raw": caption(rng, sentence + n), "sentid": sentence + n, "imgid": number} for n in range(count)]
        sentence += count
        images.append({"filepath": "val2014", "filename": name, "split": "test", "cocoid": number, "imgid": number,
                       "sentids": [one["sentid"] for one in told], "sentences": told})  # fmt: skip
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def fill(workspace: Workspace, benchmark: str, root: Path, level: str) -> Store:
    """A store with drawn features of all items; a photograph leans to its captions by no more than chance does."""
    spec = resolve(BACKBONE, level, "float16")
    store = Store.create(workspace.find_store(spec), spec)
    items = list(registry.load("benchmarks", benchmark).items(Sources(root=root)))
    images, texts = ([item for item in items if item.kind == kind] for kind in ("image", "text"))
    rng, tokens = np.random.default_rng(2), level == "tokens"

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype("f2")

    parts = []
    for start in range(0, len(images), 512):
        some = images[start : start + 512]
        rows = ImageRows(
            keys=[item.key for item in some], sources=[item.source for item in some], sizes=[(8, 8)] * len(some),
            tokens=drawn(len(some), *spec.image_shape) if tokens else None, pooled=drawn(len(some), spec.pooled_dim),
        )  # fmt: skip
        parts.append(f"i-{start}")
        store.write_images(parts[-1], rows, [])
    lengths = [13] * len(texts)
    rows = TextRows(
        keys=[item.key for item in texts], sources=[item.source for item in texts],
        captions=[str(item.content) for item in texts],
        tokens=[drawn(length, spec.text_dim) for length in lengths] if tokens else None,
        pooled=drawn(len(texts), spec.pooled_dim), spans=[[(0, 1)] * length for length in lengths],
        pool_index=[12] * len(texts), truncated=[False] * len(texts), segments=[()] * len(texts),
    )  # fmt: skip
    store.write_texts("t-0", rows)
    store.commit([*parts, "t-0"])
    return store


def wall(*arguments: str) -> float:
    """Seconds of one `compal` process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "compal", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


def official_path(rows: int) -> float:
    """Seconds of SugarCrepe's `main_eval.py` over all its rows, from the median of so many: a row at a time, nothing
    kept, decoding not counted."""
    import open_clip
    import torch

    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    told = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    pixels, taken = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)), []
    with torch.inference_mode():
        for number in range(rows):
            started = time.perf_counter()
            image = model.encode_image(pixels, normalize=True)
            one, other = (model.encode_text(told(f"a man and a dog {number} {side}"), normalize=True) for side in "ab")
            _ = (image @ one.T).item() > (image @ other.T).item()
            taken.append(time.perf_counter() - started)
    return sum(SUBSETS.values()) * statistics.median(taken)


def exact(store: Store, root: Path, out: Path) -> float:
    """Seconds of the cosine's row of COCO 5k retrieval."""
    started = time.perf_counter()
    evaluate("coco-retrieval", Sources(root=root), store, {}, out, options=Options(references=("cosine",)))
    return time.perf_counter() - started


def coverage(samples: int, photographs: int = 224, most: int = 8) -> dict[str, float]:
    """How often 95 % intervals hold the true 60 %: so many photographs as SugarCrepe's smallest subset has, with 1 to
    `most` captions each and a luck of their own."""
    rng, held, naive = np.random.default_rng(0), 0, 0
    for trial in range(samples):
        cluster = np.repeat(np.arange(photographs), rng.integers(1, most + 1, photographs))
        hits = rng.random(len(cluster)) < rng.beta(1.5, 1.0, photographs)[cluster]
        low, high = intervals.interval(hits, cluster, seed=trial, resamples=1000) or (0, 0)
        held += low <= 60 <= high
        low, high = intervals.interval(hits, seed=trial, resamples=1000) or (0, 0)
        naive += low <= 60 <= high
    return {"coverage": round(100 * held / samples, 1), "coverage_naive": round(100 * naive / samples, 1)}


def rounds(work: Callable[[], float], count: int) -> float:
    return statistics.median(work() for _ in range(count))


def measure(folder: Path, count: int, samples: int) -> Iterator[tuple[str, Any]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "machine", f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, numpy {np.__version__}"
    workspace = Workspace(folder / "work")
    crepe, gallery = folder / "sugarcrepe", folder / "coco"
    crepe.mkdir()
    sugarcrepe(crepe)
    fill(workspace, "sugarcrepe", crepe, "tokens")
    common = ("--backbone", BACKBONE, "--work", str(workspace.path))
    ours = rounds(lambda: wall("eval", "sugarcrepe", "--root", str(crepe), *common), count)
    yield "sugarcrepe_cosine_s", round(ours, 2)
    peer = official_path(10 * count)
    yield "official_path_s", round(peer)
    yield "official_ratio", round(peer / ours)
    yield (
        "sugarcrepe_maxsim_s",
        round(rounds(lambda: wall("eval", "sugarcrepe", "--root", str(crepe), "--head", "maxsim", *common), count), 2),
    )
    gallery.mkdir()
    coco(gallery)
    store = fill(workspace, "coco-retrieval", gallery, "pooled")
    yield "coco5k_exact_s", round(rounds(lambda: exact(store, gallery, folder / "scores"), count), 2)
    where = ("eval", "coco-retrieval", "--root", str(gallery), "--level", "pooled")
    yield "coco5k_process_s", round(rounds(lambda: wall(*where, *common), count), 2)
    yield from coverage(samples).items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {}
        for name, value in measure(Path(folder), 5 if args.full else 3, 4000 if args.full else 1000):
            figures[name] = value
            if not args.json:
                print(f"{name:<22} {value}", flush=True)
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
