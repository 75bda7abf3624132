"""The page: what was gathered, written as one HTML file that needs no network and runs no code but its own.

The policy in its head allows two scripts, by their sha256: the page's own and the library that draws, which is kept
compressed once for all charts and started when the first of them comes into view. The template escapes every text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...errors import InputError, VerificationError
from ..curve import PLACES
from ..doubts import doubts
from ..report import RULES
from ..results import Estimate, ResultRow
from . import charts, items, origins
from .gather import CONTROLS, Column, Gathered, Method
from .pack import MOST, Blocks

FOLDER = Path(__file__).parent
SECTIONS = (("overview", "Overview"), ("tradeoffs", "Trade-offs"), ("categories", "Categories"), ("items", "Items"),
            ("runs", "Provenance"))  # fmt: skip
SCRIPTS = ("report.js", "viewer.js")
DARK = {
    "white": "#12181f", "#1b2733": "#e4eaf0", "#8a97a6": "#95a3b1", "#eef1f4": "#232c37", "#c3ccd6": "#44505c",
    "#1f6f8b": "#6fc0da", "#c2571a": "#f0a06a", "#5b3a8c": "#b79be6", "#5b6775": "#a9b4c0", "#b8860b": "#dcb654",
    "#b0357a": "#e58cbb", "#2e7d4f": "#7fcf9f",
}  # fmt: skip
"""Colours of charts on paper → on a dark screen."""
EXPORTED = "window.vegaEmbed = vegaEmbed;"
MODULES = ("jinja2", "altair", "vl_convert")


def check() -> None:
    """Raise `InputError` if a library that the report is made with is not installed."""
    for module in MODULES:
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"the report is made with {module}, which is not installed", "pip install 'compal[report]'"
            )


def render(
    found: Gathered,
    options: items.Options | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    title: str = "compal report",
) -> str:
    """The HTML. Raises what `check` and `items.build` raise."""
    check()
    vega = _vega()
    script = "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    # Items may take what tables, provenance and charts leave.
    shell = _filled(found, Blocks(), (), (script, vega), title)
    blocks = Blocks(MOST - len(shell.encode()))
    blocks.add("vega", vega.encode())
    blocks.add_json("charts", _charts(found))
    viewer = items.build(found, blocks, options or items.Options(), progress)
    blocks.add_json("report", {"viewer": viewer, "dark": DARK})
    text = _filled(found, blocks, viewer["notes"], (script, vega), title)
    if len(text.encode()) > MOST:
        raise VerificationError(
            f"the report takes {len(text.encode()):,} bytes, more than {MOST:,}", "Take fewer --items."
        )
    return text


def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; cached, as bundling takes a second."""
    import vl_convert

    return str(vl_convert.javascript_bundle(EXPORTED))


def _charts(found: Gathered) -> dict[str, Any]:
    told = charts.axes(found)
    keys = list(told)
    spots = {f"{x}:{y}": charts.places(found, told, x, y) for x in keys for y in keys if x != y}
    composition, retention = ([column.key for column in found.chosen(role)] for role in ("composition", "retention"))
    wanted = [("Composition against retention", retention[:1], composition[:1])]
    wanted += [("Accuracy against cost", [charts.COST], composition[:1])] if charts.COST in told else []
    # One table alone has no trade-off; in domain against the last split is the next thing to ask.
    wanted += [("Two splits", composition[:1], composition[-1:])] if len(composition) > 1 else []
    return {
        "axes": told,
        "spots": spots,
        "places": PLACES,
        "methods": [
            {"label": one.label, "kind": charts.NAMES.get(one.kind, one.kind), "ink": charts.INK[one.kind],
             "shape": charts.SHAPE[one.kind]}
            for one in charts.shown(found)
        ],
        "scatter": charts.scatter_template(),
        "scatters": [{"title": name, "x": x[0], "y": y[0]} for name, x, y in wanted if x and y],
        "sweeps": [{"title": name, "spec": chart.to_dict(validate=False)} for name, chart in charts.sweeps(found)],
        "panel": charts.panel_template(),
        "panels": charts.panels(found),
        "ladder": charts.ladder_panels(found),
    }  # fmt: skip


def policy(scripts: Sequence[str]) -> str:
    """The content security policy: nothing but what is in the file, and of scripts only these."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _filled(found: Gathered, blocks: Blocks, left_out: Sequence[str], scripts: tuple[str, str], title: str) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = (FOLDER / "page.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False).from_string(source)
    rows = [row for method in found.methods for row in method.rows.values()]
    kinds = dict.fromkeys(method.kind for method in found.methods)
    told = charts.axes(found)
    return template.render(
        title=title,
        subtitle=_subtitle(found),
        policy=Markup(html.escape(policy(scripts), quote=False)),
        css=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        js=Markup(scripts[0]),
        sections=SECTIONS,
        kinds=[(kind, charts.NAMES[kind]) for kind in kinds if kind in charts.NAMES],
        rule=RULES[rows[0].rule] if rows else "",
        spread=any("seeds" in row.meta for row in rows),
        counted=f"{len(found.methods)} rows",
        columns=[_head(column) for column in found.columns],
        bodies=_bodies(found, told),
        costs=charts.COST in told,
        notes=_notes(found),
        runs=origins.runs(found),
        left_out=left_out,
        version=version("compal"),
        written=max((str(row.meta.get("written", "")) for row in rows), default="")[:10],
        size_note="".join(f"{note[:1].upper()}{note[1:]}. " for note in left_out[:1]),
        blocks=[(name, Markup(text)) for name, text in blocks.texts.items()],
    )


def _subtitle(found: Gathered) -> str:
    scored = [method for method in found.methods if method.kind not in CONTROLS]
    backbones = sorted({method.backbone for method in scored if method.backbone and method.kind != "towers"})
    tables = {column.table for column in found.columns}
    return (
        f"{len(scored)} methods and {len(found.methods) - len(scored)} controls on {len(tables)} tables; "
        f"{', '.join(backbones) or 'no backbone'}"
    )


def _head(column: Column) -> dict[str, str]:
    benchmark, split = column.table[0], " ".join(part for part in column.table[1:3] if part)
    named = {"benchmark": benchmark, "split": split} if split else {"benchmark": "", "split": benchmark}
    return named | {"metric": column.metric, "n": f"{column.n:,}"}


def _bodies(found: Gathered, told: dict[str, Any]) -> list[list[dict[str, Any]]]:
    best = {}
    for column in found.columns:
        values = [one.value for method in found.methods if method.kind not in ("chance", "published")
                  and (one := method.estimate(column)) and one.value is not None]  # fmt: skip
        best[column.key] = max(values) if len(values) > 1 else None
    rows: list[list[dict[str, Any]]] = [[], []]
    for method in found.methods:
        cells = [_cell(method, column, best[column.key], told[column.key]["domain"]) for column in found.columns]
        rows[method.kind not in CONTROLS].append({
            "label": method.label, "kind": method.kind, "about": _about(method), "cells": cells,
            "cost": None if method.cost is None else f"{method.cost:.2g}",
        })  # fmt: skip
    first = found.columns[0].key if found.columns else ""
    index = [column.key for column in found.columns].index(first) if first else 0
    rows[1].sort(
        key=lambda row: -(float(row["cells"][index]["value"]) if row["cells"] and row["cells"][index] else -1.0)
    )
    return [body for body in rows if body]


def _about(method: Method) -> str:
    seeds = f"{method.seeds} seeds" if method.seeds > 1 else ""
    return " · ".join(part for part in (method.backbone, seeds) if part)


def _cell(method: Method, column: Column, best: float | None, domain: Sequence[float]) -> dict[str, Any] | None:
    estimate, row = method.estimate(column), method.rows.get(column.table)
    if estimate is None or estimate.value is None or row is None:
        return None
    ties = row.overall.ties
    told = f"{column.title}: {_interval(estimate)}, n {row.overall.n:,}" + (
        f", {ties:,} ties" if ties is not None else ""
    )
    low, high = (estimate.value if bound is None else bound for bound in (estimate.low, estimate.high))
    left, right = _across(low, domain), _across(high, domain)
    return {
        "value": f"{estimate.value:.6g}",
        "text": f"{estimate.value:.1f}" + (" †" if method.kind == "published" else ""),
        "sd": "" if estimate.sd is None else f"{estimate.sd:.1f}",
        "best": best is not None and estimate.value == best and method.kind not in ("chance", "published"),
        "left": f"{left:.1f}", "width": f"{right - left:.1f}" if right > left else "",
        "at": f"{_across(estimate.value, domain):.1f}",
        "chance": None if column.chance is None else f"{_across(column.chance, domain):.1f}",
        "interval": "" if estimate.low is None else _interval(estimate),
        "ties": f"{ties:,} ties" if ties else "", "told": told,
    }  # fmt: skip


def _interval(estimate: Estimate) -> str:
    value = f"{estimate.value:.1f}"
    return (
        value if estimate.low is None or estimate.high is None else f"{value} [{estimate.low:.1f}, {estimate.high:.1f}]"
    )


def _across(value: float, domain: Sequence[float]) -> float:
    return max(0.0, min(100.0, 100.0 * (value - domain[0]) / (domain[1] - domain[0])))


def _notes(found: Gathered) -> list[str]:
    rows: list[ResultRow] = [row for method in found.methods for row in method.rows.values()]
    notes = ["Rows above the line are controls: chance, what sees no image or nothing, and the backbone's own cosine."]
    limits = sorted({column.limit for column in found.columns if column.limit})
    notes += [f"Limited to {limit} groups of every category: not results to quote." for limit in limits]
    if any(method.kind == "published" for method in found.methods):
        notes.append("† as published by others: no items, so no interval, and never best.")
    notes += [f"{note}." for note in found.notes]
    doubtful = [doubt for row in rows for doubt in doubts(row)]
    notes += [f"Doubt: {doubt}." for doubt in doubtful[:12]]
    if len(doubtful) > 12:
        notes.append(f"{len(doubtful) - 12:,} more doubts of this kind: compal report tells all.")
    return notes
