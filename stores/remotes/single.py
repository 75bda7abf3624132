"""Parts published on a remote one by one, by many machines; whoever leads lists them at the end, all at once.

A part that is not listed is not seen by readers, so what a broken run has published waits for the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from ...errors import RemoteError
from ...workspace import Remote
from ..manifest import Manifest, Part, done_path, read_done, written_now
from ..spec import FeatureSpec
from .objects import connect, prove_create_only
from .pull import ByteCount
from .push import advance_remote_head, claim_path, send_part
from .shared import SharedStore


def begin(remote: Remote, spec: FeatureSpec) -> SharedStore:
    """The store of a spec on a remote, made if it is not there. Raises `RemoteError` if the remote fails or
    ignores create-only puts."""
    objects = connect(remote)
    prove_create_only(objects, remote)
    shared = SharedStore(objects, spec.folder)
    if not shared.exists:
        objects.create(shared.at("spec.json"), spec.to_json())
    if shared.spec != spec:
        raise RemoteError(f"{shared.url} holds features of another spec", "Use another remote.")
    return shared


def publish_part(root: Path, name: str, shared: SharedStore) -> None:
    """Upload a part that is complete in the store `root`, unless it is there. Raises `RemoteError` if another
    writer is at it: one that died keeps its claim until `forget` or for a day."""
    part = Part.of_done(root, read_done(root, name))
    if send_part(root, part, shared, ByteCount("push", part.bytes, None), done=True) is not None:
        return
    if shared.published(name) is None:
        cure = "Run again when it has ended, or in a day."
        raise RemoteError(f"{shared.url}: another writer has claimed part {name}", cure)


def forget(shared: SharedStore, name: str) -> None:
    """Drop the claim on a part whose writer is known to be dead."""
    if shared.published(name) is None:
        shared.objects.delete(shared.at(claim_path(name)))


def remove_part(root: Path, name: str) -> None:
    """Delete a part of a scratch store that nobody reads."""
    part = Part.of_done(root, read_done(root, name))
    done_path(root, name).unlink()
    for path in part.files:
        (root / path).unlink(missing_ok=True)
    shutil.rmtree(root / "images" / name, ignore_errors=True)


def list_parts(shared: SharedStore, names: Collection[str]) -> int:
    """List published parts in a new manifest on top of the newest, and move the head there. Returns its number.

    Repeated until nobody else was faster; listing what is listed changes nothing. Raises `RemoteError` for a part
    that is not published.
    """
    while True:
        newest = shared.newest()
        before = newest.parts if newest else ()
        lacking = sorted(set(names) - {part.name for part in before})
        if not lacking:
            break
        found = [(name, shared.published(name)) for name in lacking]
        absent = [name for name, part in found if part is None]
        if absent:
            raise RemoteError(f"{shared.url} lacks part {absent[0]}", "Run the extraction again.")
        number = newest.number + 1 if newest else 1
        parent = shared.digest(newest.number) if newest else ""
        parts = (*before, *(part for _, part in found if part))
        manifest = Manifest(number, parent, shared.spec.fingerprint, parts, written_now("push"))
        if shared.objects.create(shared.at(f"manifests/{number}.json"), manifest.to_json()):
            break
    return advance_remote_head(shared)
