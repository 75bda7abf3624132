"""A table before it has a format, and its text: terminal and Markdown here, LaTeX in `latex`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from .summary import Estimate

if TYPE_CHECKING:
    from rich.table import Table

UNDEFINED = "–"
HYPHENS = "\u2010\u2010"


@dataclass(frozen=True)
class Cell:
    """Text of a cell; `best` if no other row of its column is higher."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table before it has a format. The first `labels` columns name the row; `sources` say of each row where it
    comes from, and stand in the files as comments."""

    title: str
    header: tuple[str, ...]
    body: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    labels: int = 1
    sources: tuple[str, ...] = ()


def written(tables: Sequence[Sheet], fmt: str) -> str:
    """Sheets as text: "table" for a terminal, "md" or "latex"."""
    if fmt == "table":
        return _terminal(tables)
    from .latex import latex

    one = _markdown if fmt == "md" else latex
    return "\n".join(one(sheet) for sheet in tables)


def figure(estimate: Estimate | None) -> str:
    """`60.9 [59.0, 63.0]`, over seeds `60.9 ± 0.4 [59.0, 63.0]`; UNDEFINED where there is no value."""
    if estimate is None or estimate.value is None:
        return UNDEFINED
    value = f"{estimate.value:.1f}" + ("" if estimate.sd is None else f" ± {estimate.sd:.1f}")
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:.1f}, {estimate.high:.1f}]"


def rich_table(sheet: Sheet) -> Table:
    """The table for a rich console, the best figures bold and starred (a star survives a pipe)."""
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
    # A notebook would be shown the table beside the value that it is asked for.
    console = Console(file=buffer, width=200, color_system=None, legacy_windows=False, force_jupyter=False)
    for sheet in tables:
        console.print(rich_table(sheet))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def fragment(tables: Iterable[Sheet]) -> str:
    """Sheets as HTML without a page around it, for notebooks, which bring their own look."""

    def line(name: str, cells: Iterable[tuple[str, bool]], labels: int) -> str:
        told = "".join(
            f'<{name} style="text-align: {"left" if number < labels else "right"}">'
            f"{f'<b>{escape(text)}</b>' if best else escape(text)}</{name}>"
            for number, (text, best) in enumerate(cells)
        )
        return f"<tr>{told}</tr>"

    made = []
    for sheet in tables:
        head = line("th", ((name, False) for name in sheet.header), sheet.labels)
        body = "\n".join(line("td", ((cell.text, cell.best) for cell in cells), sheet.labels) for cells in sheet.body)
        notes = escape(" ".join(sheet.notes).replace("* best", "bold: best"))
        made.append(
            f"<p><b>{escape(sheet.title)}</b></p>\n<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
            f"<p><small>{notes}</small></p>\n"
        )
    return "".join(made)


def _markdown(sheet: Sheet) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if number < sheet.labels else "---:" for number in range(len(sheet.header))]
    body = [line(f"**{cell.text}**" if cell.best else cell.text for cell in cells) for cells in sheet.body]
    notes = " ".join(sheet.notes).replace("* best", "**bold** best")
    # A comment ends at its first "--", so none may stand in it.
    sources = ["<!-- " + source.replace("--", HYPHENS) + " -->" for source in sheet.sources]
    return "\n".join([f"**{sheet.title}**", "", line(sheet.header), line(rule), *body, "", notes, *sources, ""])
