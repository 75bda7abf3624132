"""`compal view` and `compal plot`: the HTML report with its alignment viewer, and its charts as files for papers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import options
from .store import find_workspace

if TYPE_CHECKING:
    from ..api import Report

What = Annotated[
    list[str] | None,
    typer.Argument(
        help="A report that is there (FILE.html), folders of scores, or labels of rows to keep.",
        show_default="WORKSPACE/scores",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="File to write.", rich_help_panel="Output", show_default="WORKSPACE/report.html"),
]  # fmt: skip
Picture = Annotated[Path, typer.Option("--out", help="FILE.svg, .pdf, .png or .html.", rich_help_panel="Output")]
Items = Annotated[
    int, typer.Option("--items", help="Items with pictures and maps, at most.", min=0, rich_help_panel="What")
]
Align = Annotated[
    list[str] | None,
    typer.Option(
        "--align", help="Method, by its label, whose maps to show; repeat.", rich_help_panel="What",
        show_default="the three best that have maps",
    ),
]  # fmt: skip
Measure = Annotated[
    bool, typer.Option("--measure", help="Measure what a pair costs each method, here.", rich_help_panel="What")
]
Roots = Annotated[
    list[str] | None,
    typer.Option(
        "--root", help="A benchmark's files, for its pictures; repeat.", metavar="BENCHMARK=FOLDER",
        rich_help_panel="What", show_default="compal.toml's",
    ),
]  # fmt: skip
Title = Annotated[str, typer.Option("--title", help="Heading of the report.", rich_help_panel="Output")]
Serve = Annotated[
    int | None,
    typer.Option(
        "--serve", help="Serve it on 127.0.0.1 at this port, 0 a free one, instead of opening it.", min=0, max=65535,
        rich_help_panel="Output", metavar="PORT", show_default="no",
    ),
]  # fmt: skip
Open = Annotated[
    bool, typer.Option("--open/--no-open", help="Open it in a browser.", rich_help_panel="Output", show_default="open")
]
Chart = Annotated[str, typer.Argument(help="tradeoff, cost, categories, sweep or ladder.")]
Rows = Annotated[
    list[str] | None,
    typer.Argument(help="Folders of scores, or labels of rows to keep.", show_default="WORKSPACE/scores"),
]
Across = Annotated[
    str,
    typer.Option("--x", help="Axis across, as `shapes-retrieval i2t_r@1`; of sweep its name.", rich_help_panel="What"),
]
Up = Annotated[
    str,
    typer.Option("--y", help="Axis up, as `shapes in_domain group`; of categories the table.", rich_help_panel="What"),
]


def view(
    what: What = None,
    items: Items = 240,
    align: Align = None,
    measure: Measure = False,
    root: Roots = None,
    images: options.ImagesOf = None,
    ties: options.Ties = "lose",
    out: Out = None,
    title: Title = "compal report",
    serve: Serve = None,
    open_: Open = True,
    work: options.Work = None,
) -> None:
    """Look at results: one HTML file with tables, trade-offs, categories, provenance and the alignment viewer.

    Writes the file anew from saved scores, or takes one that is there, and opens it. It needs no network
    and can be sent to anybody. Seeds of a recipe are one row.

    Example: compal view

    Example: compal view tflocal cosine --align tflocal --items 500

    Example: compal view compal-work/report.html --serve 8000
    """
    from .. import api
    from .patch import folders

    workspace = find_workspace(work)
    ready = [Path(name) for name in what or () if name.endswith((".html", ".htm"))]
    if ready and len(what or ()) > 1:
        raise UsageError(f"{ready[0]} is a report already", "Name it alone, or name scores.")
    if ready:
        if not ready[0].is_file():
            raise UsageError(f"there is no {ready[0]}", "Write one: compal view.")
        path = ready[0]
    else:
        path = out or workspace.path / "report.html"
        write(
            api.report(what or (), ties=ties, workspace=workspace), path, items=items, align=align or (),
            roots=folders("--root", root), images=folders("--images", images), measure=measure, title=title,
            workspace=workspace,
        )  # fmt: skip
        print(path)
    show(path, serve, open_)


def show(path: Path, serve: int | None, open_: bool) -> None:
    """Serve a report until interrupted, or open it where there is somebody to see it."""
    if serve is not None:
        from ..eval.viewer.serve import server

        with server(path, serve) as running:
            print(f"http://127.0.0.1:{running.server_port}/  (Ctrl-C ends it)", file=sys.stderr, flush=True)
            running.serve_forever()
    elif open_ and sys.stdout.isatty():
        import webbrowser

        webbrowser.open(path.absolute().as_uri())


def write(report: Report, path: Path, **how: Any) -> None:
    """Write the page of a report, with its progress on stderr; see `Report.html`."""
    from ..console import Ticking

    with Ticking() as ticking:
        report.html(path, progress=ticking.tick, **how)


def plot(
    chart: Chart,
    what: Rows = None,
    x: Across = "",
    y: Up = "",
    measure: Measure = False,
    ties: options.Ties = "lose",
    out: Picture = Path("plot.pdf"),
    work: options.Work = None,
) -> None:
    """Write a chart of the report as a file for a paper: SVG, PDF, PNG, or HTML that is whole in itself.

    Example: compal plot tradeoff --out tradeoff.pdf

    Example: compal plot categories --y "shapes unseen_counts group" --out categories.svg
    """
    from .. import api
    from ..console import Ticking
    from ..eval import picture

    picture.check(out, "--out")
    report = api.report(what or (), ties=ties, workspace=find_workspace(work))
    with Ticking() as ticking:
        report.plot(chart, out, x, y, measure, ticking.tick)
    print(out)
