"""The picture of a sweep: what is kept on x, composition on y, a point an α, drawn by altair without a browser.

A panel for each figure of retention. altair is imported when something is drawn (extra `plots`).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .picture import FAINT, check, styled, write
from .results import Estimate
from .tradeoff import Axis, Point, Tradeoff, limits_of, title_of

RULE, ACCENT = "#c3ccd6", "#1f6f8b"
ENDS = {0.0: "#c2571a", 1.0: "#5b3a8c"}
SIDE = 380  # of a panel, pixels
FONT = 11
NEAR = 3  # pixels from which two points can be told apart
Scale = list[float]
Box = tuple[float, float, float, float]
Place = tuple[str, int, int]
# Where a label may stand from its point: alignment, pixels right, pixels down.
PLACES: tuple[Place, ...] = (
    ("left", 9, -10), ("right", -9, -10), ("left", 9, 11), ("right", -9, 11), ("center", 0, -15), ("center", 0, 16),
    ("left", 12, 0), ("right", -12, 0), ("left", 16, -20), ("right", -16, -20), ("left", 16, 21), ("right", -16, 21),
)  # fmt: skip


def draw(found: Tradeoff, path: Path) -> None:
    """Write the picture as .svg, .png (twice the size) or .html (whole in itself). Raises what `check` raises, and
    `UsageError` for a sweep over one benchmark: a trade-off has two axes."""
    check(path)
    composition, retained = found.axes[0], [axis for axis in found.axes if axis.role == "retention"]
    if not retained:
        raise UsageError("a trade-off has two axes, and one benchmark was scored", "Name --benchmark twice or more.")
    write(chart(found, composition, retained), path)


def chart(found: Tradeoff, composition: Axis, retained: list[Axis]) -> Any:
    """The altair chart."""
    import altair as alt

    scale = _domain(found, composition, composition.chance)
    panels = [_panel(found, composition, axis, scale, number == 0) for number, axis in enumerate(retained)]
    legend = f"w(α) = (1 − α) {found.base} + α {found.tuned}; bars: 95 % bootstrap intervals over images"
    return styled(alt.hconcat(*panels, spacing=36), title_of(found), [legend, *limits_of(found)], tickCount=6)


def _panel(found: Tradeoff, composition: Axis, axis: Axis, scale: Scale, first: bool) -> Any:
    import altair as alt

    across = _domain(found, axis, None)
    rows = _rows(found, axis)
    wide, high = (alt.Scale(domain=domain, nice=False, zero=False) for domain in (across, scale))
    left = alt.Axis() if first else alt.Axis(labels=False, ticks=False)
    x = alt.X("x:Q", title=f"retention: {axis.title} (%)", scale=wide)
    y = alt.Y("y:Q", title=f"composition: {composition.title} (%)" if first else None, scale=high, axis=left)
    base = alt.Chart(alt.InlineData(values=rows))
    thin = base.mark_rule(color=RULE, strokeWidth=1.2)
    layers = [
        *(_chance(composition.chance, y, rows, across) if composition.chance is not None else ()),
        thin.encode(x=x, y=alt.Y("low_y:Q", scale=high, axis=left), y2="high_y:Q"),
        thin.encode(x=alt.X("low_x:Q", scale=wide), x2="high_x:Q", y=y),
        base.mark_line(color=ACCENT, strokeWidth=2, opacity=0.75).encode(x=x, y=y, order="alpha:Q"),
        base.mark_point(filled=True, opacity=1, stroke="white", strokeWidth=1).encode(
            x=x, y=y, color=alt.Color("ink:N", scale=None), shape=alt.Shape("shape:N", scale=None),
            size=alt.Size("size:Q", scale=None), tooltip=["label:N", "alpha:Q", "x:Q", "y:Q"],
        ),
        *_labels(rows, x, y, across, scale),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=SIDE, height=SIDE)


def _chance(value: float, y: Any, rows: list[dict[str, Any]], across: Scale) -> list[Any]:
    """A line where guessing scores, named on the side that the curve leaves free."""
    import altair as alt

    spots = [pixel(row["x"], across) for row in rows]
    left = sum(spots) > len(spots) * SIDE / 2
    base = alt.Chart(alt.InlineData(values=[{"y": value, "text": f"chance {value:.1f}"}]))
    rule = base.mark_rule(color=FAINT, strokeDash=[5, 4]).encode(y=y)
    text = base.mark_text(align="left" if left else "right", dx=4 if left else -4, dy=-7, color=FAINT, fontSize=10)
    return [rule, text.encode(y=y, x=alt.value(0 if left else SIDE), text="text:N")]


def _labels(rows: list[dict[str, Any]], x: Any, y: Any, across: Scale, up: Scale) -> list[Any]:
    """α beside each point, white behind."""
    import altair as alt

    marks = []
    for (align, dx, dy), members in placed(rows, across, up).items():
        data = alt.Chart(alt.InlineData(values=members))
        how: dict[str, Any] = {"align": align, "dx": dx, "dy": dy, "fontSize": FONT, "baseline": "middle"}
        halo = data.mark_text(**how, stroke="white", strokeWidth=4, opacity=0.85)
        ink = alt.Color("ink:N", scale=None)
        marks.append(halo.encode(x=x, y=y, text="text:N"))
        marks.append(data.mark_text(**how).encode(x=x, y=y, text="text:N", color=ink))
    return marks


def placed(rows: list[dict[str, Any]], across: Scale, up: Scale) -> dict[Place, list[dict[str, Any]]]:
    """Rows by where their label covers least: other labels, points, the line between neighbours. Points on one spot
    share a label."""
    rows = _merged(rows, across, up)
    spots = [(pixel(row["x"], across), SIDE - pixel(row["y"], up)) for row in rows]
    taken = [(left - 6, top - 6, left + 6, top + 6) for left, top in spots]
    for (left, top), (right, bottom) in itertools.pairwise(spots):
        steps = [number / 12 for number in range(1, 12)]
        points = [(left + (right - left) * step, top + (bottom - top) * step) for step in steps]
        taken += [(a - 1, b - 1, a + 1, b + 1) for a, b in points]
    found: dict[Place, list[dict[str, Any]]] = {}
    # The ends choose first: they must be read.
    for row, spot in sorted(zip(rows, spots, strict=True), key=lambda pair: pair[0]["alpha"] not in ENDS):
        boxes = {place: box(spot, place, row["text"]) for place in PLACES}
        best = min(PLACES, key=lambda place: sum(overlap(boxes[place], other) for other in taken))
        taken.append(boxes[best])
        found.setdefault(best, []).append(row)
    return found


def _merged(rows: list[dict[str, Any]], across: Scale, up: Scale) -> list[dict[str, Any]]:
    """A row a spot, its text that of all that lie there, its ink an end's if one of them is an end."""
    found: list[dict[str, Any]] = []
    for row in rows:
        x, y = pixel(row["x"], across), pixel(row["y"], up)
        for number, other in enumerate(found):
            if abs(pixel(other["x"], across) - x) < NEAR and abs(pixel(other["y"], up) - y) < NEAR:
                led = row if row["alpha"] in ENDS else other
                found[number] = {**led, "text": f"{other['text']}, {row['text']}"}
                break
        else:
            found.append(row)
    return found


def box(spot: tuple[float, float], place: Place, text: str) -> Box:
    """What a label covers, pixels: its letters are about 0.6 of the font's size wide."""
    align, dx, dy = place
    width = 0.6 * FONT * len(text)
    left = spot[0] + dx - {"left": 0.0, "center": width / 2, "right": width}[align]
    return left, spot[1] + dy - FONT / 2, left + width, spot[1] + dy + FONT / 2


def overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def pixel(value: float, scale: Scale) -> float:
    return SIDE * (value - scale[0]) / (scale[1] - scale[0])


def _domain(found: Tradeoff, axis: Axis, chance: float | None) -> Scale:
    """From the least to the greatest bound of the curve, chance included, and an eighth around; percent."""
    place = found.axes.index(axis)
    values = [
        value
        for estimate in (point.estimates[place] for point in found.curve)
        if estimate
        for value in (estimate.value, estimate.low, estimate.high)
        if value is not None
    ]
    values += [] if chance is None else [chance]
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    room = max((high - low) / 8, 0.5)
    return [max(0.0, low - room), min(100.0, high + room)]


def _rows(found: Tradeoff, axis: Axis) -> list[dict[str, Any]]:
    """A row of data for each α whose two figures are defined."""
    place = found.axes.index(axis)
    drawn = [(point, point.estimates[place], point.estimates[0]) for point in found.curve]
    return [_row(point, x, y) for point, x, y in drawn if x and y and x.value is not None and y.value is not None]


def _row(point: Point, x: Estimate, y: Estimate) -> dict[str, Any]:
    alpha = point.alpha or 0.0
    return {
        "alpha": alpha,
        "label": point.label,
        "text": f"α = {alpha:g}" if alpha in ENDS else f"{alpha:g}",
        "ink": ENDS.get(alpha, ACCENT),
        "shape": {0.0: "square", 1.0: "diamond"}.get(alpha, "circle"),
        "size": 130 if alpha in ENDS else 48,
        **_span("x", x),
        **_span("y", y),
    }


def _span(name: str, estimate: Estimate) -> dict[str, Any]:
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return {name: estimate.value, f"low_{name}": low, f"high_{name}": high}
