"""The report's charts as Vega-Lite, made by altair: templates that take their rows in the page, and whole charts.

A template is a chart without rows. The page and `compal plot` fill it in the same way (`filled`), so that what is
exported is what was looked at.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from ..curve import FONT, PLACES, SIDE, Box, box, chart, overlap, pixel
from ..ladder_chart import INKS, SHAPES, SMALL
from ..picture import FAINT, styled
from ..results import Estimate, ResultRow
from ..sources import headline
from ..tradeoff import Tradeoff, gather
from .gather import Column, Gathered, Method, Sweep

KIND = {"chance": "cosine", "control": "cosine", "cosine": "cosine", "published": "cosine", "parts": "crops",
        "pooled": "pooled", "tokens": "learned", "towers": "tuned"}  # fmt: skip
INK = {kind: INKS[name] for kind, name in KIND.items()}
SHAPE = {kind: SHAPES[name] for kind, name in KIND.items()}
NAMES = {"cosine": "cosine", "parts": "regions", "pooled": "head over pooled vectors", "tokens": "head over tokens",
         "towers": "tuned towers"}  # fmt: skip
COST = "cost"
SLIGHT = 24  # square pixels that a name may cover of others
COST_TITLE = "CPU ms a pair, features at hand (log)"
Row = dict[str, Any]


def shown(found: Gathered) -> list[Method]:
    """The methods that charts have: chance is a line there, and random and text-only are none to compare."""
    return [method for method in found.methods if method.kind not in ("chance", "control", "published")]


def axes(found: Gathered) -> dict[str, Any]:
    """Every axis that a scatter may have, by key: title, whether it is logarithmic, its domain, chance, and a value
    with bounds for each of the methods `shown`."""
    methods = shown(found)
    told = {}
    for column in found.columns:
        values = [_bounds(method.estimate(column)) for method in methods]
        told[column.key] = _axis(column.title + " (%)", values, column.chance, False) | {"role": column.role}
    if any(method.cost for method in methods):
        told[COST] = _axis(COST_TITLE, [_bounds(Estimate(method.cost)) for method in methods], None, True)
        told[COST] |= {"role": "cost"}
    return told


def _bounds(estimate: Estimate | None) -> list[float] | None:
    if estimate is None or estimate.value is None:
        return None
    value = estimate.value
    return [_few(value if bound is None else bound) for bound in (value, estimate.low, estimate.high)]


def _few(value: float) -> float:
    return float(f"{value:.4g}")


def _axis(title: str, values: list[list[float] | None], chance: float | None, log: bool) -> dict[str, Any]:
    flat = [bound for value in values if value for bound in value] + ([] if chance is None else [chance])
    low, high = min(flat, default=0.0), max(flat, default=1.0)
    if log:
        low, high = math.log10(low), math.log10(high)
        room = max((high - low) / 6, 0.2)
        domain = [10 ** (low - room), 10 ** (high + 2 * room)]
    else:
        room = max((high - low) / 10, 1.0)
        domain = [max(low - room, -2.5), min(high + 1.6 * room, 103.0)]
    powers = range(math.ceil(math.log10(domain[0])), math.floor(math.log10(domain[1])) + 1) if log else ()
    told: dict[str, Any] = {"title": title, "log": log, "domain": [_few(edge) for edge in domain]}
    return told | {"ticks": [10.0**power for power in powers], "chance": chance, "values": values}


def scatter_template() -> dict[str, Any]:
    """Two axes, a point with intervals a method, its name beside it; rows: see `scatter_rows`."""
    import altair as alt

    data = alt.Chart(alt.NamedData("rows"))
    x, y = alt.X("x:Q", title="x", scale=alt.Scale(zero=False)), alt.Y("y:Q", title="y", scale=alt.Scale(zero=False))
    ink = alt.Color("ink:N", scale=None)
    thin = data.mark_rule(strokeWidth=1.3, opacity=0.3)
    how: dict[str, Any] = {
        "align": alt.expr("datum.align"), "dx": alt.expr("datum.dx"), "dy": alt.expr("datum.dy"), "fontSize": FONT,
        "baseline": "middle",
    }  # fmt: skip
    line = alt.Chart(alt.NamedData("chance")).mark_rule(color=FAINT, strokeDash=[5, 4]).encode(y="y:Q")
    layers = [
        line,
        thin.encode(x=x, y=alt.Y("yl:Q"), y2="yh:Q", color=ink),
        thin.encode(x=alt.X("xl:Q"), x2="xh:Q", y=y, color=ink),
        data.mark_point(filled=True, opacity=1, stroke="white", strokeWidth=1, size=90).encode(
            x=x, y=y, color=ink, shape=alt.Shape("shape:N", scale=None), tooltip=_tips("label", "kind", "x", "y"),
        ),
        data.mark_text(**how, stroke="white", strokeWidth=4, opacity=0.85).encode(x=x, y=y, text="name:N"),
        data.mark_text(**how).encode(x=x, y=y, text="name:N", color=ink),
    ]  # fmt: skip
    whole = alt.layer(*layers).properties(width=SIDE, height=SIDE)
    return _bare(styled(whole, "", ""))


def _tips(*names: str) -> list[Any]:
    import altair as alt

    titles = {"label": "method", "kind": "reads", "x": "x", "y": "value", "low": "low", "high": "high"}
    kinds = ("label", "kind")
    return [
        alt.Tooltip(f"{name}:N", title=titles[name])
        if name in kinds
        else alt.Tooltip(f"{name}:Q", title=titles[name], format=".3~g")
        for name in names
    ]


def _bare(chart: Any) -> dict[str, Any]:
    """The specification; titles are the page's."""
    made: dict[str, Any] = chart.to_dict(validate=False)
    made.pop("title", None)
    made.pop("datasets", None)
    return made


def scatter_rows(found: Gathered, told: dict[str, Any], x: str, y: str, spots: Sequence[int | None]) -> list[Row]:
    """The rows of a scatter of two axes; `spots` as `places` gives them."""
    rows = []
    for number, method in enumerate(shown(found)):
        one, two = told[x]["values"][number], told[y]["values"][number]
        spot = spots[number]
        if one and two and spot is not None:
            align, dx, dy = PLACES[max(spot, 0)]
            rows.append({
                "label": method.label, "name": method.label if spot >= 0 else "",
                "kind": NAMES.get(method.kind, method.kind), "ink": INK[method.kind],
                "shape": SHAPE[method.kind], "x": one[0], "xl": one[1], "xh": one[2], "y": two[0], "yl": two[1],
                "yh": two[2], "align": align, "dx": dx, "dy": dy,
            })  # fmt: skip
    return rows


def places(found: Gathered, told: dict[str, Any], x: str, y: str) -> list[int | None]:
    """Of every method shown, which of `PLACES` its name stands at: where it covers least, the highest first; −1 where
    it would cover another name, so that the point stands without, None where it has no point."""
    scale = [_domain(told[key]) for key in (x, y)]
    points: dict[int, tuple[float, float]] = {}
    for number in range(len(shown(found))):
        one, two = told[x]["values"][number], told[y]["values"][number]
        if one and two:
            points[number] = pixel(_on(told[x], one[0]), scale[0]), SIDE - pixel(_on(told[y], two[0]), scale[1])
    marks: list[Box] = [(left - 5, top - 5, left + 5, top + 5) for left, top in points.values()]
    names: list[Box] = []
    spots: list[int | None] = [None] * len(shown(found))
    for number, spot in sorted(points.items(), key=lambda one: one[1][1]):
        boxes = [box(spot, place, shown(found)[number].label) for place in PLACES]
        hidden = [sum(overlap(one, other) for other in names) + _outside(one) for one in boxes]
        cost = [
            covered + sum(overlap(one, other) for other in marks) for one, covered in zip(boxes, hidden, strict=True)
        ]
        best = min(range(len(boxes)), key=cost.__getitem__)
        spots[number] = best if hidden[best] < SLIGHT else -1
        if hidden[best] < SLIGHT:
            names.append(boxes[best])
    return spots


def _outside(one: Box) -> float:
    """Square pixels of a name that lie outside of the panel."""
    return (one[2] - one[0]) * (one[3] - one[1]) - overlap(one, (0.0, 0.0, float(SIDE), float(SIDE)))


def _on(axis: dict[str, Any], value: float) -> float:
    return math.log10(value) if axis["log"] else value


def _domain(axis: dict[str, Any]) -> list[float]:
    return [_on(axis, edge) for edge in axis["domain"]]


def scatter(template: dict[str, Any], told: dict[str, Any], x: str, y: str, rows: list[Row]) -> dict[str, Any]:
    """The template with two axes and rows: what the page does too."""
    spec = copy.deepcopy(template)
    for layer in spec["layer"]:
        for side, key in (("x", x), ("y", y)):
            if side in layer["encoding"]:
                axis = told[key]
                kind = {"type": "log"} if axis["log"] else {"type": "linear", "zero": False}
                layer["encoding"][side]["scale"] = {"domain": axis["domain"], "nice": False, **kind}
                layer["encoding"][side]["title"] = axis["title"]
                if axis["log"]:
                    layer["encoding"][side]["axis"] = {"values": axis["ticks"], "format": "~r"}
    chance = told[y]["chance"]
    spec["datasets"] = {"rows": rows, "chance": [] if chance is None else [{"y": chance}]}
    return spec


# --- small multiples ----------------------------------------------------------------------------------


def panel_template() -> dict[str, Any]:
    """Methods as rows, percent across, an interval each, a line where guessing scores: one category of one table."""
    import altair as alt

    data = alt.Chart(alt.NamedData("rows"))
    scale = alt.Scale(domain=[-2, 102], nice=False, zero=False)
    x = alt.X("y:Q", title=None, scale=scale, axis=alt.Axis(values=[0, 25, 50, 75, 100]))
    axis = alt.Axis(ticks=False, domain=False, grid=True, labelPadding=8, labelLimit=140)
    y = alt.Y("label:N", title=None, sort=None, axis=axis)
    ink = alt.Color("ink:N", scale=None)
    line = alt.Chart(alt.NamedData("chance")).mark_rule(color=FAINT, strokeDash=[5, 4])
    layers = [
        line.encode(x=alt.X("y:Q", scale=scale)),
        data.mark_rule(strokeWidth=1.4, opacity=0.4).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=ink),
        data.mark_point(filled=True, opacity=1, stroke="white", strokeWidth=1, size=60).encode(
            x=x, y=y, color=ink, shape=alt.Shape("shape:N", scale=None), tooltip=_tips("label", "y", "low", "high"),
        ),
    ]  # fmt: skip
    return _bare(styled(alt.layer(*layers).properties(width=SMALL + 40, height={"step": 17}), "", ""))


def panels(found: Gathered) -> list[dict[str, Any]]:
    """Per table and headline: its categories with n, chance and a row a method, the best on average first."""
    told = []
    for column in found.columns:
        methods = [one for one in shown(found) if column.table in one.rows]
        methods.sort(key=lambda one: -(_value(one.estimate(column)) or 0.0))
        names = dict.fromkeys(name for one in methods for name in one.rows[column.table].by_category)
        parts: list[dict[str, Any]] = []
        for name in names:
            rows = [
                row
                for one in methods
                if (row := _panel_row(one.label, one.kind, one.rows[column.table], name, column.metric))
            ]
            n = next(
                (
                    one.rows[column.table].by_category[name].n
                    for one in methods
                    if name in one.rows[column.table].by_category
                ),
                0,
            )
            parts.append({"name": name, "n": n, "chance": column.chance, "rows": rows})
        if parts:
            told.append({"key": column.key, "title": column.title, "parts": parts})
    return told


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate else None


def _panel_row(label: str, kind: str, row: ResultRow, category: str, metric: str) -> Row | None:
    summary = row.by_category.get(category) if category else row.overall
    bounds = _bounds(summary.metrics.get(metric)) if summary else None
    if bounds is None:
        return None
    return {"label": label, "ink": INK[kind], "shape": SHAPE[kind], "y": bounds[0], "low": bounds[1], "high": bounds[2]}


def ladder_panels(found: Gathered) -> list[dict[str, Any]]:
    """The rungs of a ladder that was scored, in order: all items, then each category."""
    if not found.ladder:
        return []
    first = found.ladder[0]
    metric = headline(first.meta)[0]
    chance = first.meta.get("chance", {}).get(metric)
    parts = []
    for name in ["", *first.by_category]:
        rows = [made for row in found.ladder if (made := _panel_row(row.label, _rung(row), row, name, metric))]
        n = first.by_category[name].n if name else first.overall.n
        parts.append({"name": name or "all", "n": n, "chance": chance, "rows": rows})
    limit = first.meta.get("limit")
    told = f" · limited to {limit} groups of every category: not a result to quote" if limit else ""
    title = " ".join(part for part in (first.benchmark, first.split, metric) if part) + told
    return [{"key": "ladder", "title": title, "parts": parts}]


def _rung(row: ResultRow) -> str:
    level = str((row.meta.get("store") or {}).get("level", ""))
    return "cosine" if row.label == "cosine" else "parts" if level.startswith("regions") else "tokens"


def panel(template: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The template with the rows of a category."""
    spec = copy.deepcopy(template)
    chance = part["chance"]
    spec["datasets"] = {"rows": part["rows"], "chance": [] if chance is None else [{"y": chance}]}
    return spec


# --- sweeps -------------------------------------------------------------------------------------------


def tradeoff(sweep: Sweep, columns: Sequence[Column]) -> Tradeoff | None:
    """A sweep as `eval.tradeoff` has it; None without a figure for either axis."""
    composition = [column for column in columns if column.role == "composition"]
    retention = list(dict.fromkeys(column.table for column in columns if column.role == "retention"))
    tables = {table for rows in sweep.points.values() for table in rows}
    first = next((column.table for column in composition if column.table in tables), None)
    kept = [table for table in retention if table in tables]
    if first is None or not kept:
        return None
    alphas, benchmarks = {}, []
    for table in (first, *kept):
        rows = []
        for alpha, found in sorted(sweep.points.items()):
            if table in found:
                rows.append(found[table])
                alphas[found[table].label] = alpha
        benchmarks.append(rows)
    return gather(sweep.base, sweep.tuned.removeprefix("run:"), alphas, benchmarks)


def sweeps(found: Gathered) -> list[tuple[str, Any]]:
    """Title and altair chart of every sweep that has two axes."""
    made = []
    for sweep in found.sweeps:
        traded = tradeoff(sweep, found.columns)
        if traded:
            kept = [axis for axis in traded.axes if axis.role == "retention"]
            made.append((f"{traded.base} → {traded.tuned}", chart(traded, traded.axes[0], kept)))
    return made
