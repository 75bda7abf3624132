"""What benchmarks on files share: reading rows, finding photographs, leaving out what is missing, keys.

While a benchmark is read, a `Group` holds names of images and texts of captions; `keyed` and `keyed_items`
turn them into keys and items.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...errors import InputError, UnknownName
from ...stores.items import Item, caption_key
from ..sources import Group, Sources, limited

SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".webp")


class Images(Protocol):
    """The images of a benchmark by name."""

    where: str

    def has(self, name: str) -> bool:
        """Is the image there? Reads no pixels."""

    def item(self, name: str) -> Item:
        """The item of an image that is there."""


class FolderImages:
    """Images as files in the first of `folders` that holds the name, with or without its suffix."""

    def __init__(self, benchmark: str, folders: Iterable[Path]) -> None:
        self.benchmark = benchmark
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self.where = " or ".join(str(folder) for folder in self.folders) or "any folder that exists"
        self._items: dict[str, Item] = {}

    def path(self, name: str) -> Path | None:
        candidates = (folder / f"{name}{suffix}" for folder in self.folders for suffix in SUFFIXES)
        return next((path for path in candidates if name and path.is_file()), None)

    def has(self, name: str) -> bool:
        return name in self._items or self.path(name) is not None

    def item(self, name: str) -> Item:
        if name not in self._items:
            found = self.path(name)
            if found is None:
                raise InputError(f"no image '{name}' in {self.where}")
            self._items[name] = Item.image_file(found, f"{self.benchmark}/{name}")
        return self._items[name]


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """A field that must be a text with something in it. Raises `InputError` naming `where` it stands."""
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(f"{where} has no text '{field}'", f"It has: {', '.join(map(str, row))}.")
    if not value.strip():
        raise InputError(f"{where}: '{field}' is empty")
    return value


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises `InputError` naming it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error  # a share may come back


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(n for n in names if names.count(n) > 1)}' stands there twice")
    return seen


def read_json(path: Path) -> Any:
    """A JSON file. Raises `InputError` naming the place, also for a key given twice (one would be lost)."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json (list) or .csv file. Raises `InputError` naming file and line."""
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    if path.suffix == ".json":
        rows = read_json(path)
    else:
        rows = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            try:
                rows += [json.loads(line, object_pairs_hook=_unique)] if line.strip() else []
            except ValueError as error:
                raise InputError(f"{path} line {number} is not valid JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not a list of objects")
    return rows


def parts(
    sources: Sources, benchmark: str, title: str, files: Mapping[str, Sequence[str]], cure: str
) -> tuple[Path, Path, tuple[str, ...]]:
    """The root of a benchmark whose splits are files, the folder of them (ROOT or ROOT/data), and the splits to read:
    the one that `sources` names, or all. `files`: those of each split, below that folder.

    Raises `InputError` for a root that is not there and for files that lack, `UnknownName` for a split that is none.
    """
    root = sources.folder(benchmark, cure)
    if sources.split is not None and sources.split not in files:
        raise UnknownName.among(f"split of {benchmark}", sources.split, files)
    wanted = tuple(files) if sources.split is None else (sources.split,)
    folder = root / "data" if (root / "data").is_dir() else root
    lacking = [file for name in wanted for file in files[name] if not (folder / file).is_file()]
    if lacking:
        raise InputError(f"{title}: {folder} lacks {', '.join(lacking)}", cure)
    return root, folder, wanted


def present(sources: Sources, named: Iterable[Group], images: Images, title: str, cure: str) -> list[Group]:
    """The groups whose images are all there, at most `sources.limit` of every category.

    Raises `InputError` that counts what is missing, unless `sources.allow_missing`, which lists the rest in
    `sources.excluded`; also if nothing is left.
    """
    whole: list[Group] = []
    needed: set[str] = set()
    missing: dict[str, None] = {}
    lacking: dict[str, str] = {}
    for group in named:
        absent = [name for name in group.images if not images.has(name)]
        needed.update(group.images)
        missing |= dict.fromkeys(absent)
        if absent:
            lacking[group.id] = f"no image {', '.join(absent)}"
        else:
            whole.append(group)
    if missing and not (sources.allow_missing and whole):
        first = ", ".join(list(missing)[:3])
        what = f"{title}: {len(missing):,} of {len(needed):,} images are not in {images.where} (first: {first})"
        skip = f"or leave out the {len(lacking):,} of {len(whole) + len(lacking):,} rows with --allow-missing"
        raise InputError(what, f"{cure} Name their folder with --images, {skip if whole else 'and check the path'}.")
    sources.excluded.update(lacking)
    return list(limited(whole, sources.limit))


def keyed_items(named: Iterable[Group], images: Images, benchmark: str) -> Iterator[Item]:
    """Every image and every caption once, in order of appearance."""
    seen: set[str] = set()
    for group in named:
        found = [images.item(name) for name in group.images]
        found += [Item.caption(text, f"{benchmark}/{group.id}") for text in group.captions]
        for item in found:
            if item.key not in seen:
                seen.add(item.key)
                yield item


def keyed(named: Iterable[Group], images: Images) -> Iterator[Group]:
    """The same groups with keys for names and texts."""
    for group in named:
        yield dataclasses.replace(
            group,
            images=tuple(images.item(name).key for name in group.images),
            captions=tuple(caption_key(text) for text in group.captions),
        )
