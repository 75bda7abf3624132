"""Retrieval on pictures and captions of your own: a table or a folder, every picture among all captions, both ways.

ROOT is a .jsonl, .json, .csv or .parquet file with a column of image paths and one of captions, a folder that holds
such a file as captions.*, or a folder of images with .txt files beside them: what `--data` reads as `table` and
`folder`. `--split` names a value of the column `split`, a folder, or `train` and `val` of `ROOT?holdout=0.2`.

A picture is found if one of its captions is among the first k; a caption that two pictures share is right for both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ... import registry
from ...errors import InputError, UnknownName
from ...stores import holdout
from ...stores.items import Item
from ...workspace import PICTURES, TABLES
from ..sources import Group, Matches, Sources
from . import _columns
from ._files import FolderImages, Images, keyed, keyed_items, present, read_rows, read_text

COLUMNS = {
    "image": ("image", "image_path", "filepath", "filename"),
    "caption": ("caption", "text", "captions"),
}
HELD_OUT = ("val", "validation", "test")

INFO = {
    "title": "pairs (retrieval on your own pictures)",
    "metric": "recall",
    "ks": (1, 5, 10),
    "chance": {},
    "citation": "your own",
    "licence": "that of your files",
    "url": "your own files",
    "files": "Give a table (.jsonl, .csv, .parquet with the columns image and caption) or a folder of images with .txt "
    "files beside them: --root captions.jsonl.",
    "splits": (),
    "revision": "the files given",
    "tie_rule": "half",
}

Said = dict[str, list[str]]


def _table(path: Path, options: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(image, caption, split) of every row; "" for no split. Raises `InputError`."""
    if path.suffix == ".parquet":
        rows = [row for _, row in _columns.rows([path], (), (), str(INFO["files"]), _known(options))]
    else:
        rows = read_rows(path)
    if not rows:
        raise InputError(f"{path} has no rows", str(INFO["files"]))
    image, caption = (_column(path, rows[0], role, options) for role in COLUMNS)
    for number, row in enumerate(rows, start=1):
        name, told = row.get(image), row.get(caption)
        texts = told if isinstance(told, list) else [told]
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path} row {number}: column '{image}' holds {name!r:.60}, not a path", "Correct it.")
        for text in texts:
            if isinstance(text, str) and text.strip():  # others are in the quarantine of the features
                yield name, text, str(row.get("split") or "")


def _known(options: dict[str, str]) -> tuple[str, ...]:
    given = [name for role in COLUMNS for name in options.get(role, "").split(",") if name]
    return tuple(dict.fromkeys([*given, *COLUMNS["image"], *COLUMNS["caption"], "split"]))


def _column(path: Path, row: dict[str, Any], role: str, options: dict[str, str]) -> str:
    wanted = options[role].split(",")[:1] if role in options else COLUMNS[role]
    found = next((name for name in wanted if name in row), None)
    if found is None:
        there = _columns.names(path) if path.suffix == ".parquet" else list(row)
        what = f"{path} has no column {' or '.join(map(repr, wanted))}"
        raise InputError(what, f"Name it: '{path.name}?{role}=COLUMN'. Columns: {', '.join(there)}.")
    return found


def _folder(root: Path) -> Iterator[tuple[str, str, str]]:
    """(image, caption, split) of every line of the .txt files beside images, by path."""
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    splits = folders if folders & {"train", *HELD_OUT} else set()
    found = []
    for place, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if os.path.splitext(name)[1].lower() in PICTURES and os.path.splitext(name)[0] + ".txt" in names:
                found.append(Path(place, name))
    for path in sorted(found):
        name = path.relative_to(root).as_posix()
        split = name.partition("/")[0]
        for line in read_text(path.with_suffix(".txt")).split("\n"):
            if line.strip():
                yield name, line.strip(), split if split in splits else ""


def _read(sources: Sources) -> tuple[Said, Path, str]:
    """The captions of each image of the split, the folder of the images, and the split's name, "" for all."""
    place, options = registry.split_options(sources.root) if sources.root else (None, {})
    root = Sources(root=place).folder("pairs", str(INFO["files"]))
    inside = [root / f"captions{suffix}" for suffix in TABLES] if root.is_dir() else [root]
    table = next((path for path in inside if path.is_file()), None)
    if table is not None and table.suffix not in TABLES:
        raise InputError(f"{table} is no table of pairs", str(INFO["files"]))
    rows: Iterable[tuple[str, str, str]] = _folder(root) if table is None else _table(table, options)
    base = root if root.is_dir() else root.parent
    if "images" in options:
        base = Path(options["images"]).expanduser()
    if holdout.OPTION in options:
        share = holdout.share_of(options[holdout.OPTION])
        rows = [(name, caption, holdout.split_of(name, share)) for name, caption, _ in rows]
    said, split = _chosen(list(rows), sources, root)
    return said, base, split


def _chosen(rows: list[tuple[str, str, str]], sources: Sources, root: Path) -> tuple[Said, str]:
    """What is said of each image of the split asked for, else of the one that is held out, else of all."""
    known = {split for _, _, split in rows if split}
    if sources.split is not None and sources.split not in known:
        cure = "Hold some out: --root 'FILE?holdout=0.2', or name splits in a column 'split'."
        raise UnknownName.among(f"split of {root}", sources.split, known, cure)
    split = sources.split or next((name for name in HELD_OUT if name in known), "")
    if not split:
        note = "no pictures are held out: what was fitted on them has seen what it is asked (?holdout=0.2)"
        sources.notes[note] = None
    said: Said = {}
    for name, caption, one in rows:
        if split in ("", one) and caption not in said.setdefault(name, []):
            said[name].append(caption)
    return said, split


def _named(sources: Sources) -> tuple[Group, Images]:
    said, base, split = _read(sources)
    if not said:
        raise InputError(f"{sources.root} has no pictures with captions", str(INFO["files"]))
    images = FolderImages("pairs", [*([sources.images] if sources.images else []), base, Path("/")])
    each = (Group(name, (name,), (), (), "", str(sources.root)) for name in said)
    there = [group.images[0] for group in present(sources, each, images, str(INFO["title"]), str(INFO["files"]))]
    captions = tuple(dict.fromkeys(caption for name in there for caption in said[name]))
    places = {caption: place for place, caption in enumerate(captions)}
    truth = Matches(tuple(tuple(sorted(places[one] for one in said[name])) for name in there), len(captions))
    return Group(split or "all", tuple(there), captions, truth, "", f"pairs/{split or 'all'}"), images


def items(sources: Sources) -> Iterator[Item]:
    """The pictures and their captions. Raises `InputError` for files that lack or break, `UnknownName`."""
    group, images = _named(sources)
    yield from keyed_items([group], images, "pairs")


def groups(sources: Sources) -> Iterator[Group]:
    """All pictures × all captions of the split; `limit` takes so many pictures. Raises as `items` does."""
    group, images = _named(sources)
    yield from keyed([group], images)
