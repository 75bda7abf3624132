"""A benchmark's figures from scores made up by a test."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from compal.eval import results
from compal.eval.sources import KS, Group


def judged(module: ModuleType, groups: list[Group], scores: list[np.ndarray]) -> dict[str, float | None]:
    """Overall metrics and averages, and `category: metric` for every category and pool; `scores` are I × C, or I × K,
    one array a group."""
    metric = module.INFO["metric"]
    meta = {
        "metric": metric,
        "ks": list(module.INFO.get("ks", KS)),
        "pools": {name: list(members) for name, members in getattr(module, "POOLS", {}).items()},
        "averages": {name: list(members) for name, members in getattr(module, "AVERAGES", {}).items()},
        "seed": 0,
    }
    flat = np.concatenate([np.asarray(score, np.float32).ravel() for score in scores])
    overall, by_category = results.summarise(results.table(groups, flat, metric), meta)
    found = {name: estimate.value for name, estimate in overall.metrics.items()}
    for category, summary in by_category.items():
        found |= {f"{category}: {name}": estimate.value for name, estimate in summary.metrics.items()}
    return found


def drawn(groups: list[Group], seed: int, levels: int | None = None) -> list[np.ndarray]:
    """Random scores for every group, I × C or I × K; with `levels`, whole numbers below it, so that many tie."""
    rng = np.random.default_rng(seed)
    sizes = [group.right().shape for group in groups]
    if levels is None:
        return [rng.normal(size=size).astype(np.float32) for size in sizes]
    return [rng.integers(0, levels, size).astype(np.float32) for size in sizes]
