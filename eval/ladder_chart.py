"""The picture of a ladder: accuracy against what a picture and a pair cost (log), and every category beside it.

Drawn by altair without a browser, imported when something is drawn (extra `plots`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .curve import FONT, SIDE, Scale, placed
from .ladder import Cost, Ladder, Rung
from .picture import FAINT, check, styled, write
from .results import Estimate, ResultRow

INKS = {
    "cosine": "#5b6775", "oracle": "#c2571a", "crops": "#b8860b", "pooled": "#5b3a8c", "dense": "#b0357a",
    "learned": "#1f6f8b", "tuned": "#2e7d4f",
}  # fmt: skip
SHAPES = {
    "cosine": "square", "oracle": "diamond", "crops": "triangle-up", "pooled": "triangle-down",
    "dense": "triangle-right", "learned": "circle", "tuned": "cross",
}  # fmt: skip
SMALL, ROW, ACROSS = 150, 20, 5  # of a category's panel: width, height of a rung, pixels; panels a line
EDGES = (-2.5, 102.5)  # percent that an axis shows at most: a point at 0 is whole
PLENTY = 10  # no axis of cost is much shorter than a tenfold
Figure = Callable[[Cost], float | None]
XS: tuple[tuple[str, Figure], ...] = (
    ("CPU ms an image, until its features are stored (log)", lambda cost: cost.cpu_ms),
    ("CPU ms a pair, from the store (log)", lambda cost: cost.pair_ms),
)


def draw(found: Ladder, path: Path) -> None:
    """Write the picture as .svg, .png (twice the size) or .html (whole in itself). Raises what `check` raises,
    and `UsageError` where no cost was measured."""
    check(path)
    if not any(rung.cost and rung.cost.cpu_ms for rung, _ in found.scored):
        raise UsageError("the picture has cost on x, and none was measured", "Leave out --measure 0.")
    write(chart(found), path)


def chart(found: Ladder) -> Any:
    """The altair chart: two panels of accuracy against cost, and below a panel a category, the rungs as rows."""
    import altair as alt

    up = _up(found)
    panels = [_panel(found, title, cost, up, number == 0) for number, (title, cost) in enumerate(XS)]
    rows: list[Any] = [alt.hconcat(*panels, spacing=36)]
    names = list(found.chance.by_category)
    for start in range(0, len(names), ACROSS):
        line = [_category(found, name, number == 0) for number, name in enumerate(names[start : start + ACROSS])]
        rows.append(alt.hconcat(*line, spacing=14))
    legend = f"{found.headline} score, strict; bars: 95 % bootstrap intervals over images; dashed: chance"
    limit = found.chance.meta.get("limit")
    told = [legend, f"limited to {limit} groups of every category: not a result to quote"] if limit else legend
    return styled(alt.vconcat(*rows, spacing=30), found.title, told)


def _panel(found: Ladder, title: str, cost: Figure, up: Scale, first: bool) -> Any:
    import altair as alt

    rows = points(found, cost)
    across = _across([row["cost"] for row in rows])
    wide = alt.Scale(type="log", domain=[10 ** across[0], 10 ** across[1]], nice=False)
    high = alt.Scale(domain=up, nice=False, zero=False)
    ticks = [10.0**power for power in range(math.ceil(across[0]), math.floor(across[1]) + 1)]
    ticks = sorted([*ticks, *(3 * tick for tick in [10 ** math.floor(across[0]), *ticks])])
    x = alt.X("cost:Q", title=title, scale=wide, axis=alt.Axis(values=ticks, format="~r"))
    left = alt.Axis(tickCount=6) if first else alt.Axis(labels=False, ticks=False, tickCount=6)
    y = alt.Y("y:Q", title=f"{found.headline} (%)" if first else None, scale=high, axis=left)
    base = alt.Chart(alt.InlineData(values=rows))
    low = alt.Y("low_y:Q", scale=high, axis=left)
    layers = [
        *_chance(found, y),
        _rule(base).encode(x=x, y=low, y2="high_y:Q"),
        _mark(base).encode(x=x, y=y, size=alt.value(110), tooltip=["label:N", "level:N", "cost:Q", "y:Q"]),
        *_labels(rows, x, y, across, up),
    ]
    return alt.layer(*layers).properties(width=SIDE, height=SIDE)


def _rule(base: Any) -> Any:
    """An interval, in the ink of its point."""
    import altair as alt

    return base.mark_rule(strokeWidth=1.4, opacity=0.4).encode(color=alt.Color("ink:N", scale=None))


def _mark(base: Any) -> Any:
    import altair as alt

    marks = base.mark_point(filled=True, opacity=1, stroke="white", strokeWidth=1)
    return marks.encode(color=alt.Color("ink:N", scale=None), shape=alt.Shape("shape:N", scale=None))


def _chance(found: Ladder, y: Any) -> list[Any]:
    import altair as alt

    value = found.chance.overall.metrics[found.headline].value
    if value is None:
        return []
    base = alt.Chart(alt.InlineData(values=[{"y": value, "text": f"chance {value:.1f}"}]))
    rule = base.mark_rule(color=FAINT, strokeDash=[5, 4]).encode(y=y)
    text = base.mark_text(align="right", dx=-4, dy=-7, color=FAINT, fontSize=10)
    return [rule, text.encode(y=y, x=alt.value(SIDE), text="text:N")]


def _labels(rows: Sequence[dict[str, Any]], x: Any, y: Any, across: Scale, up: Scale) -> list[Any]:
    """A name beside each point, white behind."""
    import altair as alt

    marks = []
    for (align, dx, dy), members in placed(list(rows), across, up).items():
        data = alt.Chart(alt.InlineData(values=members))
        how: dict[str, Any] = {"align": align, "dx": dx, "dy": dy, "fontSize": FONT, "baseline": "middle"}
        halo = data.mark_text(**how, stroke="white", strokeWidth=4, opacity=0.85)
        marks.append(halo.encode(x=x, y=y, text="text:N"))
        ink = alt.Color("ink:N", scale=None)
        marks.append(data.mark_text(**how).encode(x=x, y=y, text="text:N", color=ink))
    return marks


def points(found: Ladder, cost: Figure) -> list[dict[str, Any]]:
    """A row of data for each rung whose figure and cost are there; x is the cost's power of ten."""
    rows = []
    for rung, row in found.scored:
        spent = cost(rung.cost) if rung.cost else None
        estimate = row.overall.metrics[found.headline]
        if spent and estimate.value is not None:
            # `placed` marks ends of a sweep by α; a ladder has none.
            rows.append(_of(rung, estimate) | {"cost": spent, "x": math.log10(spent), "alpha": -1.0})
    return rows


def _of(rung: Rung, estimate: Estimate) -> dict[str, Any]:
    value = estimate.value
    low, high = (value if bound is None else bound for bound in (estimate.low, estimate.high))
    named = {"label": rung.label, "text": rung.label, "level": rung.level}
    return named | {"ink": INKS[rung.kind], "shape": SHAPES[rung.kind], "y": value, "low_y": low, "high_y": high}


def _across(costs: Sequence[float]) -> Scale:
    """Powers of ten from the least to the greatest cost, with room, and a tenfold at least."""
    low, high = (math.log10(edge(costs)) if costs else 0.0 for edge in (min, max))
    span = max(high - low, math.log10(PLENTY) / 2)
    middle = (low + high) / 2
    # Room for labels left of the first point and, longer as that is where most stand, right of the last.
    return [middle - 0.86 * span, middle + 0.95 * span]


def _up(found: Ladder) -> Scale:
    estimates = [row.overall.metrics[found.headline] for _, row in found.scored]
    values = [one for e in estimates for one in (e.value, e.low, e.high) if one is not None]
    chance = found.chance.overall.metrics[found.headline].value
    values += [] if chance is None else [chance]
    low, high = min(values, default=0.0), max(values, default=100.0)
    room = max((high - low) / 12, 0.5)
    return [max(EDGES[0], low - room), min(EDGES[1], high + room)]


def _category(found: Ladder, name: str, first: bool) -> Any:
    """The rungs of one category as rows, in order, missing ones empty."""
    import altair as alt

    labels = [_named(rung) for rung in found.rungs]
    scored = [(rung, _estimate(found, row, name)) for rung, row in found.scored]
    rows = [_of(rung, estimate) for rung, estimate in scored if estimate]
    scale = alt.Scale(domain=list(EDGES), nice=False, zero=False)
    x = alt.X("y:Q", title=None, scale=scale, axis=alt.Axis(values=[0, 50, 100]))
    axis = alt.Axis(labels=first, ticks=False, domain=False, grid=True, labelPadding=8)
    y = alt.Y("label:N", title=None, sort=None, scale=alt.Scale(domain=labels), axis=axis)
    base = alt.Chart(alt.InlineData(values=rows))
    layers = [
        _rule(base).encode(x=alt.X("low_y:Q", scale=scale, title=None), x2="high_y:Q", y=y),
        _mark(base).encode(x=x, y=y, size=alt.value(60), tooltip=["label:N", "y:Q", "low_y:Q", "high_y:Q"]),
    ]
    chance = found.chance.by_category[name].metrics[found.headline].value
    if chance is not None:
        line = alt.Chart(alt.InlineData(values=[{"y": chance}])).mark_rule(color=FAINT, strokeDash=[5, 4])
        layers.insert(0, line.encode(x=x))
    count = found.chance.by_category[name].n
    title = alt.TitleParams(f"{name} (n {count:,})", fontSize=12, anchor="start", offset=6)
    return alt.layer(*layers).properties(width=SMALL, height=ROW * len(labels), title=title)


def _named(rung: Rung) -> str:
    return rung.label if rung.row else f"{rung.label} (missing)"


def _estimate(found: Ladder, row: ResultRow, name: str) -> Estimate | None:
    summary = row.by_category.get(name)
    estimate = summary.metrics.get(found.headline) if summary else None
    return estimate if estimate and estimate.value is not None else None
