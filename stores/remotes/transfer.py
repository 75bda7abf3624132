"""Push, pull and merge: stores go to a remote, come from one, and join. Each can be repeated and killed.

Equal parts are never sent twice; a part with the same name and other bytes stays as it was published first,
on either side, and is reported as a conflict.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, RemoteError, SpecMismatch
from ...workspace import Remote
from ..files import read_json
from ..spec import FeatureSpec
from ..store import Store
from .chains import follow
from .local import LocalObjects
from .objects import connect, prove_create_only
from .pull import Arrived, Progress, bring
from .push import require, send
from .shared import NAME, RemoteStoreInfo, SharedStore, remote_stores
from .trust import check_pin

__all__ = ["Merged", "Pulled", "Pushed", "RemoteStoreInfo", "merge", "offers", "pull", "push", "remote_stores"]


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    url            of the store on the remote
    manifest       number of the remote's newest manifest
    parts, bytes   sent now; `present` parts were there before
    conflicts      parts that the remote holds, or is about to, with other content; it keeps those
    equal          whether the local history is now the remote's
    seconds        wall clock
    """

    url: str
    manifest: int
    parts: int
    bytes: int
    present: int
    conflicts: tuple[str, ...]
    equal: bool
    seconds: float


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    store          the local folder
    url            of the store on the remote
    manifest       number of the local store's newest manifest
    parts, bytes   brought now; `present` parts were there before
    items          rows of the parts brought, or how many of the keys asked for they hold
    conflicts      parts that are here with other content, and stayed
    saved_seconds  of forward passes that the items brought took where they were computed
    seconds        wall clock
    """

    store: Path
    url: str
    manifest: int
    parts: int
    bytes: int
    present: int
    items: int
    conflicts: tuple[str, ...]
    saved_seconds: float
    seconds: float


@dataclass(frozen=True)
class Merged:
    """What a merge did; as `Pulled`, over all sources."""

    store: Path
    sources: tuple[Path, ...]
    manifest: int
    parts: int
    bytes: int
    present: int
    items: int
    conflicts: tuple[str, ...]
    seconds: float


def push(root: Path, remote: Remote, progress: Progress | None = None) -> Pushed:
    """Publish the committed parts of the store `root` on `remote`, and list them there.

    Raises `RemoteError` if the remote fails, refuses, or ignores create-only puts, `VerificationError` for
    local files that are not what was written (nothing of them is sent), `InputError` for an empty store.
    """
    started, root = time.perf_counter(), Path(root)
    store, objects = Store.open(root), connect(remote)
    require(store.parts, root)
    name = store.spec.folder
    shared = SharedStore(objects, name)
    if shared.exists:
        check_pin(remote, shared)
    if isinstance(objects, LocalObjects):
        target = objects.folder / name
        _distinct(root, target)
        arrived = bring(
            SharedStore(LocalObjects(root.absolute().parent), root.name, False), target, None, progress, "push"
        )
        manifest, parts, moved = arrived.manifest, arrived.parts, arrived.bytes
        present, conflicts = arrived.present, arrived.conflicts
    else:
        prove_create_only(objects, remote)
        sent = send(root, store.parts, shared, store.spec.to_json(), progress)
        manifest, parts, moved, present, conflicts = (
            sent.manifest, sent.parts, sent.bytes, sent.present, sent.conflicts,
        )  # fmt: skip
    equal = follow(root, shared, rewrite=True)
    seconds = time.perf_counter() - started
    return Pushed(shared.url, manifest, parts, moved, present, tuple(conflicts), equal, seconds)


def pull(
    remote: Remote, name: str, root: Path, keys: Collection[str] | None = None, progress: Progress | None = None
) -> Pulled:
    """Bring the store `name` of `remote` into `root`: whole, or just the parts that hold any of `keys`.

    `root` is made if it is not there. Raises `RemoteError`, `VerificationError` for what a pin or a checksum
    forbids and for what is not what compal writes, `SpecMismatch`, `InputError` for a full disk. Nothing that
    is not verified becomes visible.
    """
    started, root = time.perf_counter(), Path(root)
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot be the name of a store", "See: compal ls --remote")
    shared = SharedStore(connect(remote), name)
    if not shared.exists:
        raise RemoteError(f"there is no store {shared.url}", "See what there is: compal ls --remote")
    if isinstance(shared.objects, LocalObjects):
        _distinct(root, shared.objects.folder / name)
    check_pin(remote, shared)
    got = bring(shared, root, keys, progress, "pull")
    return Pulled(
        root, shared.url, got.manifest, got.parts, got.bytes, got.present, got.items, tuple(got.conflicts),
        got.saved_seconds, time.perf_counter() - started,
    )  # fmt: skip


def offers(remote: Remote, name: str) -> bool:
    """Whether the remote has a store of that name. Raises `RemoteError` if it cannot be asked."""
    return SharedStore(connect(remote), name).exists


def merge(sources: Sequence[Path], target: Path, progress: Progress | None = None) -> Merged:
    """Make the store `target` hold the parts of all `sources`, in their order; it is made if it is not there.

    A key that stands in several keeps the values that come first. Sources are only read. Raises
    `SpecMismatch` for stores of another spec, before anything is written.
    """
    started, target = time.perf_counter(), Path(target)
    specs = {Path(source): Store.open(source).spec for source in sources}
    if not specs:
        raise InputError("there is nothing to merge", "Name one store or more.")
    if (target / "spec.json").is_file():
        specs[target] = FeatureSpec.from_json(read_json(target / "spec.json"))
    first, *others = specs.items()
    for path, spec in others:
        if spec != first[1]:
            raise SpecMismatch(f"{path} and {first[0]} hold features of different specs", "See: compal store diff")
    total = Arrived()
    for source in sources:
        folder = Path(source).absolute()
        _distinct(target, folder)
        got = bring(_folder(folder), target, None, progress, "merge")
        total.manifest, total.parts, total.bytes = got.manifest, total.parts + got.parts, total.bytes + got.bytes
        total.present, total.items = total.present + got.present, total.items + got.items
        total.conflicts += got.conflicts
    return Merged(
        target, tuple(map(Path, sources)), total.manifest, total.parts, total.bytes, total.present, total.items,
        tuple(dict.fromkeys(total.conflicts)), time.perf_counter() - started,
    )  # fmt: skip


def _folder(root: Path) -> SharedStore:
    """A local store as a source; its folder may have any name."""
    return SharedStore(LocalObjects(root.absolute().parent), root.name, named=False)


def _distinct(one: Path, other: Path) -> None:
    if one.resolve() == other.resolve():
        raise InputError(f"{one} is itself the other store", "Name two folders.")
