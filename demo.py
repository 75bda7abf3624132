"""The whole story in minutes: extract → fit → eval → report on the embedded world.

One frozen encoder, `shapes-vit`. Its global cosine cannot tell a scene from its swap; the same encoder read
region by segment can (`oracle`, which is given the boxes and phrases), and so can a small transformer over
the same frozen tokens (`tflocal`), while the same capacity over the pooled vectors cannot (`tfglobal`).
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import TYPE_CHECKING, Any

from . import api, console
from .eval.sources import Sources

if TYPE_CHECKING:
    from .eval.results import Estimate, ResultRow, Summary
    from .workspace import Workspace

BACKBONE = "shapes-vit"
SPLITS = ("in_domain", "unseen_combinations", "unseen_counts", "unseen_templates")
HEADS = ("cosine", "oracle", "tfglobal", "tflocal-live", "tflocal")
# Sized so that the demo ends within six minutes on two cores: in domain all 500 quadruplets of every category, a
# fifth of them out of domain (`compal eval shapes --split NAME --extract` judges the rest).
PER_CATEGORY = dict.fromkeys(SPLITS, 100) | {"in_domain": 500}
TRAIN_QUADS, VALIDATION_QUADS = 3_000, 150
LIVE = {
    "tfglobal": ("tfglobal-shapes", ["optim.steps=300", "validation.every=100"]),
    "tflocal-live": ("tflocal-shapes", ["optim.steps=150", "validation.every=50"]),
}
EXPLAINED = {
    "cosine": "the encoder's own score: one global cosine",
    "oracle": "its pooled vectors of true crops × true phrases: best crop of each phrase, then the mean",
    "tfglobal": "control: a transformer over the two pooled vectors, fitted just now",
    "tflocal-live": "a small transformer over the frozen tokens, fitted just now for a short time",
    "tflocal": "the same head fitted to the end, shipped with compal",
}


def run(workspace: Workspace, as_json: bool) -> None:
    """Run the demo in a workspace and print its tables (or one JSON object). What is there is reused."""
    started = time.perf_counter()
    say("1/4  extract   the towers run once over every picture and caption")
    _extract(workspace)
    say("2/4  fit       the towers do not run again")
    runs = _fit(workspace)
    say("3/4  eval      every row from the same cached features")
    rows = {split: _evaluate(workspace, split, runs) for split in SPLITS}
    retrieval = _retrieval(workspace)
    seconds = time.perf_counter() - started
    if as_json:
        found = {
            head: {split: _figures(rows[split][head]) for split in SPLITS} for head in ("chance", "random", *HEADS)
        }
        console.print_json(
            {
                "results": found,
                "retrieval": retrieval,
                "seconds": round(seconds, 1),
                "workspace": str(workspace.path),
            }
        )
        return
    say("4/4  report")
    _report(rows, retrieval, seconds, workspace, runs)


def _judged(split: str) -> Sources:
    return Sources(split=split, limit=PER_CATEGORY[split])


def say(line: str) -> None:
    """A line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def _extract(workspace: Workspace) -> None:
    with console.Ticking() as ticking:
        for split, limit in (("train", TRAIN_QUADS), ("validation", VALIDATION_QUADS)):
            api.extract(BACKBONE, "shapes", [split], limit=limit, workspace=workspace, progress=ticking.tick)
        for split, level in itertools.product(SPLITS, ("tokens", "regions")):
            api.extract_benchmark(
                BACKBONE, "shapes", _judged(split), level=level, workspace=workspace, progress=ticking.tick
            )
        api.extract_benchmark(BACKBONE, "shapes-retrieval", Sources(), workspace=workspace, progress=ticking.tick)


def _fit(workspace: Workspace) -> dict[str, str]:
    """Label → run id of the heads fitted live; one that is there and whole is kept."""
    found = {}
    for label, (recipe, settings) in LIVE.items():
        name = f"demo-{label}"
        if not (workspace.runs / name / "result.json").is_file():
            with console.Fitting() as fitting:
                api.fit(
                    recipe, BACKBONE, "shapes", settings=settings, name=name, resume=True,
                    workspace=workspace, progress=fitting.tick,
                )  # fmt: skip
        found[label] = name
    return found


def _evaluate(workspace: Workspace, split: str, runs: dict[str, str]) -> dict[str, ResultRow]:
    """Rows by label on one split."""
    sources = _judged(split)
    labels = {run: label for label, run in runs.items()}
    with console.Ticking() as ticking:
        rows = api.evaluate(
            "shapes", runs=[*runs.values(), "shipped:tflocal"], backbone=BACKBONE, sources=sources,
            labels=labels, workspace=workspace, progress=ticking.tick,
        )  # fmt: skip
        rows += api.evaluate(
            "shapes", heads=["maxsim"], backbone=BACKBONE, level="regions", sources=sources,
            labels={"maxsim": "oracle"}, references=(), workspace=workspace, progress=ticking.tick,
        )  # fmt: skip
    return {row.label: row for row in rows}


def _retrieval(workspace: Workspace) -> dict[str, float | int | None]:
    """Recall at 1 of the global cosine among 300 scenes."""
    rows = api.evaluate("shapes-retrieval", backbone=BACKBONE, workspace=workspace)
    cosine = next(row for row in rows if row.label == "cosine")
    return {"n": 300} | {name: cosine.overall.metrics[name].value for name in ("i2t_r@1", "t2i_r@1")}


def _of(summary: Summary) -> dict[str, Any]:
    group: Estimate = summary.metrics["group"]
    return {
        **{name: summary.metrics[name].value for name in ("i2t", "t2i", "group")},
        "n": summary.n,
        "ci": [group.low, group.high],
    }


def _figures(row: ResultRow) -> dict[str, Any]:
    """Percentages of one row; `ci` is the 95 % interval of the group score."""
    return {**_of(row.overall), "by_category": {name: _of(part) for name, part in row.by_category.items()}}


def _report(
    rows: dict[str, dict[str, ResultRow]],
    retrieval: dict[str, float | int | None],
    seconds: float,
    workspace: Workspace,
    runs: dict[str, str],
) -> None:
    from rich.console import Console

    out = Console()
    order = ("chance", "random", "text-only", *HEADS)
    columns = {
        f"{split.replace('_', chr(10))}\nn {found['cosine'].overall.n:,}": {
            head: _cell(found[head].overall.metrics["group"]) for head in order
        }
        for split, found in rows.items()
    }
    out.print(_table("Swap group score, percent [95 % interval]; strict: a tie is a miss", columns, order))
    judged = rows["in_domain"]
    by_category = {
        name: {head: _value(judged[head].by_category[name].metrics["group"]) for head in order} for name in CATEGORIES
    }
    out.print(
        _table(f"In domain, by what is swapped, n {judged['cosine'].by_category['colour'].n} each", by_category, order)
    )
    first, second = retrieval["i2t_r@1"], retrieval["t2i_r@1"]
    print(
        f"The encoder is not blind: R@1 among 300 scenes {first:.1f} / {second:.1f} % (image to text / text to image)."
    )
    for head in HEADS:
        print(f"  {head:<13} {EXPLAINED[head]}")
    print(f"\n{seconds:.0f} s. Everything lies in {workspace.path}")
    print("  stores/   the features, extracted once       runs/    the heads fitted just now")
    print("  scores/   every similarity of every item     pairs/   which picture goes with which caption")
    print("Next:")
    print("  compal eval shapes --run shipped:tflocal --split unseen_counts --extract    all of them")
    print(f"  compal eval shapes --run {runs['tflocal-live']} --split in_domain --by-category")
    print("  compal fit tflocal-shapes --backbone shapes-vit --data shapes --set optim.steps=600")
    print("  compal extract --backbone open_clip:ViT-B-32-quickgelu --data FOLDER_OR_TABLE    your own pictures")


CATEGORIES = ("colour", "material", "size", "quantity", "relation")


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{estimate.low:.0f}, {estimate.high:.0f}]"


def _value(estimate: Estimate) -> str:
    return "–" if estimate.value is None else f"{estimate.value:.1f}"


def _table(title: str, columns: dict[str, dict[str, str]], order: tuple[str, ...]) -> Any:
    """A rich table of `columns` by header, each a cell by row; narrow enough for 80 characters."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("head")
    for header in columns:
        table.add_column(header, justify="right")
    for label in order:
        style = "bold" if label in ("cosine", "tflocal") else ""
        table.add_row(label, *(found[label] for found in columns.values()), style=style)
    return table
