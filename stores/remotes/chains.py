"""Two histories of one store: which continues which, how their parts join, and how a store follows a remote.

If one chain of manifests continues the other, the missing manifests are copied as they are, so that two
stores end byte-equal. Otherwise the parts are joined against the last common manifest: what either side added
is kept, what either side dropped is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import create_only, lock, replace
from ..manifest import (
    Part,
    advance_head,
    commit_change,
    done_path,
    manifest_path,
    numbers,
    read_done,
    read_manifest,
    written_now,
)
from .shared import SharedStore

DISPLACED = ".displaced"


@dataclass(frozen=True)
class Relation:
    """Of a local chain to a remote one. `base` is the last common manifest, `here` and `there` are the newest
    ones; 0 for none."""

    base: int
    here: int
    there: int

    @property
    def behind(self) -> bool:
        """The remote continues, or equals, what is here."""
        return self.base == self.here

    @property
    def ahead(self) -> bool:
        """What is here continues the remote's."""
        return self.base == self.there


def compare(root: Path, shared: SharedStore) -> Relation:
    """How the two chains relate now. Raises `VerificationError` if the remote's is broken."""
    local, remote = numbers(root), shared.numbers()
    here, there = local[-1] if local else 0, remote[-1] if remote else 0
    known = set(remote) & set(local)
    base = min(here, there)
    while base and not (base in known and _digest(root, base) == shared.digest(base)):
        base -= 1
    shared.check_chain(base, there)
    return Relation(base, here, there)


def _digest(root: Path, number: int) -> str:
    return hashlib.sha256(manifest_path(root, number).read_bytes()).hexdigest()


def parts_of(root: Path, number: int) -> tuple[Part, ...]:
    """The parts of a local manifest, none for 0."""
    return read_manifest(root, number).parts if number else ()


def join(base: Iterable[Part], first: Sequence[Part], second: Sequence[Part]) -> list[Part]:
    """Three-way join in `first`'s order, then what `second` adds. A name that both hold is taken from `first`."""
    before = {part.name for part in base}
    names, others = {part.name for part in first}, {part.name for part in second}
    dropped = {name for name in before if name not in names or name not in others}
    kept = [part for part in first if part.name not in dropped]
    return kept + [part for part in second if part.name not in dropped | names]


def complete(root: Path, part: Part, listed: dict[str, Part]) -> Part | None:
    """The part of that name as it is here, None if it is not complete. `listed` is the newest manifest's."""
    if not done_path(root, part.name).exists():
        return None
    return listed.get(part.name) or Part.of_done(root, read_done(root, part.name))


def follow(root: Path, shared: SharedStore, rewrite: bool) -> bool:
    """Make the local chain the remote's, if nothing is lost by it. False: it was left alone.

    That is so if all parts of the remote's newest manifest are complete here, and the remote continues the
    local chain, or (`rewrite`) holds everything that the local one lists; manifests that others then take the
    number of are kept in `.displaced`. The newest is never one that lists less than before.
    """
    with lock(root):
        relation = compare(root, shared)
        if not relation.there:
            return False
        _mend(root, shared, relation.base)
        theirs, own = shared.manifest(relation.there).parts, parts_of(root, relation.here)
        listed = {part.name: part for part in own}
        if any(complete(root, part, listed) != part for part in theirs):
            return False
        if not relation.behind:
            joined = join(parts_of(root, relation.base), theirs, own)
            if not rewrite or joined != list(theirs) or relation.there < relation.here:
                return False
        order = list(range(relation.base + 1, relation.there + 1))
        whole = all(done_path(root, part.name).exists() for n in order for part in shared.manifest(n).parts)
        if not (relation.behind and whole):
            # A manifest on the way lists less than what is here now: the newest is written first.
            order.reverse()
        for number in order:
            _copy(root, shared, number)
    advance_head(root)
    return True


def _mend(root: Path, shared: SharedStore, base: int) -> None:
    """Finish what a killed `follow` left: manifests below the common one that are missing or not the remote's."""
    whole = all(
        manifest_path(root, n).is_file() and (n == 1 or read_manifest(root, n).parent == _digest(root, n - 1))
        for n in range(base, 0, -1)
    )
    for number in () if whole else range(base - 1, 0, -1):
        if not manifest_path(root, number).is_file() or _digest(root, number) != shared.digest(number):
            _copy(root, shared, number)


def _copy(root: Path, shared: SharedStore, number: int) -> None:
    path, raw = manifest_path(root, number), shared.raw(number)
    if path.is_file():
        _displace(root, number)
        replace(root, path, raw)
    else:
        create_only(root, path, raw)


def _displace(root: Path, number: int) -> None:
    raw = manifest_path(root, number).read_bytes()
    kept = root / DISPLACED / f"{number}-{hashlib.sha256(raw).hexdigest()[:16]}.json"
    if not kept.exists():
        create_only(root, kept, raw)


def commit_joined(root: Path, spec: str, arrange: Callable[[Sequence[Part]], list[Part]], operation: str) -> int:
    """A manifest on top of the newest that lists `arrange(its parts)`; none if that changes nothing.
    Returns the newest number, 0 if there is none."""

    def change(listed: dict[str, Part]) -> dict[str, Part]:
        return {part.name: part for part in arrange(list(listed.values()))}

    return commit_change(root, spec, change, written_now(operation))
