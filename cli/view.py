"""`compal view` and `compal plot`: the HTML report with its alignment viewer, and its charts as files for papers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import options
from .store import find_workspace

if TYPE_CHECKING:
    from ..eval.results import ResultRow
    from ..eval.viewer.gather import Gathered
    from ..eval.viewer.items import Options
    from ..workspace import Workspace

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
        rows = _rows(workspace, what, ties)
        write(rows, path, _options(workspace, items, align, root, images), measure, title)
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


def write(rows: Sequence[ResultRow], path: Path, asked: Options | None, measure: bool = False, title: str = "") -> None:
    """Write the report of rows to a file. Raises `InputError` where libraries lack or the disk does not take it."""
    from ..console import Ticking
    from ..eval.viewer import page
    from ..stores.files import disk_errors
    from ..workspace import write_atomically

    page.check()
    with Ticking() as ticking:
        found = _gathered(rows, measure, ticking.tick)
        text = page.render(found, asked, ticking.tick, title or "compal report")
    with disk_errors(str(path)):
        write_atomically(path, text)
        path.chmod(0o644)  # made to be shown; a temporary file is its owner's alone


def _gathered(rows: Sequence[ResultRow], measure: bool, tick: Callable[[str, int, int], None]) -> Gathered:
    from ..eval.viewer.costs import measured
    from ..eval.viewer.gather import gather

    found = gather(rows, tick)
    return measured(found, tick) if measure else found


def _rows(workspace: Workspace, what: Sequence[str] | None, ties: str) -> list[ResultRow]:
    from .evaluate import chosen

    return chosen(workspace, what or (), ties, "")


def _options(
    workspace: Workspace, items: int, align: list[str] | None, root: list[str] | None, images: list[str] | None
) -> Options:
    from ..eval.viewer.items import Options
    from .patch import folders

    roots, photographs = folders("--root", root), folders("--images", images)

    def of(name: str) -> tuple[Path | None, Path | None]:
        return roots.get(name) or workspace.root_for(name), photographs.get(name)

    return Options(items=items, aligned=tuple(align or ()), roots=of)


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
    from ..console import Ticking
    from ..eval import picture
    from ..eval.viewer import export

    picture.check(out, "--out")
    workspace = find_workspace(work)
    with Ticking() as ticking:
        found = _gathered(_rows(workspace, what, ties), measure or chart == "cost", ticking.tick)
    export.export(found, chart, out, x, y)
    print(out)
