"""Is a store whole? Every problem as data, none as an exception.

Checked: the spec and the folder's name; the chain of manifests and the head; for every committed part its done
file, the size and xxh3_128 of each file, the crc32c of each sample, that values are finite, that pooled
embeddings have the length the spec says, that the table's rows are the arrays' rows, that spans lie inside
their captions; done files and files of parts that are dropped or not committed; and files that no manifest
lists. A change of any one bit of these is found: files by the checksums in the manifest, done files by their
digest, the manifest by its child or the head, the spec by the manifests.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import CompalError
from .chain import ManifestReader
from .files import abandoned, read_json
from .manifest import (
    FOLDERS,
    Manifest,
    Part,
    done_names,
    head_content,
    is_copy,
    manifest_path,
    numbers,
    read_done,
)
from .spec import LEVELS, FeatureSpec
from .verify_part import Problem, check_files, check_part, guarded, quietly

__all__ = ["Problem", "verify"]

COPY = "Restore the file from a copy."
RESUME = "Run the extraction again: it completes the store."
STRAY = "If nothing writes to the store, what was killed left it: compal store gc"
COMPACT = "Finish it: compal store compact; or a day later: compal store gc"
DROPPED = "Restore it from a copy, or collect the part: compal store gc"
NEWEST = "Restore it from a copy, or delete it and extract again: parts that are done need no computing."
NAMED = re.compile(rf".+-(?:{'|'.join(LEVELS)})(?:-[a-z0-9-]+)?-([0-9a-f]{{16}})")


def verify(path: Path, deep: bool = True) -> list[Problem]:
    """All problems of the store at `path`; empty means whole. `deep` reads every byte twice (files, then
    samples); otherwise only descriptions, presence and sizes are checked. Never raises on damaged input."""
    root = Path(path)
    problems = list(guarded("", "spec.json", COPY, _check_spec(root)))
    spec = None if problems else FeatureSpec.from_json(read_json(root / "spec.json"))
    chain = _Chain(root, spec)
    for number in quietly(numbers, root) or []:
        problems += chain.check(number)
    newest = chain.newest
    problems += guarded("", "head.json", RESUME, _check_head(root))
    for part in newest.parts if newest else ():
        problems += check_part(root, part, spec, deep)
    others, known = _not_listed(root, chain, deep)
    return problems + others + _strays(root, newest, known)


# --- the store as a whole --------------------------------------------------------------------------------


def _check_spec(root: Path) -> Iterator[str]:
    if not root.is_dir():
        yield f"there is no folder {root}"
        return
    spec = FeatureSpec.from_json(read_json(root / "spec.json"))
    if spec.to_json() != (root / "spec.json").read_bytes():
        yield "is not canonical JSON, its fingerprint is not the store's"
    named = NAMED.fullmatch(root.resolve().name)
    if named and named[1] != spec.fingerprint[:16]:
        yield f"is not the spec that the folder is named for (…{named[1]})"


class _Chain:
    """The manifests in ascending order, each checked against the one before.

    newest  the last one that could be read
    listed  every part that any of them lists, by name, as last listed
    """

    def __init__(self, root: Path, spec: FeatureSpec | None) -> None:
        self.root, self.spec = root, spec
        self.newest: Manifest | None = None
        self.listed: dict[str, Part] = {}
        self._reader = ManifestReader(root)
        self._before: set[str] = set()
        self._digest = ""

    def check(self, number: int) -> Iterator[Problem]:
        """The problems of manifest `number`."""
        last = not manifest_path(self.root, number + 1).exists()
        file = f"manifests/{number}.json"
        yield from guarded("", file, NEWEST if last else COPY, self._check(number))

    def _check(self, number: int) -> Iterator[str]:
        before = self.newest
        path = manifest_path(self.root, number)
        raw, digest = path.read_bytes(), self._digest
        self._digest = hashlib.sha256(raw).hexdigest()
        parent = manifest_path(self.root, number - 1)
        if number > 1 and not parent.is_file():
            yield f"its parent {number - 1} is missing"
        manifest = self.newest = self._reader.read(number)
        if self.spec and manifest.spec != self.spec.fingerprint:
            yield "names another spec than spec.json"
        if manifest.parent != (digest if number > 1 and parent.is_file() else ""):
            yield f"its parent is not manifest {number - 1} as it is now"
        if not manifest_path(self.root, number + 1).exists() and manifest.to_json() != raw:
            yield "is not canonical JSON"
        names = {part.name: part for part in manifest.parts}
        lost = self._before - names.keys() if before and before.number == number - 1 else set()
        if lost and (manifest.written or {}).get("operation", "append") == "append":
            yield f"drops the parts {', '.join(sorted(lost))}"
        self.listed |= names
        self._before = set(names)


def _check_head(root: Path) -> Iterator[str]:
    existing = numbers(root)
    head = root / "head.json"
    if not existing:
        if head.exists():
            yield "names a manifest, but there is none"
    elif not head.is_file():
        yield "is missing"
    elif head.read_bytes() != head_content(existing[-1], manifest_path(root, existing[-1]).read_bytes()):
        named = quietly(read_json, head) or {}
        if named.get("manifest") == existing[-1]:
            yield f"has another sha256 than manifest {existing[-1]}: one of the two has changed"
        else:
            yield f"does not name the newest manifest {existing[-1]}"


def _not_listed(root: Path, chain: _Chain, deep: bool) -> tuple[list[Problem], set[str]]:
    """Problems of complete parts that the newest manifest does not list, and the files that belong to these."""
    listed = {part.name for part in chain.newest.parts} if chain.newest else set()
    problems: list[Problem] = []
    known: set[str] = set()
    for name in quietly(done_names, root) or []:
        if name in listed:
            continue
        file = f"done/{name}.json"
        known.add(file)
        try:
            done = read_done(root, name)
            part = Part.of_done(root, done)
        except CompalError as error:
            known |= set(chain.listed[name].files) if name in chain.listed else set()
            problems.append(Problem(name, file, f"is damaged: {error.what}", RESUME))
            continue
        known |= set(part.files)
        if name in chain.listed and chain.listed[name].record == part.record:
            problems += check_files(root, chain.listed[name], DROPPED, deep)
            continue
        if is_copy(done):
            problems.append(Problem(name, file, "a compaction that was killed left this copy", COMPACT))
        else:
            problems.append(Problem(name, file, "the part is complete but not committed", RESUME))
        problems += check_files(root, part, f"Delete {file} and extract again.", deep)
    return problems, known


def _strays(root: Path, newest: Manifest | None, known: set[str]) -> list[Problem]:
    """Files of a store's folders that nothing lists, and staging of killed writers."""
    parts = newest.parts if newest else ()
    known = known | {file for part in parts for file in part.files} | {f"done/{part.name}.json" for part in parts}
    known |= {f"manifests/{number}.json" for number in quietly(numbers, root) or []}
    problems = []
    for folder in (*FOLDERS.values(), "tables", "done", "manifests"):
        for place, _, files in os.walk(root / folder):
            for path in sorted(Path(place, file) for file in files):
                file = path.relative_to(root).as_posix()
                if file not in known:
                    problems.append(Problem("", file, "no manifest lists it", STRAY))
    for path in quietly(abandoned, root) or []:
        problems.append(Problem("", path.relative_to(root).as_posix(), "a killed writer left it", RESUME))
    return problems
