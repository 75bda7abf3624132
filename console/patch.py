"""What people see of a sweep: what it would do, the runs it made, and the table of what they score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import duration, print_json, size, steps

if TYPE_CHECKING:
    from ..eval.tradeoff import Tradeoff
    from ..sweep import Patched
    from ..sweep_scores import Plan


def show_plan(plan: Plan, as_json: bool) -> None:
    """What a sweep would do."""
    if as_json:
        print_json(dataclasses.asdict(plan))
        return
    new = [run for run in plan.runs if not run.existed]
    print(f"would make {len(new)} of {len(plan.runs)} runs ({plan.kind}), {size(plan.bytes)}")
    for run in plan.runs:
        print(f"  α = {run.alpha:<6g} {run.path}{'  (is there)' if run.existed else ''}")
    for cost in plan.costs:
        time = "" if cost.seconds is None else f", about {duration(cost.seconds)} of forward passes"
        print(f"would score {cost.pairs:,} pairs of {cost.benchmark}: {cost.groups:,} groups, {len(plan.runs)} α")
        if cost.items:
            print(f"  features of {cost.items:,} images and captions to extract, about {size(cost.bytes)}{time}")


def show_sweep(runs: Sequence[Patched], found: Tradeoff | None, format_: str) -> None:
    """The runs, and after them what they score if that was asked; in JSON one document."""
    from ..eval.tradeoff import as_data, render

    if format_ == "json":
        data: dict[str, Any] = {"runs": [dataclasses.asdict(run) for run in runs]}
        print_json(data | (as_data(found) if found else {}))
        return
    if found:
        print(render(found, format_), end="")
        return
    if format_ == "csv":
        print("alpha,name,path,existed")
    for run in runs:
        if format_ == "csv":
            print(f"{run.alpha:g},{run.name},{run.path},{str(run.existed).lower()}")
        else:
            print(f"run    {run.path}{'  (was there)' if run.existed else ''}")
    if format_ == "table":
        steps.after_fit(runs[-1].path, "")
