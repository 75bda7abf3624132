"""Keeping a store small: `compact` rewrites small parts into full ones, `gc` deletes what nothing needs.

What may be deleted. A reader holds the manifest that was the newest when it opened the store, so a part is
needed until every manifest that lists it has been superseded for `days`; when that was, the inode of the
manifest after it says (its change time cannot be set, not even by a copying tool). A part that is complete and
was never listed belongs to a writer that will commit it, and is kept for ever, unless it is a compaction's copy
of others.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CompalError, InputError
from .chain import ManifestReader
from .compaction import Compacted, compact
from .files import abandoned, checked_path, disk_errors, elsewhere, lock, sync
from .manifest import (
    FOLDERS,
    PART_NAME,
    Part,
    done_names,
    done_path,
    is_copy,
    manifest_path,
    numbers,
    once_listed,
    read_done,
)

__all__ = ["Collected", "Compacted", "compact", "gc"]

DAY = 86400.0
IN_FOLDER = re.compile(r"(?:zarr\.json|[a-z][a-z0-9_]*/(?:zarr\.json|c(?:[./][0-9]+)+))")


@dataclass(frozen=True)
class Collected:
    """What was deleted, or would be.

    dry_run    whether nothing was deleted
    parts      dropped parts, by name
    leftovers  what killed writers left, paths inside the store
    files      how many files these are
    bytes      their size
    waiting    dropped parts that are still needed: collected when `days` have passed
    """

    dry_run: bool
    parts: tuple[str, ...]
    leftovers: tuple[str, ...]
    files: int
    bytes: int
    waiting: tuple[str, ...]


def gc(root: Path, days: float = 7.0, dry_run: bool = False) -> Collected:
    """Delete the files of dropped parts that no snapshot of the last `days` lists, staging of killed writers, and
    files that a killed writer moved into place without finishing the part, if untouched for `days`.

    Staging of other hosts, and a compaction's copies that were never committed, must be untouched for `days` and
    for one day at least: whether who made them lives cannot be seen from here. Files that are not named as this
    package names its own are left alone, and so are manifests. With 0 days nothing may be reading an old
    snapshot. Idempotent; may be killed at any moment. Raises `VerificationError` if a manifest that must be read
    is damaged, `InputError` if the disk cannot be written.
    """
    root = Path(root)
    if not (root / "spec.json").is_file():
        raise InputError(f"{root} is not a store: it has no spec.json", "See: compal ls stores")
    if not days >= 0:
        raise InputError(f"cannot keep what is younger than {days} days", "Choose 0 or more.")
    border = time.time() - days * DAY
    needed = _Needed(root, border)
    needed.read()  # most of the reading comes before the lock, which writers wait for
    if dry_run:
        return _collect(root, needed, border, dry_run=True)
    with disk_errors(str(root)), lock(root) as held:
        needed.read()
        # Without locks a committer may adopt a dropped part while we look: one day makes that improbable.
        return _collect(root, needed, border if held else min(border, time.time() - DAY), dry_run=False)


class _Needed:
    """The names that the newest manifest lists, and those superseded after `border`."""

    def __init__(self, root: Path, border: float) -> None:
        self.root, self.border = root, border
        self.names: set[str] = set()
        self.newest: set[str] = set()
        self._reader = ManifestReader(root)
        self._last = 0

    def read(self) -> None:
        """Read the manifests that came since the last call, and the newest in any case: one that follows a
        remote's may take the number of what was there."""
        existing = numbers(self.root)
        for number, after in zip(existing, [*existing, 0][1:], strict=True):
            known = number <= self._last and after
            if not known and (not after or changed(manifest_path(self.root, after)) > self.border):
                self.newest = {part.name for part in self._reader.read(number).parts}
                self.names |= self.newest
        self._last = existing[-1] if existing else 0


def changed(path: Path) -> float:
    """When the inode last changed, seconds since 1970; for a folder the latest of everything below it."""
    times = [os.lstat(path).st_ctime]
    for place, folders, files in os.walk(path):
        times += [os.lstat(os.path.join(place, name)).st_ctime for name in [*folders, *files]]
    return max(times)


def _collect(root: Path, needed: _Needed, border: float, dry_run: bool) -> Collected:
    done = set(done_names(root))
    spare = once_listed(root, done - needed.newest, numbers(root))
    copies = {name for name in done - needed.newest - spare if is_copy(_done(root, name))}
    # One that was written again after it was collected is younger than the manifest that dropped it. A copy may
    # be of a compaction that is about to commit it.
    limits = dict.fromkeys(spare - needed.names, border) | dict.fromkeys(copies, min(border, time.time() - DAY))
    old = {name for name, limit in limits.items() if changed(done_path(root, name)) <= limit}
    files, size = 0, 0
    for name in sorted(old):
        count, taken = _delete_part(root, name, dry_run)
        files, size = files + count, size + taken
    leftovers = []
    for path in _unfinished(root, done | needed.names, border):
        leftovers.append(path.relative_to(root).as_posix())
        files, size = files + 1, size + os.lstat(path).st_size
        if not dry_run:
            path.unlink()
            _remove_empty(root, path.parent)
    for folder in _staging(root, border):
        leftovers.append(folder.relative_to(root).as_posix())
        inside = [path for path in folder.rglob("*") if path.is_file()]
        files, size = files + len(inside), size + sum(os.lstat(path).st_size for path in inside)
        if not dry_run:
            shutil.rmtree(folder, ignore_errors=True)
    return Collected(dry_run, tuple(sorted(old)), tuple(leftovers), files, size, tuple(sorted((spare | copies) - old)))


def _done(root: Path, name: str) -> dict[str, Any]:
    """The part's done file, {} if it is damaged."""
    try:
        return read_done(root, name)
    except CompalError:
        return {}


def _delete_part(root: Path, name: str, dry_run: bool) -> tuple[int, int]:
    """(files, bytes). The done file goes first: from then on the part is absent, whenever we are killed."""
    done = done_path(root, name)
    own = [done, *_own_files(root, name)]
    sizes = [os.lstat(path).st_size for path in own]
    if not dry_run:
        done.unlink()
        sync(done.parent)
        for path in own[1:]:
            path.unlink(missing_ok=True)
            _remove_empty(root, path.parent)
    return len(own), sum(sizes)


def _own_files(root: Path, name: str) -> list[Path]:
    """The files of a part that exist: what its done file lists, and what is named as a part's file is."""
    try:
        listed = set(Part.of_done(root, read_done(root, name)).files)
    except CompalError:
        listed = set()
    found = {path for path in map(root.joinpath, listed) if path.is_file()} | set(_named_as(root, name))
    return sorted(path for path in found if _inside(root, path))


def _inside(root: Path, path: Path) -> bool:
    try:
        checked_path(root, path.relative_to(root).as_posix())
    except CompalError:  # through a symbolic link: not ours to delete
        return False
    return True


def _named_as(root: Path, name: str) -> Iterator[Path]:
    singles = [root / folder / f"{name}.arrow" for folder in FOLDERS.values()]
    yield from (path for path in (*singles, root / "tables" / f"{name}.parquet") if path.is_file())
    for folder in (root / folder / name for folder in FOLDERS.values()):
        for place, _, files in os.walk(folder):
            for path in (Path(place, file) for file in files):
                if IN_FOLDER.fullmatch(path.relative_to(folder).as_posix()):
                    yield path


def _unfinished(root: Path, known: set[str], border: float) -> list[Path]:
    """Files of parts that were never finished, untouched since `border`. `known` parts are left alone: those a
    manifest lists have lost their done file, and are whole again when it is put back."""
    names = set()
    for folder in (*FOLDERS.values(), "tables"):
        if (root / folder).is_dir():
            names |= {entry.name.partition(".")[0] for entry in (root / folder).iterdir()}
    unfinished = sorted(name for name in names - known if PART_NAME.fullmatch(name))
    found = []
    for name in unfinished:
        own = [path for path in _named_as(root, name) if _inside(root, path)]
        if own and max(os.lstat(path).st_ctime for path in own) <= border:
            found += sorted(own)
    return found


def _staging(root: Path, border: float) -> list[Path]:
    """Staging folders whose writers are dead: on this host surely, on others by their age."""
    border = min(border, time.time() - DAY)
    return abandoned(root) + [path for path in elsewhere(root) if changed(path) <= border]


def _remove_empty(root: Path, folder: Path) -> None:
    while folder.parent != root and folder != root:
        try:
            folder.rmdir()
        except OSError:  # not empty
            return
        folder = folder.parent
