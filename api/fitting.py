"""Fitting as a function: a recipe on extracted features, and towers that a run tuned as a backbone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..pipeline.naming import dataset_name, pairs_of
from .choices import Features, Place, Settings, data_of, listed, store_named, workspace_of
from .stored import store_of

if TYPE_CHECKING:
    from ..align.fit import Progress, RunResult
    from ..stores.spec import FeatureSpec


def fit(
    recipe: str | os.PathLike[str],
    backbone: Features = "",
    data: str = "",
    *,
    settings: Settings = (),
    name: str = "",
    level: str = "",
    resident: str = "",
    deterministic: bool = False,
    device: str = "cpu",
    resume: bool = False,
    workspace: Place = None,
    progress: Callable[[Progress], None] | None = None,
    devices: int = 1,
    nodes: int = 1,
    log: Sequence[str] = (),
) -> RunResult:
    """Fit a recipe on extracted features; the run lies in `workspace.runs`. Towers that it tuned lie in the run's
    `towers/`, from the best checkpoint: a backbone, `run:NAME`.

    recipe     a recipe or a set-up by name (`compal ls recipes`, `setups`), or a TOML file
    backbone   whose features to fit on, or their store; "" is the set-up's, else the one used last
    data       a dataset, NAME[:ROOT], or a table or folder by path; "" is the set-up's, else the one used last
    settings   on top of the recipe: `["optim.steps=300"]`, or `{"optim.steps": 300}`
    name       of the run's folder; made from recipe, settings, features and data by default
    level      of the store to fit on; the recipe's by default
    resident   where features stay meanwhile: disk, ram, gpu or auto; the recipe's by default
    deterministic   only operators that give the same bits each time
    device     cpu, cuda, cuda:1, mps
    resume     go on with a run that was stopped; one that is complete is returned as it is
    progress   called after every step (`align.fit.Progress`: step, loss, learning rate, validation in percent)
    devices, nodes  processes a machine and machines that share every batch: see `align.fit.fit`
    log        loggers beside metrics.jsonl and TensorBoard: "wandb"; none is what compal.toml says

    Returns the run: `run_dir`, `checkpoint` of the best step, `score` in percent, `seconds`; `evaluate` takes it.
    The caller's random generators are left as they were.

    Raises `MissingFeatures` if store or pairs table are not there (it names the command that makes them),
    `UnknownName` for a recipe or a setting that does not exist, `UsageError` for a value that does not fit,
    `InputError` if the run is there and `resume` is not asked for, or if the loss is no longer finite.
    """
    from ..align import loggers, processes, setups
    from ..align.fit import fit as fit_run
    from ..align.recipe import load_recipe
    from ..align.runs import run_name
    from ..align.scorer import tunes_towers

    workspace, recipe = workspace_of(workspace), os.fspath(recipe)
    asked, kept = setups.read(recipe), loggers.chosen(log or workspace.settings.defaults.log)
    chosen = data_of(data or asked.dataset, workspace)
    data = dataset_name(chosen)
    config = load_recipe(recipe, settings_of(settings, level, resident, deterministic))
    store, spec, named = store_named(backbone or asked.backbone, config.level, "float16", workspace)
    shown = spec.backbone if named in ("", spec.folder) else named
    train, validation = pairs_of(data, config.data.train, config.data.validation, workspace, shown)
    store = store or store_of(spec, workspace)
    spec = store.spec
    run = workspace.runs / (name or run_name(recipe, config, spec, data))

    def towers(device: str) -> Any:
        from ..pipeline.trainable import open_towers

        return open_towers(spec, device)

    result = fit_run(config, store, train, validation, run, device, progress, resume, devices, nodes, towers, kept)
    if tunes_towers(config.head["name"]):
        _keep_towers(result, spec)
    if processes.first():
        workspace.remember(named, chosen)
    return result


def settings_of(settings: Settings, level: str, resident: str, deterministic: bool) -> list[str]:
    """All settings as `key=value`, what has a name of its own last."""
    told = list(_flat(settings)) if isinstance(settings, Mapping) else listed(settings)
    told += [f"data.resident={resident}"] if resident else []
    told += ["deterministic=true"] if deterministic else []
    return told + ([f"level={level}"] if level else [])


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """`{"optim": {"steps": 300}}`, or `{"optim.steps": 300}`, as `optim.steps=300`."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={json.dumps(value, ensure_ascii=False, default=str)}"


def _keep_towers(result: RunResult, spec: FeatureSpec) -> None:
    """Write what a run tuned as a backbone beside its checkpoints, once."""
    from ..align import processes, runs
    from ..align.checkpoint import load_scorer
    from ..pipeline.trainable import open_towers, save_tuned

    folder = result.run_dir / "towers"
    if not processes.first() or folder.exists():
        return
    tuned: Any = load_scorer(result.checkpoint, spec, towers=lambda: open_towers(spec))
    about = {"command": runs.command(), "run": result.run_dir.name, "step": result.best_step}
    save_tuned(folder, spec, tuned.towers.weights(), about)
