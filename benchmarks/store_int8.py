"""What a cast store costs in scores: int8 and bfloat16 beside the float16 that they were cast from.

    python benchmarks/store_int8.py [--limit 20 | --full] [--json] [--folder build/int8]

The embedded benchmarks are extracted with `shapes-vit`, tokens and regions, in float16; both stores are cast to
int8 and to bfloat16. The same heads score the same items from all of them: cosine, MaxSim over tokens, MaxSim over
oracle regions, and the shipped tflocal head (fitted on float16). Differences are paired: the same items are drawn
for both stores, whole images at a time, 2,000 times; the interval is the percentiles 2.5 and 97.5. `changed`
counts the items of which one store has a hit and the other has none; where there are none, the interval is the
exact binomial bound of their share, since resampling nothing would claim certainty. The default takes 20 swap
groups per category and leaves tflocal out of retrieval (its 90,000 pairs take minutes per store): a look and no
result to quote. --full takes all 2,500 groups, and everything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compal import api, registry
from compal.align.checkpoint import fitted_spec, load_scorer
from compal.eval import intervals, outcomes
from compal.eval.scoring import judge, score_groups
from compal.eval.sources import Sources
from compal.pipeline.plan import ExtractConfig
from compal.stores.cast import CastSummary, cast
from compal.stores.store import Store
from compal.workspace import Workspace

BACKBONE = "shapes-vit"
HEADS = {  # label: level of the store, head
    "cosine": ("tokens", "cosine"),
    "maxsim": ("tokens", "maxsim"),
    "oracle": ("regions", "maxsim"),
    "tflocal": ("tokens", "shipped:tflocal"),
}
METRICS = {"shapes": ("group", "i2t", "t2i"), "shapes-retrieval": ("i2t_r@1", "t2i_r@1")}
DTYPES = ("int8", "bfloat16")


@dataclass
class Stores:
    """A float16 store of a level and what it was cast to."""

    source: Store
    made: dict[str, Store]
    summaries: dict[str, CastSummary]


def extract(level: str, workspace: Workspace, sources: dict[str, Sources]) -> Stores:
    config = ExtractConfig(batch_size=128)
    for benchmark, taken in sources.items():
        api.extract_benchmark(BACKBONE, benchmark, taken, level=level, config=config, workspace=workspace)
    source = api.open_store(BACKBONE, level, workspace=workspace)
    summaries = {dtype: cast(source.path, None, dtype) for dtype in DTYPES}
    return Stores(source, {dtype: Store.open(Path(one.path)) for dtype, one in summaries.items()}, summaries)


def scorer(head: str, store: Store, workspace: Workspace) -> Any:
    if not head.startswith("shipped:"):
        return api.scorers(store, [head], [], workspace, "cpu")[0].scorer
    path = api.checkpoint(head, workspace)
    return load_scorer(path, fitted_spec(path))  # fitted on float16: that is the question


def hits(benchmark: str, taken: Sources, store: Store, head: Any) -> tuple[dict[str, Any], np.ndarray]:
    """metric → (hits (N,) bool, cluster (N,)), and the scores."""
    module = registry.load("benchmarks", benchmark)
    groups = list(module.groups(taken))
    scores = score_groups(groups, judge("head", head, store), "head")
    table = outcomes.table(groups, scores, module.INFO["metric"])
    found = {}
    for part in outcomes.outcomes(table, {"metric": module.INFO["metric"], "ks": (1,)}):
        found |= {metric: (hit > 0, part.cluster) for metric, hit in part.credit.items()}
    return found, scores


def difference(there: np.ndarray, here: np.ndarray, cluster: np.ndarray) -> dict[str, float]:
    """Percent of hits of both, their difference and its paired interval."""
    change = here.astype(np.float64) - there
    sums, counts = np.bincount(cluster, change)[:, None], np.bincount(cluster)[:, None]
    low, high = np.quantile(intervals.bootstrap(sums, counts)[:, 0], [0.025, 0.975])
    if not change.any():
        high = 1 - 0.025 ** (1 / len(counts))
        low = -high
    return {
        "n": len(there),
        "float16": 100 * float(there.mean()),
        "cast": 100 * float(here.mean()),
        "difference": 100 * float(change.mean()),
        "low": 100 * float(low),
        "high": 100 * float(high),
        "changed": int((there != here).sum()),
    }


def compare(
    sources: dict[str, Sources], levels: dict[str, Stores], workspace: Workspace, full: bool
) -> list[dict[str, Any]]:
    rows = []
    for benchmark, taken in sources.items():
        for label, (level, name) in HEADS.items():
            if (benchmark, label, full) == ("shapes-retrieval", "tflocal", False):
                continue
            print(f"{benchmark}: {label}", file=sys.stderr)
            stores = levels[level]
            head = scorer(name, stores.source, workspace)
            exact, scores = hits(benchmark, taken, stores.source, head)
            for dtype, store in stores.made.items():
                found, moved = hits(benchmark, taken, store, head)
                error = float(np.abs(moved - scores).mean() / np.std(scores))
                for metric in METRICS[benchmark]:
                    told = difference(exact[metric][0], found[metric][0], exact[metric][1])
                    rows.append({"benchmark": benchmark, "head": label, "metric": metric, "dtype": dtype, **told})
                    rows[-1]["score_error"] = error
    return rows


def sizes(levels: dict[str, Stores]) -> dict[str, dict[str, float]]:
    """Bytes of the cast stores over those of their sources: all files, and image and text arrays alone."""
    found = {}
    for level, stores in levels.items():
        for dtype, store in stores.made.items():
            pairs = {"all files": (stores.summaries[dtype].source_bytes, stores.summaries[dtype].bytes)}
            for folder in ("images", "texts"):
                pairs[folder] = (_bytes(stores.source, folder), _bytes(store, folder))
            found[f"{level} {dtype}"] = {name: here / there for name, (there, here) in pairs.items()}
    return found


def _bytes(store: Store, folder: str) -> int:
    files = [(path, size) for part in store.parts for path, size in part.files.items()]
    return sum(size["bytes"] for path, size in files if path.startswith(f"{folder}/"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=20, help="swap groups per category")
    parser.add_argument("--full", action="store_true", help="all 500 per category")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/int8"), help="must not exist; removed at the end")
    asked = parser.parse_args()
    if asked.folder.exists():
        parser.error(f"{asked.folder} exists")
    torch.manual_seed(0)
    started, workspace = time.perf_counter(), Workspace(asked.folder.resolve())
    limit = None if asked.full else asked.limit
    sources = {"shapes": Sources(split="in_domain", limit=limit), "shapes-retrieval": Sources()}
    try:
        levels = {level: extract(level, workspace, sources) for level in ("tokens", "regions")}
        rows, ratios = compare(sources, levels, workspace, asked.full), sizes(levels)
    finally:
        shutil.rmtree(asked.folder, ignore_errors=True)
    if asked.json:
        print(json.dumps({"limit": limit, "seconds": time.perf_counter() - started, "bytes": ratios, "rows": rows}))
        return
    print("| store | all files | images | texts |\n|---|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in ratio.values()) + " |")
    print("\n| benchmark | head | metric | dtype | n | float16 | cast | difference | changed | score error |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        change = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        figures = f"{row['n']:,} | {row['float16']:.1f} | {row['cast']:.1f} | {change} | {row['changed']:,}"
        names = " | ".join(row[name] for name in ("benchmark", "head", "metric", "dtype"))
        print(f"| {names} | {figures} | {row['score_error']:.1e} |")


if __name__ == "__main__":
    main()
