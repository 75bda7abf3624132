"""What retrieval tells beside recall: mean average precision, median rank, the bound that candidates set, and the cost.

Average precision of a query whose right answers stand at the positions p_1 < … < p_R is mean_j j / p_j. Equal scores
follow the rule of ties: under "lose" wrong ones come first, under "win" right ones, under "half" it is the expected
value over all orders of what is equal (McSherry and Najork, ECIR 2008). The median rank is that of the best right
answer, strict. Of a re-ranked row, what is not among the candidates stands below all that is wrong: precision is a
lower bound and the median rank an upper one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from . import intervals, ties
from .results import ResultRow, read
from .retrieval import told
from .sheets import UNDEFINED, Cell, Sheet, figure
from .summary import Estimate

Floats = NDArray[np.float64]


def ranking(rows: pa.Table, seed: int = 0, rule: str = ties.STRICT) -> dict[str, dict[str, Any]]:
    """By direction, of saved rows of retrieval: `map` (an `Estimate` in percent, interval over images), `median_rank`,
    `bound` (percent of queries with a right answer among the candidates; None where all are) and `n` queries."""
    cluster = np.asarray(rows["image"].combine_chunks().dictionary_encode().indices, np.int64)
    ways = np.array(rows["direction"].to_pylist())
    masks = {way: ways == way for way in dict.fromkeys(ways.tolist())}
    parts = {way: rows.filter(pa.array(mask)).combine_chunks() for way, mask in masks.items()}
    precision = {way: average_precision(part, rule) for way, part in parts.items()}
    groups = int(cluster.max(initial=-1)) + 1
    # One set of draws for both directions: drawing is what costs.
    sums = [np.bincount(cluster[masks[way]], precision[way], groups) for way in parts]
    counts = [np.bincount(cluster[masks[way]], minlength=groups) for way in parts]
    drawn = intervals.bootstrap(np.stack(sums, axis=1), np.stack(counts, axis=1), seed) if groups > 1 else None
    found = {}
    for number, (way, part) in enumerate(parts.items()):
        value = float(precision[way].mean())
        known = int(np.count_nonzero(counts[number]))
        bounds = (intervals.bounds(drawn[:, number], value, known) if drawn is not None else None) or (None, None)
        found[way] = {
            "map": Estimate(100.0 * value, *bounds),
            "median_rank": float(np.median(_first(part))),
            "bound": 100.0 * float(_any(part).mean()) if "found" in part.column_names else None,
            "n": len(part),
        }
    return found


def average_precision(rows: pa.Table, rule: str = ties.STRICT) -> Floats:
    """(N,) in [0, 1], of the queries of one direction. Raises `UnknownName` for another rule."""
    ties.check(rule)
    starts, sizes = _lists(rows)
    query = np.repeat(np.arange(len(sizes)), sizes)
    own, above, equal = (_flat(rows, name) for name in ("right_scores", "above", "equal"))
    if not len(query):
        return np.zeros(0)
    # Right answers of one query and one score are a block, with the wrong ones that are equal to them.
    order = np.lexsort((-own, query))
    fresh = np.ones(len(order), bool)
    fresh[1:] = own[order][1:] != own[order][:-1]
    fresh[starts] = True
    heads = np.flatnonzero(fresh)
    rights = np.diff(heads, append=len(order)).astype(np.float64)
    over, same = above[order][heads].astype(np.float64), equal[order][heads].astype(np.float64)
    before = heads - np.repeat(starts, sizes)[heads]  # right answers in earlier blocks of the query
    total = _blocks(before.astype(np.float64), over, same, rights, rule)
    found: Floats = np.bincount(query[heads], total, len(sizes)) / sizes
    return found


def _blocks(before: Floats, over: Floats, same: Floats, rights: Floats, rule: str) -> Floats:
    """The sum of precisions at the right answers of each block: `rights` of them and `same` wrong ones are equal, with
    `before` right and `over` wrong ones above."""
    if rule != "half":
        ahead = before + over + (same if rule == "lose" else 0.0)
        return _steps(before, ahead, rights)
    size = rights + same
    # At the place p + i of n equal ones, one is right with probability r / n, and i - 1 before it hold
    # (i - 1)(r - 1)/(n - 1) right ones. The sum over i has harmonic numbers for 1 / (p + i).
    start, share = before + over, (rights - 1) / np.maximum(size - 1, 1)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int((start + size).max(initial=0)) + 1))])
    gap = harmonic[(start + size).astype(np.int64)] - harmonic[start.astype(np.int64)]
    found: Floats = rights / size * ((before + 1 - share * (start + 1)) * gap + share * size)
    return found


def _steps(before: Floats, ahead: Floats, rights: Floats) -> Floats:
    """Σ_j (before + j) / (ahead + j) for j = 1 … rights."""
    counts = rights.astype(np.int64)
    block = np.repeat(np.arange(len(counts)), counts)
    step = np.arange(len(block)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    found: Floats = np.bincount(block, (before[block] + step) / (ahead[block] + step), len(counts)).astype(np.float64)
    return found


def _lists(rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    sizes = pc.list_value_length(rows["above"].combine_chunks()).to_numpy().astype(np.int64)
    return np.cumsum(sizes) - sizes, sizes


def _flat(rows: pa.Table, name: str) -> NDArray[Any]:
    found: NDArray[Any] = rows[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return found


def _any(rows: pa.Table) -> NDArray[np.bool_]:
    starts, _ = _lists(rows)
    return np.logical_or.reduceat(_flat(rows, "found"), starts)


def _first(rows: pa.Table) -> NDArray[np.int64]:
    """The strict rank of the best right answer."""
    starts, _ = _lists(rows)
    return 1 + np.minimum.reduceat(_flat(rows, "above").astype(np.int64) + _flat(rows, "equal"), starts)


# --- the table ----------------------------------------------------------------------------------------

COLUMNS = ("r@{k}", "bound", "mAP", "median rank", "ms a query")
NOTE = (
    "Strict ranks of the best right answer; mAP over all right answers. bound: queries with a right answer among the "
    "candidates, which recall cannot pass; mAP is a lower and the median rank an upper bound there."
)
COST = "ms a query: search and re-ranking on this machine, of fewer candidates than were scored their share of it."


def reranked(row: ResultRow) -> str:
    """What a re-ranked row is, for the notes of its table; "" for any other and for chance."""
    return told(row.label, row.meta.get("retrieval", {})) if row.role != "chance" else ""


def plain(row: ResultRow) -> dict[str, Any]:
    """`told_of` as plain JSON data under `ranking`, with `retrieval`, what was re-ranked; {} where there is none."""
    ways = told_of(row)
    if not ways:
        return {}
    figures = {way: one | {"map": dataclasses.asdict(one["map"])} for way, one in ways.items()}
    return {"ranking": figures, "retrieval": row.meta.get("retrieval")}


def told_of(row: ResultRow) -> dict[str, Any]:
    """`ranking` of a row that was saved, with `ms_a_query`; {} for one that has no ranks (chance, seeds, imports)."""
    if row.meta.get("metric") != "recall" or row.role == "chance" or not row.folder or "seeds" in row.meta:
        return {}
    rows, meta = read(Path(row.folder))
    if "above" not in rows.column_names:
        return {}
    cost = row.meta.get("retrieval", {}).get("ms_a_query", {})
    found = ranking(rows, meta["seed"], row.rule)
    return {way: figures | {"ms_a_query": cost.get(way)} for way, figures in found.items()}


def sheet(title: str, rows: Sequence[ResultRow]) -> Sheet | None:
    """The second table of retrieval: what candidates bound, and k against recall and time. None where no row has
    ranks."""
    ranked = [(row, figures) for row in rows if (figures := told_of(row))]
    if not ranked:
        return None
    k = min(ranked[0][0].meta["ks"])
    ways = list(dict.fromkeys(way for _, figures in ranked for way in figures))
    header = ("row", "re-ranked", *(f"{way} {name.format(k=k)}" for way in ways for name in COLUMNS))
    body = []
    for row, figures in ranked:
        depth = row.meta.get("retrieval", {}).get("rerank")
        cells = [Cell(row.label), Cell("exact" if depth is None else f"{depth:,}")]
        for way in ways:
            one = figures[way]
            recall = row.overall.metrics[f"{way}_r@{k}"].value
            cells += [
                Cell(UNDEFINED if value is None else form.format(value))
                for value, form in ((recall, "{:.1f}"), (one["bound"], "{:.1f}"))
            ]
            cells += [Cell(figure(one["map"])), Cell(f"{one['median_rank']:g}")]
            cells.append(Cell(UNDEFINED if one["ms_a_query"] is None else f"{one['ms_a_query']:.2f}"))
        body.append(tuple(cells))
    notes = (NOTE, COST) if any(reranked(row) for row, _ in ranked) else (NOTE,)
    return Sheet(f"{title}: ranks", header, tuple(body), notes, 2)
