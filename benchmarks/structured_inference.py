"""What structured inference gains and costs: boxes, grids of crops and pooled tokens on the benchmark `shapes`.

    python benchmarks/structured_inference.py            # 300 quadruplets of in_domain, some 3 minutes on two cores
    python benchmarks/structured_inference.py --full     # 2,500, and the grid of 239 crops: some hours
    python benchmarks/structured_inference.py --levels regions regions:roi --json

shapes-vit, features as float16, split in_domain, the dataset's own segments. Row `cosine` scores whole images with
whole captions; the others score each segment with its best region and take the mean (head `maxsim`), which is
structure-guided inference (arXiv 2506.09691, 2604.11496). Group score: both images and both captions right, chance
16.7; percent, strict. Beside it, what it costs:

passes  of the image tower for an image. Pooled levels make none of their own: the tokens are cached, one pass
cpu     CPU milliseconds of one image in the extraction, all threads: rendering, cropping, towers, pooling, writing
bytes   that the image takes in the store; of pooled levels beside the tokens, which stand in the row `tokens`
pair    CPU milliseconds of one scored (image, caption) pair, reading included
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compal.align.scorer import Dims, build_head
from compal.eval.benchmarks import shapes
from compal.eval.metrics import quads_hits
from compal.eval.score import Options, score_groups
from compal.eval.sources import Group, Sources
from compal.pipeline.encoder import resolve
from compal.pipeline.extract import extract
from compal.pipeline.plan import ExtractConfig
from compal.pipeline.regions import source_of, view_count
from compal.stores.items import Item
from compal.stores.store import Store
from compal.world.vocabulary import CATEGORIES

QUICK = ("regions", "regions:grid-18", "regions:grid-70", "regions:roi", "regions:roi-grid-70", "regions:roi-grid")
FULL = ("regions", "regions:grid-18", "regions:grid-70", "regions:grid", "regions:roi", "regions:roi-grid-70",
        "regions:roi-grid")  # fmt: skip
METRICS = ("group", "i2t", "t2i")


def passes(level: str, images: Sequence[Item]) -> float:
    """Passes of the image tower for an image at a level, the mean."""
    if level == "tokens":
        return 1.0
    if source_of(level).pooled:
        return 0.0
    return sum(view_count(item, level) for item in images) / len(images)


def measure(level: str, items: Sequence[Item], groups: list[Group], root: Path) -> dict[str, Any]:
    """Extract a level, score it, and say what both took."""
    spec = resolve("shapes-vit", level)
    config = ExtractConfig(batch_size=256, workers=1)
    images = [item for item in items if item.kind == "image"]
    # The encoder is loaded, and its first passes are made, before the clock starts.
    extract(items[:4], spec, root / spec.folder, config)
    new = images[2:]
    started = time.process_time()
    extract(new, spec, root / spec.folder, config)
    cpu = time.process_time() - started
    extract(items, spec, root / spec.folder, config)
    store = Store.open(root / spec.folder)
    head = build_head("cosine" if level == "tokens" else "maxsim", {}, Dims.of(spec))
    score_groups(groups[:8], head, store, level, Options())
    started = time.process_time()
    values = score_groups(groups, head, store, level, Options())
    pair = time.process_time() - started
    size = sum(
        int(file["bytes"])
        for part in store.parts
        if part.kind == "image"
        for name, file in part.files.items()
        if name.startswith("images/")
    )
    return {
        "level": level,
        "head": head.head,
        "passes": round(passes(level, images), 1),
        "cpu_ms_per_image": round(1000 * cpu / len(new), 2),
        "bytes_per_image": round(size / len(images)),
        "ms_per_pair": round(1000 * pair / len(values), 3),
        **accuracies(values.reshape(-1, 2, 2), groups),
    }


def accuracies(scores: np.ndarray, groups: Sequence[Group]) -> dict[str, Any]:
    """Percent right of all quadruplets and of each category, by metric, and half the 95 % interval of the first."""
    kinds = np.array([group.category for group in groups])
    hits = quads_hits(scores)
    found: dict[str, Any] = {}
    for metric in METRICS:
        right = np.asarray(hits[metric], float)
        found[metric] = round(100 * right.mean(), 1)
        found[f"{metric}_by_category"] = {
            name: round(100 * right[kinds == name].mean(), 1) for name in CATEGORIES if (kinds == name).any()
        }
    share = found["group"] / 100
    found["interval"] = round(196 * (share * (1 - share) / len(scores)) ** 0.5, 1)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = ("level", "group", *CATEGORIES, "i2t", "t2i", "passes", "cpu ms / image", "bytes / image", "ms / pair")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        by_category = row["group_by_category"]
        cells = [
            "tokens, cosine" if row["head"] == "cosine" else row["level"],
            f"{row['group']} ± {row['interval']}",
            *(str(by_category.get(name, "")) for name in CATEGORIES),
            str(row["i2t"]),
            str(row["t2i"]),
            f"{row['passes']:g}",
            str(row["cpu_ms_per_image"]),
            f"{row['bytes_per_image']:,}",
            str(row["ms_per_pair"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quads", type=int, default=300, help="quadruplets, a multiple of 5")
    parser.add_argument("--full", action="store_true", help="all 2,500, and the grid of 239 crops")
    parser.add_argument("--levels", nargs="+", default=[], metavar="LEVEL", help="levels of rung regions")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    count = 2500 if args.full else args.quads
    sources = Sources(split="in_domain", limit=max(1, count // len(CATEGORIES)))
    items, groups = list(shapes.items(sources)), list(shapes.groups(sources))
    levels = ("tokens", *(args.levels or (FULL if args.full else QUICK)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for level in levels:
            rows.append(measure(level, items, groups, Path(folder)))
            if not args.json:
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    about = {
        "quadruplets": len(groups),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    if args.json:
        print(json.dumps({**about, "rows": rows}, indent=1))
    else:
        print(f"\n{', '.join(f'{name} {value}' for name, value in about.items())}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
