"""`compal eval` and `compal report`: scores from cached features, and tables from saved scores."""

from __future__ import annotations

from ..console import steps
from ..errors import UsageError
from . import options
from .extract import choose
from .peers import Against, PeersModel, explain
from .store import find_workspace


def evaluate(
    benchmark: options.Judge = "",
    run: options.Runs = None,
    head: options.Heads = None,
    backbone: options.Backbone = "",
    root: options.Root = None,
    images: options.Images = None,
    split: options.Part = None,
    limit: options.Limit = None,
    variant: options.Variant = None,
    level: options.Level = "tokens",
    allow_missing: options.AllowMissing = False,
    extract_: options.ExtractFirst = False,
    list_: options.Present = False,
    rerank: options.ReRank = "",
    candidates: options.CandidatesOf = "cosine",
    index: options.SearchIndex = "flat",
    against: Against = "",
    model: PeersModel = "",
    by_category: options.ByCategory = False,
    format_: options.Format = "table",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Score a benchmark from cached features, beside chance, random, text-only and cosine.

    Writes WORKSPACE/scores/BENCHMARK/ROW: the similarities of every item,
    from which every table is computed again.

    Example: compal eval shapes --backbone shapes-vit --run shipped:tflocal --limit 50 --extract

    Example: compal eval sugarcrepe --backbone clip --root sugarcrepe --images val2017 --extract

    Example: compal eval imagenet --backbone clip --root imagenet --against openclip

    Example: compal eval coco-retrieval --backbone clip --root coco --head maxsim --rerank 100

    Example: compal eval --list
    """
    from .. import api, console

    workspace = find_workspace(work)
    if list_:
        from ..eval.inventory import inventory

        console.show_benchmarks(inventory(workspace.root_for), as_json)
        return
    _check_peer(against, model)
    if not benchmark:
        raise UsageError("eval needs a benchmark", "Name one, or see them: compal eval --list.")
    more = {"benchmark": benchmark, "root": root or workspace.root_for(benchmark), "level": level, "device": device}
    chosen, _ = choose(
        workspace, backbone, None, more | {"seed": seed, "scores": workspace.path / "scores" / benchmark}
    )
    with console.Ticking() as ticking:
        rows = api.evaluate(
            benchmark, heads=head or (), runs=run or (), backbone=chosen, level=level, root=root, images=images,
            split=split, limit=limit, variant=variant, allow_missing=allow_missing, extract_missing=extract_,
            rerank=rerank, candidates=candidates, index=index, device=device, seed=seed, workspace=workspace,
            progress=ticking.tick, extracting=ticking.tick,
        )  # fmt: skip
    if against:
        explain(rows, against, model, "json" if as_json else format_)
        return
    print(rows.render("json" if as_json else format_, by_category), end="")
    if not as_json and format_ == "table":
        steps.after_eval(work)


def _check_peer(against: str, model: str) -> None:
    """Refuse an evaluator that nobody knows before anything is scored."""
    if model and not against:
        raise UsageError("--model is the model of --against", "Name the evaluator: --against PEER[:FILE].")
    if against:
        from ..eval.published import named

        named(against)


def report(
    what: options.ScoresPath = None,
    format_: options.TableFormat = "table",
    by_category: options.ByCategory = False,
    ties: options.Ties = "lose",
    compare: options.AgainstRow = "",
    against: Against = "",
    model: PeersModel = "",
    metric: options.OfMetric = "",
    seeds: options.OverSeeds = False,
    drop: options.Drop = None,
    out: options.ReportFile = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Make tables from saved scores; no model and no feature is touched.

    --format html is all of them as one page, with charts and items: `compal view` has its options.

    Example: compal report --format md

    Example: compal report compal-work/scores/shapes --by-category

    Example: compal report tflocal --compare cosine

    Example: compal report --against mteb:results/openai__clip-vit-base-patch32

    Example: compal report --seeds --ties half --format latex

    Example: compal report --format html --out report.html
    """
    from .. import api

    if metric and not compare:
        raise UsageError("--metric says what to compare", "Name the row to compare with: --compare ROW.")
    if compare and (seeds or by_category):
        raise UsageError("--compare is of single rows over all items", "Drop --seeds and --by-category.")
    if against and (compare or seeds or by_category or ties != "lose"):
        raise UsageError("--against takes rules and parts from the evaluator", "Give it alone, with --model.")
    _check_peer(against, model)
    fmt = "json" if as_json else format_
    if (fmt == "html") != (out is not None):
        raise UsageError("--format html and --out FILE belong together", "Example: --format html --out report.html")
    if out and (compare or against or by_category or drop):
        raise UsageError("the page holds all rows and categories", "Leave --compare, --against and --drop out.")
    workspace = find_workspace(work)
    rows = api.Report(api.saved_rows(workspace, what or (), ties, compare))
    if out:
        from .view import write

        write(rows, out, workspace=workspace)
    elif against:
        explain([row for row in rows if row.label in (what or ())] or rows, against, model, fmt)
    elif compare:
        print(rows.compare(compare, metric=metric, seed=seed).render(fmt), end="")
    else:
        print(api.report(rows, seeds=seeds).render(fmt, by_category, drop or ()), end="")
