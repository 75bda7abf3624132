"""What structured inference gains and costs: boxes, grids of crops, pooled and dense tokens on the benchmark `shapes`.

    python benchmarks/structured_inference.py            # 300 quadruplets of in_domain, some 6 minutes on a core
    python benchmarks/structured_inference.py --full     # 2,500: some hours
    python benchmarks/structured_inference.py --levels regions regions:roi --json
    python benchmarks/structured_inference.py --cost ViT-B-32-quickgelu   # costs of a larger tower, random weights

shapes-vit, features as float16, split in_domain, the dataset's own segments. Row `cosine` scores whole images with
whole captions; the others score each segment with its best region and take the mean (head `maxsim`), which is
structure-guided inference (arXiv 2506.09691, 2604.11496). Group score: both images and both captions right, chance
16.7; percent, strict. Beside it, what it costs:

passes  of the image tower for an image. Pooled and dense levels make none of their own: their states are cached
bytes   that the image takes in the store; of pooled levels beside the tokens, which stand in the row `tokens`
pair    CPU milliseconds of one scored (image, caption) pair, reading included
cpu     CPU milliseconds of one image in the extraction: rendering, cropping, towers, pooling, casting, writing. Medians
        of repetitions in which all levels take turns, process time on one thread, so that other work on the machine
        weighs on all alike; what a call costs however few images it has is taken off
ratio   of the 239 crops to the level, of the medians; below it the smallest and the largest of the repetitions
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from compal.align.scorer import Dims, build_head
from compal.eval.benchmarks import shapes
from compal.eval.metrics import quads_hits
from compal.eval.scoring import judge, score_groups
from compal.eval.sources import Group, Sources
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.extract import extract
from compal.pipeline.plan import ExtractConfig
from compal.pipeline.regions import source_of, states_of, view_count
from compal.stores.items import Item
from compal.stores.store import Store
from compal.world.vocabulary import CATEGORIES

LEVELS = ("regions", "regions:grid-18", "regions:grid-70", "regions:grid", "regions:roi", "regions:roi-grid-70",
          "regions:roi-grid", "regions:dense", "regions:dense-roi", "regions:dense-grid-70",
          "regions:dense-grid")  # fmt: skip
CROPS, PASS = "regions:grid", "regions:dense-grid, in a pass of its own"
TIMED = (CROPS, "tokens", "block:-1", "regions:roi-grid", "regions:dense-grid", "regions:dense", PASS)
FEW = 2  # images whose extraction is taken off, with what a call costs however few there are
METRICS = ("group", "i2t", "t2i")


def passes(level: str, images: Sequence[Item]) -> float:
    """Passes of the image tower for an image at a level, the mean."""
    if level in ("tokens", "block:-1", PASS):
        return 1.0
    if source_of(level).pooled:
        return 0.0
    return sum(view_count(item, level) for item in images) / len(images)


def measure(level: str, items: Sequence[Item], groups: list[Group], root: Path) -> dict[str, Any]:
    """Extract a level, score it, and say what both took."""
    spec = resolve("shapes-vit", level)
    config = ExtractConfig(batch_size=256, workers=1)
    images = [item for item in items if item.kind == "image"]
    extract(items, spec, root / spec.folder, config)
    store = Store.open(root / spec.folder)
    head = build_head("cosine" if level == "tokens" else "maxsim", {}, Dims.of(spec))
    asked = judge(level, head, store)
    score_groups(groups[:8], asked, level)
    started = time.process_time()
    values = score_groups(groups, asked, level)
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
        "bytes_per_image": round(size / len(images)),
        "ms_per_pair": round(1000 * pair / len(values), 3),
        **accuracies(values.reshape(-1, 2, 2), groups),
    }


def costs(
    backbone: str, images: Sequence[Item], root: Path, repeat: int, cropped: int, crops: str = CROPS
) -> dict[str, Any]:
    """CPU milliseconds of an image at each level, by repetition: the levels take turns, on one thread.

    images   all of whose states are cached first; cropped levels take `cropped` others of them in each repetition
    crops    the level of crops that is measured; one with fewer windows is scaled to the 239 by its passes
    """
    encoder, config = load_encoder(resolve(backbone)), ExtractConfig(batch_size=64, workers=1)
    depth = states_of(resolve(backbone, "regions:dense"))
    cached = [resolve(backbone, level) for level in {"tokens", depth}]
    for spec in cached:
        extract(images, spec, root / "cached" / spec.folder, config, encoder=encoder)
    levels = [crops if level == CROPS else level for level in TIMED if level != "block:-1" or depth == "block:-1"]
    found: dict[str, list[float]] = {level: [] for level in levels}
    for number in range(-1, repeat):  # the first warms what is warmed once
        folder = root / f"{backbone.replace('/', '-')}-{number}"
        folder.mkdir(parents=True)
        for spec in cached:
            os.symlink(root / "cached" / spec.folder, folder / spec.folder)
        for level in levels:
            start = max(0, number) * cropped % max(1, len(images) - cropped + 1)
            some = images[start : start + cropped] if level == crops else images
            spent = _spent(level, some, folder, config, encoder, backbone)
            if number >= 0:
                found[level].append(1000 * spent * (passes(CROPS, some) / passes(level, some) if level == crops else 1))
    found[CROPS] = found.pop(crops)
    return {"backbone": backbone, "images": len(images), "cropped": cropped, "crops": crops, "cpu_ms": found}


def images_of(model: str, folder: Path) -> str:
    """A backbone with the image tower of an open_clip model and random weights. Its text tower is CLIP's, whose
    tokenizer needs no download: only images are encoded here."""
    vision, texts = open_clip.get_model_config(model), open_clip.get_model_config("ViT-B-32")
    config = {"embed_dim": vision["embed_dim"], "vision_cfg": vision["vision_cfg"], "text_cfg": texts["text_cfg"]}
    # open_clip would choose a tokenizer by the model's name.
    (folder / "images-alone.json").write_text(
        json.dumps({**config, "custom_text": True, "quick_gelu": vision.get("quick_gelu", False)})
    )
    open_clip.add_model_config(folder)
    return "open_clip:images-alone"


def _spent(level: str, images: Sequence[Item], folder: Path, config: ExtractConfig, encoder: Any, name: str) -> float:
    """CPU seconds of an image. Crops of one image outweigh what a call costs; of others a short call is taken off."""
    spec = resolve(name, level.partition(",")[0])
    # States that are made anew, and the level that is to find none, go where none lie.
    anew = level == PASS or spec.rung in ("tokens", "block")
    place = folder / level.replace(" ", "-") / spec.folder if anew else folder / spec.folder
    if level.startswith(("regions:grid", "regions ")):
        started = time.process_time()
        extract(images, spec, place, config, encoder=encoder)
        return (time.process_time() - started) / len(images)
    spent = []
    for some in (images[:FEW], images[FEW:]):
        started = time.process_time()
        extract(some, spec, place, config, encoder=encoder)
        spent.append(time.process_time() - started)
    return (spent[1] - spent[0]) / (len(images) - 2 * FEW)


def cost_table(found: dict[str, Any]) -> str:
    """The costs as Markdown: medians, and how many times the crops cost as much."""
    crops = found["cpu_ms"][CROPS]
    lines = ["| level | passes | cpu ms / image | ratio | ratio, least to most |", "|---|---|---|---|---|"]
    for level, times in found["cpu_ms"].items():
        ratios = sorted(one / other for one, other in zip(crops, times, strict=True))
        ratio = statistics.median(crops) / statistics.median(times)
        made = "239" if level == CROPS else "1" if level in ("tokens", "block:-1", PASS) else "0"
        cells = [
            level,
            made,
            f"{statistics.median(times):.2f}",
            f"{ratio:,.1f}",
            f"{ratios[0]:,.1f} to {ratios[-1]:,.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    names = ("level", "group", *CATEGORIES, "i2t", "t2i", "passes", "bytes / image", "ms / pair")
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
            f"{row['bytes_per_image']:,}",
            str(row["ms_per_pair"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quads", type=int, default=300, help="quadruplets, a multiple of 5")
    parser.add_argument("--full", action="store_true", help="all 2,500")
    parser.add_argument("--levels", nargs="+", default=[], metavar="LEVEL", help="levels of rung regions")
    parser.add_argument("--cost", metavar="MODEL", help="only the costs, of an open_clip model with random weights")
    parser.add_argument("--images", type=int, default=256, help="whose states are cached for the costs")
    parser.add_argument("--cropped", type=int, default=8, help="of them are cropped in a repetition")
    parser.add_argument("--crops", default=CROPS, help="level of crops to measure the costs on, scaled to 239")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of the costs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = 2500 if args.full else args.quads
    sources = Sources(split="in_domain", limit=max(1, count // len(CATEGORIES)))
    items, groups = list(shapes.items(sources)), list(shapes.groups(sources))
    images = list({item.key: item for item in items if item.kind == "image"}.values())[: args.images]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        backbone = images_of(args.cost, Path(folder)) if args.cost else "shapes-vit"
        spent = costs(backbone, images, Path(folder), args.repeat, args.cropped, args.crops)
        if not args.json:
            print(f"{args.cost or backbone}, {len(images)} images\n\n{cost_table(spent)}\n", flush=True)
        for level in () if args.cost else ("tokens", *(args.levels or LEVELS)):
            rows.append(measure(level, items, groups, Path(folder) / "stores"))
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
        print(json.dumps({**about, "costs": spent, "rows": rows}, indent=1))
    elif rows:
        print(f"\n{', '.join(f'{name} {value}' for name, value in about.items())}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
