"""`compal demo`, `ls` and `doctor`: the whole story, what exists, what works here."""

from __future__ import annotations

import typer

from .. import registry
from ..errors import UnknownName, UsageError
from . import options, share
from .store import find_workspace


def demo(
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Run the whole pipeline on the embedded world: extract, fit, eval, report. Minutes on a laptop's CPU.

    Example: compal demo

    Example: compal demo --json --work /tmp/first-look
    """
    from .. import demo as show

    show.run(find_workspace(work), as_json)


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
        from ..console import store as console_store

        if kind not in ("", "stores"):
            raise UsageError(f"remotes hold stores, not {kind}", "Leave out the kind.")
        console_store.show_remote(share.list_remote(work), as_json)
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
        from .. import console

        console.print_json(listing)
        return
    for one, parts in listing.items():
        print(one)
        width = max(map(len, parts), default=0)
        for name, text in parts.items():
            print(f"  {name:<{width}}  {text}")
        if not parts:
            print("  none yet")


def doctor(remotes: options.AskRemotes = False, as_json: options.Json = False, work: options.Work = None) -> None:
    """Say what works on this machine, and what to do where it does not: Python, torch, GPU, kernels, extras, disk,
    limits, the workspace.

    Nothing is downloaded. Exit code 0, unless something is broken that everybody needs: 1.

    Example: compal doctor

    Example: compal doctor --remotes --json
    """
    from ..console import doctor as checks

    ask = (lambda: share.list_remote(work)) if remotes else None
    if not checks.show(find_workspace(work), ask, as_json):
        raise typer.Exit(1)
