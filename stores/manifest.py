"""Parts and manifests: what a store holds, as immutable files whose presence means complete.

`done/<part>.json` is published last of a part's files. `manifests/<n>.json` lists all parts of version n with
their checksums and the sha256 of its parent; it is create-only, so of two committers one wins and the other
commits again on top. Both hold nothing that depends on when or where they were written, except `written`.
`head.json` names the newest manifest for readers that cannot list a folder; locally the list decides, since
a writer may be killed between the two.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import canonical
from ..errors import InputError, VerificationError
from .files import RESTORE, check_relative, checked_path, create_only, disk_errors, read_json, replace
from .spec import FORMAT_VERSION

PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
KINDS = ("image", "text")
FOLDERS = {"image": "images", "text": "texts"}


@dataclass(frozen=True)
class Part:
    """One committed slice of a store.

    name         letters, digits, `-`, `_`
    kind         "image" or "text"
    rows         how many items it holds
    quarantined  how many of its planned items could not be read
    items        sha256 of the sorted keys planned for the part, held or quarantined
    record       sha256 of `done/<name>.json` without `written`
    files        path inside the store → {"bytes", "xxh3_128"}
    """

    name: str
    kind: str
    rows: int
    quarantined: int
    items: str
    record: str
    files: dict[str, dict[str, Any]]

    @classmethod
    def parse(cls, root: Path, data: Any) -> Part:
        """From a manifest's entry. Raises `VerificationError` for what is missing, of the wrong type or
        points out of the store."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) != names:
            raise VerificationError(f"{root} lists a malformed part", RESTORE)
        part = cls(**data)
        numbers = all(type(n) is int and n >= 0 for n in (part.rows, part.quarantined))
        texts = all(isinstance(text, str) for text in (part.name, part.kind, part.items, part.record))
        if not (numbers and texts and part.kind in KINDS and isinstance(part.files, dict)):
            raise VerificationError(f"{root} lists a malformed part", RESTORE)
        if not PART_NAME.fullmatch(part.name):
            raise VerificationError(f"{root} lists a part named {part.name!r}", RESTORE)
        for path, size in part.files.items():
            part._check_file(root, path, size)
        return part

    def _check_file(self, root: Path, path: str, size: Any) -> None:
        check_relative(root, path)
        folder = FOLDERS[self.kind]
        own = path.startswith(f"{folder}/{self.name}/") or path in (
            f"{folder}/{self.name}.arrow",
            f"tables/{self.name}.parquet",
        )
        if not own:
            raise VerificationError(f"part {self.name} lists {path}, which is not a file of its own", RESTORE)
        if not isinstance(size, dict) or set(size) != {"bytes", "xxh3_128"} or type(size["bytes"]) is not int:
            raise VerificationError(f"part {self.name} lists {path} without size and checksum", RESTORE)

    @classmethod
    def of_done(cls, root: Path, done: dict[str, Any]) -> Part:
        """The part that a `done` file describes. Raises `VerificationError`."""
        record = {key: value for key, value in done.items() if key != "written"}
        quarantined = done.get("quarantined")
        entry = {
            "name": done.get("part"),
            "quarantined": len(quarantined) if isinstance(quarantined, list) else -1,
            "record": hashlib.sha256(canonical(record)).hexdigest(),
            **{key: done.get(key) for key in ("kind", "rows", "items", "files")},
        }
        return cls.parse(root, entry)


@dataclass(frozen=True)
class Manifest:
    """Version `number` of a store: its parts in the order in which they were committed."""

    number: int
    parent: str
    spec: str
    parts: tuple[Part, ...]

    def to_json(self) -> bytes:
        """Canonical JSON."""
        return canonical({"format": FORMAT_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def parse(cls, root: Path, data: dict[str, Any]) -> Manifest:
        """Raises `VerificationError` for content that `to_json` does not write."""
        if data.get("format") != FORMAT_VERSION:
            raise VerificationError(
                f"{root} has a manifest of format {data.get('format')!r}, not {FORMAT_VERSION}",
                "Upgrade compal.",
            )
        number, parent, spec, parts = (data.get(key) for key in ("number", "parent", "spec", "parts"))
        if type(number) is not int or not isinstance(parent, str) or not isinstance(spec, str):
            raise VerificationError(f"{root} has a malformed manifest", RESTORE)
        if not isinstance(parts, list):
            raise VerificationError(f"{root} has a malformed manifest", RESTORE)
        parsed = tuple(Part.parse(root, part) for part in parts)
        if len({part.name for part in parsed}) < len(parsed):
            raise VerificationError(f"{root} has a manifest that lists a part twice", RESTORE)
        return cls(number, parent, spec, parsed)


def manifest_path(root: Path, number: int) -> Path:
    """The file of manifest `number`."""
    return root / "manifests" / f"{number}.json"


def numbers(root: Path) -> list[int]:
    """The numbers of the manifests that exist, ascending."""
    return sorted(int(path.stem) for path in (root / "manifests").glob("*.json") if path.stem.isdecimal())


def read_manifest(root: Path, number: int) -> Manifest:
    """Raises `VerificationError` if it is missing or damaged."""
    manifest = Manifest.parse(root, read_json(manifest_path(root, number)))
    if manifest.number != number:
        raise VerificationError(f"{manifest_path(root, number)} says it is number {manifest.number}", RESTORE)
    return manifest


def newest(root: Path) -> Manifest | None:
    """The newest manifest, or None if nothing was committed yet."""
    existing = numbers(root)
    return read_manifest(root, existing[-1]) if existing else None


def read_done(root: Path, name: str) -> dict[str, Any]:
    """The content of `done/<name>.json`. Raises `VerificationError` if damaged or of another part."""
    path = root / "done" / f"{name}.json"
    done = read_json(path)
    if done.get("part") != name:
        raise VerificationError(f"{path} describes the part {done.get('part')!r}", RESTORE)
    return done


def done_names(root: Path) -> list[str]:
    """The names of the parts that are complete, committed or not, sorted."""
    names = (path.stem for path in (root / "done").glob("*.json"))
    return sorted(name for name in names if PART_NAME.fullmatch(name))


def commit(root: Path, spec: str, names: Iterable[str]) -> int:
    """Add complete parts to the store and return the number of the newest manifest (0: there is none).

    Parts that are already listed with the same content are left alone; a part that was written anew replaces
    its entry. Within one call parts are listed by name. Raises `InputError` for a part that is not complete.
    """
    added = {name: _complete(root, spec, name) for name in sorted(set(names))}
    with disk_errors(str(root)):
        while True:
            parent = newest(root)
            listed = {part.name: part for part in parent.parts} if parent else {}
            merged = {**listed, **added}
            if merged == listed:
                break
            number = parent.number + 1 if parent else 1
            digest = hashlib.sha256(parent.to_json()).hexdigest() if parent else ""
            manifest = Manifest(number, digest, spec, tuple(merged.values()))
            if create_only(root, manifest_path(root, number), manifest.to_json()):
                break
        return advance_head(root)


def _complete(root: Path, spec: str, name: str) -> Part:
    if name not in done_names(root):
        raise InputError(f"part {name} of {root} is not complete", "Write it again before committing it.")
    done = read_done(root, name)
    if done.get("spec") != spec:
        raise VerificationError(f"part {name} was written for another spec than {root}", RESTORE)
    part = Part.of_done(root, done)
    for path, size in part.files.items():
        file = checked_path(root, path)
        if not file.is_file() or file.stat().st_size != size["bytes"]:
            raise VerificationError(f"{file} is missing or not of the size that was written", RESTORE)
    return part


def advance_head(root: Path) -> int:
    """Point `head.json` at the newest manifest and return its number.

    Written until the list agrees: of two committers the one that replaces last lists last, so an older
    number cannot stay.
    """
    while existing := numbers(root):
        content = head_content(root, existing[-1])
        head = root / "head.json"
        if not head.is_file() or head.read_bytes() != content:
            replace(root, head, content)
        if numbers(root)[-1] == existing[-1]:
            return existing[-1]
    return 0


def head_content(root: Path, number: int) -> bytes:
    """What `head.json` holds when manifest `number` is the newest."""
    digest = hashlib.sha256(manifest_path(root, number).read_bytes()).hexdigest()
    return canonical({"manifest": number, "sha256": digest})
