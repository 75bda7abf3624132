"""Others' numbers: `compal import`, and what `--against` of `compal eval` and `compal report` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .store import find_workspace

if TYPE_CHECKING:
    from ..eval.results import ResultRow

ResultsFile = Annotated[
    Path,
    typer.Argument(
        help="CSV of items (BiVLC's form, or id and a column a metric), or figures of mteb, CLIP_benchmark, open_clip."
    ),
]
Label = Annotated[str, typer.Option("--as", help="What its row is called.", metavar="LABEL", rich_help_panel="What")]
Of = Annotated[
    str,
    typer.Option("--benchmark", help="Of this benchmark only.", rich_help_panel="What", show_default="what it holds"),
]  # fmt: skip
Model = Annotated[
    str,
    typer.Option(
        "--model", help="Of this model, as the file calls it.", rich_help_panel="What", show_default="the only one"
    ),
]  # fmt: skip
Against = Annotated[
    str,
    typer.Option(
        "--against", help="Say why an evaluator's number differs: clip_benchmark, openclip, mteb:FILE, or a FILE.",
        rich_help_panel="Output", metavar="PEER[:FILE]",
    ),
]  # fmt: skip
PeersModel = Annotated[
    str,
    typer.Option(
        "--model", help="With --against: the evaluator's name of the model.", rich_help_panel="Output",
        show_default="the backbone's",
    ),
]  # fmt: skip


def import_(
    file: ResultsFile,
    label: Label,
    benchmark: Of = "",
    model: Model = "",
    format_: options.Format = "table",
    by_category: options.ByCategory = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Put the results of others into our tables.

    Answers of items stand under our metrics, with intervals, beside what was
    scored on the same items; an aggregate stands as published, marked †.
    Writes WORKSPACE/scores/BENCHMARK/LABEL.

    Example: compal import BiVLC_ViT-B-32.csv --as "CLIP B/32 (BiVLC)"

    Example: compal import results/openai__clip-vit-base-patch32 --as "CLIP B/32 (mteb)" --benchmark sugarcrepe
    """
    from ..eval import report
    from ..eval.imports import import_results
    from ..eval.results import load_results

    scores = find_workspace(work).path / "scores"
    saved = import_results(file.expanduser(), label, scores, benchmark, model)
    tables = {row.table for row in saved}
    rows = [row for name in sorted({one[0] for one in tables}) for row in load_results(scores / name)]
    beside = [row for row in rows if row.table in tables]
    print(report.render(beside, "json" if as_json else format_, by_category), end="")


def explain(rows: Sequence[ResultRow], peer: str, model: str, fmt: str) -> None:
    """Print why the numbers of `peer` differ from those of `rows`."""
    from ..eval import against

    print(against.rendered(against.explain(rows, peer, model), fmt), end="")
