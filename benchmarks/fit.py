"""How long a training step waits for its data, and what it saves to train from features.

    python benchmarks/fit.py              # about a minute on two cores
    python benchmarks/fit.py --full       # more images and steps
    python benchmarks/fit.py --json

A made-up store (random values, the sizes of CLIP ViT-B/32: 50 × 768 image tokens, captions of 8 to 30 tokens of 512,
pooled embeddings of 512) lies in the page cache, and real heads and objectives of the recipes are fitted on it by a
`Loader`, with `resident = "disk"` and "ram". The first step, for which nothing was made ahead, is left out.

    wait_share_tflocal   share of a step's time that the recipe `tflocal` waits for data, smaller batch (target ≤ 5 %)
    wait_share_linear    the same of `linear`, a pooled head, at its recipe's batch (target ≤ 20 %)
    epoch_vs_towers      time of an epoch of `linear` that runs the frozen towers (open_clip ViT-B/32, random weights,
                         pixels already decoded) for every batch, over that from the store (target ≥ 30); also with
                         the head of `tflocal-shapes`
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from _store_limits import machine

from compal.align.batches import Residency, open_table
from compal.align.fit import Training
from compal.align.loader import Loader
from compal.align.pairs import PairTable
from compal.align.recipe import FitConfig, load_recipe
from compal.align.sampling import Sampler
from compal.align.scorer import Dims, build_head
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
STAGES = ("wait", "forward", "backward", "optimizer")
CPU = torch.device("cpu")


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


class Run:
    """Steps of a recipe on a store, and where their time goes."""

    def __init__(self, config: FitConfig, store: Store, pairs: Path) -> None:
        torch.manual_seed(0)
        options = dict(config.head)
        scorer = build_head(options.pop("name"), options, Dims.of(store.spec))
        self.config, self.store, self.needs = config, store, scorer.needs
        self.model = Training(scorer, config.loss)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr)
        self.table = PairTable.read(pairs, store)
        self.sampler = Sampler(self.table, config.data, 10**6, 0)

    def measure(self, residency: Residency, steps: int) -> dict[str, float]:
        """Seconds a step by stage, and of the whole; `copy` is 0 on a CPU."""
        keys = self.table.image_keys, self.table.caption_keys
        features = open_table(self.store, *keys, CPU, self.needs, residency, 0)
        clocks, whole = dict.fromkeys(STAGES, 0.0), 0.0
        with Loader(self.sampler, features, CPU, 0, steps + 1) as loader:
            for step in range(steps + 1):
                marks = [time.perf_counter()]
                batch = loader(step)
                marks.append(time.perf_counter())
                loss = self.model(batch)
                marks.append(time.perf_counter())
                loss.backward()
                marks.append(time.perf_counter())
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
                marks.append(time.perf_counter())
                if step:
                    whole += marks[-1] - marks[0]
                    for stage, spent in zip(STAGES, np.diff(marks), strict=True):
                        clocks[stage] += float(spent)
            copied = loader.copied
        return {stage: spent / steps for stage, spent in clocks.items()} | {
            "copy": copied / steps,
            "step": whole / steps,
        }


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
        run = Run(config, store, pairs)
        for residency in ("disk", "ram") if name in ("linear", "tflocal-shapes") else ("disk",):
            found["stages"][f"{name}, {residency}"] = run.measure(residency, steps)
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = figures(Path(folder), args.full)
    if args.json:
        print(json.dumps(found))
        return
    print("  ".join(found["machine"].values()), f"  {found['threads']} threads")
    columns = ("wait", "copy", "forward", "backward", "optimizer", "step")
    print(f"{'ms a step':<24}" + "".join(f"{name:>11}" for name in columns))
    for name, clock in found["stages"].items():
        print(f"{name:<24}" + "".join(f"{1000 * clock[column]:>11.2f}" for column in columns))
    for name in ("wait_share_tflocal", "wait_share_linear"):
        print(f"{name:<32}{found[name]:>8.1%}")
    for name in ("epoch_vs_towers", "epoch_vs_towers_tflocal_shapes"):
        print(f"{name:<32}{found[name]:>7.0f}×")


if __name__ == "__main__":
    main()
