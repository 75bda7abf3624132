"""`compal diagnose`: the ladder from the global cosine to tuned towers, what each rung costs and what it proves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UnknownName, UsageError
from . import completing, options
from .extract import choose, sources_of
from .store import find_workspace

if TYPE_CHECKING:
    from ..diagnose import Planned

FORMATS = ("table", "md", "csv", "json")

Judge = Annotated[
    str, typer.Argument(help="Benchmark of swaps; see `compal ls benchmarks`.", autocompletion=completing.benchmarks)
]
Part = Annotated[
    str | None,
    typer.Option("--split", help="One split or subset of it.", show_default="in_domain of shapes, else all",
                 rich_help_panel="What"),
]  # fmt: skip
Crops = Annotated[
    list[int] | None,
    typer.Option(
        "--crops", help="Windows of crop search, and of patches pooled so: 18, 34, 70, 239; repeat; 0 for none.",
        show_default="18", rich_help_panel="What",
    ),
]  # fmt: skip
Learned = Annotated[
    list[str] | None,
    typer.Option(
        "--run", help="Learned alignment: run id, checkpoint, or shipped:NAME; repeat.",
        show_default="shipped:tflocal on shapes-vit", rich_help_panel="What",
    ),
]  # fmt: skip
Tuned = Annotated[
    list[str] | None,
    typer.Option("--tuned", help="Tuned towers: a backbone such as run:ID; repeat.", rich_help_panel="What"),
]
Measure = Annotated[
    int, typer.Option("--measure", help="Images to measure the cost on; 0 for none.", min=0, rich_help_panel="Output")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw accuracy against cost: FILE.svg, .pdf, .png or .html.", rich_help_panel="Output"),
]
Categories = Annotated[
    bool, typer.Option("--by-category", help="Categories of every metric.", rich_help_panel="Output")
]


def diagnose(
    benchmark: Judge = "shapes",
    backbone: options.Backbone = "",
    crops: Crops = None,
    run: Learned = None,
    tuned: Tuned = None,
    root: options.Root = None,
    images: options.Images = None,
    split: Part = None,
    limit: options.Limit = None,
    allow_missing: options.AllowMissing = False,
    extract_: options.ExtractFirst = False,
    measure: Measure = 32,
    plot: Plot = None,
    by_category: Categories = False,
    format_: options.SheetFormat = "table",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dry_run: options.Dry = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Find where a backbone loses binding: in the encoder, in the read-out, or nowhere; and what reading it costs.

    Scores cosine, known parts, crop search, pooled and dense tokens, a learned head and tuned towers
    on the same items, and says of each what it proves. Writes WORKSPACE/scores/BENCHMARK/ROW.

    Example: compal diagnose --backbone shapes-vit --limit 20 --extract --plot ladder.svg

    Example: compal diagnose shapes --split unseen_counts --crops 18 --crops 70 --limit 20 --dry-run
    """
    from .. import console
    from .. import diagnose as ladders
    from ..eval import ladder, ladder_chart, picture

    format_ = "json" if as_json else format_
    if format_ not in FORMATS:
        raise UnknownName.among("format", format_, FORMATS)
    if plot:
        picture.check(plot)
        if not measure:
            raise UsageError("the picture has cost on x, and --measure 0 measures none", "Leave one of them out.")
    workspace = find_workspace(work)
    chosen, _ = choose(workspace, backbone)
    split = split or ladders.default_split(benchmark)
    sources = sources_of(workspace, benchmark, root, images, allow_missing, split, limit)
    grids = [count for count in (crops or [18]) if count]
    course = ladders.open_course(chosen, benchmark, sources, grids, run or (), tuned or (), workspace)
    if dry_run:
        _show_plan(*ladders.plan(course), format_ == "json")
        return
    with console.Ticking() as ticking:
        found = ladders.climb(
            course, extract_missing=extract_, measure=measure, device=device, seed=seed, progress=ticking.tick
        )
    workspace.remember(chosen)
    if plot:
        ladder_chart.draw(found, plot)
    if format_ == "json":
        console.print_json(ladder.as_data(found))
        return
    print(ladder.render(found, format_, by_category), end="")


def _show_plan(rungs: list[Planned], seconds: float | None, as_json: bool) -> None:
    """What a ladder would take, rung by rung."""
    from ..console import duration, print_json, size

    if as_json:
        print_json({"rungs": [dataclasses.asdict(rung) for rung in rungs], "seconds": seconds})
        return
    width = max(len(rung.label) for rung in rungs)
    for rung in rungs:
        if rung.missing:
            print(f"{rung.label:<{width}}  missing: {rung.missing}. {rung.cure}")
            continue
        new = rung.images + rung.texts
        first = f"; to extract first: {new:,} images and captions, about {size(rung.bytes)}" if new else ""
        print(f"{rung.label:<{width}}  would score {rung.pairs:,} pairs at level {rung.level},"
              f" {rung.passes:.1f} passes an image{first}")  # fmt: skip
    if seconds:
        print(f"time   about {duration(seconds)} of forward passes")
