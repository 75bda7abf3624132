"""Parts and manifests: what a store holds, as immutable files whose presence means complete.

`done/<part>.json` is published last of a part's files. `manifests/<n>.json` lists all parts of version n with
their checksums and the sha256 of its parent's bytes; it is create-only, so of two committers one wins and the
other commits again on top. Neither holds anything that depends on when or where it was written, except
`parent`, `digest` and `written`. `head.json` names the newest manifest for readers that cannot list a folder;
locally the list decides, since a writer may be killed between the two.

A part that an earlier manifest lists and the newest does not is dropped: its files stay until they are
collected (`upkeep.gc`), it is not waiting to be committed, and committing its name again adopts it.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import canonical
from ..errors import InputError, VerificationError
from .files import RESTORE, check_relative, checked_path, create_only, disk_errors, lock, read_json, replace
from .spec import FORMAT_VERSION

PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
KINDS = ("image", "text")
FOLDERS = {"image": "images", "text": "texts"}
NUMBERED = re.compile(r"([1-9][0-9]{0,17})\.json")
PART_FIELDS = {"name", "kind", "rows", "quarantined", "items", "record", "files"}
FILE_FIELDS = {"bytes", "xxh3_128"}
# The paths that `files.check_relative` lets pass, 20 times as fast: 1,600 parts list 9,600 of them.
PLAIN_PATH = re.compile(r"(?!\.\.?(?:/|\Z))[^/\\\0]+(?:/(?!\.\.?(?:/|\Z))[^/\\\0]+)*")
XXH3 = re.compile(r"[0-9a-f]{32}")
FEW = 16  # names are sought one by one up to here, all at once beyond
LISTED_NAME = re.compile(rb'"name":"([A-Za-z0-9][A-Za-z0-9_-]*)"')


@dataclass(frozen=True)
class Part:
    """One committed slice of a store.

    name         letters, digits, `-`, `_`
    kind         "image" or "text"
    rows         how many items it holds
    quarantined  how many of its planned items could not be read
    items        sha256 of the sorted keys planned for the part, held or quarantined
    record       sha256 of `done/<name>.json` without `written` and `digest`
    files        path inside the store → {"bytes", "xxh3_128"}
    """

    name: str
    kind: str
    rows: int
    quarantined: int
    items: str
    record: str
    files: dict[str, dict[str, Any]]

    @property
    def bytes(self) -> int:
        """What its files take."""
        return sum(int(size["bytes"]) for size in self.files.values())

    @classmethod
    def parse(cls, root: Path | str, data: Any) -> Part:
        """From a manifest's entry; `root` is named in messages. Raises `VerificationError` for what is missing, of the
        wrong type or points out of the store."""
        if not isinstance(data, dict) or data.keys() != PART_FIELDS:
            raise VerificationError(f"{root} lists a malformed part", RESTORE)
        part = cls(**data)
        numbers = all(type(n) is int and n >= 0 for n in (part.rows, part.quarantined))
        texts = all(type(text) is str for text in (part.name, part.kind, part.items, part.record))
        if not (numbers and texts and part.kind in KINDS and isinstance(part.files, dict)):
            raise VerificationError(f"{root} lists a malformed part", RESTORE)
        if not PART_NAME.fullmatch(part.name):
            raise VerificationError(f"{root} lists a part named {part.name!r}", RESTORE)
        inside = f"{FOLDERS[part.kind]}/{part.name}/"
        single = (f"{inside[:-1]}.arrow", f"tables/{part.name}.parquet")
        for path, size in part.files.items():
            if not PLAIN_PATH.fullmatch(path):
                check_relative(root, path)
            if path not in single and not path.startswith(inside):
                raise VerificationError(f"part {part.name} lists {path}, which is not a file of its own", RESTORE)
            if not _sized(size):
                raise VerificationError(f"part {part.name} lists {path} without size and checksum", RESTORE)
        return part

    @classmethod
    def of_done(cls, root: Path | str, done: dict[str, Any]) -> Part:
        """The part that a `done` file describes. Raises `VerificationError`."""
        quarantined = done.get("quarantined")
        entry = {
            "name": done.get("part"),
            "quarantined": len(quarantined) if isinstance(quarantined, list) else -1,
            "record": _sha256_of(done, "written", "digest"),
            **{key: done.get(key) for key in ("kind", "rows", "items", "files")},
        }
        return cls.parse(root, entry)


def _sized(size: Any) -> bool:
    return (
        isinstance(size, dict)
        and size.keys() == FILE_FIELDS
        and type(size["bytes"]) is int
        and size["bytes"] >= 0
        and type(size["xxh3_128"]) is str
        and XXH3.fullmatch(size["xxh3_128"]) is not None
    )


def _sha256_of(data: dict[str, Any], *without: str) -> str:
    try:
        return hashlib.sha256(canonical({key: value for key, value in data.items() if key not in without})).hexdigest()
    except ValueError:  # NaN, infinity or half a surrogate pair: no writer of ours wrote that
        return ""


@dataclass(frozen=True)
class Manifest:
    """Version `number` of a store: its parts in the order in which a key that stands twice is sought.

    parent   sha256 of the bytes of manifest `number` - 1, "" for the first
    spec     fingerprint of the store's spec
    written  by whom, when and by which operation (see `written_now`); None in manifests of older versions
    """

    number: int
    parent: str
    spec: str
    parts: tuple[Part, ...]
    written: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        """Canonical JSON."""
        data = {key: value for key, value in vars(self).items() if value is not None}
        return canonical({"format": FORMAT_VERSION, **data, "parts": [vars(part) for part in self.parts]})

    @classmethod
    def parse(cls, root: Path | str, data: dict[str, Any], known: Mapping[str, Part] | None = None) -> Manifest:
        """Raises `VerificationError` for content that `to_json` does not write. `known` are parsed parts by
        name, of the manifest before: an entry that equals one is taken over, 10 times as fast."""
        if data.get("format") != FORMAT_VERSION:
            raise VerificationError(
                f"{root} has a manifest of format {data.get('format')!r}, not {FORMAT_VERSION}",
                "Upgrade compal.",
            )
        number, parent, spec, parts = (data.get(key) for key in ("number", "parent", "spec", "parts"))
        written = data.get("written")
        sound = type(number) is int and number >= 1 and isinstance(parent, str) and isinstance(spec, str)
        if not sound or not isinstance(parts, list) or not isinstance(written, dict | None):
            raise VerificationError(f"{root} has a malformed manifest", RESTORE)
        parsed = tuple(_parsed(root, entry, known or {}) for entry in parts)
        if len({part.name for part in parsed}) < len(parsed):
            raise VerificationError(f"{root} has a manifest that lists a part twice", RESTORE)
        return cls(number, parent, spec, parsed, written)  # type: ignore[arg-type]


def _parsed(root: Path | str, entry: Any, known: Mapping[str, Part]) -> Part:
    if known and isinstance(entry, dict):
        name = entry.get("name")
        part = known.get(name) if isinstance(name, str) else None
        if part is not None and vars(part) == entry:
            return part
    return Part.parse(root, entry)


def written_now(operation: str, note: str = "", origin: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a manifest says of its own making: operation (append, drop, restore, compact, pull, merge, cast, push),
    time (seconds since 1970), host, user, compal (version), `note` if there is one, and `origin` beside it."""
    record = {
        **(origin or {}),
        "operation": operation,
        "time": round(time.time(), 3),
        "host": os.uname().nodename,
        "user": user_name(),
        "compal": __version__,
    }
    note = " ".join(note.split()).encode(errors="replace").decode()
    return record | ({"note": note} if note else {})


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


# --- reading ---------------------------------------------------------------------------------------------


def manifest_path(root: Path, number: int) -> Path:
    """The file of manifest `number`."""
    return root / "manifests" / f"{number}.json"


def done_path(root: Path, name: str) -> Path:
    """The file whose presence says that a part is complete."""
    return root / "done" / f"{name}.json"


def numbers(root: Path) -> list[int]:
    """The numbers of the manifests that exist, ascending."""
    return sorted(int(match[1]) for match in map(NUMBERED.fullmatch, _names(root / "manifests")) if match)


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


def done_digest(done: dict[str, Any]) -> str:
    """The value of "digest" in a done file: sha256 of the canonical JSON of everything else in it."""
    return _sha256_of(done, "digest")


def read_done(root: Path, name: str) -> dict[str, Any]:
    """The content of `done/<name>.json`. Raises `VerificationError` if damaged or of another part."""
    path = done_path(root, name)
    done = read_json(path)
    if "digest" in done and done["digest"] != done_digest(done):
        raise VerificationError(f"{path} is damaged: its digest does not match", RESTORE)
    if done.get("part") != name:
        raise VerificationError(f"{path} describes the part {done.get('part')!r}", RESTORE)
    return done


def done_names(root: Path) -> list[str]:
    """The names of the parts that are complete, committed or not, sorted."""
    names = (name[:-5] for name in _names(root / "done") if name.endswith(".json"))
    return sorted(name for name in names if PART_NAME.fullmatch(name))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def dropped(root: Path) -> set[str]:
    """The names of complete parts that wait for no commit: an earlier manifest lists them and the newest does
    not, or they are the copies of a compaction that was killed."""
    existing = numbers(root)
    if not existing:
        return set()
    spare = set(done_names(root)) - {part.name for part in read_manifest(root, existing[-1]).parts}
    listed = once_listed(root, spare, existing[:-1])
    return listed | {name for name in spare - listed if is_copy(read_done(root, name))}


def is_copy(done: dict[str, Any]) -> bool:
    """Whether a done file is of a part that compaction made of others."""
    written = done.get("written")
    return isinstance(written, dict) and written.get("operation") == "compact"


def once_listed(root: Path, names: set[str], among: Iterable[int]) -> set[str]:
    """Which of `names` the manifests `among` list. Their text is searched, not parsed: 1,000 manifests of 800
    parts are 0.8 GB."""
    left, found = set(names), set[str]()
    for number in sorted(among, reverse=True):
        if not left:
            break
        text = manifest_path(root, number).read_bytes()
        if len(left) > FEW:
            here = left & {name.decode() for name in LISTED_NAME.findall(text)}
        else:
            here = {name for name in left if b'"name":"%s"' % name.encode() in text}
        found |= here
        left -= here
    return found


# --- committing ------------------------------------------------------------------------------------------


def commit(
    root: Path,
    spec: str,
    names: Iterable[str],
    *,
    drop: Iterable[str] = (),
    operation: str = "append",
    note: str = "",
    origin: Mapping[str, Any] | None = None,
) -> int:
    """Add complete parts to the store and return the number of the newest manifest (0: there is none).

    Parts that are already listed with the same content are left alone; a part that was written anew replaces
    its entry. Within one call parts are listed by name. The parts `drop` are listed no longer; their files
    stay. `operation` (an append that drops is called a drop), `note` and `origin` are kept in the manifest's
    `written`. Raises `InputError` for a part that is not complete, and for one to drop that is not listed (any
    more).
    """
    chosen, leaving = sorted(set(names)), set(drop)
    operation = "drop" if leaving and operation == "append" else operation

    def change(listed: dict[str, Part]) -> dict[str, Part]:
        lacking = sorted(leaving - listed.keys())
        if lacking:
            raise InputError(f"{root} does not list the part {lacking[0]}", "See: compal store log")
        kept = {name: part for name, part in listed.items() if name not in leaving}
        return kept | {name: complete_part(root, spec, name) for name in chosen}

    return commit_change(root, spec, change, written_now(operation, note, origin))


def commit_change(
    root: Path, spec: str, change: Callable[[dict[str, Part]], dict[str, Part]], written: dict[str, Any]
) -> int:
    """Commit what `change` makes of the parts that the newest manifest lists, by name, and return the number of
    the newest manifest. `change` is called again on top of whoever was faster; what it raises ends the commit.

    Under the lock, so that no collector deletes a part between the look at its files and the manifest that
    lists it. Two committers need no lock: `create_only` lets one win.
    """
    with disk_errors(str(root)):
        with lock(root):
            while True:
                existing = numbers(root)
                parent = read_manifest(root, existing[-1]) if existing else None
                listed = {part.name: part for part in parent.parts} if parent else {}
                changed = change(dict(listed))
                if list(changed.items()) == list(listed.items()):
                    break
                number = parent.number + 1 if parent else 1
                before = manifest_path(root, parent.number).read_bytes() if parent else b""
                digest = hashlib.sha256(before).hexdigest() if parent else ""
                manifest = Manifest(number, digest, spec, tuple(changed.values()), written)
                if create_only(root, manifest_path(root, number), manifest.to_json()):
                    break
        return advance_head(root)


def complete_part(root: Path, spec: str, name: str) -> Part:
    """The part as its done file describes it. Raises `InputError` if it is not complete, `VerificationError` if
    it is of another spec or a file of it is missing or not of its size."""
    if not PART_NAME.fullmatch(name) or not done_path(root, name).is_file():
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
        content = head_content(existing[-1], manifest_path(root, existing[-1]).read_bytes())
        head = root / "head.json"
        if not head.is_file() or head.read_bytes() != content:
            replace(root, head, content)
        if numbers(root)[-1] == existing[-1]:
            return existing[-1]
    return 0


def head_content(number: int, manifest: bytes) -> bytes:
    """What `head.json` holds when `manifest`, of that number, is the newest."""
    return canonical({"manifest": number, "sha256": hashlib.sha256(manifest).hexdigest()})
