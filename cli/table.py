"""`compal fit all`: every recipe of a table of experiments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..workspace import Workspace


def fit_all(
    workspace: Workspace, data: str, backbone: str, settings: Sequence[str], device: str, dry_run: bool, as_json: bool
) -> None:
    """Fit what of the table of `data` is not fitted yet, a line a run; with `dry_run` only say which. `backbone`, if
    given, and `settings` stand above the table's."""
    from .. import console, experiments

    table = experiments.read_table(experiments.table_of(data))
    table = dataclasses.replace(table, backbone=backbone or table.backbone)
    runs = experiments.planned(table, settings=settings)
    if dry_run:
        if as_json:
            console.print_json([dataclasses.asdict(run) | {"name": run.name} for run in runs])
            return
        for run in runs:
            there = "there" if (workspace.runs / run.name / "result.json").is_file() else "to fit"
            print(f"{run.name:<24}{there:<8}{' '.join(run.settings)}")
        return
    results = []
    with console.Fitting() as fitting:
        for run, result in experiments.fit_all(table, runs, workspace, device, fitting.tick):
            results.append(dataclasses.asdict(result))
            if not as_json:
                score = "–" if result.score is None else f"{result.score:.1f} %"
                print(
                    f"{run.name:<24}{result.metric} {score}, {result.parameters:,} parameters, {result.seconds:.0f} s"
                )
    if as_json:
        console.print_json(results)
