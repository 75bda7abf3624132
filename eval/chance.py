"""What guessing scores on given groups: the expectation under independent continuous scores, in percent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from .sources import Group, Matches

QUADS = {"i2t": 25.0, "t2i": 25.0, "group": 100.0 / 6.0}
POSITIVES = {"itt": 100.0 / 3.0, "p1_neg": 50.0, "p2_neg": 50.0, "tot": 100.0 / 3.0}


def derived(groups: Sequence[Group], metric: str, ks: Sequence[int]) -> dict[str, float]:
    """Chance by metric, over all items or queries; a benchmark's own figure stands before it."""
    if metric == "quads":
        return QUADS
    if metric == "positives":
        return POSITIVES
    if metric == "pairs":
        return {"accuracy": 100.0 * float(np.mean([1 / (len(g.images) * len(g.captions)) for g in groups]))}
    if metric == "classification":
        return _classes(groups, ks)
    found = {}
    for way in ("i2t", "t2i"):
        counts = list(chain.from_iterable(_rights(group, way) for group in groups))
        for k in ks:
            found[f"{way}_r@{k}"] = 100.0 * float(np.mean([among(right, of, k) for right, of in counts or [(0, 1)]]))
    return found


def _classes(groups: Sequence[Group], ks: Sequence[int]) -> dict[str, float]:
    rows = [(number, row, group.columns) for number, group in enumerate(groups) for row in _rows(group) if row]
    found = {f"top{k}": 100.0 * float(np.mean([among(len(row), of, k) for _, row, of in rows])) for k in ks}
    # A class weighs the same however many images it has.
    by_class: dict[tuple[int, int], list[float]] = {}
    for number, row, of in rows:
        by_class.setdefault((number, row[0]), []).append(len(row) / of)
    found["mean_per_class"] = 100.0 * float(np.mean([np.mean(one) for one in by_class.values()]))
    return found


def _rows(group: Group) -> list[list[int]]:
    """The places of what is right, of every image."""
    if isinstance(group.truth, Matches):
        return [sorted(set(row)) for row in group.truth.rows]
    return [[place for place, right in enumerate(row) if right] for row in group.truth]


def _rights(group: Group, way: str) -> list[tuple[int, int]]:
    """(right candidates, candidates) of every query that has a right one."""
    columns, rows = group.columns, _rows(group)
    if way == "i2t":
        return [(len(row), columns) for row in rows if row]
    counts = np.bincount(np.fromiter(chain.from_iterable(rows), np.int64), minlength=columns)
    return [(int(count), len(rows)) for count in counts if count]


def among(right: int, of: int, k: int) -> float:
    """The probability that one of `right` candidates is among the first k of `of` in random order."""
    miss = 1.0
    for step in range(right):
        miss *= max(0, of - k - step) / (of - step)
    return 1.0 - miss
