"""`compal store push|pull|trust`: what one extracted, nobody extracts again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UnknownName, UsageError
from . import options
from .store import SHARE, find_workspace, store_path
from .store import store_app as store_app

if TYPE_CHECKING:
    from ..workspace import Remote, Workspace


def chosen_remote(workspace: Workspace, name: str) -> Remote:
    """The remote of that name or URL; the only one where none is named."""
    if name:
        return workspace.remote(name)
    known = [remote.name for remote in workspace.remotes]
    if len(known) != 1:
        what = f"there are several remotes: {', '.join(known)}" if known else "compal.toml names no remote"
        raise UsageError(what, "Say which: --remote NAME, s3://bucket/prefix, or a folder.")
    return workspace.remotes[0]


def remote_name(remote: Remote, beginning: str) -> str:
    """The store on the remote whose name begins so; the only one where none is named."""
    from ..stores.remotes.transfer import remote_stores

    known = [store.name for store in remote_stores(remote)]
    if not known:
        raise InputError(f"there is no store on {remote.url}", "Push one: compal store push")
    matching = [beginning] if beginning in known else [name for name in known if name.startswith(beginning)]
    if len(matching) != 1:
        raise UnknownName.among(f"single store on {remote.name}", beginning, known, "Push one: compal store push")
    return matching[0]


@store_app.command(rich_help_panel=SHARE)
def push(
    store: options.StoreName = "",
    remote: options.RemoteName = "",
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Publish what a store has committed; parts that are there already are not sent again.

    Killed at any moment, the same command goes on where it was.

    Example: compal store push shapes-vit --remote team

    Example: compal store push --remote s3://bucket/features
    """
    from .. import console
    from ..console import store as console_store
    from ..stores.remotes import transfer

    target = chosen_remote(find_workspace(work), remote)
    with console.Ticking() as ticking:
        done = transfer.push(store_path(store, work), target, ticking.tick)
    console_store.show_result(done, as_json)


@store_app.command(rich_help_panel=SHARE)
def pull(
    store: options.RemoteStore = "",
    remote: options.RemoteName = "",
    data: options.OnlyData = "",
    split: options.Splits = None,
    into: options.NewFolder = None,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Bring a shared store here: whole, or just the parts that a dataset needs. Verified before it is visible.

    Example: compal store pull shapes-vit --remote team

    Example: compal store pull shapes-vit --data shapes --split validation
    """
    from .. import api, console
    from ..console import store as console_store
    from ..stores.remotes import transfer

    workspace = find_workspace(work)
    if split and not data:
        raise UsageError("--split needs a dataset", "Add --data NAME.")
    source = chosen_remote(workspace, remote)
    name = remote_name(source, store)
    keys = api.item_keys(data, split or (), workspace) if data else None
    with console.Ticking() as ticking:
        done = transfer.pull(source, name, into or workspace.stores / name, keys, ticking.tick)
    console_store.show_result(done, as_json)


@store_app.command(rich_help_panel=SHARE)
def trust(
    store: options.RemoteStore = "",
    remote: options.RemoteName = "",
    version: options.TrustVersion = None,
    forget: options.Forget = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Pin a version of a shared store by its hash: a rewritten history is refused from then on.

    Example: compal store trust shapes-vit --remote team

    Example: compal store trust shapes-vit --remote team --forget
    """
    from ..console import store as console_store
    from ..stores.remotes import trust as pins

    source = chosen_remote(find_workspace(work), remote)
    name = remote_name(source, store)
    facts: dict[str, object] = {"store": f"{source.url}/{name}"}
    if forget:
        facts["forgotten"] = pins.distrust(source, name)
    else:
        pin = pins.trust(source, name, version)
        facts |= {"version": pin.number, "sha256": pin.sha256}
    console_store.show_fact(facts, as_json)


def list_remote(work: Path | None) -> list[dict[str, object]]:
    """The stores on every remote of compal.toml; one that does not answer is listed with its problem."""
    import dataclasses

    from ..errors import RemoteError
    from ..stores.remotes.transfer import remote_stores

    found: list[dict[str, object]] = []
    for remote in find_workspace(work).remotes:
        try:
            found += [dataclasses.asdict(store) for store in remote_stores(remote)]
        except RemoteError as error:
            found.append({"remote": remote.name, "url": remote.url, "name": "", "problem": str(error)})
    return found
