"""Saved score rows and what is computed from them: estimates, intervals, averages. numpy and pyarrow only.

One folder per row of a table: `rows.parquet` (an item a row: keys, truth, raw similarities, hits, tie) and
`scores.json` (what was scored, with what, when; the checksum of the rows). Every figure is recomputed from
the similarities.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from ..errors import InputError, VerificationError
from . import intervals, metrics
from .sources import Group

FORMAT = 1
MATRICES = ("recall", "classification")
"""Metrics whose groups hold many queries: their hits are not one a row."""
ROWS, META = "rows.parquet", "scores.json"
# What `scores.json` says of its own row; the rest it says of the evaluation.
OF_ONE_ROW = ("label", "role", "order", "store", "scorer", "rows", "format")


@dataclass(frozen=True)
class Estimate:
    """A percentage with its 95 % interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Summary:
    """Estimates by metric over `n` items (queries for retrieval); `ties` is None for chance."""

    metrics: dict[str, Estimate]
    n: int
    ties: int | None


@dataclass(frozen=True)
class ResultRow:
    """One row of a table.

    role      chance | reference | scorer
    sample    fingerprint of the groups: only rows that share it may be compared
    overall   metrics over all items, then the benchmark's averages as `metric (average)`
    by_category   the same metrics per category and per pool of categories
    folder    where the scored items lie; "" for chance
    meta      the content of `scores.json`
    """

    benchmark: str
    split: str
    label: str
    role: str
    backbone: str
    sample: str
    overall: Summary
    by_category: dict[str, Summary]
    folder: str = ""
    meta: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the provenance, as plain JSON data."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "meta"}


def table(groups: list[Group], similarities: NDArray[np.float32], metric: str) -> pa.Table:
    """The rows to save: `similarities` holds the I × C scores of every group, row-major, end to end."""
    sizes = np.array([len(group.images) * group.columns for group in groups], np.int64)
    offsets = np.concatenate([[0], sizes.cumsum()])
    truth = np.concatenate([group.right().ravel() for group in groups]) if groups else np.zeros(0, bool)
    columns: dict[str, Any] = {
        "id": [group.id for group in groups],
        "category": [group.category for group in groups],
        "source": [group.source for group in groups],
        "images": pa.array([list(group.images) for group in groups], pa.list_(pa.string())),
        "captions": pa.array([list(group.captions) for group in groups], pa.list_(pa.string())),
        "truth": pa.LargeListArray.from_arrays(offsets, pa.array(truth, pa.bool_())),
        "similarities": pa.LargeListArray.from_arrays(offsets, pa.array(similarities, pa.float32())),
    }
    if metric not in MATRICES:
        hits, ties = _hits(pa.table(columns), metric)
        columns |= {**hits, "tie": ties}
    return pa.table(columns)


def _hits(rows: pa.Table, metric: str) -> tuple[dict[str, metrics.Bools], metrics.Bools]:
    """Per item: hits by metric, and ties. Where others have more wrong captions, −inf fills the row."""
    flat = rows["similarities"].combine_chunks().flatten().to_numpy()
    if metric == "quads":
        hits = metrics.quads_hits(flat.reshape(-1, 2, 2))
        ties = hits.pop("ties")
        return hits, ties
    if metric == "positives":
        wide = flat.reshape(-1, 3)
        hits = metrics.positives_hits(wide[:, :2], wide[:, 2:])
        ties = hits.pop("ties")
        return hits, ties
    truth = rows["truth"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    sizes = pc.list_value_length(rows["similarities"].combine_chunks()).to_numpy()
    item = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(flat)) - np.repeat(sizes.cumsum() - sizes, sizes)
    wide = np.full((len(sizes), int(sizes.max(initial=2))), -np.inf, np.float32)
    wide[item[~truth], place[~truth]] = flat[~truth]
    accuracy, ties = metrics.pairs_hits(flat[truth], wide)
    return {"accuracy": accuracy}, ties


@dataclass(frozen=True)
class _Outcomes:
    """Hits (n,) of each metric of one direction, with the tie, the cluster and the category of every item."""

    hits: dict[str, metrics.Bools]
    ties: metrics.Bools
    images: list[list[str]]
    categories: list[str]


def _outcomes(rows: pa.Table, meta: dict[str, Any]) -> list[_Outcomes]:
    categories = rows["category"].to_pylist()
    if meta["metric"] not in MATRICES:
        hits, ties = _hits(rows, meta["metric"])
        return [_Outcomes(hits, ties, rows["images"].to_pylist(), categories)]
    if meta["metric"] == "classification":
        return [_classified(rows, meta["ks"])]
    parts: dict[str, list[_Outcomes]] = {"i2t": [], "t2i": []}
    for row, category in zip(rows.to_batches(max_chunksize=1), categories, strict=True):
        images, captions = row["images"][0].as_py(), row["captions"][0].as_py()
        shape = (len(images), len(captions))
        scores = row["similarities"].flatten().to_numpy().reshape(shape)
        truth = row["truth"].flatten().to_numpy(zero_copy_only=False).reshape(shape)
        for direction, (values, right) in {"i2t": (scores, truth), "t2i": (scores.T, truth.T)}.items():
            ranks, ties = metrics.recall_ranks(values, right)
            asked = ranks > 0
            # A caption's luck is that of its photograph: it is resampled with the first image it describes.
            owners = np.arange(len(images)) if direction == "i2t" else right.argmax(axis=1)
            hits = {f"{direction}_r@{k}": ranks[asked] <= k for k in meta["ks"]}
            keys = [[images[owner]] for owner in owners[asked]]
            parts[direction].append(_Outcomes(hits, ties[asked], keys, [category] * len(keys)))
    return [_joined(found) for found in parts.values() if found]


def _classified(rows: pa.Table, ks: list[int]) -> _Outcomes:
    """An item an image, found among the classes."""
    parts = []
    for row in rows.to_batches(max_chunksize=1):
        images = row["images"][0].as_py()
        scores = row["similarities"].flatten().to_numpy().reshape(len(images), -1)
        truth = row["truth"].flatten().to_numpy(zero_copy_only=False).reshape(scores.shape)
        ranks, ties = metrics.recall_ranks(scores, truth)
        asked = ranks > 0
        keys = [[image] for image, one in zip(images, asked, strict=True) if one]
        hits = {f"top{k}": ranks[asked] <= k for k in ks}
        parts.append(_Outcomes(hits, ties[asked], keys, [row["category"][0].as_py()] * len(keys)))
    return _joined(parts)


def _joined(parts: list[_Outcomes]) -> _Outcomes:
    hits = {name: np.concatenate([part.hits[name] for part in parts]) for name in parts[0].hits}
    images = [keys for part in parts for keys in part.images]
    categories = [category for part in parts for category in part.categories]
    return _Outcomes(hits, np.concatenate([part.ties for part in parts]), images, categories)


def _members(categories: list[str], pools: dict[str, list[str]]) -> dict[str, metrics.Bools]:
    """Which items belong to each category and each pool of categories, in order of appearance."""
    names = np.array(categories, dtype=object)
    found = {name: names == name for name in dict.fromkeys(categories) if name}
    pooled = {pool: np.isin(names, list(members)) for pool, members in pools.items()}
    return found | {pool: mask for pool, mask in pooled.items() if mask.any() and pool not in found}


def summarise(rows: pa.Table, meta: dict[str, Any]) -> tuple[Summary, dict[str, Summary]]:
    """Overall and by category, from saved rows and their `metric`, `pools`, `averages`, `ks` and `seed`."""
    overall: dict[str, Estimate] = {}
    split: dict[str, dict[str, Estimate]] = {}
    counts: dict[str, list[int]] = {}
    for part in _outcomes(rows, meta):
        masks = {"": np.ones(len(part.ties), bool)} | _members(part.categories, meta["pools"])
        found = _estimates(part, masks, meta)
        overall |= found.pop("")
        for name, estimates in found.items():
            split.setdefault(name, {}).update(estimates)
        for name, mask in masks.items():
            have = counts.setdefault(name, [0, 0])
            counts[name] = [have[0] + int(mask.sum()), have[1] + int((part.ties & mask).sum())]
    total = counts.pop("", [0, 0])
    by_category = {name: Summary(split[name], *counts[name]) for name in split}
    return Summary(overall, *total), by_category


def _estimates(
    part: _Outcomes, masks: dict[str, metrics.Bools], meta: dict[str, Any]
) -> dict[str, dict[str, Estimate]]:
    """Estimates by mask name and metric; averages of masks stand under ""."""
    cluster = intervals.clusters(part.images)
    groups = int(cluster.max(initial=-1)) + 1
    wide = np.stack(list(masks.values()), axis=1)
    counts = np.stack([np.bincount(cluster, mask, groups) for mask in wide.T], axis=1)
    sums = [np.bincount(cluster, hits & mask, groups) for hits in part.hits.values() for mask in wide.T]
    if groups > 1:
        # One set of draws for all metrics: drawing is what costs.
        drawn = intervals.bootstrap(np.stack(sums, axis=1), np.tile(counts, len(part.hits)), meta["seed"])
    else:
        drawn = np.full((1, len(sums)), np.nan)
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in masks}
    for number, (metric, hits) in enumerate(part.hits.items()):
        columns = dict(zip(masks, drawn.T[number * len(masks) :], strict=False))
        values = {name: metrics.percent(hits[mask]) for name, mask in masks.items()}
        for size, name in zip((counts > 0).sum(axis=0), masks, strict=True):
            estimates[name][metric] = _estimate(values[name], columns[name], int(size))
        for average, members in meta["averages"].items():
            # An average over subsets of which one is not there is another number: undefined.
            known = [value for member in members if (value := values.get(member)) is not None]
            whole = len(known) == len(members)
            mean = np.mean([columns[member] for member in members], axis=0) if whole else np.empty(0)
            value = sum(known) / len(known) if whole else None
            estimates[""][f"{metric} ({average})"] = _estimate(value, mean, groups)
    return estimates


def _estimate(value: float | None, replicates: Any, groups: int) -> Estimate:
    bounds = intervals.bounds(replicates, None if value is None else value / 100.0, groups)
    return Estimate(value, *bounds) if bounds else Estimate(value)


def save(folder: Path, rows: pa.Table, meta: dict[str, Any]) -> Path:
    """Write a row's folder whole or not at all; an older one of the same name is replaced.

    Raises `InputError` if the disk does not take it.
    """
    staged = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        pq.write_table(rows, staged / ROWS, compression="zstd")
        whole = meta | {
            "format": FORMAT,
            "rows": {"items": rows.num_rows, "xxh3_128": _checksum(staged / ROWS)},
        }
        (staged / META).write_text(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        for name in (ROWS, META):
            with open(staged / name, "rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            retired = staged.with_name(f"{staged.name}.old")
            shutil.rmtree(retired, ignore_errors=True)
            folder.rename(retired)
            staged.rename(folder)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            staged.rename(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(staged)
        why = error.strerror or str(error)
        raise InputError(
            f"scores cannot be written to {folder}: {why}", "Free space or choose another --out."
        ) from None
    return folder


def _checksum(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def read(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and provenance of one saved row. Raises `InputError` for another format, `VerificationError` for
    rows that are not what was written."""
    try:
        meta = json.loads((folder / META).read_text())
        if meta["format"] > FORMAT:
            raise InputError(f"{folder} has format {meta['format']}, this version reads {FORMAT}", "Upgrade compal.")
        if _checksum(folder / ROWS) != meta["rows"]["xxh3_128"]:
            raise VerificationError(f"{folder / ROWS} is not what was written", "Evaluate again.")
        return pq.read_table(folder / ROWS), meta
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no readable scores: {error}", "Evaluate again.") from None


def row_of(folder: Path) -> ResultRow:
    """The table row of a saved folder, recomputed from its similarities."""
    rows, meta = read(folder)
    overall, by_category = summarise(rows, meta)
    return ResultRow(
        benchmark=meta["benchmark"],
        split=meta["split"],
        label=meta["label"],
        role=meta["role"],
        backbone=meta["store"].get("backbone", "") if meta["store"] else "",
        sample=meta["sample"],
        overall=overall,
        by_category=by_category,
        folder=str(folder),
        meta=meta,
    )


def chance_row(row: ResultRow) -> ResultRow:
    """What guessing scores on the groups of `row`, from the benchmark's own figures."""
    chance = row.meta["chance"]

    def of(summary: Summary) -> Summary:
        values = {name: Estimate(chance.get(name.partition(" (")[0])) for name in summary.metrics}
        return Summary(values, summary.n, None)

    return ResultRow(
        benchmark=row.benchmark,
        split=row.split,
        label="chance",
        role="chance",
        backbone="",
        sample=row.sample,
        overall=of(row.overall),
        by_category={name: of(summary) for name, summary in row.by_category.items()},
        meta={key: value for key, value in row.meta.items() if key not in OF_ONE_ROW},
    )


ROLES = ("chance", "reference", "scorer")


def with_chance(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """The rows, one chance row before those of every sample, references before scorers."""
    listed = [row for row in rows if row.role != "chance"]
    first: dict[tuple[str, str, str], ResultRow] = {}
    for row in listed:
        first.setdefault((row.benchmark, row.split, row.sample), row)
    whole = [*listed, *(chance_row(row) for row in first.values())]
    order = {key: number for number, key in enumerate(first)}
    return sorted(whole, key=lambda row: (order[row.benchmark, row.split, row.sample], ROLES.index(row.role)))


def load_results(path: Path, newest: bool = True) -> list[ResultRow]:
    """All rows saved at or below `path`, with chance beside them; of rows that differ only in when and with
    which weights they were scored, the newest. Raises `InputError` if there are none."""
    folders = sorted(
        file.parent
        for file in ([path / META] if (path / META).is_file() else path.rglob(META))
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not folders:
        raise InputError(f"no scores in {path}", "Make some: compal eval BENCHMARK")
    rows = sorted((row_of(folder) for folder in folders), key=lambda row: (row.meta["written"], row.meta["order"]))
    if newest:
        rows = list({(r.benchmark, r.split, r.sample, r.backbone, r.label): r for r in rows}.values())
    return with_chance(rows)
