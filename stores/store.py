"""Store: open, write a part, commit, describe. Reading by key is the snapshot's (`snapshot.py`).

Readers never wait for writers: a store opened is a snapshot, and what others commit later is seen by opening
again (or after a commit of one's own).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError, SpecMismatch, VerificationError
from . import parts
from .dtypes import STORED
from .files import RESTORE, create_only, disk_errors, read_json, sweep
from .index import KEPT_FROM
from .manifest import (
    FOLDERS,
    Part,
    advance_head,
    commit,
    done_names,
    done_path,
    dropped,
    newest,
    numbers,
    read_done,
    read_manifest,
)
from .reading import Reading
from .rows import ImageRows, Quarantined, TextRows
from .snapshot import Snapshot
from .spec import FORMAT_VERSION, FeatureSpec

__all__ = ["ImageRows", "Quarantined", "Reading", "Store", "TextRows"]


class Store(Snapshot):
    """Features on disk. Build with `Store.create` or `Store.open`; fields: `Snapshot`."""

    @classmethod
    def create(cls, folder: Path, spec: FeatureSpec) -> Store:
        """Make a store in `folder`, or open the one that is there, for writing.

        Raises `SpecMismatch` if it holds features of another spec, `InputError` if the folder cannot be
        written or holds something else. What killed writers of this host left behind is deleted.
        """
        folder = Path(folder)
        _check_spec(spec)
        with disk_errors(f"the store {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "spec.json").exists():
                foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
                if foreign and not (folder / "spec.json").exists():  # or another process was first
                    raise InputError(f"{folder} holds {foreign[0]} and no store", "Choose an empty folder.")
                create_only(folder, folder / "spec.json", spec.to_json())
            sweep(folder)
        store = cls.open(folder)
        if store.spec != spec:
            raise SpecMismatch(
                f"{folder} holds features of another spec ({_difference(store.spec, spec)})",
                f"Use the folder {spec.folder}.",
            )
        with disk_errors(f"the store {folder}"):
            advance_head(folder)
        return store

    @classmethod
    def open(cls, path: Path, manifest: int | None = None, reading: Reading | None = None) -> Store:
        """Open for reading: the newest manifest, or the one of a given number. `reading` says how bytes are read
        and checked; by default as fits the store's size, each sample checked when first touched.

        Raises `InputError` if `path` is not a store or parts of an older version were collected,
        `VerificationError` if its description is damaged.
        """
        path = Path(path)
        if not (path / "spec.json").is_file():
            raise InputError(f"{path} is not a store: it has no spec.json", "See: compal ls stores")
        data = read_json(path / "spec.json")
        if data.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path} has format {data.get('format_version')!r}, this version reads {FORMAT_VERSION}",
                "Upgrade compal.",
            )
        try:
            spec = FeatureSpec.from_json(data)
            _check_spec(spec)
        except Exception as error:
            raise VerificationError(f"{path / 'spec.json'} is damaged: {error}", RESTORE) from None
        if manifest is None:
            return cls(path, spec, newest(path), reading)
        chosen = read_manifest(path, manifest)
        store = cls(path, spec, chosen, reading)
        if len(store.parts) < len(chosen.parts) and manifest != numbers(path)[-1]:
            raise InputError(f"parts of version {manifest} of {path} were collected", "See: compal store log")
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path, self.manifest or None, self._asked)

    def __repr__(self) -> str:
        # From the manifest alone: it is shown of a damaged store too.
        images, texts = (sum(part.rows for part in self._parts[kind]) for kind in FOLDERS)
        each = f" of {' × '.join(map(str, self.spec.image_shape))}" if any(self.spec.image_shape) else ""
        return f"<Store {self.path.name}: {images:,} images{each}, {texts:,} captions, {self.spec.dtype}>"

    def info(self) -> dict[str, Any]:
        """Counts, bytes, spec, manifests and quarantine by reason, for people and for `--json`."""
        return {
            "path": str(self.path),
            "fingerprint": self.spec.fingerprint,
            "spec": dataclasses.asdict(self.spec),
            "images": self.count("image"),
            "texts": self.count("text"),
            "parts": len(self.parts),
            "files": sum(len(part.files) for part in self.parts),
            "bytes": sum(part.bytes for part in self.parts),
            "manifest": self.manifest,
            "manifests": len(numbers(self.path)),
            "uncommitted": self.uncommitted(),
            "quarantined": dict(sorted(Counter(item.reason for item in self.quarantined()).items())),
        }

    # --- writing -------------------------------------------------------------------------------------

    def part_done(self, name: str) -> bool:
        """Whether the part is complete on disk, committed or not."""
        return done_path(self.path, name).exists()

    def write_images(
        self,
        name: str,
        rows: ImageRows,
        quarantined: Iterable[Quarantined] = (),
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Write a part of images; it is complete or absent. An existing part of the same items is kept.

        `provenance` (device, versions, …) is kept in the done file beside host and time and is not part of
        the store's identity. Raises `InputError` for NaN or infinite values (also after the cast to the
        stored dtype) naming the item, for duplicate keys, shapes that differ from the spec, a full disk.
        """
        parts.write_images(self._origin(name, quarantined, provenance), rows)

    def write_texts(
        self,
        name: str,
        rows: TextRows,
        quarantined: Iterable[Quarantined] = (),
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Write a part of captions; see `write_images`."""
        parts.write_texts(self._origin(name, quarantined, provenance), rows)

    def _origin(self, name: str, quarantined: Iterable[Quarantined], provenance: dict[str, Any] | None) -> parts.Origin:
        return parts.Origin(self.path, self.spec, name, tuple(quarantined), provenance or {})

    def uncommitted(self) -> list[str]:
        """Complete parts that the newest manifest does not list with their present content, sorted; without
        those that a later manifest dropped on purpose."""
        listed = {part.name: part.record for part in self.parts}
        found = [
            name
            for name in done_names(self.path)
            if listed.get(name) != Part.of_done(self.path, read_done(self.path, name)).record
        ]
        return sorted(set(found) - dropped(self.path)) if found else []

    def commit(self, parts: Iterable[str]) -> int:
        """Make complete parts visible: a new manifest on top of the newest. Returns its number.

        Safe against other committers: the loser of a race commits again on top. Committing what is
        already there changes nothing. Raises `InputError` for a part that is not complete.
        """
        number = commit(self.path, self.spec.fingerprint, parts)
        self._bind(read_manifest(self.path, number) if number else None)
        for kind in FOLDERS:  # readers of a large store then find its index made
            if sum(part.rows for part in self._parts[kind]) >= KEPT_FROM:
                self._index(kind)
        return number


def _check_spec(spec: FeatureSpec) -> None:
    if spec.dtype not in STORED:
        raise InputError(f"features cannot be stored as {spec.dtype}", f"Choose one of {', '.join(STORED)}.")
    spec.check_level()


def _difference(one: FeatureSpec, other: FeatureSpec) -> str:
    names = [field.name for field in dataclasses.fields(one)]
    return ", ".join(
        f"{name} {getattr(one, name)!r} there, {getattr(other, name)!r} here"
        for name in names
        if getattr(one, name) != getattr(other, name)
    )
