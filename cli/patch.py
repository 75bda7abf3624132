"""`compal patch`: weights between two ends, what they score, and the curve of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UnknownName, UsageError
from . import options
from .store import find_workspace

FORMATS = ("table", "md", "csv", "json")

Base = Annotated[
    str,
    typer.Argument(
        help="What α = 0 is: as TUNED, or init: the head as it began, the backbone that towers were tuned from."
    ),
]
Tuned = Annotated[
    str,
    typer.Argument(help="What α = 1 is: a run, checkpoint or shipped:NAME of a head, or a backbone such as run:ID."),
]
Alpha = Annotated[
    str,
    typer.Option(
        "--alpha", "-a", help="Between the ends: a number, START:STOP:STEP, or several by comma; −1 to 2.",
        rich_help_panel="What",
    ),
]  # fmt: skip
Name = Annotated[
    str,
    typer.Option(
        "--name", help="Of the run, or how names begin where there are several.", rich_help_panel="What",
        show_default="TUNED-patch",
    ),
]  # fmt: skip
Benchmarks = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark", help="Score NAME[:SPLIT]; repeat: the first is the axis of composition, others what is kept.",
        rich_help_panel="What",
    ),
]  # fmt: skip
Roots = Annotated[
    list[str] | None,
    typer.Option("--root", help="A benchmark's files; repeat.", metavar="BENCHMARK=FOLDER", rich_help_panel="What"),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Draw the curve: FILE.svg, .pdf, .png or .html.", rich_help_panel="Output")
]


def patch(
    base: Base,
    tuned: Tuned,
    alpha: Alpha = "0.6",
    name: Name = "",
    benchmark: Benchmarks = None,
    root: Roots = None,
    images: options.ImagesOf = None,
    limit: options.Limit = None,
    extract_: options.ExtractFirst = False,
    plot: Plot = None,
    format_: options.SheetFormat = "table",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dry_run: options.Dry = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Interpolate two heads or two towers, (1 − α) BASE + α TUNED, and show what α trades.

    Writes WORKSPACE/runs/TUNED-patch-ALPHA, a run like any other; one that is there with the same
    ingredients is taken as it is. With --benchmark every α is scored; towers are extracted for it.

    Example: compal patch shipped:tflocal mine --alpha 0.6

    Example: compal patch init mine --alpha 0:1:0.25 --benchmark shapes:in_domain --benchmark shapes-retrieval --limit 20 --extract --plot curve.svg
    """  # noqa: E501 - an example is a line
    from .. import api, console, sweep_scores
    from ..console import patch as console_patch
    from ..eval import curve, picture
    from ..sweep import open_sweep

    format_ = "json" if as_json else format_
    if format_ not in FORMATS:
        raise UnknownName.among("format", format_, FORMATS)
    workspace = find_workspace(work)
    asked = sweep_scores.judged(benchmark or (), workspace, limit, folders("--root", root), folders("--images", images))
    if plot:
        if len(asked) < 2:
            raise UsageError("a trade-off has two axes, so --plot needs two benchmarks", "Repeat --benchmark NAME.")
        picture.check(plot)
    if dry_run:
        found = sweep_scores.plan(open_sweep(base, tuned, alpha, name, workspace), asked)
        console_patch.show_plan(found, format_ == "json")
        return
    with console.Ticking() as ticking:
        runs, scored = api.patch(
            base, tuned, alpha, name=name, benchmarks=asked, extract_missing=extract_, seed=seed, device=device,
            workspace=workspace, progress=ticking.tick,
        )  # fmt: skip
    if plot and scored:
        curve.draw(scored, plot)
    console_patch.show_sweep(runs, scored, format_)


def folders(option: str, given: list[str] | None) -> dict[str, Path]:
    """`BENCHMARK=FOLDER` → folder by benchmark. Raises `UsageError`."""
    found = {}
    for text in given or ():
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UsageError(f"{option} {text} is no BENCHMARK=FOLDER", f"Example: {option} sugarcrepe=/data/crepe")
        found[name] = Path(folder).expanduser()
    return found
