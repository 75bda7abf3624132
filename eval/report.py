"""Saved rows → tables: terminal, Markdown, CSV, JSON, LaTeX. No models; the same rows give the same bytes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnknownName
from . import doubts, ranking, ties, within
from .compare import Comparison
from .doubts import ties_told
from .results import Estimate, ResultRow, Summary, with_chance
from .sheets import UNDEFINED, Cell, Sheet, figure, rich_table, written

__all__ = [
    "FORMATS", "UNDEFINED", "Cell", "Sheet", "compared", "compared_sheets", "figure", "render", "rich_tables", "sheets",
    "source_of", "written",
]  # fmt: skip

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("table", "md", "csv", "json", "latex")
RULES = {
    "lose": "strict: a tie is a miss",
    "half": "ties broken by tossing (--ties half)",
    "win": "a tie is a hit (--ties win)",
}
HOW = "Percent with 95 % bootstrap interval over images; {rule}; * best of its column."
SEEDS = "± is the standard deviation over seeds, the bracket the interval over images of the mean over seeds."
PUBLISHED = "† as published by others, an aggregate that is not recomputed: no items, so no interval, and never best."
TEXT_ONLY = "text-only (our rule): cosine of a caption to the mean caption of the benchmark, image unseen."


def render(rows: Iterable[ResultRow], fmt: str = "table", by_category: bool = False, drop: Iterable[str] = ()) -> str:
    """All tables of `rows` as text in one of `FORMATS`, ending in a newline.

    by_category  a table per metric with a column per category, instead of one of the overall figures; CSV and
                 JSON always hold both
    drop         labels of rows to leave out; chance, random, text-only and cosine stay unless named here
    Raises `UnknownName` for a format or a label that is not there.
    """
    if fmt not in FORMATS:
        raise UnknownName.among("report format", fmt, FORMATS)
    kept = _kept(rows, drop)
    if fmt == "csv":
        return _csv(kept)
    if fmt == "json":
        told = [row.to_json() | {"source": source_of(row)} | ranking.plain(row) | within.plain(row) for row in kept]
        return json.dumps({"results": told}, indent=1, ensure_ascii=False) + "\n"
    return written(sheets(kept, by_category), fmt)


def _kept(rows: Iterable[ResultRow], drop: Iterable[str]) -> list[ResultRow]:
    whole = with_chance(rows)
    labels = {row.label for row in whole}
    for label in drop:
        if label not in labels:
            raise UnknownName.among("row", label, labels)
    dropped = set(drop)
    return [row for row in whole if row.label not in dropped]


def sheets(rows: Sequence[ResultRow], by_category: bool = False) -> list[Sheet]:
    """One sheet per sample (rows that were scored on the same groups), or per sample and metric."""
    samples: dict[tuple[str, ...], list[ResultRow]] = {}
    for row in rows:
        samples.setdefault(row.table, []).append(row)
    found = []
    for members in samples.values():
        title = _title(members[0])
        if not by_category:
            found.append(_overall(title, members))
            found += [one for make in (ranking.sheet, within.sheet) if (one := make(title, members))]
            continue
        told = [row.overall for row in members] + [part for row in members for part in row.by_category.values()]
        metrics = dict.fromkeys(name for summary in told for name in summary.metrics if " (" not in name)
        found += [_categories(f"{title}: {metric}", members, metric) for metric in metrics]
    return found


def _title(row: ResultRow) -> str:
    size, groups = row.meta.get("size"), row.meta.get("groups", row.overall.n)
    counted = f"{groups:,} of {size:,} groups" if size and size != groups else f"{groups:,} groups"
    variant = f"variant {row.variant}" if row.variant else ""
    parts = [row.meta.get("title", row.benchmark), row.split, variant, "1 group" if counted == "1 groups" else counted]
    return " · ".join(part for part in parts if part)


def _notes(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    notes = [HOW.format(rule=RULES[rows[0].rule])]
    notes += [SEEDS] if any("seeds" in row.meta for row in rows) else []
    if any(row.label == "text-only" and row.role == "reference" for row in rows):
        notes.append(TEXT_ONLY)
    notes += [PUBLISHED] if any(row.role == "published" for row in rows) else []
    meta = rows[0].meta
    if meta.get("metric") == "recall":
        notes.append("n counts queries, images and captions.")
    notes += [f"{said}." for row in rows if (said := ranking.reranked(row))]
    if meta.get("limit"):
        notes.append(f"Limited to {meta['limit']} groups of every category: not a result to quote.")
    if meta.get("excluded"):
        notes.append(f"{len(meta['excluded']):,} groups left out, listed in scores.json (--allow-missing).")
    notes += [f"{told}." for row in rows if (told := ties_told(row))]
    rule = meta.get("tie_rule", ties.STRICT)
    if rule not in (ties.STRICT, rows[0].rule) and any(row.overall.ties for row in rows):
        notes.append(f"The official script counts ties otherwise: --ties {rule}.")
    notes += [f"Doubt: {doubt}." for doubt in doubts.told(rows)]
    own = dict.fromkeys(note for row in rows for note in row.meta.get("notes", []))
    return (*notes, *(f"Note: {note}." for note in own))


def source_of(row: ResultRow) -> dict[str, Any]:
    """Where a row comes from, for its every cell: folder of scores, checkpoint, store and its version, commit, command,
    when, and the revision of the benchmark."""
    meta = row.meta
    store, scorer = meta.get("store") or {}, meta.get("scorer") or {}
    told = {
        "folder": row.folder or meta.get("folders", ""),
        "checkpoint": scorer.get("checkpoint", ""),
        "weights": scorer.get("weights", "")[:16],
        "store": store.get("fingerprint", "")[:16],
        "manifest": store.get("manifest", ""),
        "revision": meta.get("revision", ""),
        "commit": meta.get("commit") or "",
        "command": meta.get("command", ""),
        "written": meta.get("written", ""),
    }
    return {name: value for name, value in told.items() if value != ""}


def _sources(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    return tuple(
        f"{row.label}{f' · {row.backbone}' if row.backbone else ''}: "
        + "; ".join(f"{name} {value}" for name, value in source_of(row).items())
        for row in rows
        if row.role != "chance"
    )


def _named(rows: Sequence[ResultRow]) -> tuple[tuple[str, ...], list[list[Cell]]]:
    """The columns that name a row. The backbone is one of them where rows differ in it."""
    if len({row.backbone for row in rows if row.backbone}) > 1:
        return ("row", "backbone"), [[Cell(row.label), Cell(row.backbone or UNDEFINED)] for row in rows]
    return ("row",), [[Cell(row.label)] for row in rows]


def _overall(title: str, rows: Sequence[ResultRow]) -> Sheet:
    header, body = _named(rows)
    metrics = list(dict.fromkeys(name for row in rows for name in row.overall.metrics))
    for metric in metrics:
        _add(body, rows, [row.overall.metrics.get(metric) for row in rows])
    for cells, row in zip(body, rows, strict=True):
        cells += [
            Cell(f"{row.overall.n:,}" if row.overall.metrics else UNDEFINED),
            Cell(UNDEFINED if row.overall.ties is None else f"{row.overall.ties:,}"),
        ]
    return Sheet(
        title, (*header, *metrics, "n", "ties"), tuple(map(tuple, body)), _notes(rows), len(header), _sources(rows)
    )


def _categories(title: str, rows: Sequence[ResultRow], metric: str) -> Sheet:
    header, body = _named(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.by_category))
    _add(body, rows, [row.overall.metrics.get(metric) for row in rows])
    for name in names:
        _add(body, rows, [_of(row.by_category.get(name), metric) for row in rows])
    counts = [
        f"{name} (n {next(row.by_category[name].n for row in rows if name in row.by_category):,})" for name in names
    ]
    return Sheet(title, (*header, "all", *counts), tuple(map(tuple, body)), _notes(rows), len(header), _sources(rows))


def _of(summary: Summary | None, metric: str) -> Estimate | None:
    return summary.metrics.get(metric) if summary else None


def _add(body: list[list[Cell]], rows: Sequence[ResultRow], column: Sequence[Estimate | None]) -> None:
    """Append a column of estimates; the best is that of a row with items, so never chance nor an aggregate."""
    unscored = ("chance", "published")
    scored = [
        e.value for row, e in zip(rows, column, strict=True) if row.role not in unscored and e and e.value is not None
    ]
    best = max(scored) if len(scored) > 1 else None
    for cells, row, estimate in zip(body, rows, column, strict=True):
        value = estimate.value if estimate else None
        mark = " †" if row.role == "published" and value is not None else ""
        cells.append(Cell(figure(estimate) + mark, value is not None and value == best and row.role not in unscored))


def rich_tables(rows: Iterable[ResultRow], by_category: bool = False, drop: Iterable[str] = ()) -> list[Table]:
    """The tables for a rich console, the best figures bold and starred (a star survives a pipe)."""
    return [rich_table(sheet) for sheet in sheets(_kept(rows, drop), by_category)]


def compared(found: Sequence[Comparison], fmt: str = "table") -> str:
    """Comparisons as text in one of `FORMATS`: a table a benchmark, best nowhere. Raises `UnknownName`."""
    if fmt not in FORMATS:
        raise UnknownName.among("report format", fmt, FORMATS)
    if fmt == "json":
        return json.dumps({"comparisons": [dataclasses.asdict(one) for one in found]}, indent=1) + "\n"
    if fmt == "csv":
        return _lines([COMPARED, *(_compared_line(one) for one in found)])
    return written(compared_sheets(found), fmt)


def compared_sheets(found: Sequence[Comparison]) -> list[Sheet]:
    """A sheet for every table and row that is compared with."""
    tables: dict[tuple[str, ...], list[Comparison]] = {}
    for one in found:
        tables.setdefault((*one.table, one.first), []).append(one)
    header = ("row", "metric", "value", "difference", "gained", "lost", "p McNemar", "p by image", "p Holm")
    sheets = []
    for members in tables.values():
        first = members[0]
        body = tuple(
            (
                Cell(one.other), Cell(one.metric), Cell(f"{one.values[1]:.1f}"), Cell(_signed(one.difference)),
                Cell(f"{one.gained:,}"), Cell(f"{one.lost:,}"),
                *(Cell(_p(value)) for value in (one.mcnemar, one.by_image, one.holm)),
            )
            for one in members
        )  # fmt: skip
        own = ", ".join(dict.fromkeys(f"{one.metric} {one.values[0]:.1f}" for one in members))
        split = " · ".join(part for part in (first.title, *first.table[1:3]) if part)
        notes = (
            f"Difference to {first.first} ({own}) in percentage points with 95 % interval, paired, over images.",
            f"p Holm: by image, corrected for the {len(found)} comparisons here; quote this one.",
        )
        sheets.append(Sheet(f"{split}: against {first.first}", header, body, notes, 2))
    return sheets


def _signed(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return UNDEFINED if estimate.value is None else f"{estimate.value:+.1f}"
    return f"{estimate.value:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


COMPARED = (
    "benchmark", "split", "variant", "sample", "metric", "first", "other", "first_value", "other_value", "difference",
    "low", "high", "n", "gained", "lost", "p_mcnemar", "p_by_image", "p_holm",
)  # fmt: skip


def _compared_line(one: Comparison) -> list[Any]:
    gap = one.difference
    figures = [*one.values, gap.value, gap.low, gap.high, one.n, one.gained, one.lost]
    return [*one.table, one.metric, one.first, one.other, *figures, one.mcnemar, one.by_image, one.holm]


def _lines(lines: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows(["" if value is None else value for value in line] for line in lines)
    return buffer.getvalue()


TIDY = ("benchmark", "split", "sample", "label", "role", "backbone", "category", "metric")
VALUES = ("value", "low", "high", "n", "ties", "sd", "twins", "rule", "variant")
SOURCES = ("revision", "store", "manifest", "checkpoint", "weights", "commit", "command", "written", "folder")


def _csv(rows: Sequence[ResultRow]) -> str:
    """One line per row, category and metric; category "" is all; undefined is empty; figures unrounded."""
    lines: list[Sequence[Any]] = [(*TIDY, *VALUES, *SOURCES)]
    for row in rows:
        named = [row.benchmark, row.split, row.sample, row.label, row.role, row.backbone]
        source = source_of(row)
        told = [source.get(name) for name in SOURCES]
        for category, summary in {"": row.overall, **row.by_category}.items():
            for metric, found in summary.metrics.items():
                counts = [summary.n, summary.ties, found.sd, summary.twins, row.rule, row.variant]
                lines.append([*named, category, metric, found.value, found.low, found.high, *counts, *told])
    return _lines(lines)
