"""The versions of a store: what each commit changed, and the way back to any of them.

A manifest is never edited or deleted. Going back is a new manifest that lists what an old one listed, so it is
undone the same way. What it lists no longer is dropped: the files stay until `upkeep.gc` collects them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CompalError, InputError
from .chain import ManifestReader
from .files import read_json
from .manifest import (
    Manifest,
    Part,
    commit_change,
    complete_part,
    done_names,
    manifest_path,
    numbers,
    read_manifest,
    written_now,
)
from .spec import FeatureSpec

SHOWN = 200  # characters of a text out of a manifest; who wrote it may be anybody


@dataclass(frozen=True)
class LogEntry:
    """One manifest.

    number          as `Store.open(path, manifest=number)` and `restore` take it
    time            of the commit, seconds since 1970
    who             user@host, "" if the manifest does not say
    operation       append, drop, restore, compact, pull, merge, cast, push; "damaged" if it cannot be read
    note            what the committer said, or why it cannot be read
    compal          the version that committed, "" if the manifest does not say
    restorable      whether every part it lists is still there
    parts, …        how many it lists; rows are images and captions
    …_added         what it lists and the manifest before did not, or not with these bytes
    …_dropped       what the manifest before listed and it does not, or not with these bytes
    """

    number: int
    time: float
    who: str
    operation: str
    note: str
    compal: str
    restorable: bool
    parts: int = 0
    rows: int = 0
    bytes: int = 0
    parts_added: int = 0
    rows_added: int = 0
    bytes_added: int = 0
    parts_dropped: int = 0
    rows_dropped: int = 0
    bytes_dropped: int = 0


def log(root: Path, limit: int | None = None) -> list[LogEntry]:
    """The manifests of a store, newest first, the `limit` newest if given. A damaged one is listed as such."""
    existing = numbers(root)
    first = max(0, len(existing) - limit) if limit is not None else 0
    done = set(done_names(root))
    reader, before = ManifestReader(root), dict[str, Part]()
    entries = []
    for number in existing[max(0, first - 1) :]:
        try:
            manifest = reader.read(number)
        except CompalError as error:
            entries.append(_damaged(root, number, error))
            continue
        listed = {part.name: part for part in manifest.parts}
        entries.append(_entry(root, manifest, before, listed, done))
        before = listed
    return entries[::-1][: len(existing) - first]


def _entry(
    root: Path, manifest: Manifest, before: dict[str, Part], listed: dict[str, Part], done: set[str]
) -> LogEntry:
    written = manifest.written or {}
    user, host = _shown(written.get("user")), _shown(written.get("host"))
    added = [part for name, part in listed.items() if not _same(before.get(name), part)]
    dropped = [part for name, part in before.items() if not _same(listed.get(name), part)]
    return LogEntry(
        number=manifest.number,
        time=commit_time(root, manifest),
        who=f"{user}@{host}" if user and host else user or host,
        operation=_shown(written.get("operation")) or "append",
        note=_shown(written.get("note")),
        compal=_shown(written.get("compal")),
        restorable=listed.keys() <= done,
        **_counts("", manifest.parts),
        **_counts("_added", added),
        **_counts("_dropped", dropped),
    )


def _counts(suffix: str, parts: Sequence[Part]) -> dict[str, int]:
    rows, size = sum(part.rows for part in parts), sum(part.bytes for part in parts)
    sums = {"parts": len(parts), "rows": rows, "bytes": size}
    return {name + suffix: value for name, value in sums.items()}


def _same(one: Part | None, other: Part) -> bool:
    return one is other or (one is not None and one.record == other.record)


def _damaged(root: Path, number: int, error: CompalError) -> LogEntry:
    try:
        time = manifest_path(root, number).stat().st_mtime
    except OSError:
        time = 0.0
    return LogEntry(number, time, "", "damaged", _shown(error.what), "", restorable=False)


def commit_time(root: Path, manifest: Manifest) -> float:
    """When it was committed, seconds since 1970: as it says, or else as its file says."""
    time = (manifest.written or {}).get("time")
    if isinstance(time, int | float) and not isinstance(time, bool) and 0 <= time < math.inf:
        return float(time)
    return manifest_path(root, manifest.number).stat().st_mtime


def _shown(text: Any) -> str:
    """A text out of a manifest for people: nothing that a terminal obeys, at most `SHOWN` characters."""
    if not isinstance(text, str):
        return ""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))[:SHOWN]


def restore(root: Path, number: int, note: str = "") -> int:
    """Commit a new manifest that lists what manifest `number` listed, in its order, and return its number.

    Number 0 is the store before its first commit. Parts that others append meanwhile stay listed. Restoring
    what is listed already changes nothing. A part that was written anew since is listed as it is now.
    Raises `InputError` if there is no such manifest or a part that it lists is gone.
    """
    existing = numbers(root)
    if number and number not in existing:
        raise InputError(f"{root} has no manifest {number}", "See: compal store log")
    spec = FeatureSpec.from_json(read_json(root / "spec.json")).fingerprint
    wanted = read_manifest(root, number).parts if number else ()
    seen = {part.name for part in read_manifest(root, existing[-1]).parts} if existing else set()

    def change(listed: dict[str, Part]) -> dict[str, Part]:
        restored = {part.name: _again(root, spec, part, number) for part in wanted}
        later = {name: part for name, part in listed.items() if name not in seen and name not in restored}
        return restored | later

    return commit_change(root, spec, change, written_now("restore", note, {"restored": number}))


def _again(root: Path, spec: str, part: Part, number: int) -> Part:
    try:
        present = complete_part(root, spec, part.name)
    except InputError:
        raise InputError(
            f"manifest {number} of {root} cannot be restored: the files of part {part.name} are gone",
            "Choose one that is restorable: compal store log",
        ) from None
    if (present.kind, present.items) != (part.kind, part.items):
        raise InputError(
            f"manifest {number} of {root} cannot be restored: part {part.name} holds other items now",
            "Choose another: compal store log",
        )
    return present
