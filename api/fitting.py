"""Fitting as a function: a recipe on extracted features, and towers that a run tuned as a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..pipeline.naming import dataset_name, pairs_of
from ..workspace import Workspace
from .stored import store_of

if TYPE_CHECKING:
    from ..align.fit import Progress, RunResult
    from ..stores.spec import FeatureSpec


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
    from ..align.fit import fit as fit_run
    from ..align.recipe import load_recipe
    from ..align.runs import run_name
    from ..align.scorer import tunes_towers
    from ..pipeline.stored import spec_named

    workspace = workspace or Workspace.find()
    data = dataset_name(data)
    config = load_recipe(recipe, settings)
    spec = spec_named(backbone, config.level, "float16", workspace)
    named = spec.backbone if backbone == spec.folder else backbone
    train, validation = pairs_of(data, config.data.train, config.data.validation, workspace, named)
    store = store_of(spec, workspace)
    run = workspace.runs / (name or run_name(recipe, config, store.spec, data))

    def towers(device: str) -> Any:
        from ..pipeline.trainable import open_towers

        return open_towers(store.spec, device)

    result = fit_run(config, store, train, validation, run, device, progress, resume, devices, nodes, towers)
    if tunes_towers(config.head["name"]):
        _keep_towers(result, store.spec)
    return result


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
