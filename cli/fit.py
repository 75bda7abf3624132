"""`compal fit`: one recipe, a published set-up, or a table of them."""

from __future__ import annotations

from . import options, table
from .extract import choose
from .store import find_workspace


def fit(
    recipe: options.Recipe,
    backbone: options.Backbone = "",
    data: options.Data = "",
    set_: options.Settings = None,
    name: options.Name = "",
    level: options.Cut = "",
    resume: options.Resume = False,
    log: options.Log = None,
    device: options.Device = "cpu",
    resident: options.Resident = "",
    deterministic: options.Deterministic = False,
    devices: options.Ranks = 1,
    nodes: options.Nodes = 1,
    dry_run: options.FitDry = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Train a head from the store; the towers never run, unless they are what is trained.

    Writes WORKSPACE/runs/RUN: the complete configuration, provenance, metrics,
    a TensorBoard log and checkpoints; tuned towers are the backbone run:RUN.
    Ctrl-C finishes the step, saves it and says how to go on.
    Exit code 1: an input to fix, 2: usage.

    Example: compal fit tflocal --backbone shapes-vit --data shapes --set optim.steps=300

    RECIPE may be `all`: every recipe of the data set's table, three seeds each. Or a published set-up (compal ls
    setups): a recipe with its paper's backbone, data and schedule, which --backbone, --data and --set change.

    Example: compal fit negclip-coco --data coco:/data/coco --dry-run

    Example: compal fit linear --backbone clip --data coco:/data/coco --dry-run

    Example: compal fit linear --backbone clip --data coco:/data/coco --device cuda --devices 4

    Example: compal fit linear --log wandb --set optim.steps=300

    Example: compal fit finetune --backbone shapes-vit --data shapes --level pixels --set optim.lr=1e-4
    """
    from .. import api, console
    from ..align import processes, setups
    from ..align.recipe import load_recipe
    from ..api.fitting import settings_of
    from ..console import steps
    from ..pipeline.naming import dataset_name

    workspace = find_workspace(work)
    asked = setups.Setup(recipe, {}) if recipe == "all" else setups.read(recipe)
    more = {"recipe": recipe, "device": device}
    if recipe != "all":
        more["seed"] = str(load_recipe(recipe, list(set_ or ())).seed)
    chosen, dataset = choose(workspace, backbone or asked.backbone, data or asked.dataset, more)
    settings = settings_of(set_ or (), level, resident, deterministic)
    if recipe == "all":
        table.fit_all(workspace, dataset, backbone, settings, device, dry_run, as_json)
        return
    if dry_run:
        from ..fit_plan import plan_fit

        console.show_fit_plan(plan_fit(recipe, chosen, dataset, settings, name, workspace), as_json)
        return
    with console.Fitting() as fitting:
        run = api.fit(
            recipe, chosen, dataset, settings=settings, name=name, device=device, resume=resume,
            workspace=workspace, progress=fitting.tick, devices=devices, nodes=nodes, log=log or (),
        )  # fmt: skip
    if processes.first():
        console.show_run(run, as_json)
        if not as_json:
            steps.after_fit(run.run_dir, dataset_name(dataset), work, level or "tokens")
