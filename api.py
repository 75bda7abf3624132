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
from .errors import InputError, MissingFeatures, UnknownName
from .workspace import Workspace

if TYPE_CHECKING:
    from .align.fit import Progress, RunResult
    from .align.recipe import FitConfig
    from .align.scorer import Scorer
    from .eval.results import ResultRow
    from .eval.sources import Sources
    from .pipeline.extract import ExtractConfig, Preview, Summary
    from .stores.spec import FeatureSpec
    from .stores.store import Store

Ticker = Callable[[str, int, int], None]
DATA_SUFFIXES = (".jsonl", ".csv", ".parquet")


def dataset_name(data: str) -> str:
    """`--data` as a user types it → NAME[:ROOT]: a path to a table or a folder needs no name in front."""
    name, _ = registry.split_argument(data)
    if name in registry.names("datasets") or ("." in name and ("/" not in data) and not Path(data).exists()):
        return data
    path = Path(data).expanduser()
    if path.is_dir():
        return f"folder:{data}"
    if path.suffix in DATA_SUFFIXES:
        return f"table:{data}"
    return data


def extract(
    backbone: str,
    data: str = "shapes",
    splits: Sequence[str] = (),
    *,
    level: str = "tokens",
    dtype: str = "float16",
    limit: int | None = None,
    config: ExtractConfig | None = None,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
) -> list[Summary]:
    """Extract splits of a dataset (all the dataset needs for fitting by default) into one store; one summary each.

    What the workspace's remotes hold is pulled instead of computed (`config.remotes` says which are asked).
    Writes the pairs tables that `fit` reads. Raises what `pipeline.extract.extract_dataset` raises.
    """
    from .pipeline.encoder import resolve
    from .pipeline.extract import extract_dataset

    workspace = workspace or Workspace.find()
    data = dataset_name(data)
    spec = resolve(backbone, level, dtype)
    config = config or _asking(workspace)
    return [
        extract_dataset(data, split, spec, workspace, config, limit, progress)
        for split in splits or default_splits(data, workspace)
    ]


def item_keys(data: str, splits: Sequence[str] = (), workspace: Workspace | None = None) -> set[str]:
    """The keys of a dataset's images and captions; what `extract` asks remotes for."""
    workspace = workspace or Workspace.find()
    data = dataset_name(data)
    name, root = workspace.dataset(data)
    module = registry.load("datasets", name)
    return {item.key for split in splits or default_splits(data, workspace) for item in module.items(root, split, None)}


def default_splits(data: str, workspace: Workspace) -> list[str]:
    """train and validation where the dataset has them (its first split where it has neither)."""
    from .pipeline.extract import splits

    found = splits(data, workspace)
    fitting = [split for split in found if split in ("train", "validation", "val", "train2017", "val2017")]
    return fitting or found[:1]


def preview(
    backbone: str,
    data: str = "shapes",
    splits: Sequence[str] = (),
    *,
    level: str = "tokens",
    dtype: str = "float16",
    limit: int | None = None,
    config: ExtractConfig | None = None,
    workspace: Workspace | None = None,
) -> Preview:
    """What `extract` would do; nothing is written and no weights are run."""
    from .pipeline.encoder import resolve
    from .pipeline.extract import preview as preview_items

    workspace = workspace or Workspace.find()
    data = dataset_name(data)
    name, root = workspace.dataset(data)
    module = registry.load("datasets", name)
    spec = resolve(backbone, level, dtype)
    wanted = (item for split in splits or default_splits(data, workspace) for item in module.items(root, split, limit))
    return preview_items(wanted, spec, workspace.find_store(spec), config)


def extract_benchmark(
    backbone: str,
    benchmark: str,
    sources: Sources,
    *,
    level: str = "tokens",
    dtype: str = "float16",
    config: ExtractConfig | None = None,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
) -> Summary:
    """Extract the images and captions of a benchmark: what `compal eval NAME --extract` adds."""
    from .pipeline.encoder import resolve
    from .pipeline.extract import extract as extract_items

    workspace = workspace or Workspace.find()
    spec = resolve(backbone, level, dtype)
    module = registry.load("benchmarks", benchmark)
    sources.check_split(benchmark, module.INFO)
    config = config or _asking(workspace)
    return extract_items(module.items(sources), spec, workspace.find_store(spec), config, progress)


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
    """The workspace's store of a backbone's features. Raises `MissingFeatures` if it is not there.

    With `remote` (a name of compal.toml, or a URL) the store is read where it lies: samples by ranged GETs,
    what is fetched whole kept in `workspace/cache`.
    """
    from .pipeline.encoder import resolve

    workspace = workspace or Workspace.find()
    if remote:
        from .stores.remotes.lazy import open_remote

        return open_remote(workspace.remote(remote), resolve(backbone, level, dtype).folder, workspace.path / "cache")
    return store_of(resolve(backbone, level, dtype), workspace)


def store_of(spec: FeatureSpec, workspace: Workspace, benchmark: str = "") -> Store:
    """The store of a spec. Raises `MissingFeatures` naming the command that makes it, for a `benchmark` if given."""
    from .stores.store import Store

    folder = workspace.find_store(spec)
    if not (folder / "spec.json").is_file():
        asked = "" if spec.level == "tokens" else f" --level {spec.level}"
        asked += f" --benchmark {benchmark}, or add --extract" if benchmark else ""
        raise MissingFeatures(
            f"no features of {spec.backbone} at level '{spec.level}' in {workspace.stores}",
            f"Make them: compal extract --backbone {spec.backbone}{asked}",
        )
    return Store.open(folder)


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
) -> RunResult:
    """Fit a recipe (a name or a TOML file) on extracted features; the run lies in `workspace.runs`.

    settings  `key=value` on top of the recipe
    name      of the run's folder; made from recipe, settings, features and data by default
    Raises `MissingFeatures` if store or pairs table are not there, and what `align.fit.fit` raises.
    """
    from .align.fit import fit as fit_run
    from .align.recipe import load_recipe
    from .align.runs import run_name
    from .pipeline.encoder import resolve

    workspace = workspace or Workspace.find()
    data = dataset_name(data)
    config = load_recipe(recipe, settings)
    train, validation = _pairs(workspace, backbone, data, config)
    store = store_of(resolve(backbone), workspace)
    run = workspace.runs / (name or run_name(recipe, config, store.spec, data))
    return fit_run(config, store, train, validation, run, device, progress, resume)


def _pairs(workspace: Workspace, backbone: str, data: str, config: FitConfig) -> tuple[Path, Path | None]:
    """The pairs tables to fit and to validate on: the recipe's splits, else what this dataset calls them
    (val, train2017, …). With a single split there is nothing to validate on."""
    from .pipeline.extract import splits

    known = splits(data, workspace)
    train = _called(config.data.train, known, ("train2017", "train2014")) or (known[0] if len(known) == 1 else "")
    validation = _called(config.data.validation, known, ("val", "val2017", "val2014"))
    if not train:
        raise UnknownName.among(f"split of {data}", config.data.train, known, "Choose one: --set data.train=SPLIT")

    def table(split: str) -> Path:
        path = workspace.pairs_path(data, split)
        if not path.is_file():
            raise MissingFeatures(
                f"no pairs of {data}, split '{split}', in {workspace.pairs}",
                f"Make them: compal extract --backbone {backbone} --data {data} --split {split}",
            )
        return path

    return table(train), table(validation) if validation not in ("", train) else None


def _called(split: str, known: Sequence[str], others: Sequence[str]) -> str:
    """The split itself if the dataset has it, else the first of its usual other names; "" asked, or none, is ""."""
    return next((name for name in (split, *others) if split and name in known), "")


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
    from .align.checkpoint import load_scorer
    from .align.scorer import Dims, build_head

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
        found.append(Entry(label, scorer, {"checkpoint": str(path)}))
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
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
    extracting: Ticker | None = None,
) -> list[ResultRow]:
    """Score a benchmark from cached features; rows are saved below `workspace/scores`.

    extract_missing  extract what the store lacks first (the towers run for what is missing only)
    labels           other labels for heads and runs
    Raises `MissingFeatures` naming the command that adds what is missing, and what the scorers raise.
    """
    from .eval.score import Options
    from .eval.score import evaluate as score
    from .eval.sources import Sources
    from .pipeline.encoder import resolve

    workspace = workspace or Workspace.find()
    sources = sources or Sources()
    sources.check_split(benchmark, registry.load("benchmarks", benchmark).INFO)
    spec = resolve(backbone, level)
    if extract_missing:
        extract_benchmark(backbone, benchmark, sources, level=level, workspace=workspace, progress=extracting)
    store = store_of(spec, workspace, benchmark)
    entries = scorers(store, heads, runs, workspace, device)
    named = {(labels or {}).get(entry.label, entry.label): entry for entry in entries}
    options = Options(
        device=device,
        provenance={label: entry.origin for label, entry in named.items()},
        progress=progress,
    )
    if references is not None:
        options = dataclasses.replace(options, references=references)
    out = workspace.path / "scores"
    return score(benchmark, sources, store, {label: e.scorer for label, e in named.items()}, out, seed, options)
