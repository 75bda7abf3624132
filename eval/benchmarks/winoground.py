"""Winoground and any set in its format: 2 images × 2 captions made of the same words.

Rows of `examples.jsonl` (or .json, .csv) hold image_0, image_1, caption_0, caption_1 and, if they like, id
and category. A split is a category, or one of the hard tags of "Why is Winoground Hard?" (arXiv:2211.00768), which say
what else than composition a row asks for; a row may have several. `untagged` is the rows that have none, 172 in the
file where the paper counts 171: what is left of the benchmark for composition alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ...stores.items import Item
from ..sources import QUAD_TRUTH, Group, Sources
from ._files import FolderImages, keyed, keyed_items, present, read_json, read_rows, text_of

INFO = {
    "title": "Winoground format",
    "metric": "quads",
    "chance": {"i2t": 25.0, "t2i": 25.0, "group": 100 / 6},
    "citation": "Thrush et al., Winoground: Probing Vision and Language Models for Visio-Linguistic "
    "Compositionality, CVPR 2022, arXiv:2204.03162",
    "licence": "META Images Research Licence (Winoground itself: not to be passed on); else the set's own",
    "url": "https://huggingface.co/datasets/facebook/winoground",
    "files": "Put examples.jsonl (id, image_0, image_1, caption_0, caption_1, optional category) in ROOT and "
    "the images, unzipped, in ROOT/images; for the hard tags new_tag_assignments.json of "
    "github.com/ajd12342/why-winoground-hard beside it.",
    "splits": (),
    "revision": "facebook/winoground, 400 rows; another set's own",
    "tie_rule": "lose",
}
TABLES = ("examples.jsonl", "data/examples.jsonl", "examples.json", "examples.csv")
CATEGORY = ("category", "collapsed_tag", "tag")
TAGS = "new_tag_assignments.json"
HARD = (
    "Ambiguously Correct",
    "Complex Reasoning",
    "Non Minimal",
    "Unusual Image",
    "Unusual Text",
    "Visually Difficult",
)
UNTAGGED = "untagged"


def _table(root: Path) -> Path:
    if root.is_file():
        return root
    found = next((root / name for name in TABLES if (root / name).is_file()), None)
    if found is None:
        raise InputError(f"{root} has none of {', '.join(TABLES)}", str(INFO["files"]))
    return found


def _quad(number: int, row: dict[str, Any], path: Path) -> Group:
    name = str(row.get("id", number))
    where = f"{path} row {number} (id '{name}')"
    images = (text_of(row, "image_0", where), text_of(row, "image_1", where))
    captions = (text_of(row, "caption_0", where), text_of(row, "caption_1", where))
    category = next((str(row[field]) for field in CATEGORY if row.get(field)), "")
    return Group(name, images, captions, QUAD_TRUTH, category, where)


def _split(named: list[Group], split: str, path: Path) -> list[Group]:
    """The groups of a category, of a hard tag, or without any."""
    known = sorted({group.category for group in named if group.category})
    if split in known:
        return [group for group in named if group.category == split]
    if split not in (*HARD, UNTAGGED):
        raise UnknownName.among(f"category of {path} or hard tag", split, (*known, *HARD, UNTAGGED))
    tags = _hard_tags(path)
    lacking = next((group.id for group in named if group.id not in tags), None)
    if lacking is not None:
        raise InputError(
            f"{path.parent / TAGS} says nothing of row '{lacking}' of {path}", "It is of Winoground itself."
        )
    return [group for group in named if (split in tags[group.id] if split in HARD else not tags[group.id])]


def _hard_tags(path: Path) -> dict[str, list[str]]:
    """Row id → its hard tags."""
    file = path.parent / TAGS
    if not file.is_file():
        raise InputError(f"{path.parent} lacks {TAGS}, which has the hard tags", str(INFO["files"]))
    found = read_json(file)
    if not isinstance(found, dict) or not all(isinstance(tags, list) for tags in found.values()):
        raise InputError(f"{file} is not an object of lists of tags by row")
    return found


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    root = sources.folder("winoground", str(INFO["files"]))
    path = _table(root)
    named = [_quad(number, row, path) for number, row in enumerate(read_rows(path))]
    if sources.split is not None:
        named = _split(named, sources.split, path)
    given = [sources.images] if sources.images else []
    images = FolderImages("winoground", [*given, path.parent / "images", path.parent])
    return present(sources, named, images, "Winoground", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "winoground")


def groups(sources: Sources) -> Iterator[Group]:
    """Two images × two captions per row; category from `category`, `collapsed_tag` or `tag`. A split is a
    category or a hard tag. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
