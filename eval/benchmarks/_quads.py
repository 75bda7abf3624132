"""What sets of 2 images × 2 captions share: a table of rows below ROOT, whose images are files or in the table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ..sources import QUAD_TRUTH, Group, Sources
from . import _columns
from ._files import FolderImages, Images, present, read_rows, text_of

CHANCE = {"i2t": 25.0, "t2i": 25.0, "group": 100 / 6}


@dataclass(frozen=True)
class Layout:
    """How a set of quadruplets lies on disk.

    tables      patterns below ROOT, the first that is there is read; several files only of one format with images
    columns     the file's names of image_0, image_1, caption_0, caption_1
    number      the column of a row's id; a row without one is known by its place
    category    the column of what is tested; "" if there is none
    categories  the known ones; () for any
    folders     where images lie below the folder of the table
    below       what image names begin with that may be missing on disk
    """

    benchmark: str
    title: str
    cure: str
    tables: tuple[str, ...]
    columns: tuple[str, str, str, str] = ("image_0", "image_1", "caption_0", "caption_1")
    number: str = "id"
    category: str = ""
    categories: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("images", ".")
    below: str = field(default="images/", kw_only=True)


def named(layout: Layout, sources: Sources) -> tuple[list[Group], Images]:
    """The rows that the split (a category) asks for and whose images are there, and these images.

    Raises `InputError` naming file and row for what lacks or breaks, `UnknownName` for a split or category.
    """
    root = sources.folder(layout.benchmark, layout.cure)
    tables = _tables(root, layout)
    images: Images
    if tables[0].suffix in _columns.SUFFIXES:
        images = _columns.ColumnImages(layout.benchmark, tables[0].parent)
        more = [name for name in (layout.number, layout.category) if name]
        found = _columns.rows(tables, layout.columns[2:], layout.columns[:2], layout.cure, more)
    else:
        given = [sources.images] if sources.images else []
        folder = tables[0].parent
        images = FolderImages(layout.benchmark, [*given, *(folder / name for name in layout.folders)])
        found = ((f"{tables[0]} row {number}", row) for number, row in enumerate(read_rows(tables[0])))
    groups = [quad(layout, number, row, where) for number, (where, row) in enumerate(found)]
    return present(sources, of_category(groups, layout, sources), images, layout.title, layout.cure), images


def _tables(root: Path, layout: Layout) -> list[Path]:
    if root.is_file():
        return [root]
    for pattern in layout.tables:
        found = sorted(root.glob(pattern))
        if found:
            return found
    raise InputError(f"{layout.title}: {root} has none of {', '.join(layout.tables)}", layout.cure)


def quad(layout: Layout, number: int, row: dict[str, Any], where: str) -> Group:
    """A row as a group of names and texts."""
    first, second, *said = layout.columns
    images = tuple(text_of(row, field, where).removeprefix(layout.below) for field in (first, second))
    captions = tuple(text_of(row, field, where) for field in said)
    category = text_of(row, layout.category, where) if layout.category else ""
    if layout.categories and category not in layout.categories:
        raise UnknownName.among(f"{layout.category} of {layout.title}", f"{category} ({where})", layout.categories)
    known = row.get(layout.number)
    # VisMin counts its rows anew in every category.
    name = f"{category}/{number if known is None else known}".removeprefix("/")
    return Group(name, images, captions, QUAD_TRUTH, category, where)


def of_category(groups: Iterable[Group], layout: Layout, sources: Sources) -> Iterator[Group]:
    """Those of the category that the split names; all for None and for sets whose splits are files."""
    if sources.split is None or not layout.category:
        return iter(groups)
    if sources.split not in layout.categories:
        raise UnknownName.among(f"split of {layout.benchmark}", sources.split, layout.categories)
    return (group for group in groups if group.category == sources.split)
