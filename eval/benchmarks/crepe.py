"""CREPE: a region of a Visual Genome image, its caption and hard negatives; productivity and systematicity.

Productivity (the default): captions of 4 to 12 atoms against negatives that replace an atom, swap two, or negate.
Systematicity: captions whose compounds a training set (CC12M, YFCC15M, LAION-400M) had or had not; it says something
of models trained on that set alone, so it is scored by split. Recall at 1 of the paper is the accuracy here, strict;
r@3 and r@5 stand beside it. The official ranking is an argsort whose order of equal scores is not defined.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError, UnknownName
from ...stores.items import Item
from ..sources import Group, Sources
from ._crops import CroppedImages, crop_name
from ._files import FolderImages, keyed, keyed_items, present, read_rows, text_of

KINDS = ("atom", "swap", "negate")
COMPLEXITIES = range(4, 13)
SYSTEMATIC = tuple(
    f"{seen}-{kind}-{trained}"
    for seen in ("seen", "unseen")
    for kind in ("atom", "comp", "combined")
    for trained in ("cc12m", "yfcc", "laion")
)
NEGATIVES = 5
BOX = ("x", "y", "width", "height")

INFO = {
    "title": "CREPE",
    "metric": "pairs",
    "ks": (1, 3, 5),
    "chance": {"accuracy": 100 / (1 + NEGATIVES)},
    "citation": "Ma et al., CREPE: Can Vision-Language Foundation Models Reason Compositionally?, CVPR 2023, "
    "arXiv:2212.07796",
    "licence": "none stated (annotations: not to be passed on); Visual Genome images: CC BY 4.0",
    "url": "https://github.com/RAIVNLab/CREPE",
    "files": "Unzip data/prod_hard_negatives.zip (and data/syst_hard_negatives.zip, for its splits) of "
    "github.com/RAIVNLab/CREPE in ROOT and put Visual Genome's VG_100K and VG_100K_2 beside them.",
    "splits": (*KINDS, *SYSTEMATIC),
    "revision": "RAIVNLab/CREPE 1fa81c425f44",
    "tie_rule": "half",
}
POOLS = {kind: tuple(f"{kind}-{atoms}" for atoms in COMPLEXITIES) for kind in KINDS}
AVERAGES = {"3-kind": KINDS}


class Table(NamedTuple):
    """A file, the category of its rows, and the column of its negatives."""

    path: Path
    category: str
    column: str


def _productive(root: Path, kind: str) -> list[Table]:
    found = []
    for atoms in COMPLEXITIES:
        name = f"{kind}/prod_vg_hard_negs_{kind}_complexity_{atoms}.csv"
        places = (root / "prod_hard_negatives" / name, root / "data" / "prod_hard_negatives" / name, root / name)
        found.append(Table(_first(places, root, name), f"{kind}-{atoms}", "hard_negs"))
    return found


def _systematic(root: Path, split: str) -> Table:
    seen, kind, trained = split.split("-")
    stem = f"syst_vg_hard_negs_{seen}_compounds_in_{trained}"
    folders = (root / "syst_hard_negatives", root / "data" / "syst_hard_negatives", root)
    # The code says yfcc and laion where the files may say YFCC15M and LAION400M.
    places = [path for folder in folders for path in sorted(folder.glob("*.csv")) if path.stem.lower().startswith(stem)]
    return Table(_first(tuple(places), root, f"{stem}.csv"), split, f"valid_hard_negs_{kind}")


def _first(places: tuple[Path, ...], root: Path, name: str) -> Path:
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise InputError(f"CREPE: {root} lacks {name}", str(INFO["files"]))
    return found


def _negatives(row: dict[str, Any], column: str, where: str) -> tuple[str, ...]:
    """The negatives of a row, a Python list written as text; of systematicity some rows have none."""
    try:
        found = ast.literal_eval(text_of(row, column, where))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise InputError(f"{where}: '{column}' is not a list of texts") from None
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        raise InputError(f"{where}: '{column}' is not a list of texts")
    return tuple(found)


def _rows(table: Table, excluded: dict[str, str]) -> Iterator[Group]:
    for number, row in enumerate(read_rows(table.path)):
        where, name = f"{table.path} row {number}", f"{table.category}/{number}"
        captions = (text_of(row, "caption", where), *_negatives(row, table.column, where))
        if len(captions) == 1:
            # The official code ranks such a caption first among itself, and counts it as found.
            excluded[name] = "no hard negatives"
            continue
        # What pandas wrote of a column with gaps is 2412.0.
        file = f"{text_of(row, 'image_id', where).removesuffix('.0')}.jpg"
        image = crop_name(file, row, BOX, where)
        truth = ((True, *[False] * (len(captions) - 1)),)
        yield Group(name, (image,), captions, truth, table.category, where)


def _named(sources: Sources) -> tuple[list[Group], CroppedImages]:
    root = sources.folder("crepe", str(INFO["files"]))
    if sources.split is not None and sources.split not in (*KINDS, *SYSTEMATIC):
        raise UnknownName.among("split of crepe", sources.split, (*KINDS, *SYSTEMATIC))
    if sources.split in SYSTEMATIC:
        tables = [_systematic(root, str(sources.split))]
    else:
        kinds = KINDS if sources.split is None else (sources.split,)
        tables = [table for kind in kinds for table in _productive(root, kind)]
    named = [group for table in tables for group in _rows(table, sources.excluded)]
    counts = sorted({len(group.captions) - 1 for group in named})
    if counts not in ([], [NEGATIVES]):
        odd = f"rows have {counts[0]} to {counts[-1]} negatives; chance is of {NEGATIVES}"
        sources.notes[odd] = None
    places = ("VG_100K", "VG_100K_2", "images", "")
    given = [sources.images / place for place in places] if sources.images else []
    images = CroppedImages(FolderImages("crepe", [*given, *(root / place for place in places)]))
    return present(sources, named, images, "CREPE", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """The crops, captions and negatives. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "crepe")


def groups(sources: Sources) -> Iterator[Group]:
    """One crop × (caption, negatives) per row. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
