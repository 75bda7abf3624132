"""Publish a store's parts on a remote of objects: claimed, uploaded, declared done, then listed.

Two writers may hold a part of one name with other bytes, since a recomputation is not bit-identical. So a part
is claimed first (`.claims/<part>.json`, create-only): who holds other bytes keeps off, and who pushes the same
bytes helps. `done/<part>.json` is created after the part's files, a manifest after its parts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ...config import canonical
from ...errors import InputError, RemoteError, VerificationError
from ..files import RESTORE, checked_path, checksum
from ..manifest import Manifest, Part, done_path, head_content, manifest_path, written_now
from .chains import Relation, compare, join, parts_of
from .pull import ByteCount, Progress
from .shared import SharedStore

CLAIM_SECONDS = 24 * 3600  # then the claimer is taken for dead
CLAIM_BYTES = 1 << 16


@dataclass
class Sent:
    """What `send` did; the fields are those of `transfer.Pushed`."""

    manifest: int = 0
    parts: int = 0
    bytes: int = 0
    present: int = 0
    conflicts: list[str] = field(default_factory=list)


def send(root: Path, parts: Sequence[Part], shared: SharedStore, spec: bytes, progress: Progress | None) -> Sent:
    """Make `shared` hold `parts`, what the newest manifest of `root` lists and is complete here."""
    new = not shared.exists and shared.objects.create(shared.at("spec.json"), spec)
    if not new and shared.spec.to_json() != spec:
        raise RemoteError(f"{shared.url} holds features of another spec", "Push to another remote.")
    sent, there = Sent(), {}
    while True:
        relation = compare(root, shared)
        if relation.behind and relation.there:
            sent.present += 0 if sent.parts else len(parts)
            break
        listed = _listed(shared, relation)
        joined = join(parts_of(root, relation.base), listed, parts)
        lacking = [part for part in joined if part.name not in {one.name for one in listed}]
        lacking = [part for part in lacking if part.name not in there]
        for part, moved in _send_all(root, lacking, shared, progress):
            there[part.name] = moved is not None
            sent.parts += bool(moved)
            sent.bytes += moved or 0
        records = {part.name: part.record for part in listed}
        sent.conflicts = [part.name for part in parts if records.get(part.name, part.record) != part.record]
        sent.conflicts += [name for name, ours in there.items() if not ours]
        sent.present = len(parts) - sent.parts - len(sent.conflicts)
        # What was declared done there first is listed, even if its writer died before it could do so.
        theirs = {name: shared.published(name) for name, ours in there.items() if not ours}
        joined = [one for one in (theirs.get(part.name, part) for part in joined) if one]
        if _commit(root, parts, shared, relation, joined, bool(sent.conflicts)):
            break
    sent.manifest = advance_remote_head(shared)
    _release_done(shared)
    return sent


def _release_done(shared: SharedStore) -> None:
    """Delete the claims that killed pushes left on parts that are done: nobody waits for those."""
    for claim in shared.objects.names(shared.at(".claims")):
        if shared.objects.size(shared.at(f"done/{claim.rpartition('/')[2]}")) is not None:
            shared.objects.delete(claim)


def _listed(shared: SharedStore, relation: Relation) -> tuple[Part, ...]:
    return shared.manifest(relation.there).parts if relation.there else ()


def _commit(
    root: Path, parts: Sequence[Part], shared: SharedStore, relation: Relation, joined: list[Part], conflicts: bool
) -> bool:
    """List `joined` on the remote: by our own manifests if they continue the remote's and say the same, else by
    one on top. False: another writer was faster, look again."""
    whole = [part.name for part in parts_of(root, relation.here)] == [part.name for part in parts]
    if relation.ahead and whole and not conflicts:
        for number in range(relation.there + 1, relation.here + 1):
            raw = manifest_path(root, number).read_bytes()
            if not shared.objects.create(shared.at(f"manifests/{number}.json"), raw):
                return False
        return True
    if joined == list(_listed(shared, relation)):
        return True
    number = relation.there + 1
    parent = shared.digest(relation.there) if relation.there else ""
    manifest = Manifest(number, parent, shared.spec.fingerprint, tuple(joined), written_now("push"))
    return shared.objects.create(shared.at(f"manifests/{number}.json"), manifest.to_json())


def advance_remote_head(shared: SharedStore) -> int:
    """Point the remote's head at its newest manifest, until the list agrees; see `manifest.advance_head`."""
    while existing := shared.numbers():
        content = head_content(existing[-1], shared.raw(existing[-1]))
        if shared.objects.get(shared.at("head.json"), CLAIM_BYTES) != content:
            shared.objects.replace(shared.at("head.json"), content)
        if shared.numbers()[-1] == existing[-1]:
            return existing[-1]
    return 0


def _send_all(
    root: Path, parts: Sequence[Part], shared: SharedStore, progress: Progress | None
) -> list[tuple[Part, int | None]]:
    count = ByteCount("push", sum(part.bytes for part in parts), progress)
    done = {path.rpartition("/")[2] for path in shared.objects.names(shared.at("done"))} if parts else set()
    pool = ThreadPoolExecutor(shared.objects.threads, "push")
    try:
        futures = [pool.submit(send_part, root, part, shared, count, f"{part.name}.json" in done) for part in parts]
        return [(part, future.result()) for part, future in zip(parts, futures, strict=True)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def send_part(root: Path, part: Part, shared: SharedStore, count: ByteCount, done: bool) -> int | None:
    """Upload a part. Returns the bytes that travelled (0: it was there), None if other content has its name."""
    found = shared.published(part.name) if done else None
    if found is not None:
        return 0 if found == part else None
    claim = _claim(part, shared)
    if not claim:
        return None
    moved, found = 0, shared.published(part.name)  # somebody may have been faster than the claim
    if found is None:
        moved = _send_files(root, part, shared, count, claim)
        raw = done_path(root, part.name).read_bytes()
        if not shared.objects.create(shared.at(f"done/{part.name}.json"), raw):
            found = shared.published(part.name)  # somebody else with the same bytes
    shared.objects.delete(shared.at(claim_path(part.name)))
    return moved if found in (None, part) else None


def _send_files(root: Path, part: Part, shared: SharedStore, count: ByteCount, claim: str) -> int:
    moved = 0
    for path, size in part.files.items():
        # Objects appear whole, so what a killed push of the same claim left is there or not.
        if claim == "new" or shared.objects.size(shared.at(path)) != size["bytes"]:
            local = checked_path(root, path)
            if not local.is_file() or checksum(local) != size:
                raise VerificationError(f"{local} is not what was written; it was not pushed", RESTORE)
            shared.objects.put_file(local, shared.at(path))
            moved += size["bytes"]
        count.add(size["bytes"])
    return moved


def claim_path(name: str) -> str:
    """Where a part's claim lies in its store."""
    return f".claims/{name}.json"


def _claim(part: Part, shared: SharedStore) -> str:
    """Claim a part's name for its content: "new", or "old" if that claim was there. "": other content claims it,
    and its writer may be alive."""
    path = shared.at(claim_path(part.name))
    own = canonical({"record": part.record, "host": os.uname().nodename, "time": int(time.time())})
    while not shared.objects.create(path, own):
        raw = shared.objects.get(path, CLAIM_BYTES)
        if raw is None:
            continue  # released this moment
        record, since = _parse_claim(raw)
        if record == part.record:
            return "old"
        if time.time() - since < CLAIM_SECONDS:
            return ""
        for file in part.files:  # what the dead writer left has other bytes under our names
            shared.objects.delete(shared.at(file))
        shared.objects.replace(path, own)
        return "new"
    return "new"


def _parse_claim(raw: bytes) -> tuple[str, float]:
    try:
        claim = json.loads(raw)
        return str(claim["record"]), float(claim["time"])
    except (ValueError, KeyError, TypeError):
        return "", 0.0


def require(parts: Sequence[Part], root: Path) -> None:
    """Raises `InputError` if there is nothing to share."""
    if not parts:
        raise InputError(f"{root} holds no committed features", "Extract some: compal extract")
