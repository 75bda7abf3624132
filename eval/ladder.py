"""The diagnostic ladder of arXiv 2604.11496: what each way of reading an encoder scores, what it costs, what it proves.

    cosine   one pooled vector a side
    oracle   the parts of a scene, known exactly, each read by the encoder: best region of each segment, then the mean
    crops    the same without being told where: the windows of a grid, encoded one by one
    pooled   the same from the patch tokens of a single pass
    dense    the same from its patches, each projected on its own (MaskCLIP)
    learned  a head fitted on the frozen tokens
    tuned    all weights fitted, read by the cosine again

Rungs are held against one another by the same items: a gap is a paired difference. What a rung does not prove stands
beside what it proves. Tables and data, no picture and no model.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import intervals, results
from .report import UNDEFINED, Cell, Sheet, figure, written
from .results import Estimate, ResultRow, Summary
from .tradeoff import HOW

FORMATS = ("table", "md", "csv", "json")
KINDS = ("cosine", "oracle", "crops", "pooled", "dense", "learned", "tuned")
TIDY = ("rung", "kind", "level", "category", "metric", "value", "low", "high", "n", "ties")
COSTS = ("passes", "cpu_ms", "pair_ms", "bytes")
COST = (
    "Cost of a picture that is new: passes of the image tower and CPU ms, on one thread, until its features lie in a "
    "store, and their bytes; pair: CPU ms of one score from the store, reading included."
)
ABOVE, BELOW, LEVEL = "above", "below", "level"
# What an outcome against the rung held against proves, by kind of both; "chance" is what guessing scores.
PROVES: dict[tuple[str, str], dict[str, str]] = {
    ("cosine", "chance"): {
        ABOVE: "the pooled vectors tell right captions from wrong ones more often than guessing",
        LEVEL: "these items do not tell the pooled vectors from guessing",
        BELOW: "the pooled vectors do worse than guessing: right and wrong captions look alike to them",
    },
    ("oracle", "cosine"): {
        ABOVE: "the binding is in the frozen encoder, and the pooled read-out loses it",
        LEVEL: "these items do not tell known parts from pooled vectors: where the binding is stays open",
        BELOW: "parts alone lose more than they show: what stands in no single part counts here",
    },
    ("crops", "cosine"): {
        ABOVE: "the binding can be read without being told where things are, by looking at every window",
        LEVEL: "these items do not tell the best windows from the pooled vectors",
        BELOW: "the best window of each phrase misleads more than it shows",
    },
    ("pooled", "crops"): {
        ABOVE: "context helps: parts of one pass hold more than the same parts encoded anew",
        LEVEL: "these items do not tell parts of one pass from parts encoded anew: encoding anew is not shown to help",
        BELOW: "encoding anew is part of what helps: the same parts pooled from one pass read less",
    },
    ("pooled", "cosine"): {
        ABOVE: "tokens of one pass, pooled by part, show binding that the pooled vector loses",
        LEVEL: "these items do not tell tokens pooled by part from the pooled vector",
        BELOW: "tokens of one pass, pooled by part, show less than the pooled vector",
    },
    ("dense", "pooled"): {
        ABOVE: "what the last attention says of the same places lies nearer to captions than the states pooled there",
        LEVEL: "these items do not tell patches projected alone from states pooled over the same places",
        BELOW: "patches projected alone read less than the states pooled over the same places",
    },
    ("dense", "cosine"): {
        ABOVE: "patches of one pass, projected alone, show binding that the pooled vector loses",
        LEVEL: "these items do not tell patches projected alone from the pooled vector",
        BELOW: "patches of one pass, projected alone, show less than the pooled vector",
    },
    ("learned", "oracle"): {
        ABOVE: "alignment can be learned from frozen tokens, and they hold more than known parts alone show",
        LEVEL: "these items do not tell learned alignment from known parts, which it was not told",
        BELOW: "the head has not learned what known parts show",
    },
    ("learned", "cosine"): {
        ABOVE: "the frozen tokens hold binding that the cosine loses, and it can be learned",
        LEVEL: "these items do not tell the head from the cosine",
        BELOW: "the head reads less than the cosine it was to replace",
    },
    ("tuned", "learned"): {
        ABOVE: "all weights fitted bring more than a head over frozen ones, on these items",
        LEVEL: "these items do not tell all weights fitted from a head over frozen ones",
        BELOW: "the read-out is the limit: all weights fitted, read by the cosine, stay below a head over frozen ones",
    },
    ("tuned", "cosine"): {
        ABOVE: "with other weights the same cosine reads more",
        LEVEL: "these items do not tell the other weights from the frozen ones",
        BELOW: "with other weights the same cosine reads less",
    },
}
LIMITS = {
    "cosine": "whether what is lacking is lost by the encoder or by this read-out",
    "oracle": "that parts can be found, that one pass over the whole holds what their crops show, nor anything of "
    "relations, which no single part shows",
    "crops": "that it can be afforded, nor that the window chosen is the thing's own",
    "pooled": "what patch tokens hold beyond this pooling: they may lie where no caption was ever compared with them",
    "dense": "what patch tokens hold beyond this projection, in which no patch was ever trained to meet a caption",
    "learned": "that none of it is the training data's: look out of domain with --split",
    "tuned": "what was forgotten for it: look out of domain with --split, and at retrieval",
}
# The rungs that each is held against, the first that is there; pooled tokens are held against their own places.
AGAINST = {"oracle": ("cosine",), "crops": ("cosine",), "learned": ("oracle", "cosine"),
           "tuned": ("learned", "cosine")}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a picture and a pair cost; None where it was not measured.

    passes   of the image tower for a picture, the mean; cached tokens count the one that made them
    cpu_ms   CPU milliseconds, on one thread, from a picture to its features in a store
    pair_ms  CPU milliseconds of one scored (image, caption) pair, reading included
    bytes    that a picture's features take in the store
    images   pictures that cpu_ms and bytes were measured on
    """

    passes: float
    cpu_ms: float | None = None
    pair_ms: float | None = None
    bytes: int | None = None
    images: int = 0


@dataclass(frozen=True)
class Gap:
    """A rung's headline figure less that of another, percentage points on the same items, with the 95 % interval of a
    paired bootstrap over images; None where fewer than two clusters of images are there. `kind` is the other's."""

    against: str
    kind: str
    value: float
    low: float | None
    high: float | None

    @property
    def outcome(self) -> str:
        """above, below, or level where the interval holds 0 or is not there."""
        if self.low is None or self.high is None:
            return LEVEL
        return ABOVE if self.low > 0 else BELOW if self.high < 0 else LEVEL


@dataclass(frozen=True)
class Rung:
    """One way of reading the encoder. `row` is None where it could not be scored: then `missing` says why, and `cure`
    what makes it. `notes`: what to know of its parts."""

    kind: str
    label: str
    level: str
    row: ResultRow | None = None
    cost: Cost | None = None
    gap: Gap | None = None
    missing: str = ""
    cure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def proves(self) -> str:
        """What its figure proves, in words; "" without a gap."""
        return PROVES[self.kind, self.gap.kind][self.gap.outcome] if self.gap else ""

    @property
    def reading(self) -> str:
        """One line: what it proves and what it does not, or what is missing and the cure."""
        if self.row is None:
            return f"missing: {self.missing}. {self.cure}".strip()
        gap = f"{_signed(self.gap)} against {self.gap.against}: {self.proves}. " if self.gap else ""
        more = "".join(f" {note}." for note in self.notes)
        return f"{gap}Not proven: {LIMITS[self.kind]}.{more}"


@dataclass(frozen=True)
class Ladder:
    """The rungs of one backbone on one benchmark, in order, missing ones too. chance: what guessing scores."""

    backbone: str
    benchmark: str
    split: str
    chance: ResultRow
    rungs: tuple[Rung, ...]

    @property
    def headline(self) -> str:
        """The strictest metric: group, or accuracy."""
        return headline(self.chance)

    @property
    def title(self) -> str:
        """`shapes-vit · shapes in_domain · n 20`."""
        where = f"{self.benchmark} {self.split}".strip()
        return f"{self.backbone} · {where} · n {self.chance.overall.n:,}"

    @property
    def scored(self) -> list[tuple[Rung, ResultRow]]:
        """The rungs that have a row."""
        return [(rung, rung.row) for rung in self.rungs if rung.row]


def headline(row: ResultRow) -> str:
    """The strictest metric of a row's benchmark."""
    return "group" if row.meta["metric"] == "quads" else "accuracy"


def paired(row: ResultRow, other: ResultRow, seed: int = 0) -> tuple[float, float | None, float | None] | None:
    """`row` less `other` in percentage points of the headline, low and high of the 95 % interval (percentiles of a
    bootstrap over clusters of shared images, the same draws for both). None where they were not scored on the same
    items. Reads the saved items of both; raises what `results.read` raises."""
    if row.sample != other.sample:
        return None
    (one, _), (two, _) = (results.read(Path(found.folder)) for found in (row, other))
    metric = headline(row)
    hits = [np.asarray(items[metric].to_pylist(), np.float64) for items in (one, two)]
    change = hits[0] - hits[1]
    cluster = intervals.clusters(one["images"].to_pylist())
    value = 100.0 * float(change.mean())
    if cluster.max(initial=0) < 1:
        return value, None, None
    sums, counts = np.bincount(cluster, change)[:, None], np.bincount(cluster)[:, None]
    tail = (1.0 - intervals.CONFIDENCE) / 2.0
    low, high = np.quantile(intervals.bootstrap(sums, counts, seed)[:, 0], [tail, 1.0 - tail])
    return value, 100.0 * float(low), 100.0 * float(high)


def compared(rungs: Sequence[Rung], chance: ResultRow, seed: int = 0) -> tuple[Rung, ...]:
    """The rungs with their gaps: the cosine against chance, each other against the first of `AGAINST` that is there.
    Pooled tokens are held against the crops of the same places, those of boxes against the oracle; patches projected
    alone against the tokens pooled there."""
    found = []
    for rung in rungs:
        gap = None
        if rung.row and rung.kind == "cosine":
            gap = _against_chance(rung.row, chance)
        elif rung.row and (other := _other(rung, rungs)) and other.row and (made := paired(rung.row, other.row, seed)):
            # The oracle's regions are crops too: of the boxes.
            kind = "crops" if rung.kind == "pooled" and other.kind == "oracle" else other.kind
            gap = Gap(other.label, kind, *made)
        found.append(dataclasses.replace(rung, gap=gap))
    return tuple(found)


def _other(rung: Rung, rungs: Sequence[Rung]) -> Rung | None:
    """The rung to hold one against."""
    there = [one for one in rungs if one.row]
    if rung.kind in ("pooled", "dense"):
        pooled = rung.kind == "pooled"
        kinds = ("crops", "oracle") if pooled else ("pooled",)
        names = ((":roi-", ":"), (":roi", "")) if pooled else ((":dense-grid", ":roi-grid"), (":dense-roi", ":roi"))
        twin = rung.level
        for own, other in names:
            twin = twin.replace(own, other)
        same = [one for one in there if one.level == twin and one.kind in kinds]
        order = same + [one for one in there if one.kind == "cosine"]
    else:
        order = [one for kind in AGAINST[rung.kind] for one in there if one.kind == kind]
    return order[0] if order else None


def _against_chance(row: ResultRow, chance: ResultRow) -> Gap | None:
    metric = headline(row)
    own, guess = row.overall.metrics[metric], chance.overall.metrics[metric].value
    if own.value is None or guess is None:
        return None
    low, high = (None if bound is None else bound - guess for bound in (own.low, own.high))
    return Gap("chance", "chance", own.value - guess, low, high)


def _signed(gap: Gap) -> str:
    if gap.low is None or gap.high is None:
        return f"{gap.value:+.1f}"
    return f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"


def render(found: Ladder, fmt: str = "table", by_category: bool = False) -> str:
    """The ladder as text in "table", "md" or "csv", ending in a newline: figures and cost, categories, and a line a
    rung of what it proves. `by_category`: categories of every metric, not of the headline alone; CSV holds all."""
    if fmt == "csv":
        return _csv(found)
    metrics = [name for name in found.chance.overall.metrics if " (" not in name]
    metrics.sort(key=lambda name: name != found.headline)
    sheets = [_overall(found, metrics)]
    if found.chance.by_category:
        sheets += [_categories(found, metric) for metric in (metrics if by_category else metrics[:1])]
    width = max(len(rung.label) for rung in found.rungs)
    told = [
        f"- **{rung.label}**: {rung.reading}" if fmt == "md" else f"{rung.label:<{width}}  {rung.reading}"
        for rung in found.rungs
    ]
    return written(sheets, fmt) + "\n" + "\n".join(told) + "\n"


def _overall(found: Ladder, metrics: Sequence[str]) -> Sheet:
    header = ("rung", *metrics, "passes", "CPU ms / image", "ms / pair", "bytes / image")
    blank = (Cell(UNDEFINED),) * len(COSTS)
    body = [(Cell("chance"), *(Cell(figure(found.chance.overall.metrics.get(name))) for name in metrics), *blank)]
    for rung in found.rungs:
        values = rung.row.overall.metrics if rung.row else {}
        body.append((Cell(rung.label), *(Cell(figure(values.get(name))) for name in metrics), *_cost(rung)))
    notes = [HOW, COST]
    if found.headline != "group":
        notes.append("Binding stands here for whatever tells this benchmark's right captions from its wrong ones.")
    measured = sorted({rung.cost.images for rung in found.rungs if rung.cost and rung.cost.images})
    if measured:
        counted = f"{measured[0]}" if len(measured) == 1 else f"{measured[0]} to {measured[-1]}"
        notes.append(f"Measured once on {counted} images: a scale, not a comparison to a tenth.")
    if limit := found.chance.meta.get("limit"):
        notes.append(f"Limited to {limit} groups of every category: not a result to quote.")
    return Sheet(found.title, header, tuple(body), tuple(notes))


def _cost(rung: Rung) -> tuple[Cell, ...]:
    cost = rung.cost
    if cost is None:
        return (Cell(UNDEFINED),) * len(COSTS)
    shown = (
        f"{cost.passes:.1f}".removesuffix(".0"),
        UNDEFINED if cost.cpu_ms is None else f"{cost.cpu_ms:.2f}",
        UNDEFINED if cost.pair_ms is None else f"{cost.pair_ms:.3f}",
        UNDEFINED if cost.bytes is None else f"{cost.bytes:,}",
    )
    return tuple(map(Cell, shown))


def _categories(found: Ladder, metric: str) -> Sheet:
    names = list(found.chance.by_category)
    header = ("rung", *(f"{name} (n {found.chance.by_category[name].n:,})" for name in names))
    rows: list[tuple[str, dict[str, Summary]]] = [("chance", found.chance.by_category)]
    rows += [(rung.label, rung.row.by_category if rung.row else {}) for rung in found.rungs]
    body = [(Cell(label), *(Cell(figure(_of(split.get(name), metric))) for name in names)) for label, split in rows]
    return Sheet(f"{found.title}: {metric}", header, tuple(body), ())


def _of(summary: Summary | None, metric: str) -> Estimate | None:
    return summary.metrics.get(metric) if summary else None


def as_data(found: Ladder) -> dict[str, Any]:
    """Everything as JSON data: figures by category, cost, gap, reading, and what is missing."""
    rungs = []
    for rung in found.rungs:
        told = dataclasses.asdict(dataclasses.replace(rung, row=None)) | {"reading": rung.reading}
        told["row"] = rung.row.to_json() if rung.row else None
        told["gap"] = dataclasses.asdict(rung.gap) | {"outcome": rung.gap.outcome} if rung.gap else None
        rungs.append(told)
    about = {"backbone": found.backbone, "benchmark": found.benchmark, "split": found.split}
    return about | {"metric": found.headline, "chance": found.chance.to_json(), "rungs": rungs}


def _csv(found: Ladder) -> str:
    """A line a rung, category and metric; undefined is empty; figures unrounded. A rung that is missing has one line,
    without figures, that says why."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*TIDY, *COSTS, "gap", "against", "missing"])
    chance = Rung("chance", "chance", "", found.chance)
    for rung in (chance, *found.rungs):
        named = [rung.label, rung.kind, rung.level]
        cost = [getattr(rung.cost, name, None) for name in COSTS]
        gap = [rung.gap.value, rung.gap.against] if rung.gap else [None, None]
        if rung.row is None:
            writer.writerow([*named, *[""] * 7, *[""] * 6, f"{rung.missing}. {rung.cure}"])
            continue
        for category, summary in {"": rung.row.overall, **rung.row.by_category}.items():
            for metric, estimate in summary.metrics.items():
                held = gap if (category, metric) == ("", found.headline) else [None, None]
                values = [estimate.value, estimate.low, estimate.high, summary.n, summary.ties, *cost, *held, ""]
                writer.writerow(["" if value is None else value for value in [*named, category, metric, *values]])
    return buffer.getvalue()
