"""Bring parts into a local store, from a remote or from another folder: verified, then published, then listed.

A part is downloaded to `.incoming/<part>.<record>` and stays there, half a file too, if the run is killed:
the next one goes on. It is moved to its place by the same `publish` as a part that was computed here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ...errors import VerificationError
from .. import space
from ..files import disk_errors, locked, replace, sync_tree
from ..manifest import FOLDERS, Manifest, Part, done_path, newest
from ..parts import publish
from ..rows import quarantined_of
from ..store import Store
from .chains import commit_joined, compare, complete, follow, join, parts_of
from .inspect import check_part, table_keys
from .shared import SharedStore

INCOMING = ".incoming"

Progress = Callable[[str, int, int], None]


@dataclass
class Arrived:
    """What `bring` did.

    manifest       number of the local store's newest manifest
    parts, bytes   brought now; bytes are those that travelled
    items          how many of the wanted items the brought parts hold: of all rows, or of the keys asked for
    present        parts that were there before, with the same content
    conflicts      parts that are there with other content, and were left as they are
    saved_seconds  what the brought items took to compute, as their parts record it
    """

    manifest: int = 0
    parts: int = 0
    bytes: int = 0
    items: int = 0
    present: int = 0
    conflicts: list[str] = field(default_factory=list)
    saved_seconds: float = 0.0


@dataclass(frozen=True)
class _Wanted:
    part: Part
    items: int


def bring(
    source: SharedStore, root: Path, keys: Collection[str] | None, progress: Progress | None, operation: str
) -> Arrived:
    """Make the store `root` hold the parts of `source`: all, or those that hold any of `keys`.

    `operation` is "pull", "merge" or "push" (into a folder). Raises `RemoteError`, `VerificationError` for
    what is not what compal writes, `SpecMismatch`, `InputError` for a full disk.
    """
    relation = compare(root, source)  # a chain that does not hold together is refused before anything is written
    theirs = source.manifest(relation.there) if relation.there else None
    store, arrived = Store.create(root, source.spec), Arrived()
    if theirs is None:
        arrived.manifest = store.manifest
        return arrived
    _sort(root, theirs, arrived)
    listed = _listed(root)
    lacking = [part for part in theirs.parts if complete(root, part, listed) is None]
    with disk_errors(str(root)):
        wanted = _wanted(source, root, lacking, keys)
        _check_space(root, [one.part for one in wanted])
        count = ByteCount(operation, sum(one.part.bytes for one in wanted), progress)
        for one, (moved, seconds) in _each(source, root, wanted, count):
            arrived.parts += 1
            arrived.bytes += moved
            arrived.items += one.items
            arrived.saved_seconds += seconds * one.items / max(1, one.part.rows)
    _tidy(root)
    arrived.manifest = _settle(source, root, theirs, {one.part.name for one in wanted}, operation)
    return arrived


def _listed(root: Path) -> dict[str, Part]:
    manifest = newest(root)
    return {part.name: part for part in manifest.parts} if manifest else {}


def _sort(root: Path, theirs: Manifest, arrived: Arrived) -> None:
    listed = _listed(root)
    for part in theirs.parts:
        here = complete(root, part, listed)
        if here is not None and here.record == part.record:
            arrived.present += 1
        elif here is not None:
            arrived.conflicts.append(part.name)


def _settle(source: SharedStore, root: Path, theirs: Manifest, brought: set[str], operation: str) -> int:
    """List what is here now: by the source's own manifests if they continue ours, else by one on top."""
    if not follow(root, source, rewrite=operation == "pull"):
        base = parts_of(root, compare(root, source).base)

        def arrange(own: Sequence[Part]) -> list[Part]:
            listed = {part.name: part for part in own if part.name not in brought}
            here = [part for part in (complete(root, part, listed) for part in theirs.parts) if part]
            absent = [part for part in theirs.parts if part.name not in {one.name for one in here}]
            own = [listed.get(part.name, part) for part in own]
            other = [*here, *absent]
            joined = join(base, other, own) if operation == "pull" else join(base, own, other)
            mine, known = {part.name: part for part in here}, {part.name for part in own}
            return [mine.get(part.name, part) for part in joined if part.name in mine or part.name in known]

        commit_joined(root, source.spec.fingerprint, arrange, operation)
    manifest = newest(root)
    return manifest.number if manifest else 0


def _check_space(root: Path, parts: Sequence[Part]) -> None:
    space.check(root, sum(part.bytes for part in parts), f"{len(parts):,} parts of a remote")


def _wanted(
    source: SharedStore, root: Path, lacking: Sequence[Part], keys: Collection[str] | None
) -> Sequence[_Wanted]:
    """The parts to bring: all, or in their order those that hold a key which none before holds."""
    if keys is None:
        return [_Wanted(part, part.rows) for part in lacking]
    left, wanted = set(keys), []
    with ThreadPoolExecutor(source.objects.threads) as pool:
        for part, held in zip(lacking, pool.map(lambda part: _keys(source, root, part), lacking), strict=True):
            items, refused = held
            covered = left & (items | refused)
            if covered:
                wanted.append(_Wanted(part, len(covered & items)))
                left -= covered
    return wanted


def _keys(source: SharedStore, root: Path, part: Part) -> tuple[set[str], set[str]]:
    """The keys that a part holds, and those it found unreadable. Its table stays for the next question."""
    table = f"tables/{part.name}.parquet"
    if table not in part.files:
        raise VerificationError(f"{source.url}: part {part.name} has no table", "Ask its owner.")
    place = _place(root, part)
    with _alone(place):
        source.fetch(table, part.files[table], place / table)
        refused = {item.key for item in quarantined_of(source.done(part)[0])} if part.quarantined else set()
        return set(table_keys(place / table, part)), refused


def _place(root: Path, part: Part) -> Path:
    return root / INCOMING / f"{part.name}.{part.record[:16]}"


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One download of a part at a time; the kernel releases the lock of a killed process."""
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            handle = os.open(f"{place}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            break
        except FileNotFoundError:  # whoever brought the last part removed the folder around it
            continue
    with locked(handle):
        yield


def _each(
    source: SharedStore, root: Path, wanted: Sequence[_Wanted], count: ByteCount
) -> Iterator[tuple[_Wanted, tuple[int, float]]]:
    """Bring several parts at once. After an error no new one is begun; those that are complete stay."""
    pool = ThreadPoolExecutor(source.objects.threads, "bring")
    try:
        futures = [(one, pool.submit(_bring_part, source, root, one.part, count)) for one in wanted]
        for one, future in futures:
            yield one, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bring_part(source: SharedStore, root: Path, part: Part, count: ByteCount) -> tuple[int, float]:
    """Download, verify, inspect and publish one part. Returns bytes that travelled and recorded seconds."""
    place, moved = _place(root, part), 0
    with _alone(place):
        if done_path(root, part.name).exists():
            _forget(place)
            return 0, 0.0  # another process was faster
        done, raw = source.done(part)
        for path, size in part.files.items():
            moved += source.fetch(path, size, place / path)
            count.add(size["bytes"])
        check_part(place, part, done)
        _drop_others(place, part)
        replace(root, place / "done.json", raw)
        sync_tree(place)
        publish(root, place, FOLDERS[part.kind], part.name)
        _forget(place)
    return moved, forward_seconds(done)


def _forget(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(f"{place}.lock")


def _tidy(root: Path) -> None:
    """Delete what is left of the download of parts that are complete, and the folder if it is empty."""
    for path in (root / INCOMING).glob("*"):
        if done_path(root, path.name.partition(".")[0]).exists():
            _forget(path.with_name(path.name.removesuffix(".lock")))
    with contextlib.suppress(OSError):
        (root / INCOMING).rmdir()


def _drop_others(place: Path, part: Part) -> None:
    """What a killed publish moved aside into the folder, or a forged one left, is not published."""
    for path in sorted(place.rglob("*"), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        elif path.relative_to(place).as_posix() not in part.files:
            path.unlink()


def forward_seconds(done: dict[str, Any]) -> float:
    """The seconds of forward passes that a done file records for its part, 0 if it does not say."""
    written = done.get("written")
    seconds = written.get("forward_seconds", 0.0) if isinstance(written, dict) else 0.0
    plain = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < 1e9
    return float(seconds) if plain else 0.0


class ByteCount:
    """Bytes brought so far, for the progress; parts report from their threads."""

    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._progress, self._lock, self.started = progress, Lock(), time.perf_counter()

    def add(self, count: int) -> None:
        """`count` more bytes."""
        with self._lock:
            self.done += count
            if self._progress:
                self._progress(self.what, self.done, self.total)
