"""Saved rows → tables: terminal, Markdown, CSV, JSON, LaTeX. No models; the same rows give the same bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnknownName
from .results import Estimate, ResultRow, Summary, with_chance

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("table", "md", "csv", "json", "latex")
UNDEFINED = "–"
HOW = "Percent with 95 % bootstrap interval over images; strict: a tie is a miss; * best of its column."
TEXT_ONLY = "text-only (our rule): cosine of a caption to the mean caption of the benchmark, image unseen."


@dataclass(frozen=True)
class Cell:
    """Text of a cell; `best` if no other row of its column is higher."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table before it has a format. The first `labels` columns name the row."""

    title: str
    header: tuple[str, ...]
    body: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    labels: int = 1


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
        return json.dumps({"results": [row.to_json() for row in kept]}, indent=1, ensure_ascii=False) + "\n"
    return written(sheets(kept, by_category), fmt)


def written(tables: Sequence[Sheet], fmt: str) -> str:
    """Sheets as text: "table" for a terminal, "md" or "latex"."""
    if fmt == "table":
        return _terminal(tables)
    one = _markdown if fmt == "md" else _latex
    return "\n".join(one(sheet) for sheet in tables)


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
    samples: dict[tuple[str, str, str], list[ResultRow]] = {}
    for row in rows:
        samples.setdefault((row.benchmark, row.split, row.sample), []).append(row)
    found = []
    for members in samples.values():
        title = _title(members[0])
        if not by_category:
            found.append(_overall(title, members))
            continue
        metrics = [name for name in members[0].overall.metrics if " (" not in name]
        found += [_categories(f"{title}: {metric}", members, metric) for metric in metrics]
    return found


def _title(row: ResultRow) -> str:
    size, groups = row.meta.get("size"), row.meta.get("groups", row.overall.n)
    counted = f"{groups:,} of {size:,} groups" if size and size != groups else f"{groups:,} groups"
    parts = [row.meta.get("title", row.benchmark), row.split, "1 group" if counted == "1 groups" else counted]
    return " · ".join(part for part in parts if part)


def _notes(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    notes = [HOW]
    if any(row.label == "text-only" and row.role == "reference" for row in rows):
        notes.append(TEXT_ONLY)
    meta = rows[0].meta
    if meta.get("metric") == "recall":
        notes.append("n counts queries, images and captions.")
    if meta.get("limit"):
        notes.append(f"Limited to {meta['limit']} groups of every category: not a result to quote.")
    if meta.get("excluded"):
        notes.append(f"{len(meta['excluded']):,} groups left out, listed in scores.json (--allow-missing).")
    return (*notes, *(f"Note: {note}." for note in meta.get("notes", [])))


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
            Cell(f"{row.overall.n:,}"),
            Cell(UNDEFINED if row.overall.ties is None else f"{row.overall.ties:,}"),
        ]
    return Sheet(title, (*header, *metrics, "n", "ties"), tuple(map(tuple, body)), _notes(rows), len(header))


def _categories(title: str, rows: Sequence[ResultRow], metric: str) -> Sheet:
    header, body = _named(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.by_category))
    _add(body, rows, [row.overall.metrics.get(metric) for row in rows])
    for name in names:
        _add(body, rows, [_of(row.by_category.get(name), metric) for row in rows])
    counts = [
        f"{name} (n {next(row.by_category[name].n for row in rows if name in row.by_category):,})" for name in names
    ]
    return Sheet(title, (*header, "all", *counts), tuple(map(tuple, body)), _notes(rows), len(header))


def _of(summary: Summary | None, metric: str) -> Estimate | None:
    return summary.metrics.get(metric) if summary else None


def _add(body: list[list[Cell]], rows: Sequence[ResultRow], column: Sequence[Estimate | None]) -> None:
    """Append a column of estimates; the best is that of a row that was scored, so never chance."""
    scored = [
        e.value for row, e in zip(rows, column, strict=True) if row.role != "chance" and e and e.value is not None
    ]
    best = max(scored) if len(scored) > 1 else None
    for cells, row, estimate in zip(body, rows, column, strict=True):
        value = estimate.value if estimate else None
        cells.append(Cell(figure(estimate), value is not None and value == best and row.role != "chance"))


def figure(estimate: Estimate | None) -> str:
    """`60.9 [59.0, 63.0]`; UNDEFINED where there is no value."""
    if estimate is None or estimate.value is None:
        return UNDEFINED
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def rich_tables(rows: Iterable[ResultRow], by_category: bool = False, drop: Iterable[str] = ()) -> list[Table]:
    """The tables for a rich console, the best figures bold and starred (a star survives a pipe)."""
    return [_rich(sheet) for sheet in sheets(_kept(rows, drop), by_category)]


def _rich(sheet: Sheet) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    notes = Text("\n".join(sheet.notes), justify="left")
    table = Table(
        title=Text(sheet.title),
        caption=notes,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for number, name in enumerate(sheet.header):
        table.add_column(Text(name), justify="left" if number < sheet.labels else "right", overflow="fold")
    for cells in sheet.body:
        table.add_row(*(Text(f"{cell.text}*", style="bold") if cell.best else Text(cell.text) for cell in cells))
    return table


def _terminal(tables: Sequence[Sheet]) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, width=200, color_system=None, legacy_windows=False)
    for sheet in tables:
        console.print(_rich(sheet))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _markdown(sheet: Sheet) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if number < sheet.labels else "---:" for number in range(len(sheet.header))]
    body = [line(f"**{cell.text}**" if cell.best else cell.text for cell in cells) for cells in sheet.body]
    notes = " ".join(sheet.notes).replace("* best", "**bold** best")
    return "\n".join([f"**{sheet.title}**", "", line(sheet.header), line(rule), *body, "", notes, ""])


LATEX = {"\\": r"\textbackslash{}", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _latex(sheet: Sheet) -> str:
    def cell(given: Cell, label: bool) -> str:
        figure, bracket, rest = given.text.partition(" [") if not label else (given.text, "", "")
        text = rf"\textbf{{{_tex(figure)}}}" if given.best else _tex(figure)
        return rf"{text} {{\scriptsize [{_tex(rest)}}}" if bracket else text

    columns = "l" * sheet.labels + "r" * (len(sheet.header) - sheet.labels)
    body = [
        " & ".join(cell(given, number < sheet.labels) for number, given in enumerate(cells)) + r" \\"
        for cells in sheet.body
    ]
    notes = " ".join(sheet.notes).replace("* best", "bold: best")
    return "\n".join(
        [
            f"% {sheet.title}. {notes}",
            "% needs booktabs",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_tex(name) for name in sheet.header) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


TIDY = ("benchmark", "split", "sample", "label", "role", "backbone", "category", "metric")
VALUES = ("value", "low", "high", "n", "ties")


def _csv(rows: Sequence[ResultRow]) -> str:
    """One line per row, category and metric; category "" is all; undefined is empty; figures unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*TIDY, *VALUES])
    for row in rows:
        named = [row.benchmark, row.split, row.sample, row.label, row.role, row.backbone]
        for category, summary in {"": row.overall, **row.by_category}.items():
            for metric, found in summary.metrics.items():
                values = [found.value, found.low, found.high, summary.n, summary.ties]
                writer.writerow([*named, category, metric, *("" if value is None else value for value in values)])
    return buffer.getvalue()
