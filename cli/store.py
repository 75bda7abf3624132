"""`compal store …`: look into stores, prove that they are whole, keep them in order, share them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import InputError, UnknownName, UsageError
from . import options

if TYPE_CHECKING:
    from ..workspace import Workspace

store_app = typer.Typer(no_args_is_help=True, help="Feature stores: look, prove, keep in order, share, convert.")

LOOK, KEEP, SHARE, CONVERT = "Look", "Keep in order", "Share", "Convert"


def find_workspace(work: Path | None) -> Workspace:
    """The workspace that `--work` names, else the one of the current folder."""
    from ..workspace import Workspace

    return Workspace.find().at(work) if work else Workspace.find()


def store_path(store: str, work: Path | None) -> Path:
    """A store by its path, or by the beginning of its folder's name in the workspace: a backbone's name is one."""
    from ..stores.spec import slug_of

    if store and Path(store).is_dir():
        return Path(store)
    workspace = find_workspace(work)
    stores = workspace.list_stores()
    if not stores and not store:
        raise InputError(f"there is no store in {workspace.stores}", "Make one: compal extract")
    begins = (store, slug_of(store)[:40] or store)
    matching = [path for path in stores if path.name.startswith(begins)] if store else stores
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise InputError(
            f"'{store}' fits several stores: {', '.join(path.name for path in matching)}",
            "Give more of the name.",
        )
    raise UnknownName.among("store", store, [path.name for path in stores], "Make one: compal extract")


# --- look ------------------------------------------------------------------------------------------------


@store_app.command(rich_help_panel=LOOK)
def info(store: options.StoreName = "", as_json: options.Json = False, work: options.Work = None) -> None:
    """Say what a store holds, how it was made and what could not be read.

    Example: compal store info

    Example: compal store info shapes-vit --json
    """
    from .. import console
    from ..stores.store import Store

    console.show_info(Store.open(store_path(store, work)).info(), as_json)


@store_app.command(rich_help_panel=LOOK)
def verify(
    store: options.StoreName = "",
    deep: options.Deep = True,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Prove that a store is whole; exit code 3 and a list of problems if it is not.

    Example: compal store verify

    Example: compal store verify shapes-vit --no-deep
    """
    from .. import console
    from ..stores.verify import verify as check

    path = store_path(store, work)
    problems = check(path, deep)
    console.show_problems(path, problems, as_json)
    if problems:
        raise typer.Exit(3)


@store_app.command(rich_help_panel=LOOK)
def log(
    store: options.StoreName = "",
    limit: options.Limit = None,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """List the versions of a store, newest first: when, who, what came and what went.

    Example: compal store log

    Example: compal store log shapes-vit --json
    """
    from ..console import store as console_store
    from ..stores import history

    console_store.show_log(history.log(store_path(store, work), limit), as_json)


@store_app.command(rich_help_panel=LOOK)
def diff(
    store: options.FirstStore,
    other: options.OtherStore,
    atol: options.Atol = 0.0,
    rtol: options.Rtol = 0.0,
    limit: options.Limit = None,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Compare two stores: specs field by field, keys, and the values of common keys; exit code 1 if they differ.

    Example: compal store diff mine /share/theirs --atol 0.001
    """
    from ..console import store as console_store
    from ..stores.diff import diff as compare

    found = compare(store_path(store, work), store_path(other, work), atol, rtol, limit)
    console_store.show_difference(found, as_json)
    if not found.equal:
        raise typer.Exit(1)


# --- keep in order ---------------------------------------------------------------------------------------


@store_app.command(rich_help_panel=KEEP)
def restore(
    store: options.FirstStore, version: options.Version_, as_json: options.Json = False, work: options.Work = None
) -> None:
    """Go back to an earlier version, as a new one: nothing is lost, and restoring again undoes it.

    Example: compal store restore shapes-vit 3
    """
    from ..console import store as console_store
    from ..stores import history

    path = store_path(store, work)
    number = history.restore(path, version)
    console_store.show_fact({"store": path, "restored": version, "version": number}, as_json)


@store_app.command(rich_help_panel=KEEP)
def compact(
    store: options.StoreName = "",
    part_mib: options.PartSize = 256,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Rewrite many small parts as few full ones; values stay as they are, bit for bit.

    The old parts stay on disk, for the versions that list them, until `compal store gc`.

    Example: compal store compact shapes-vit --dry-run
    """
    from .. import console
    from ..console import store as console_store
    from ..stores.upkeep import compact as rewrite

    with console.Ticking() as ticking:
        path = store_path(store, work)
        done = rewrite(path, part_mib * 2**20, dry_run, lambda done, total: ticking.tick("parts", done, total))
    console_store.show_result(done, as_json)


@store_app.command(rich_help_panel=KEEP)
def gc(
    store: options.StoreName = "",
    days: options.Days = 7.0,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Delete what no version of the last days needs: dropped parts, and what killed writers left.

    Example: compal store gc --dry-run

    Example: compal store gc shapes-vit --days 0
    """
    from ..console import store as console_store
    from ..stores.upkeep import gc as collect

    console_store.show_result(collect(store_path(store, work), days, dry_run), as_json)


@store_app.command(rich_help_panel=KEEP)
def merge(
    sources: options.Sources,
    into: options.Into,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Copy what stores of the same spec hold into one of them, or into a new folder; nothing is copied twice.

    Example: compal store merge /scratch/a /scratch/b --into /share/all
    """
    from .. import console
    from ..console import store as console_store
    from ..stores.remotes.transfer import merge as join

    with console.Ticking() as ticking:
        done = join([store_path(one, work) for one in sources], into, ticking.tick)
    console_store.show_result(done, as_json)


@store_app.command(rich_help_panel=KEEP)
def cast(
    store: options.StoreName = "",
    dtype: options.CastTo = "int8",
    into: options.NewFolder = None,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Write a derived store of another dtype, with a fingerprint of its own: bfloat16, or int8 at half the bytes.

    Example: compal store cast shapes-vit --dtype int8
    """
    from .. import console
    from ..console import store as console_store
    from ..stores.cast import cast as convert

    with console.Ticking() as ticking:
        path = store_path(store, work)
        done = convert(path, into, dtype, lambda done, total: ticking.tick("parts", done, total))
    console_store.show_result(done, as_json)


# --- convert ---------------------------------------------------------------------------------------------


@store_app.command("export", rich_help_panel=CONVERT)
def export_(
    store: options.FirstStore,
    path: options.NewFile,
    format_: options.StoreFormat = "",
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Write a store as one file that others read: HDF5, safetensors, npz, WebDataset, Hugging Face, faiss.

    The format is taken from the suffix where that tells it. Nothing is overwritten.

    Example: compal store export shapes-vit shapes.h5

    Example: compal store export shapes-vit shards --format webdataset
    """
    from .. import registry
    from ..console import store as console_store
    from ..stores.store import Store

    module = registry.load("formats", format_ or _by_suffix(path))
    console_store.show_result(module.export(Store.open(store_path(store, work)), path), as_json)


@store_app.command("import", rich_help_panel=CONVERT)
def import_(
    path: options.ExistingFile,
    into: options.StoresFolder = None,
    format_: options.StoreFormat = "",
    mapping: options.Mapping = None,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Read features from a file into a store: an exported one, or somebody's own by a small mapping.

    The store is named by its spec; one of the same spec gains what it lacks.

    Example: compal store import shapes.h5

    Example: compal store import theirs.h5 --into /data/stores --map keys=ids --map pooled=features
    """
    from .. import registry
    from ..console import store as console_store

    name = format_ or _by_suffix(path)
    module = registry.load("formats", name)
    if not hasattr(module, "load"):
        raise UsageError(f"{name} can be written, not read", "Import from hdf5, safetensors or npz.")
    pairs = dict(_pair(text) for text in mapping or ())
    folder = module.load(path, into or find_workspace(work).stores, pairs or None)
    console_store.show_fact({"store": folder, "from": path, "format": name}, as_json)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise UsageError(f"--map takes NAME=DATASET, not '{text}'", "For example: --map keys=ids")
    return name, value


def _by_suffix(path: Path) -> str:
    from .. import registry

    suffixes = {registry.load("formats", name).SUFFIX: name for name in registry.names("formats")}
    for suffix, name in suffixes.items():
        if suffix and path.name.endswith(suffix):
            return name
    known = ", ".join(registry.names("formats"))
    raise UsageError(f"the suffix of {path.name} names no format", f"Say --format: {known}.")
