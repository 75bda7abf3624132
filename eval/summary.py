"""Outcomes → estimates with their intervals: over all items, by category, and the averages a benchmark declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import intervals, metrics, ties
from .outcomes import Outcomes, outcomes
from .sources import headline

Masks = dict[str, metrics.Bools]


@dataclass(frozen=True)
class Estimate:
    """A percentage with its 95 % interval over images, and its standard deviation over seeds where there are several;
    None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    sd: float | None = None


@dataclass(frozen=True)
class Summary:
    """Estimates by metric over `n` items (queries for retrieval); `ties` is None for chance.

    twins     items whose right and wrong candidate look the same to the encoder (cut at its context, or made equal by
              its tokenizer), which are ties that no head can break; None where that was not looked at
    if_tied   the headline under the other rules of ties, `{"half": {metric: percent}, "win": …}`; {} without a tie
    """

    metrics: dict[str, Estimate]
    n: int
    ties: int | None
    twins: int | None = None
    if_tied: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def summarise(rows: pa.Table, meta: dict[str, Any], rule: str = ties.STRICT) -> tuple[Summary, dict[str, Summary]]:
    """Overall and by category, from saved rows and their `metric`, `pools`, `averages`, `ks` and `seed`. Of answers or
    aggregates that others published, ties are not known."""
    if "value" in rows.column_names:
        return _published(rows)
    whole, by_category = summary_of(outcomes(rows, meta, rule), meta, _twins(rows))
    if whole.ties:
        whole = dataclasses.replace(whole, if_tied=_if_tied(rows, meta))
    if not {"similarities", "above"} & set(rows.column_names):
        by_category = {name: dataclasses.replace(one, ties=None) for name, one in by_category.items()}
        whole = dataclasses.replace(whole, ties=None)
    return whole, by_category


def _published(rows: pa.Table) -> tuple[Summary, dict[str, Summary]]:
    """Aggregates as they were published, a row a category and metric; no interval, and no average of ours."""
    parts: dict[str, dict[str, Estimate]] = {"": {}}
    counts = {"": 0}
    for row in rows.to_pylist():
        parts.setdefault(row["category"], {})[row["metric"]] = Estimate(row["value"])
        counts[row["category"]] = row["n"]
    found = {name: Summary(estimates, counts[name], None) for name, estimates in parts.items()}
    return found.pop(""), found


def summary_of(
    parts: Iterable[Outcomes], meta: dict[str, Any], twins: metrics.Bools | None = None
) -> tuple[Summary, dict[str, Summary]]:
    """Overall and by category, from what items are worth; see `summarise`."""
    overall: dict[str, Estimate] = {}
    split: dict[str, dict[str, Estimate]] = {}
    counts: dict[str, tuple[int, int, int]] = {}
    for part in parts:
        masks = {"": np.ones(len(part.tied), bool)} | members(part.categories, meta["pools"])
        found = _estimates(part, masks, meta)
        overall |= found.pop("")
        for name, estimates in found.items():
            split.setdefault(name, {}).update(estimates)
        for name, mask in masks.items() if part.counted else ():
            n, tied, same = counts.get(name, (0, 0, 0))
            more = int((twins & mask).sum()) if twins is not None else 0
            counts[name] = (n + int(mask.sum()), tied + int((part.tied & mask).sum()), same + more)
    summaries = {
        name: Summary(estimates, n, tied, same if twins is not None else None)
        for name, estimates in {"": overall, **split}.items()
        for n, tied, same in [counts.get(name, (0, 0, 0))]
    }
    return summaries.pop("", Summary(overall, 0, 0)), summaries


def _twins(rows: pa.Table) -> metrics.Bools | None:
    if "twin" not in rows.column_names:
        return None
    found: metrics.Bools = rows["twin"].combine_chunks().to_numpy(zero_copy_only=False)
    return found


def _if_tied(rows: pa.Table, meta: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The headline under the rules that a strict figure is not."""
    found: dict[str, dict[str, float]] = {}
    for rule in ("half", "win"):
        for part in outcomes(rows, meta, rule):
            values = {name: percent(part, name, None) for name in headline(meta) if name in part.credit}
            found.setdefault(rule, {}).update({name: value for name, value in values.items() if value is not None})
    return found


def percent(part: Outcomes, metric: str, mask: metrics.Bools | None) -> float | None:
    """100 × the mean credit of the items of a mask, None for all; over classes where the metric says so."""
    credit = part.credit[metric] if mask is None else part.credit[metric][mask]
    if not len(credit):
        return None
    if metric == "mean_per_class" and part.labels is not None:
        labels = part.labels if mask is None else part.labels[mask]
        counts = np.bincount(labels)
        there = counts > 0
        return 100.0 * float((np.bincount(labels, credit)[there] / counts[there]).mean())
    return 100.0 * float(credit.sum()) / len(credit)


def members(categories: Iterable[str], pools: dict[str, list[str]]) -> Masks:
    """Which items belong to each category and each pool of categories, in order of appearance."""
    names: dict[str, int] = {}
    codes = np.array([names.setdefault(name, len(names)) for name in categories], np.int64)
    found = {name: codes == code for name, code in names.items() if name}
    pooled = {pool: np.isin(codes, [names[name] for name in listed if name in names]) for pool, listed in pools.items()}
    return found | {pool: mask for pool, mask in pooled.items() if mask.any() and pool not in found}


def _estimates(part: Outcomes, masks: Masks, meta: dict[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Estimates by mask name and metric; averages of masks stand under ""."""
    groups = int(part.cluster.max(initial=-1)) + 1
    sizes = {name: len(np.unique(part.cluster[mask])) for name, mask in masks.items()}
    drawn = _drawn(part, masks, groups, meta["seed"])
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in masks}
    for metric in part.credit:
        columns = {name: drawn[metric, name] for name in masks}
        values = {name: percent(part, metric, mask) for name, mask in masks.items()}
        for name in masks:
            estimates[name][metric] = _estimate(values[name], columns[name], sizes[name])
        for average, listed in meta["averages"].items():
            # An average over subsets of which one is not there is another number: undefined.
            known = [value for member in listed if (value := values.get(member)) is not None]
            whole = len(known) == len(listed) > 0
            mean = np.mean([columns[member] for member in listed], axis=0) if whole else np.empty(0)
            value = sum(known) / len(known) if whole else None
            estimates[""][f"{metric} ({average})"] = _estimate(value, mean, groups)
    return estimates


def _drawn(part: Outcomes, masks: Masks, groups: int, seed: int) -> dict[tuple[str, str], intervals.Floats]:
    """Resampled means (B,) by metric and mask name, fractions. One set of draws for all: drawing is what costs."""
    if groups < 2:
        return {(metric, name): np.full(1, np.nan) for metric in part.credit for name in masks}
    plain = [metric for metric in part.credit if metric != "mean_per_class"]
    wide = list(masks.values())
    counts = np.stack([np.bincount(part.cluster, mask, groups) for mask in wide], axis=1)
    sums = [np.bincount(part.cluster, part.credit[metric] * mask, groups) for metric in plain for mask in wide]
    found = {}
    if plain:
        drawn = intervals.bootstrap(np.stack(sums, axis=1), np.tile(counts, len(plain)), seed)
        found = dict(zip(((metric, name) for metric in plain for name in masks), drawn.T, strict=True))
    if "mean_per_class" in part.credit:
        for name, mask in masks.items():
            found["mean_per_class", name] = _per_class(part, mask, seed)
    return found


def _per_class(part: Outcomes, mask: metrics.Bools, seed: int) -> NDArray[np.float64]:
    """Resampled means over classes (B,): within a draw, a class that was not drawn does not count."""
    assert part.labels is not None
    _, labels = np.unique(part.labels[mask], return_inverse=True)
    _, cluster = np.unique(part.cluster[mask], return_inverse=True)
    return intervals.bootstrap_classes(cluster, labels, part.credit["mean_per_class"][mask], seed)


def _estimate(value: float | None, replicates: Any, groups: int) -> Estimate:
    bounds = intervals.bounds(replicates, None if value is None else value / 100.0, groups)
    return Estimate(value, *bounds) if bounds else Estimate(value)
