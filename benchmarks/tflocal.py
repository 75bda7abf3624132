"""What each form of `tflocal` learns in the same steps, and costs: joint and cross attention, all pairs and mined.

    python benchmarks/tflocal.py                    # about 20 minutes on two cores
    python benchmarks/tflocal.py --steps 600 --quads 3000
    python benchmarks/tflocal.py --json
    python benchmarks/tflocal.py --sizes            # only what a pair costs to score at the sizes of real towers

On the embedded world: the backbone, the training quadruplets, the seed, the batches' pairs, the schedule and the head's
width are those of the recipe `tflocal-shapes` for all four runs, and only two things differ:

    joint    patches and tokens go through every layer together, once for every pair, as in arXiv 2604.11496
    cross    tokens query the keys and values of the patches, which are projected once for every image
    all      every image of a batch is scored with every caption of it (`data.partners = 0`)
    mined    with its own captions, those of its swap group, and two of its 16 nearest (`data.mined`, `partners = 1`)

The head's options that only one form has (`compare`, `image_layers`, `text_layers`) are off. Accuracy is the group
score of the benchmark `shapes` in domain, strict, chance 16.7. The cost is measured apart from the runs: steps of all
four in turns, medians; `pairs` is how many (image, caption) pairs a step scores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _store_limits import machine

from compal import api
from compal.align.batches import Batch, open_table
from compal.align.fit import Training
from compal.align.loader import Loader
from compal.align.mining import Miner
from compal.align.pairs import PairTable
from compal.align.recipe import load_recipe
from compal.align.sampling import Sampler
from compal.align.scorer import Dims, build_head
from compal.eval.sources import Sources
from compal.pipeline.naming import pairs_of
from compal.workspace import Workspace

BACKBONE = "shapes-vit"
SAME = (
    "head.compare=false",
    "head.image_layers=0",
    "head.text_layers=0",
    "data.curriculum=[]",
    "validation.every=1000000",
)
FORMS = {"joint": ("head.interaction=joint",), "cross": ("head.interaction=cross",)}
PAIRS = {"all": ("data.partners=0",), "mined": ("data.partners=1", "data.mined.k=16", "data.mined.draw=2")}
CPU = torch.device("cpu")


def variants(steps: int, batch: int) -> dict[str, list[str]]:
    """Name → settings on top of `tflocal-shapes`."""
    sizes = [f"optim.steps={steps}", f"data.batch_size={batch}"]
    return {f"{form}, {pairs}": [*SAME, *sizes, *FORMS[form], *PAIRS[pairs]] for form in FORMS for pairs in PAIRS}


def learnt(asked: dict[str, list[str]], workspace: Workspace, quads: int, judged: int) -> dict[str, dict[str, Any]]:
    """Fit each variant, and judge all of them in domain."""
    sources = Sources(split="in_domain", limit=judged)
    for split, limit in (("train", quads), ("validation", 60)):
        api.extract(BACKBONE, "shapes", [split], limit=limit, workspace=workspace)
    api.extract_benchmark(BACKBONE, "shapes", sources, workspace=workspace)
    found: dict[str, dict[str, Any]] = {}
    labels = {}
    for name, settings in asked.items():
        run = name.replace(", ", "-")
        result = api.fit("tflocal-shapes", BACKBONE, "shapes", settings=settings, name=run, workspace=workspace)
        found[name], labels[run] = {"parameters": result.parameters, "fit_seconds": result.seconds}, name
    rows = api.evaluate(
        "shapes", runs=list(labels), labels=labels, backbone=BACKBONE, sources=sources, workspace=workspace
    )
    for row in rows:
        if row.label in found:
            group = row.overall.metrics["group"]
            found[row.label] |= {"group": group.value, "interval": [group.low, group.high]}
    return found


def stepping(settings: list[str], workspace: Workspace, steps: int) -> Iterator[dict[str, float]]:
    """Steps of one variant; each gives its seconds by stage, and how many pairs it scored."""
    config = load_recipe("tflocal-shapes", settings)
    store = api.open_store(BACKBONE, workspace=workspace)
    train, _ = pairs_of("shapes", "train", "validation", workspace, BACKBONE)
    torch.manual_seed(0)
    options = dict(config.head)
    model = Training(build_head(options.pop("name"), options, Dims.of(store.spec)), config.loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
    table = PairTable.read(train, store)
    features = open_table(store, table.image_keys, table.caption_keys, CPU, "tokens", "ram", 0)
    sampler = Sampler(table, config.data, config.optim.steps, 0)
    if config.data.mined.k:
        miner = Miner(table, features, config.data.mined, 0)
        miner.refresh(0, model.scorer)
        sampler.candidates = miner.candidates
    with Loader(sampler, features, CPU, 0, steps) as loader:
        for step in range(steps):
            batch = loader(step)
            images, captions = batch.shape
            pairs = images * captions if batch.scored is None else int(batch.scored.sum())
            started = time.perf_counter()
            loss = model(batch)
            between = time.perf_counter()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ended = time.perf_counter()
            yield {"pairs": pairs, "forward": between - started, "step": ended - started}


def cost(asked: dict[str, list[str]], workspace: Workspace, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of a step, the variants in turns; the first turn warms up."""
    running = {name: stepping(settings, workspace, repeats + 1) for name, settings in asked.items()}
    turns = [{name: next(one) for name, one in running.items()} for _ in range(repeats + 1)][1:]
    return {
        name: {key: statistics.median(turn[name][key] for turn in turns) for key in turns[0][name]} for name in asked
    }


TOWERS = {"CLIP ViT-B/32": (50, 768, (7, 7)), "CLIP ViT-B/16, PE-Core B/16": (197, 768, (14, 14))}
SIDE, TOKENS = 16, 14


@torch.no_grad()
def at_real_sizes(repeats: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds to score a pair of a 16 × 16 block by the recipes `tflocal` and `tflocal-cross`, captions of 14
    tokens, random features; in turns, medians of CPU time, which other work on the machine leaves alone."""
    found = {}
    for name, (tokens, width, grid) in TOWERS.items():
        dims, made = Dims(width, 512, 512, tokens, 77, grid), torch.Generator().manual_seed(0)
        batch = Batch(
            images=torch.randn(SIDE, tokens, width, generator=made),
            image_mask=torch.ones(SIDE, tokens, dtype=torch.bool),
            image_pooled=torch.randn(SIDE, 512, generator=made),
            texts=torch.randn(SIDE, TOKENS, 512, generator=made),
            text_mask=torch.ones(SIDE, TOKENS, dtype=torch.bool),
            text_pooled=torch.randn(SIDE, 512, generator=made),
            positives=torch.eye(SIDE, dtype=torch.bool),
            groups=torch.zeros(0, 4, dtype=torch.long),
        )
        spent: dict[str, list[float]] = {"tflocal": [], "tflocal-cross": []}
        heads = {}
        for recipe in spent:
            options = dict(load_recipe(recipe).head)
            heads[recipe] = build_head(options.pop("name"), options, dims).eval()
        for _ in range(repeats + 1):
            for recipe, head in heads.items():
                started = time.process_time()
                head.score(batch)
                spent[recipe].append(time.process_time() - started)
        found[name] = {recipe: statistics.median(times[1:]) * 1e3 / SIDE**2 for recipe, times in spent.items()}
    return found


def figures(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All that is measured."""
    workspace = Workspace(folder)
    asked = variants(args.steps, args.batch)
    rows = learnt(asked, workspace, args.quads, args.judged)
    spent = cost(asked, workspace, args.repeats)
    least = spent["cross, mined"]["step"]
    for name, row in rows.items():
        row |= spent[name] | {"step_vs_cross_mined": spent[name]["step"] / least}
    return {
        "machine": machine(folder), "threads": torch.get_num_threads(), "steps": args.steps, "batch": args.batch,
        "quads": args.quads, "variants": rows,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| attention, pairs | parameters | pairs a step | ms a step | of `cross, mined` | µs a pair | group score |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["variants"].items():
        low, high = row["interval"]
        lines.append(
            f"| {name} | {row['parameters']:,} | {row['pairs']:.0f} | {1e3 * row['step']:.0f} "
            f"| {row['step_vs_cross_mined']:.1f}× | {1e6 * row['step'] / row['pairs']:.0f} "
            f"| {row['group']:.1f} [{low:.1f}, {high:.1f}] |"
        )
    return "\n".join(lines)


def _sizes(found: dict[str, dict[str, float]]) -> str:
    lines = ["| towers | joint, ms a pair | cross, ms a pair | cross / joint |", "|---|---|---|---|"]
    for name, spent in found.items():
        joint, cross = spent["tflocal"], spent["tflocal-cross"]
        lines.append(f"| {name} | {joint:.2f} | {cross:.2f} | {cross / joint:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--quads", type=int, default=2000)
    parser.add_argument("--judged", type=int, default=200, help="quadruplets of each category")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", action="store_true", help="only the cost of a pair at real sizes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.sizes:
        sizes = at_real_sizes(args.repeats)
        print(json.dumps(sizes) if args.json else _sizes(sizes))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = figures(Path(folder), args)
    if args.json:
        print(json.dumps(found))
        return
    print("  ".join(found["machine"].values()), f"  {found['threads']} threads, {found['steps']} steps")
    print(table(found))


if __name__ == "__main__":
    main()
