"""The report's charts as files for papers: the same templates, filled alike, with their rows inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from .. import picture
from . import charts
from .gather import Gathered

ACROSS = 3  # panels a line
HOW = "bars: 95 % bootstrap intervals over images; dashed: chance"


def export(found: Gathered, name: str, path: Path, x: str = "", y: str = "") -> None:
    """Write a chart as .svg, .pdf, .png or .html.

    name   one of `CHARTS`
    x, y   titles of axes, as `shapes in_domain group`; `cost` for milliseconds a pair; y names the table
           of `categories`, x the sweep
    Raises `UnknownName` for a chart or an axis that is not there, `InputError` for a chart that these scores do not
    have, and what `picture.check` raises.
    """
    if name not in CHARTS:
        raise UnknownName.among("chart", name, CHARTS)
    picture.check(path, "--out")
    picture.write(CHARTS[name](found, x, y), path)


def _chart(spec: dict[str, Any], title: str, about: str = HOW) -> Any:
    import altair as alt

    heading = {"text": title, "subtitle": about, "anchor": "start", "offset": 14}
    kind = alt.LayerChart if "layer" in spec else alt.VConcatChart
    return kind.from_dict(spec | {"title": heading})


def _inside(spec: dict[str, Any]) -> dict[str, Any]:
    """The chart with its named rows in place, so that charts can stand side by side."""
    rows = spec.pop("datasets")
    for layer in spec["layer"]:
        layer["data"] = {"values": rows[layer["data"]["name"]]}
    spec.pop("data", None)
    return spec


def _axis(found: Gathered, told: dict[str, Any], title: str, role: str) -> str:
    """The key of an axis by its title, of the first of a role if none is named."""
    names = {
        charts.COST if key == charts.COST else axis["title"].removesuffix(" (%)"): key for key, axis in told.items()
    }
    if title and title not in names:
        raise UnknownName.among("axis", title, names)
    first = next((key for key, axis in told.items() if axis["role"] == role), None)
    if not title and first is None:
        cure = "Measure it with --measure." if role == "cost" else "Score another: compal eval --list."
        raise InputError(f"these scores have no figure of {role}", cure)
    return names[title] if title else str(first)


def _scatter(found: Gathered, x: str, y: str, role: str) -> Any:
    told = charts.axes(found)
    across, up = _axis(found, told, x, role), _axis(found, told, y, "composition")
    rows = charts.scatter_rows(found, told, across, up, charts.places(found, told, across, up))
    spec = charts.scatter(charts.scatter_template(), told, across, up, rows)
    return _chart(spec, f"{told[up]['title']} against {told[across]['title']}".replace(" (%)", ""))


def _panels(groups: list[dict[str, Any]], title: str, y: str) -> Any:
    if not groups:
        raise InputError(f"these scores have no {title}", "Score a benchmark with categories: compal eval --list.")
    names = {group["title"]: group for group in groups}
    if y and y not in names:
        raise UnknownName.among("table", y, names)
    group = names[y] if y else groups[0]
    made = []
    for part in group["parts"]:
        spec = _inside(charts.panel(charts.panel_template(), part))
        spec["title"] = {"text": f"{part['name'] or 'all'} (n {part['n']:,})", "anchor": "start", "fontSize": 12}
        made.append(spec)
    config = made[0]["config"]
    for spec in made:
        spec.pop("config")
        spec.pop("$schema", None)
        spec.pop("background", None)
    lines = [{"hconcat": made[start : start + ACROSS], "spacing": 18} for start in range(0, len(made), ACROSS)]
    return _chart({"vconcat": lines, "spacing": 20, "config": config, "background": "white"}, group["title"])


def _sweep(found: Gathered, x: str, y: str) -> Any:
    made = dict(charts.sweeps(found))
    if not made:
        raise InputError("these scores have no α sweep on two benchmarks", "Make one: compal patch --benchmark.")
    if x and x not in made:
        raise UnknownName.among("sweep", x, made)
    return made[x] if x else next(iter(made.values()))


CHARTS: dict[str, Callable[[Gathered, str, str], Any]] = {
    "tradeoff": lambda found, x, y: _scatter(found, x, y, "retention"),
    "cost": lambda found, x, y: _scatter(found, x, y, "cost"),
    "categories": lambda found, x, y: _panels(charts.panels(found), "categories", y),
    "sweep": _sweep,
    "ladder": lambda found, x, y: _panels(charts.ladder_panels(found), "ladder", y),
}
