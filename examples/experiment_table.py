"""Fill the experiment table of a data set: fit every recipe, score every run in and out of domain, write the page.

    python examples/experiment_table.py                       # an hour or two on two cores; goes on where it stopped
    python examples/experiment_table.py --share 0/2 & python examples/experiment_table.py --share 1/2 --no-page
    python examples/experiment_table.py --page-only --out docs/records/shapes_table.md

Composition is the swap group score (strict, chance 16.7) on the four splits of `shapes`; retention is retrieval among
300 scenes (mean of both directions' R@1) and zero-shot attribute classification (chance 25). Figures are means over
seeds with their standard deviation. Cost is milliseconds a pair of a block of 64 × 64, features at hand.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from compal import api, experiments
from compal.align.batches import join
from compal.align.checkpoint import fitted_spec, load_scorer
from compal.align.recipe import load_recipe
from compal.align.scorer import tunes_towers
from compal.eval import compare, results
from compal.eval.provenance import commit
from compal.eval.results import ResultRow
from compal.eval.sources import Sources
from compal.stores.store import Store
from compal.workspace import Workspace

SPLITS = ("in_domain", "unseen_combinations", "unseen_counts", "unseen_templates")
COLUMNS = (*SPLITS, "retrieval", "attributes")
SIDE = 64


def tuned(run: experiments.Planned) -> bool:
    return tunes_towers(load_recipe(run.recipe).head["name"])


def judged(
    run: experiments.Planned, table: experiments.TableConfig, workspace: Workspace, limit: int
) -> dict[str, Any]:
    """What a run scores, kept beside it; scored once."""
    kept = workspace.runs / run.name / "table.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    if found.get("limit") == limit and "folders" in found:
        return found
    if tuned(run):
        how = {"heads": ["cosine"], "backbone": f"run:{run.name}", "level": "pooled", "labels": {"cosine": run.name}}
    else:
        how = {"runs": [run.name], "backbone": table.backbone}
    found = scores(how, run.name, workspace, limit) | {"limit": limit}
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def scores(how: dict[str, Any], label: str, workspace: Workspace, limit: int) -> dict[str, Any]:
    """Percentages by column."""

    def row(benchmark: str, sources: Sources) -> ResultRow:
        rows = api.evaluate(
            benchmark, sources=sources, extract_missing=True, references=("cosine",), workspace=workspace, **how
        )
        return next(row for row in rows if row.label == label)

    found: dict[str, Any] = {}
    folders: dict[str, str] = {}
    for split in SPLITS:
        scored = row("shapes", Sources(split=split, limit=limit))
        folders[split] = scored.folder
        found[split] = scored.overall.metrics["group"].value
        if split == "in_domain":
            found["categories"] = {name: part.metrics["group"].value for name, part in scored.by_category.items()}
    retrieval, attributes = row("shapes-retrieval", Sources()), row("shapes-attributes", Sources())
    folders |= {"retrieval": retrieval.folder, "attributes": attributes.folder}
    ways = [retrieval.overall.metrics[name].value or 0.0 for name in ("i2t_r@1", "t2i_r@1")]
    found["retrieval"] = sum(ways) / len(ways)
    found["attributes"] = attributes.overall.metrics["accuracy"].value
    found["folders"] = folders
    return found


@torch.no_grad()
def milliseconds_a_pair(checkpoint: Path, workspace: Workspace) -> float:
    """Of a block of 64 × 64 at once, the median of five."""
    spec = fitted_spec(checkpoint)
    store = Store.open(workspace.find_store(spec))
    scorer = load_scorer(checkpoint, spec)
    images, captions = sorted(store.keys("image"))[:SIDE], sorted(store.keys("text"))[:SIDE]
    batch = join(store, images, captions, needs=scorer.needs)
    scorer.score(batch)
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        scorer.score(batch)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[2] * 1e3 / SIDE**2


def page(table: experiments.TableConfig, workspace: Workspace, args: argparse.Namespace) -> None:
    """Write the table as Markdown from what is there."""
    limit, path = args.limit, args.out
    plain = scores({"heads": ["cosine"], "backbone": table.backbone}, "cosine", workspace, limit)
    lines = [["cosine", "pooled", "0", "0", "–", *(f"{plain[column]:.1f}" for column in COLUMNS)]]
    for row in table.recipes:
        seeds = [
            run for run in experiments.planned(table, [row]) if (workspace.runs / run.name / "table.json").is_file()
        ]
        if not seeds:
            continue
        found = [json.loads((workspace.runs / run.name / "table.json").read_text()) for run in seeds]
        if {one["limit"] for one in found} != {limit}:
            raise SystemExit(f"{row} was judged with another --limit: score it again, or give that one")
        results = [json.loads((workspace.runs / run.name / "result.json").read_text()) for run in seeds]
        towers = tuned(seeds[0])
        checkpoint = workspace.runs / seeds[0].name / "checkpoints" / "best.safetensors"
        cost = "as cosine" if towers else f"{milliseconds_a_pair(checkpoint, workspace):.4f}"
        cells = []
        for column in COLUMNS:
            mean, deviation = experiments.spread([one[column] for one in found])
            cells.append(f"{mean:.1f} ± {deviation:.1f}")
        seconds, _ = experiments.spread([one["seconds"] for one in results])
        lines.append(
            [row, "towers" if towers else "frozen", f"{results[0]['parameters']:,}", f"{seconds:,.0f}", cost, *cells]
        )
    head = ["method", "towers", "parameters", "s to fit", "ms a pair", *SPLITS, "retrieval R@1", "attributes"]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads a run"
    intro = (
        f"# The table `{args.data}`\n\n{time.strftime('%Y-%m-%d')}, commit {commit() or 'unknown'}, "
        f"{machine}, torch {torch.__version__}. Backbone {table.backbone}, "
        f"seeds {', '.join(map(str, table.seeds))}; {limit} quadruplets a category and split.\n\n"
        f"```\npython examples/experiment_table.py --data {args.data} --limit {limit} --out {path}\n```\n\n"
    )
    if args.pair:
        text += differences(table, args.pair, workspace)
    path.write_text(intro + "\n".join(text) + "\n", encoding="utf-8")
    print(path)


def differences(table: experiments.TableConfig, pairs: list[str], workspace: Workspace) -> list[str]:
    """A table of what OTHER has more than FIRST, for each `FIRST:OTHER`: see `compare.between`."""
    metrics = {"retrieval": "i2t_r@1", "attributes": "accuracy"}

    def rows(name: str, column: str) -> list[ResultRow]:
        kept = [workspace.runs / run.name / "table.json" for run in experiments.planned(table, [name])]
        return [results.row_of(Path(json.loads(path.read_text())["folders"][column])) for path in kept]

    lines = ["| | " + " | ".join([*SPLITS, "retrieval i2t", "attributes"]) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    for pair in pairs:
        first, other = pair.split(":")
        cells = [f"{other} less {first}"]
        for column in COLUMNS:
            found = compare.between(rows(first, column), rows(other, column), metrics.get(column, "group"))
            cells.append(f"{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return [
        "",
        "Paired differences in percentage points, 95 % intervals over images, seeds averaged item by item:",
        "",
        *lines,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="a data set with a table, or a TOML file")
    parser.add_argument("--only", action="append", default=[], help="a recipe of the table; repeat for several")
    parser.add_argument("--share", default="0/1", help="K/N: every N-th run, from K on")
    parser.add_argument("--limit", type=int, default=100, help="quadruplets of each category and split")
    parser.add_argument("--no-page", action="store_true")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--pair", action="append", default=[], help="FIRST:OTHER, rows to compare; repeat for several")
    parser.add_argument("--out", type=Path, default=Path("shapes_table.md"))
    args = parser.parse_args()
    workspace, table = Workspace.find(), experiments.read_table(experiments.table_of(args.data))
    first, step = map(int, args.share.split("/"))
    if not args.page_only:
        runs = experiments.planned(table, args.only, (first, step))
        for run, result in experiments.fit_all(table, runs, workspace):
            found = judged(run, table, workspace, args.limit)
            print(
                f"{run.name}  {result.seconds:.0f} s  " + "  ".join(f"{name} {found[name]:.1f}" for name in SPLITS),
                flush=True,
            )
    if not args.no_page:
        page(table, workspace, args)


if __name__ == "__main__":
    main()
