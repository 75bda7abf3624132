"""The command line: parse, call one function, print, turn errors into one line. Imports lazily.

Results go to stdout, progress to stderr. Exit codes: 0 good, 1 fixable input, 2 usage, 3 verification
failed, 4 remote, 130 interrupted (start the same command again: it goes on where it was).
"""

from __future__ import annotations

import os
import sys

import typer

from . import (
    cli_diagnose,
    cli_eval,
    cli_extract,
    cli_negatives,
    cli_patch,
    cli_peers,
    cli_share,
    cli_table,
    cli_view,
    options,
    registry,
)
from .cli_extract import choose
from .cli_store import find_workspace, store_app
from .errors import CompalError, UnknownName, UsageError

app = typer.Typer(
    help="Extract frozen dual-encoder features once, train alignment heads from the store, score benchmarks honestly.",
    epilog="Three stages, each useful alone: extract → fit → eval. See it happen in minutes: compal demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(store_app, name="store")


def main() -> None:
    """The entry point: run a command, print an error as one line, exit with its code."""
    try:
        app()
    except CompalError as error:
        if os.environ.get("COMPAL_TRACEBACK"):
            raise
        if not error.relayed:
            print(f"compal: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("compal: interrupted. Start the same command again; it goes on where it was.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.callback()
def _root(
    version: options.Version = False,
) -> None:
    pass


app.command(rich_help_panel="The three stages")(cli_extract.extract)
app.command(rich_help_panel="Data")(cli_negatives.negatives)


@app.command(rich_help_panel="The three stages")
def fit(
    recipe: options.Recipe,
    backbone: options.Backbone = "",
    data: options.Data = "",
    set_: options.Settings = None,
    name: options.Name = "",
    level: options.Cut = "",
    resume: options.Resume = False,
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
    Exit code 1: an input to fix, 2: usage.

    Example: compal fit tflocal --backbone shapes-vit --data shapes --set optim.steps=300

    RECIPE may be `all`: every recipe of the data set's table, three seeds each. Or a published set-up (compal ls
    setups): a recipe with its paper's backbone, data and schedule, which --backbone, --data and --set change.

    Example: compal fit negclip-coco --data coco:/data/coco --dry-run

    Example: compal fit linear --backbone clip --data coco:/data/coco --dry-run

    Example: compal fit linear --backbone clip --data coco:/data/coco --device cuda --devices 4

    Example: compal fit finetune --backbone shapes-vit --data shapes --level pixels --set optim.lr=1e-4
    """
    from . import api, console
    from .align import processes, setups

    workspace = find_workspace(work)
    asked = setups.Setup(recipe, {}) if recipe == "all" else setups.read(recipe)
    chosen, dataset = choose(workspace, backbone or asked.backbone, data or asked.dataset)
    settings = [*(set_ or ()), *([f"data.resident={resident}"] if resident else [])]
    settings += ["deterministic=true"] if deterministic else []
    settings += [f"level={level}"] if level else []
    if recipe == "all":
        cli_table.fit_all(workspace, dataset, backbone, settings, device, dry_run, as_json)
        return
    if dry_run:
        from .fit_plan import plan_fit

        console.show_fit_plan(plan_fit(recipe, chosen, dataset, settings, name, workspace), as_json)
        return
    with console.Fitting() as fitting:
        run = api.fit(
            recipe, chosen, dataset, settings=settings, name=name, device=device, resume=resume,
            workspace=workspace, progress=fitting.tick, devices=devices, nodes=nodes,
        )  # fmt: skip
    if processes.first():
        workspace.remember(chosen, dataset)
        console.show_run(run, as_json)


app.command("eval", rich_help_panel="The three stages")(cli_eval.evaluate)
app.command(rich_help_panel="The three stages")(cli_diagnose.diagnose)


app.command(rich_help_panel="The three stages")(cli_eval.report)
app.command("import", rich_help_panel="Data")(cli_peers.import_)
app.command(rich_help_panel="Weights")(cli_patch.patch)


app.command(rich_help_panel="Look")(cli_view.view)
app.command(rich_help_panel="Look")(cli_view.plot)


@app.command(rich_help_panel="Look")
def demo(
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Run the whole pipeline on the embedded world: extract, fit, eval, report. Minutes on a laptop's CPU.

    Example: compal demo

    Example: compal demo --json --work /tmp/first-look
    """
    from . import demo as show

    show.run(find_workspace(work), as_json)


@app.command(rich_help_panel="Look")
def ls(
    kind: options.Kind = "",
    remote: options.OnRemotes = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """List the parts that exist, a line each.

    Example: compal ls backbones

    Example: compal ls --remote

    Example: compal ls runs --json
    """
    places = ("stores", "runs")
    if remote:
        from . import console_store

        if kind not in ("", "stores"):
            raise UsageError(f"remotes hold stores, not {kind}", "Leave out the kind.")
        console_store.show_remote(cli_share.list_remote(work), as_json)
        return
    if kind and kind not in (*registry.KINDS, *places):
        raise UnknownName.among("kind of part", kind, (*registry.KINDS, *places))
    kinds = [kind] if kind else [*registry.KINDS, *places]
    listing: dict[str, dict[str, str]] = {}
    for one in kinds:
        if one in places:
            workspace = find_workspace(work)
            found = workspace.list_stores() if one == "stores" else workspace.list_runs()
            listing[one] = {path.name: str(path) for path in found}
        else:
            listing[one] = {name: registry.summary(one, name) for name in registry.names(one)}
        if one == "datasets":
            for name in listing[one]:
                listing[one][name] += f" Licence: {registry.licence(one, name)}."
    if as_json:
        from . import console

        console.print_json(listing)
        return
    for one, parts in listing.items():
        print(one)
        width = max(map(len, parts), default=0)
        for name, text in parts.items():
            print(f"  {name:<{width}}  {text}")
        if not parts:
            print("  none yet")


@app.command(rich_help_panel="Look")
def doctor(as_json: options.Json = False, work: options.Work = None) -> None:
    """Say what works on this machine: Python, torch, GPU, Triton, libraries, the workspace.

    Example: compal doctor

    Example: compal doctor --json
    """
    from . import console

    console.show_doctor(find_workspace(work), as_json)


if __name__ == "__main__":
    main()
