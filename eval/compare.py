"""Two rows on the same items: the paired difference with its interval, and how probable it is if there is none.

Items of one photograph share its luck, so whole photographs are resampled and swapped:

    interval   percentile bootstrap over photographs of the difference of the two, the same draws for both
    McNemar    exact, of the items that one row answers and the other does not (McNemar, Psychometrika 1947); items are
               taken as independent, as everywhere in the field
    by image   the same question without that: the two rows are swapped within photographs at random, 20,000 times, and
               the observed difference ranks among those. Where no photograph has two such items it is McNemar's test
    Holm       `by image`, corrected for all comparisons made at once (Holm, Scandinavian Journal of Statistics 1979)

Quote `Holm`; a difference whose interval excludes 0 in one of twenty comparisons is what chance gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import InputError, UnknownName, UsageError
from . import intervals, results, ties
from .outcomes import MATRICES, outcomes
from .results import Estimate, ResultRow
from .sources import headline

SWAPS = 20_000
BLOCK = 1 << 22
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """`other` against `first`, on one metric of one benchmark.

    difference  percentage points with 95 % interval; above 0: `other` is better
    gained, lost  items that `other` answers and `first` does not, and the other way round
    mcnemar, by_image, holm  two-sided p
    """

    table: tuple[str, str, str, str]
    title: str
    metric: str
    first: str
    other: str
    values: tuple[float, float]
    difference: Estimate
    n: int
    gained: int
    lost: int
    mcnemar: float
    by_image: float
    holm: float = 1.0


def compare(rows: Sequence[ResultRow], first: str, metric: str = "", seed: int = 0) -> list[Comparison]:
    """Every scored row against the row labelled `first`, in every table that has it, Holm's correction over all.

    metric  of which metric; "" for the headline of each benchmark
    Raises `UnknownName` for a label or a metric that is not there, `UsageError` where there is nothing to compare,
    `InputError` for rows whose items differ, and what `results.read` raises.
    """
    scored = [row for row in rows if row.role not in ("chance", "published") and row.folder]
    if first not in {row.label for row in scored}:
        raise UnknownName.among("row", first, sorted({row.label for row in scored}))
    found = []
    for base in (row for row in scored if row.label == first):
        others = [row for row in scored if row.table == base.table and row is not base]
        # Against a row of its own backbone only, where there are several: another encoder is another question.
        twins = [row for row in scored if row.table == base.table and row.label == first]
        if len(twins) > 1:
            others = [row for row in others if row.backbone == base.backbone]
        for other in others:
            found += [_pair(base, other, name, seed) for name in _metrics(base, metric)]
    if not found:
        raise UsageError(f"no row stands beside '{first}' in a table", "Score more on the same groups: compal eval.")
    corrected = holm([one.by_image for one in found])
    return [dataclasses.replace(one, holm=value) for one, value in zip(found, corrected, strict=True)]


def between(first: Sequence[ResultRow], other: Sequence[ResultRow], metric: str, seed: int = 0) -> Estimate:
    """The difference of two methods in percentage points, `other` less `first`, with its 95 % interval over images. A
    method is the rows of its seeds on the same items, whose credits are averaged item by item. The interval is of the
    items alone: that other seeds would come out elsewhere is not in it. Raises what `compare` raises."""
    found = [[_credits(row, metric) for row in rows] for rows in (first, other)]
    sizes = {len(credit) for rows in found for credit, _ in rows}
    if len({row.sample for row in (*first, *other)}) > 1 or len(sizes) > 1:
        what = f"'{first[0].label}' and '{other[0].label}' were scored on other items"
        raise InputError(what, "Evaluate both again.")
    means = [np.mean([credit for credit, _ in rows], axis=0) for rows in found]
    return difference(means[1] - means[0], found[0][0][1], seed)


def _metrics(row: ResultRow, metric: str) -> tuple[str, ...]:
    if not metric:
        return headline(row.meta)
    plain = [name for name in row.overall.metrics if " (" not in name]
    if metric not in plain:
        raise UnknownName.among(f"metric of {row.benchmark}", metric, plain)
    return (metric,)


def _pair(first: ResultRow, other: ResultRow, metric: str, seed: int) -> Comparison:
    (one, cluster), (two, _) = (_credits(row, metric) for row in (first, other))
    if len(one) != len(two):
        raise InputError(f"'{first.label}' and '{other.label}' were scored on other items", "Evaluate both again.")
    change = two - one
    return Comparison(
        table=first.table,
        title=first.meta.get("title", first.benchmark),
        metric=metric,
        first=first.label,
        other=other.label,
        values=(100 * float(one.mean()), 100 * float(two.mean())),
        difference=difference(change, cluster, seed),
        n=len(one),
        gained=int((change > 0).sum()),
        lost=int((change < 0).sum()),
        mcnemar=mcnemar(int((change > 0).sum()), int((change < 0).sum())),
        by_image=swapped(change, cluster, seed),
    )


def _credits(row: ResultRow, metric: str) -> tuple[Floats, NDArray[np.int64]]:
    """Credit (n,) of each item in the order of its name, and its cluster."""
    rows, meta = results.read(Path(row.folder))
    for part in outcomes(rows, meta, row.rule):
        if metric in part.credit:
            if metric == "mean_per_class":
                cure = "Compare top1, whose items are images."
                raise UsageError("a mean over classes is no mean of items, so two of them are not paired", cure)
            by_name = part.counted and not (meta["metric"] in MATRICES and "query" not in rows.column_names)
            order = _order(rows, meta, metric) if by_name else np.arange(len(part.credit[metric]))
            return part.credit[metric][order], _numbered(part.cluster[order])
    raise UnknownName.among(f"metric of {row.benchmark}", metric, row.overall.metrics)


def _order(rows: pa.Table, meta: dict[str, Any], metric: str) -> NDArray[np.int64]:
    if meta["metric"] not in MATRICES:
        return np.argsort(np.array(rows["id"].to_pylist()), kind="stable")
    ways = np.array(rows["direction"].to_pylist())
    mine = ways == (metric.partition("_")[0] if meta["metric"] == "recall" else "i2t")
    names = [f"{one}\t{query}" for one, query in zip(rows["id"].to_pylist(), rows["query"].to_pylist(), strict=True)]
    return np.argsort(np.array(names)[mine], kind="stable")


def _numbered(cluster: NDArray[np.int64]) -> NDArray[np.int64]:
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(one, len(numbers)) for one in cluster.tolist()], np.int64)


def difference(change: Floats, cluster: NDArray[np.int64], seed: int = 0) -> Estimate:
    """The mean of `change` (n,) in percentage points with its 95 % interval over clusters. Where nothing changes, the
    interval is what so many photographs without a change allow."""
    value = 100 * float(change.mean()) if len(change) else None
    groups = int(cluster.max(initial=-1)) + 1
    if value is None or groups < 2:
        return Estimate(value)
    if not change.any():
        high = 100 * (1 - ((1 - intervals.CONFIDENCE) / 2) ** (1 / groups))
        return Estimate(0.0, -high, high)
    sums, counts = np.bincount(cluster, change, groups)[:, None], np.bincount(cluster, minlength=groups)[:, None]
    tail = (1 - intervals.CONFIDENCE) / 2
    low, high = np.quantile(intervals.bootstrap(sums, counts, seed)[:, 0], [tail, 1 - tail])
    return Estimate(value, 100 * float(low), 100 * float(high))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test: is either side of `gained + lost` tosses so rare. 1.0 without any."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def swapped(change: Floats, cluster: NDArray[np.int64], seed: int = 0, swaps: int = SWAPS) -> float:
    """Two-sided p of a mean change (n,) if the two rows were exchangeable within each cluster.

    Exact (McNemar's) where no cluster's sum is beyond one item; else over `swaps` random exchanges, the observed one
    among them, so that it is never 0 (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585).
    """
    sums = np.bincount(cluster, change) if len(change) else np.zeros(0)
    sums = sums[sums != 0]
    if np.isin(sums, (-1.0, 1.0)).all():
        return mcnemar(int((sums > 0).sum()), int((sums < 0).sum()))
    rng = np.random.default_rng(seed)
    seen, extreme = abs(float(sums.sum())), 1
    step = max(1, BLOCK // len(sums))
    for start in range(0, swaps, step):
        signs = rng.integers(0, 2, (min(step, swaps - start), len(sums)), np.int8) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= seen - 1e-9).sum())
    return extreme / (swaps + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p, in the order given."""
    order = sorted(range(len(values)), key=lambda number: values[number])
    adjusted, least = [0.0] * len(values), 0.0
    for place, number in enumerate(order):
        least = max(least, min(1.0, (len(values) - place) * values[number]))
        adjusted[number] = least
    return adjusted


def rule_of(rows: Sequence[ResultRow]) -> str:
    """The rule of ties that the rows were counted under."""
    return rows[0].rule if rows else ties.STRICT
