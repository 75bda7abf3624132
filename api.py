"""The three stages as functions: what the commands call, and what a notebook calls.

    import compal.api as compal
    compal.extract("shapes-vit", "shapes", limit=500)
    run = compal.fit("tflocal", "shapes-vit", "shapes")
    rows = compal.evaluate("shapes", heads=["cosine"], runs=[run.run_dir.name], backbone="shapes-vit")

Everything lies in the workspace (`workspace.Workspace.find`). Progress goes to callbacks; nothing is printed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry
from .errors import InputError, UnknownName
from .pipeline.naming import dataset_name as dataset_name
from .pipeline.naming import default_splits as default_splits
from .pipeline.naming import pairs_of
from .sweep_scores import patch as patch
from .workspace import Workspace

if TYPE_CHECKING:
    from .align.fit import Progress, RunResult
    from .align.scorer import Scorer
    from .eval.results import ResultRow
    from .eval.retrieval import Rerank
    from .eval.sources import Sources
    from .pipeline.extract import ExtractConfig, Summary
    from .pipeline.job import Listing
    from .pipeline.preview import Preview
    from .stores.spec import FeatureSpec
    from .stores.store import Store

Ticker = Callable[[str, int, int], None]
Named = Sequence[str | Path]


def extract(
    backbone: str,
    data: str = "shapes",
    splits: Sequence[str] = (),
    *,
    level: str | Sequence[str] = "tokens",
    dtype: str = "float16",
    precision: str = "float32",
    jpeg: str = "exact",
    segments: str = "",
    negatives: Named = (),
    phrases: bool = False,
    limit: int | None = None,
    config: ExtractConfig | None = None,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
) -> list[Summary]:
    """Extract splits of a dataset (all the dataset needs for fitting by default) into a store for each level; a
    summary for each split and level.

    level      one, or several: each image is then decoded once and each pass made once for all of them
    precision  of the forward pass: float32, or bfloat16 or float16 by autocast
    jpeg       exact, or reduced: JPEGs are decoded at a half, a quarter or an eighth where they stay twice as large
               as the tower's pictures
    segments   a segmenter (`compal ls segmenters`) of captions that come without segments
    negatives  tables of `compal negatives` (files, or how names begin), whose captions are extracted and paired too
    phrases    extract the noun phrases of the captions too, which `data.phrases` of a recipe draws
    What the workspace's remotes hold is pulled instead of computed (`config.remotes` says which are asked).
    Writes the pairs tables that `fit` reads. Raises what `pipeline.extract.extract_listing` raises.
    """
    from .pipeline.extract import extract_listing
    from .pipeline.levels import resolve_levels

    workspace = workspace or Workspace.find()
    with workspace.used():
        specs = resolve_levels(backbone, level, dtype, precision, jpeg, segments)
    config = config or _asking(workspace)
    return [
        summary
        for listing in _listings(data, splits, workspace, limit, segments, negatives, phrases)
        for summary in extract_listing(listing, specs, workspace, config, progress)
    ]


def _listings(
    data: str,
    splits: Sequence[str],
    workspace: Workspace,
    limit: int | None,
    segments: str,
    negatives: Named,
    phrases: bool,
) -> list[Listing]:
    from .pipeline.extract import listing_of

    data = dataset_name(data)
    names = splits or default_splits(data, workspace)
    return [listing_of(data, split, workspace, limit, segments, negatives, phrases) for split in names]


def item_keys(data: str, splits: Sequence[str] = (), workspace: Workspace | None = None) -> set[str]:
    """The keys of a dataset's images and captions; what `extract` asks remotes for."""
    from .pipeline import listing as listings

    workspace = workspace or Workspace.find()
    data = dataset_name(data)
    name, root = workspace.dataset(data)
    module = registry.load("datasets", name)
    with listings.use(workspace.path / "listing.sqlite"):
        wanted = splits or default_splits(data, workspace)
        return {item.key for split in wanted for item in module.items(root, split, None)}


def preview(
    backbone: str,
    data: str = "shapes",
    splits: Sequence[str] = (),
    *,
    benchmark: str = "",
    sources: Sources | None = None,
    level: str | Sequence[str] = "tokens",
    dtype: str = "float16",
    precision: str = "float32",
    jpeg: str = "exact",
    segments: str = "",
    negatives: Named = (),
    phrases: bool = False,
    limit: int | None = None,
    config: ExtractConfig | None = None,
    workspace: Workspace | None = None,
    timed: bool = False,
) -> list[Preview]:
    """What `extract`, or `extract_benchmark` where a benchmark is named, would do at each level; nothing is written.

    timed  say also how long: from earlier parts of the store, or else from a short pass with the weights
    """
    from .pipeline import listing as listings
    from .pipeline.job import Job
    from .pipeline.levels import resolve_levels
    from .pipeline.plan import unique_items
    from .pipeline.preview import preview_levels

    workspace = workspace or Workspace.find()
    with workspace.used():
        specs = resolve_levels(backbone, level, dtype, precision, jpeg, segments)
    if benchmark:
        found = [_of_benchmark(benchmark, sources, segments)]
    else:
        found = _listings(data, splits, workspace, limit, segments, negatives, phrases)
    job = Job(tuple(specs), tuple(map(workspace.find_store, specs)), config or _asking(workspace))
    with workspace.used(), listings.use(workspace.path / "listing.sqlite", patience=found[0].patience(job.config)):
        items = unique_items(item for listing in found for item in listing.items())
        return preview_levels(found[0].segmented(items, *job.folders, keep=False), job, timed)


def extract_benchmark(
    backbone: str,
    benchmark: str,
    sources: Sources,
    *,
    level: str | Sequence[str] = "tokens",
    dtype: str = "float16",
    precision: str = "float32",
    jpeg: str = "exact",
    segments: str = "",
    config: ExtractConfig | None = None,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
) -> list[Summary]:
    """Extract the images and captions of a benchmark, what `compal eval NAME --extract` adds; a summary for each
    level."""
    from .pipeline.extract import extract_listing
    from .pipeline.levels import resolve_levels

    workspace = workspace or Workspace.find()
    with workspace.used():
        specs = resolve_levels(backbone, level, dtype, precision, jpeg, segments)
    listing = _of_benchmark(benchmark, sources, segments)
    return extract_listing(listing, specs, workspace, config or _asking(workspace), progress)


def _of_benchmark(benchmark: str, sources: Sources | None, segments: str) -> Listing:
    """How to list a benchmark's items again; a split that it does not have is refused here."""
    from .eval.sources import Sources
    from .pipeline.job import Listing

    sources = sources or Sources()
    sources.check_choices(benchmark, registry.load("benchmarks", benchmark).INFO)
    root, images = (str(path.absolute()) if path else "" for path in (sources.root, sources.images))
    chosen = sources.split or "", sources.limit, segments, benchmark, root, images, sources.allow_missing
    return Listing("", *chosen, variant=sources.variant or "")


def _asking(workspace: Workspace) -> ExtractConfig:
    """How to extract where nothing is said: the workspace's remotes are asked first."""
    from .pipeline.plan import ExtractConfig

    return ExtractConfig(remotes=tuple(workspace.remotes))


def open_store(
    backbone: str,
    level: str = "tokens",
    dtype: str = "float16",
    workspace: Workspace | None = None,
    remote: str = "",
) -> Store:
    """The workspace's store of a backbone's features, or the store whose folder is called `backbone`.

    One of another precision, scale of JPEGs or segmenter is taken where it is the only one. Raises `MissingFeatures` if
    there is none, `InputError` if there are several.

    With `remote` (a name of compal.toml, or a URL) the store is read where it lies: samples by ranged GETs,
    what is fetched whole kept in `workspace/cache`.
    """
    workspace = workspace or Workspace.find()
    if remote:
        from .pipeline.encoder import resolve
        from .stores.remotes.lazy import open_remote

        return open_remote(workspace.remote(remote), resolve(backbone, level, dtype).folder, workspace.path / "cache")
    from .pipeline.stored import spec_named

    return store_of(spec_named(backbone, level, dtype, workspace), workspace)


def store_of(spec: FeatureSpec, workspace: Workspace, benchmark: str = "") -> Store:
    """The store of a spec; see `pipeline.stored.store_of`."""
    from .pipeline import stored

    return stored.store_of(spec, workspace, benchmark)


def fit(
    recipe: str,
    backbone: str,
    data: str = "shapes",
    *,
    settings: Sequence[str] = (),
    name: str = "",
    device: str = "cpu",
    resume: bool = False,
    workspace: Workspace | None = None,
    progress: Callable[[Progress], None] | None = None,
    devices: int = 1,
    nodes: int = 1,
) -> RunResult:
    """Fit a recipe (a name or a TOML file) on extracted features; the run lies in `workspace.runs`. Towers that it
    tuned lie in the run's `towers/`, from the best checkpoint: a backbone, `run:NAME`.

    settings  `key=value` on top of the recipe; `level=…` says which store
    name      of the run's folder; made from recipe, settings, features and data by default
    devices, nodes  processes a machine and machines that share every batch: see `align.fit.fit`
    Raises `MissingFeatures` if store or pairs table are not there, and what `align.fit.fit` raises.
    """
    from .align.fit import fit as fit_run
    from .align.recipe import load_recipe
    from .align.runs import run_name
    from .align.scorer import tunes_towers
    from .pipeline.stored import spec_named

    workspace = workspace or Workspace.find()
    data = dataset_name(data)
    config = load_recipe(recipe, settings)
    spec = spec_named(backbone, config.level, "float16", workspace)
    named = spec.backbone if backbone == spec.folder else backbone
    train, validation = pairs_of(data, config.data.train, config.data.validation, workspace, named)
    store = store_of(spec, workspace)
    run = workspace.runs / (name or run_name(recipe, config, store.spec, data))

    def towers(device: str) -> Any:
        from .pipeline.trainable import open_towers

        return open_towers(store.spec, device)

    result = fit_run(config, store, train, validation, run, device, progress, resume, devices, nodes, towers)
    if tunes_towers(config.head["name"]):
        _keep_towers(result, store.spec)
    return result


def _keep_towers(result: RunResult, spec: FeatureSpec) -> None:
    """Write what a run tuned as a backbone beside its checkpoints, once."""
    from .align import processes, runs
    from .align.checkpoint import load_scorer
    from .pipeline.trainable import open_towers, save_tuned

    folder = result.run_dir / "towers"
    if not processes.first() or folder.exists():
        return
    tuned: Any = load_scorer(result.checkpoint, spec, towers=lambda: open_towers(spec))
    about = {"command": runs.command(), "run": result.run_dir.name, "step": result.best_step}
    save_tuned(folder, spec, tuned.towers.weights(), about)


@dataclass(frozen=True)
class Entry:
    """One row to score: its label and the scorer's origin."""

    label: str
    scorer: Scorer
    origin: dict[str, Any] = field(default_factory=dict)


def scorers(store: Store, heads: Sequence[str], runs: Sequence[str], workspace: Workspace, device: str) -> list[Entry]:
    """Training-free heads by name, and fitted ones by run id or by a checkpoint's path.

    Raises `UnknownName` for a head or run that does not exist, `InputError` for a head that must be fitted
    first, `SpecMismatch` for a checkpoint of another backbone.
    """
    if not heads and not runs:
        return []  # the references need no torch, whose import takes longer than scoring them
    from .align.checkpoint import load_scorer
    from .align.scorer import Dims, build_head
    from .eval.provenance import recipe_of

    found = []
    for head in heads:
        scorer = build_head(head, {}, Dims.of(store.spec)).to(device)
        if scorer.trainable:
            raise InputError(f"head '{head}' must be fitted before it can score", f"Fit it: compal fit {head}")
        found.append(Entry(head, scorer))
    for run in runs:
        path = checkpoint(run, workspace)
        scorer = load_scorer(path, store.spec, device)
        label = path.stem if path.parent.name != "checkpoints" else path.parent.parent.name
        found.append(Entry(label, scorer, {"checkpoint": str(path), **recipe_of(path)}))
    return found


def checkpoint(run: str, workspace: Workspace) -> Path:
    """A run id, a run folder, a shipped head (`shipped:tflocal`) or a .safetensors file → the checkpoint's file."""
    if run.startswith("shipped:"):
        shipped = registry.ROOT / "assets" / "heads" / f"{run.removeprefix('shipped:')}.safetensors"
        if not shipped.is_file():
            known = [f"shipped:{path.stem}" for path in shipped.parent.glob("*.safetensors")]
            raise UnknownName.among("shipped head", run, known)
        return shipped
    for folder in (workspace.runs / run, Path(run)):
        if (folder / "checkpoints" / "best.safetensors").is_file():
            return folder / "checkpoints" / "best.safetensors"
    if run.endswith(".safetensors") and Path(run).is_file():
        return Path(run)
    raise UnknownName.among("run", run, [path.name for path in workspace.list_runs()], "Fit one: compal fit tflocal")


def evaluate(
    benchmark: str,
    *,
    heads: Sequence[str] = (),
    runs: Sequence[str] = (),
    backbone: str,
    level: str = "tokens",
    sources: Sources | None = None,
    extract_missing: bool = False,
    device: str = "cpu",
    seed: int = 0,
    labels: dict[str, str] | None = None,
    references: tuple[str, ...] | None = None,
    rerank: Rerank | None = None,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
    extracting: Ticker | None = None,
) -> list[ResultRow]:
    """Score a benchmark from cached features; rows are saved below `workspace/scores`.

    extract_missing  extract what the store lacks first (the towers run for what is missing only)
    labels           other labels for heads and runs
    rerank           of retrieval: which candidates to score instead of all; `candidates` is "cosine" or a run
    Raises `MissingFeatures` naming the command that adds what is missing, and what the scorers raise.
    """
    from .eval.score import Options
    from .eval.score import evaluate as score
    from .eval.sources import Sources
    from .pipeline.stored import segmenter_of, spec_named

    workspace = workspace or Workspace.find()
    sources = sources or Sources()
    sources.check_choices(benchmark, registry.load("benchmarks", benchmark).INFO)
    spec = spec_named(backbone, level, "float16", workspace)
    if extract_missing:
        from .pipeline.extract import extract_listing

        listing = _of_benchmark(benchmark, sources, segmenter_of(spec))
        extract_listing(listing, [spec], workspace, _asking(workspace), extracting)
    store = store_of(spec, workspace, benchmark)
    entries = scorers(store, heads, runs, workspace, device)
    named = {(labels or {}).get(entry.label, entry.label): entry for entry in entries}
    if rerank and rerank.named:
        finder = scorers(store, (), [rerank.candidates], workspace, device)[0]
        finder = named.setdefault(finder.label, finder)
        rerank = rerank.by(finder.label, finder.scorer, store, device)
    origins = {label: entry.origin for label, entry in named.items()}
    options = Options(device=device, provenance=origins, progress=progress, rerank=rerank)
    if references is not None:
        options = dataclasses.replace(options, references=references)
    out = workspace.path / "scores"
    return score(benchmark, sources, store, {label: e.scorer for label, e in named.items()}, out, seed, options)
