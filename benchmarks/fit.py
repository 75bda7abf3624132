"""Where the time of a training step goes, how long it waits for its data, and what it saves to train from features.

    python benchmarks/fit.py              # about a minute on two cores
    python benchmarks/fit.py --full       # more images and steps
    python benchmarks/fit.py --json
    python benchmarks/fit.py --compile    # instead: steps with and without torch.compile, in turn

A made-up store (random values, the sizes of CLIP ViT-B/32: 50 × 768 image tokens, captions of 8 to 30 tokens of 512,
pooled embeddings of 512) lies in the page cache, and the recipes are fitted on it by `fit` itself, with `data.resident`
"disk" and "ram"; the stages are those of its own log (`align/clock.py`). The first steps, for which nothing was made
ahead, are left out. `step` is the sum of the stages, without `copy`, which runs beside the others.

    wait_share_tflocal   share of a step's time that the recipe `tflocal` waits for data, smaller batch (target ≤ 5 %)
    wait_share_linear    the same of `linear`, a pooled head, at its recipe's batch (target ≤ 20 %)
    epoch_vs_towers      time of an epoch of `linear` that runs the frozen towers (open_clip ViT-B/32, random weights,
                         pixels already decoded) for every batch, over that from the store (target ≥ 30); also with
                         the head of `tflocal-shapes`
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from _store_limits import machine

from compal.align.batches import Batch, open_table
from compal.align.clock import STAGES, Clock
from compal.align.compiled import compile_modules, compiling
from compal.align.distributed import open_team
from compal.align.fit import fit
from compal.align.pairs import PairTable
from compal.align.recipe import FitConfig, load_recipe
from compal.align.sampling import Sampler
from compal.align.scorer import Dims, build_head
from compal.align.step import Step, adamw
from compal.align.training import Training
from compal.stores.items import Pair
from compal.stores.pairs import write_pairs
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store, TextRows

SPEC = FeatureSpec(
    backbone="random",
    weights="0" * 64,
    pooled_dim=512,
    image_shape=(50, 768),
    image_prefix=1,
    image_grid=(7, 7),
    text_dim=512,
    context_length=77,
)
PART = 256
WARM = 6  # steps with and without torch.compile that are left out: in them it compiles


def made_up(folder: Path, images: int) -> tuple[Store, Path]:
    """A store of random features, and a pairs table of swap groups, each pair the other's negative."""
    store, rng = Store.create(folder / "store", SPEC), np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32).astype(np.float16)

    keys, texts = [f"{n:032x}" for n in range(images)], [f"{10**9 + n:032x}" for n in range(images)]
    for start in range(0, images, PART):
        here, words = keys[start : start + PART], texts[start : start + PART]
        count = len(here)
        rows = ImageRows(here, here, [(224, 224)] * count, normal(count, 50, 768), normal(count, 512))
        store.write_images(f"i-{start}", rows)
        tokens = [normal(int(length), 512) for length in rng.integers(8, 31, count)]
        spans = [[(-1, -1)] * len(one) for one in tokens]
        store.write_texts(f"t-{start}", TextRows(words, words, words, tokens, normal(count, 512), spans))
    store.commit([f"{kind}-{start}" for kind in "it" for start in range(0, images, PART)])
    pairs = [Pair(keys[n], texts[n], (texts[n ^ 1],), f"g/{n // 2}", "made") for n in range(images)]
    write_pairs(folder / "pairs.parquet", pairs)
    return Store.open(folder / "store"), folder / "pairs.parquet"


def measure(config: FitConfig, store: Store, pairs: Path, steps: int, residency: str) -> dict[str, float]:
    """Seconds a step by stage, and of the whole, by a run's own log without its first line. The log has few lines: what
    writes one is in no stage, and the loader would use the time."""
    every = max(1, steps // 6)
    optim = dataclasses.replace(config.optim, steps=steps + every)
    data = dataclasses.replace(config.data, resident=residency)
    asked = dataclasses.replace(config, optim=optim, data=data, log_every=every)
    with tempfile.TemporaryDirectory() as folder:
        fit(asked, store, pairs, None, Path(folder) / "run")
        lines = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        times = [line["step_time"] for line in lines if "step_time" in line][1:]
    clock = {stage: statistics.fmean(time[stage] for time in times) for stage in STAGES}
    return clock | {"step": sum(seconds for stage, seconds in clock.items() if stage != "copy")}


class Side:
    """A model and its steps, compiled or not."""

    def __init__(self, config: FitConfig, store: Store, compiled: bool) -> None:
        torch.manual_seed(0)
        options = dict(config.head)
        scorer = build_head(options.pop("name"), options, Dims.of(store.spec))
        self.team, self.needs = open_team("cpu", config.precision), scorer.needs
        self.model = Training(scorer, config.loss, self.team)
        if compiled:
            compile_modules([scorer], torch.device("cpu"))
        optimizer = adamw(self.model, config.optim)
        _, stepper = self.team.fabric.setup(self.model, optimizer)
        clock = Clock(torch.device("cpu"), lambda: (0.0, 0.0))
        self.step = Step(self.team, self.model, optimizer, stepper, config.optim, clock)
        self.seconds: list[float] = []

    def take(self, batch: Batch, number: int) -> float:
        """The loss of a step."""
        started = time.perf_counter()
        loss, _ = self.step([batch], number)
        self.seconds.append(time.perf_counter() - started)
        return loss.item()


def in_turn(config: FitConfig, store: Store, pairs: Path, steps: int) -> dict[str, float]:
    """The same steps by two models, one of them compiled, in turn: medians, the first `WARM` of each left out."""
    plain, compiled = sides = [Side(config, store, wanted) for wanted in (False, True)]
    table = PairTable.read(pairs, store)
    features = open_table(store, table.image_keys, table.caption_keys, torch.device("cpu"), plain.needs, "ram", 0)
    sampler, apart = Sampler(table, config.data, steps + WARM, 0), 0.0
    with compiling(True):
        for number in range(steps + WARM):
            batch = sampler.draw(number).batch(features)
            losses = [side.take(batch, number) for side in (sides if number % 2 else sides[::-1])]
            apart = max(apart, abs(losses[0] / losses[1] - 1))
    ratios = [one / two for one, two in zip(plain.seconds[WARM:], compiled.seconds[WARM:], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "steps_per_second": 1 / statistics.median(plain.seconds[WARM:]),
        "steps_per_second_compiled": 1 / statistics.median(compiled.seconds[WARM:]),
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "compile_seconds": sum(compiled.seconds[:WARM]) - sum(plain.seconds[:WARM]),
        "losses_apart": apart,
    }


def compile_figures(folder: Path, full: bool) -> dict[str, Any]:
    """Steps with and without torch.compile. Without dropout, as losses are compared."""
    store, pairs = made_up(folder, 768)
    off, scale = "head.dropout=0.0", 3 if full else 1
    shapes = load_recipe("tflocal-shapes", ["data.batch_size=32", "data.curriculum=[]", off])
    asked = {
        "linear": (load_recipe("linear"), 60 * scale),
        "tflocal-shapes": (shapes, 20 * scale),
        "tflocal-cross": (load_recipe("tflocal-cross", ["data.batch_size=8", off]), 8 * scale),
    }
    compiled = {name: in_turn(config, store, pairs, steps) for name, (config, steps) in asked.items()}
    return {"machine": machine(folder), "threads": torch.get_num_threads(), "compiled": compiled}


def towers(batch: int, captions: int) -> float:
    """Seconds of the frozen towers on a batch of decoded pixels and token ids."""
    model = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, 224, 224, generator=draw)
    ids = torch.randint(1, 49000, (captions, 77), generator=draw)
    with torch.inference_mode():
        model.encode_image(pixels[:1]), model.encode_text(ids[:1])
        started = time.perf_counter()
        model.encode_image(pixels)
        model.encode_text(ids)
    return time.perf_counter() - started


def figures(folder: Path, full: bool) -> dict[str, Any]:
    """All that is measured."""
    store, pairs = made_up(folder, 4096 if full else 768)
    scale = 4 if full else 1
    asked = {
        "tflocal": (load_recipe("tflocal", ["data.batch_size=8"]), 3 * scale),
        "linear": (load_recipe("linear"), 60 * scale),
        "tflocal-shapes": (load_recipe("tflocal-shapes", ["data.batch_size=32", "data.curriculum=[]"]), 4 * scale),
        "linear-32": (load_recipe("linear", ["data.batch_size=32"]), 60 * scale),
    }
    found: dict[str, Any] = {"machine": machine(folder), "threads": torch.get_num_threads(), "stages": {}}
    for name, (config, steps) in asked.items():
        for residency in ("disk", "ram") if name in ("linear", "tflocal-shapes") else ("disk",):
            found["stages"][f"{name}, {residency}"] = measure(config, store, pairs, steps, residency)
    stages = found["stages"]
    for name in ("tflocal", "linear"):
        clock = stages[f"{name}, disk"]
        found[f"wait_share_{name}"] = clock["wait"] / clock["step"]
    found["towers_seconds"] = spent = towers(32, 32)
    for key, name in (("epoch_vs_towers", "linear-32"), ("epoch_vs_towers_tflocal_shapes", "tflocal-shapes")):
        step = stages[f"{name}, disk"]["step"]
        found[key] = (spent + step) / step
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = (compile_figures if args.compile else figures)(Path(folder), args.full)
    if args.json:
        print(json.dumps(found))
        return
    print("  ".join(found["machine"].values()), f"  {found['threads']} threads")
    (show_compiled if args.compile else show)(found)


def show_compiled(found: dict[str, Any]) -> None:
    """`apart`: the largest relative difference of two losses of a step."""
    columns = (("plain", 9), ("compiled", 10), ("ratio", 8), ("quartiles", 14), ("to compile", 13), ("apart", 9))
    print(f"{'steps a second':<16}" + "".join(f"{name:>{width}}" for name, width in columns))
    for name, one in found["compiled"].items():
        speeds = f"{one['steps_per_second']:>9.2f}{one['steps_per_second_compiled']:>10.2f}{one['ratio']:>7.2f}×"
        spread = f"{one['ratio_low']:.2f} – {one['ratio_high']:.2f}"
        print(f"{name:<16}{speeds}{spread:>14}{one['compile_seconds']:>11.0f} s{one['losses_apart']:>9.0e}")


def show(found: dict[str, Any]) -> None:
    columns = (*STAGES, "step")
    print(f"{'ms a step':<24}" + "".join(f"{name:>11}" for name in columns))
    for name, clock in found["stages"].items():
        print(f"{name:<24}" + "".join(f"{1000 * clock[column]:>11.2f}" for column in columns))
    for name in ("wait_share_tflocal", "wait_share_linear"):
        print(f"{name:<32}{found[name]:>8.1%}")
    for name in ("epoch_vs_towers", "epoch_vs_towers_tflocal_shapes"):
        print(f"{name:<32}{found[name]:>7.0f}×")


if __name__ == "__main__":
    main()
