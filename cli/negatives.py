"""`compal negatives`: make hard-negative captions as data with provenance, and say what they are worth."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UnknownName, UsageError
from . import options
from .store import find_workspace

if TYPE_CHECKING:
    from pathlib import Path

    from ..pipeline.negation import Negation
    from ..workspace import Workspace

FORMATS = ("table", "md", "json")

Method = Annotated[str, typer.Option("--method", "-m", help="See `compal ls negatives`.", rich_help_panel="What")]
Split = Annotated[
    str,
    typer.Option(
        "--split", help="Whose captions get negatives.", rich_help_panel="What", show_default="the training split"
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of all draws.", rich_help_panel="What")]
Report = Annotated[
    str,
    typer.Option(
        "--report", help="Only say what this table is worth: a file, or a name's beginning.", rich_help_panel="What"
    ),
]
ReportFormat = Annotated[
    str, typer.Option("--format", help="Of the report: table, md or json.", rich_help_panel="Output")
]


def negatives(
    method: Method = "",
    data: options.Data = "",
    split: Split = "",
    limit: options.Limit = None,
    seed: Seed = 0,
    set_: options.Settings = None,
    report: Report = "",
    format_: ReportFormat = "table",
    dry_run: options.Dry = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Make hard-negative captions of a dataset by swapping, replacing, shuffling, mining or a language model.

    Writes WORKSPACE/negatives/DATA-SPLIT-METHOD-HASH.parquet, which is never overwritten: the same inputs are the
    same file. Ends with a report; --report makes it again. Use them: compal extract --negatives FILE

    Example: compal negatives --method replace --data coco:/data/coco --split train2017

    Example: compal negatives --method mined --data shapes --split train --set backbone=shapes-vit

    Example: compal negatives --report shapes-train-swap --format md
    """
    from ..console import negatives as console_negatives
    from ..pipeline import negatives_table

    format_ = "json" if as_json else format_
    if format_ not in FORMATS:
        raise UnknownName.among("format", format_, FORMATS)
    workspace = find_workspace(work)
    if report:
        if method or set_ or dry_run:
            raise UsageError("--report reads a table and makes none", "Drop --method, --set and --dry-run.")
        path = negatives_table.find(workspace, report)
    else:
        if not method:
            raise UsageError("no method is given", "Say --method NAME (compal ls negatives), or --report FILE.")
        negation = _negation(workspace, method, data, split, limit, seed, set_)
        if dry_run:
            console_negatives.show_plan(negation.plan(), as_json)
            return
        path = _run(negation)
    from ..pipeline.negatives_report import report as judge

    console_negatives.show_report(judge(negatives_table.read(path), seed), format_)


def _negation(
    workspace: Workspace, method: str, data: str, split: str, limit: int | None, seed: int, settings: list[str] | None
) -> Negation:
    from .. import api
    from ..pipeline.negation import Negation, Request

    chosen, origin = workspace.choose("data", data, "shapes")
    name = api.dataset_name(chosen)
    splits = [split] if split else api.default_splits(name, workspace)
    said = [] if origin == "given" else [f"--data {chosen} ({origin})"]
    said += [] if split else [f"--split {splits[0]}"]
    if said:
        print(f"using {', '.join(said)}", file=sys.stderr)
    return Negation(Request(method, name, splits[0], tuple(settings or ()), seed, limit), workspace)


def _run(negation: Negation) -> Path:
    from .. import console

    if negation.path.is_file():
        print("these negatives are there already", file=sys.stderr)
    with console.Ticking() as ticking:
        return negation.run(lambda done, total: ticking.tick("captions", done, total))
