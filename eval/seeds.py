"""Rows that differ in their seed alone, as one: the mean over seeds, its spread, and the interval over items.

Two kinds of chance, and they stand apart: `±` is the standard deviation over seeds (had it been trained again), the
bracket the bootstrap interval over photographs of the items' mean credit over seeds (had other photographs been drawn).
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import estimates, results
from .outcomes import Outcomes, outcomes
from .results import ResultRow
from .summary import Summary, summary_of


def aggregate(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows, those of one recipe and backbone on the same groups joined where there are several seeds of it; a
    joined row stands where the first of them stood. Raises what `results.read` raises."""
    families: dict[Any, list[ResultRow]] = {}
    for row in rows:
        families.setdefault(_family(row) or id(row), []).append(row)
    return [_joined(members) if len(members) > 1 else members[0] for members in families.values()]


def _family(row: ResultRow) -> tuple[Any, ...] | None:
    scorer = row.meta.get("scorer") or {}
    if row.role != "scorer" or not row.folder or "recipe" not in scorer:
        return None
    return (*row.table, row.backbone, scorer["recipe"], scorer.get("class"), str(scorer.get("rerank")))


def _joined(rows: Sequence[ResultRow]) -> ResultRow:
    folders = [Path(row.folder) for row in rows]

    def compute() -> tuple[Summary, dict[str, Summary]]:
        loaded = [results.read(folder) for folder in folders]
        parts = [outcomes(table, meta, row.rule) for (table, meta), row in zip(loaded, rows, strict=True)]
        return summary_of([_mean(same) for same in zip(*parts, strict=True)], loaded[0][1])

    told = [results.provenance_bytes(folder) for folder in folders]
    overall, by_category = estimates.remembered(folders[0], told, rows[0].rule, compute)
    seeds = [row.meta["scorer"].get("seed") for row in rows]
    return dataclasses.replace(
        rows[0],
        label=f"{re.sub(r'[-_]s(eed)?[0-9]+$', '', rows[0].label)} ({len(rows)} seeds)",
        overall=_spread(overall, [row.overall for row in rows]),
        by_category={
            name: _spread(found, [row.by_category[name] for row in rows]) for name, found in by_category.items()
        },
        folder="",
        meta=rows[0].meta | {"seeds": seeds, "folders": [row.folder for row in rows]},
    )


def _mean(parts: Sequence[Outcomes]) -> Outcomes:
    first = parts[0]
    credit = {name: np.mean([part.credit[name] for part in parts], axis=0) for name in first.credit}
    tied = np.any([part.tied for part in parts], axis=0)
    return dataclasses.replace(first, credit=credit, tied=tied)


def _spread(mean: Summary, seeds: Sequence[Summary]) -> Summary:
    """The summary of mean credits with the standard deviation over seeds; ties are those of all seeds together."""
    found = {}
    for name, estimate in mean.metrics.items():
        values = [value for one in seeds if (value := one.metrics[name].value) is not None]
        spread = statistics.stdev(values) if len(values) > 1 else None
        found[name] = dataclasses.replace(estimate, sd=spread)
    return dataclasses.replace(mean, metrics=found, ties=sum(one.ties or 0 for one in seeds), twins=seeds[0].twins)
