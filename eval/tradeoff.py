"""What a sweep of α trades: one axis for composition, the others for what was to be kept. Tables and data, no picture.

The ends are the two models that `compal patch` interpolates; see `align.patch` for the formula and its sources.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .report import Cell, Sheet, figure, written
from .results import Estimate, ResultRow
from .sources import headline

FORMATS = ("table", "md", "csv", "json")
HOW = "Percent with 95 % bootstrap interval over images; strict: a tie is a miss."
CHOICE = "An α chosen by this table is chosen on its items: choose on other items than those you report."
TIDY = ("alpha", "row", "role", "axis", "benchmark", "split", "metric", "value", "low", "high", "n", "ties")


@dataclass(frozen=True)
class Axis:
    """A figure of a benchmark. chance: what guessing scores, percent; n: items it is over."""

    role: Literal["composition", "retention"]
    benchmark: str
    split: str
    metric: str
    chance: float | None
    n: int

    @property
    def title(self) -> str:
        """`shapes in_domain group`."""
        return " ".join(part for part in (self.benchmark, self.split, self.metric) if part)


@dataclass(frozen=True)
class Point:
    """A row of the table: α of the ones between the ends, None for those to compare with; an estimate an axis."""

    label: str
    role: str
    alpha: float | None
    estimates: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class Tradeoff:
    """A sweep that was scored. points: first those to compare with, then α ascending; rows: all that was scored, each
    once, the benchmark's other metrics and categories with it."""

    base: str
    tuned: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    rows: tuple[tuple[ResultRow, float | None, str], ...] = field(repr=False)

    @property
    def curve(self) -> list[Point]:
        """The points with an α."""
        return [point for point in self.points if point.alpha is not None]


def gather(base: str, tuned: str, alphas: Mapping[str, float], benchmarks: Sequence[Sequence[ResultRow]]) -> Tradeoff:
    """Rows of `eval.score.evaluate`, those of a benchmark together, the first benchmark the axis of composition.

    alphas  α by the label of its row; other labels are rows to compare with, of which the first stands for all
    """
    axes: list[Axis] = []
    figures: dict[tuple[str, str], list[Estimate | None]] = {}
    kept = []
    for number, rows in enumerate(benchmarks):
        role: Literal["composition", "retention"] = "retention" if number else "composition"
        first: dict[tuple[str, str], ResultRow] = {}
        for row in rows:
            first.setdefault((row.role, row.label), row)
        own = [Axis(role, *_named(row), metric, row.meta["chance"].get(metric), row.overall.n)
               for row in rows[:1] for metric in headline(row.meta)]  # fmt: skip
        for who, row in first.items():
            found = figures.setdefault(who, [None] * len(axes))
            found += [None] * (len(axes) - len(found))
            found += [row.overall.metrics.get(axis.metric) for axis in own]
            kept.append((row, alphas.get(row.label) if row.role == "scorer" else None, role))
        axes += own
    points = []
    for (kind, label), found in figures.items():
        alpha = alphas.get(label) if kind == "scorer" else None
        points.append(Point(label, kind, alpha, tuple(found + [None] * (len(axes) - len(found)))))
    points.sort(key=lambda point: (point.alpha is not None, point.alpha or 0.0))
    return Tradeoff(base, tuned, tuple(axes), tuple(points), tuple(kept))


def _named(row: ResultRow) -> tuple[str, str]:
    return row.benchmark, row.split


def render(found: Tradeoff, fmt: str) -> str:
    """The table as text in "table", "md" or "csv", ending in a newline; CSV holds all metrics and categories."""
    if fmt == "csv":
        return _csv(found)
    header = ("α", *(f"{axis.title} (n {axis.n:,})" for axis in found.axes))
    body = [
        (Cell(name_of(found, point)), *(Cell(figure(estimate)) for estimate in point.estimates))
        for point in found.points
    ]
    notes = [HOW, CHOICE, f"{found.axes[0].title} is the axis of composition, the others are what was to be kept."]
    notes += ["n counts queries, images and captions."] if any("_r@" in axis.metric for axis in found.axes) else []
    notes += limits_of(found)
    return written([Sheet(title_of(found), header, tuple(body), tuple(notes))], fmt)


def limits_of(found: Tradeoff) -> list[str]:
    """A sentence for each `--limit` that rows were scored with."""
    limits = {int(limit) for row, _, _ in found.rows if (limit := row.meta.get("limit"))}
    return [f"Limited to {limit} groups of every category: not a result to quote." for limit in sorted(limits)]


def title_of(found: Tradeoff) -> str:
    """`BASE → TUNED`."""
    return f"{found.base} → {found.tuned}"


def name_of(found: Tradeoff, point: Point) -> str:
    """A row's name: `0 (BASE)`, `0.6`, `1 (TUNED)`, `chance`."""
    if point.alpha is None:
        return point.label
    end = {0.0: f" ({found.base})", 1.0: f" ({found.tuned})"}.get(point.alpha, "")
    return f"{point.alpha:g}{end}"


def as_data(found: Tradeoff) -> dict[str, Any]:
    """Axes, points and full results as JSON data."""
    return {
        "base": found.base,
        "tuned": found.tuned,
        "axes": [dataclasses.asdict(axis) for axis in found.axes],
        "points": [dataclasses.asdict(point) for point in found.points],
        "results": [row.to_json() | {"alpha": alpha, "axis": axis} for row, alpha, axis in found.rows],
    }


def _csv(found: Tradeoff) -> str:
    """A line a row and metric; α is empty for rows to compare with; undefined is empty; figures unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(TIDY)
    for row, alpha, axis in found.rows:
        for metric, estimate in row.overall.metrics.items():
            values = [estimate.value, estimate.low, estimate.high, row.overall.n, row.overall.ties]
            line = [alpha, row.label, row.role, axis, row.benchmark, row.split, metric, *values]
            writer.writerow(["" if value is None else value for value in line])
    return buffer.getvalue()
