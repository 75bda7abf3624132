"""SugarCrepe: one photograph, its caption and one hard negative; seven subsets on COCO val2017.

Three averages are in use and differ by 3.5 points for one model: micro over all rows (the paper's Table 5,
"accuracy"), the mean of REPLACE, SWAP and ADD, each over its own rows (the BiVLC lab's), and the mean of the
seven subsets. All three are printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from ...stores.items import Item
from ..sources import PAIR_TRUTH, Group, Sources
from ._files import FolderImages, keyed, keyed_items, parts, present, read_json, text_of

SUBSETS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
WITHDRAWN = "swap_obj/108"

INFO = {
    "title": "SugarCrepe",
    "metric": "pairs",
    "chance": {"accuracy": 50.0},
    "citation": "Hsieh et al., SugarCrepe: Fixing Hackable Benchmarks for Vision-Language Compositionality, "
    "NeurIPS 2023, arXiv:2306.14610",
    "licence": "MIT (annotations); COCO images: Flickr terms, per image",
    "url": "https://github.com/RAIVNLab/sugar-crepe",
    "files": "Put the seven data/*.json of github.com/RAIVNLab/sugar-crepe in ROOT and the photographs of "
    "images.cocodataset.org/zips/val2017.zip in ROOT/val2017.",
    "splits": SUBSETS,
    "size": 7511,
    "revision": "RAIVNLab/sugar-crepe 0047054b2439",
    "tie_rule": "lose",
    "variants": {"swap_obj-246": "with row 108 of swap_obj, as before 18 November 2023: 7,512 rows"},
}
POOLS = {kind: tuple(name for name in SUBSETS if name.startswith(kind)) for kind in ("replace", "swap", "add")}
AVERAGES = {"3-category": ("replace", "swap", "add"), "7-subset": SUBSETS}


def _subset(folder: Path, name: str) -> Iterator[Group]:
    path = folder / f"{name}.json"
    rows = read_json(path)
    if not isinstance(rows, dict):
        raise InputError(f"{path} is not an object of rows by key", str(INFO["files"]))
    # swap_obj has a hole at 108, so rows are known by key and never by position.
    for key, row in rows.items():
        where = f"{path} row '{key}'"
        if not isinstance(row, dict):
            raise InputError(f"{where} is not an object")
        captions = (text_of(row, "caption", where), text_of(row, "negative_caption", where))
        yield Group(f"{name}/{key}", (text_of(row, "filename", where),), captions, PAIR_TRUTH, name, where)


def _without_erratum(sources: Sources, folder: Path, named: list[Group]) -> list[Group]:
    """Row 108 of swap_obj was taken back; a file that still has it is read without it, unless it is asked for."""
    there = any(group.id == WITHDRAWN for group in named)
    if sources.variant == "swap_obj-246":
        if not there:
            what = f"{folder / 'swap_obj.json'} has no row 108, which variant 'swap_obj-246' reads"
            raise InputError(what, "Take the file from before commit 546eb51 of github.com/RAIVNLab/sugar-crepe.")
        return named
    if there:
        note = "row 108 of swap_obj, withdrawn on 18 November 2023, is left out (--variant swap_obj-246 counts it)"
        sources.notes[note] = None
    return [group for group in named if group.id != WITHDRAWN]


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    files = {name: (f"{name}.json",) for name in SUBSETS}
    root, folder, wanted = parts(sources, "sugarcrepe", "SugarCrepe", files, str(INFO["files"]))
    named = [group for name in wanted for group in _subset(folder, name)]
    named = _without_erratum(sources, folder, named) if "swap_obj" in wanted else named
    given = [sources.images] if sources.images else []
    images = FolderImages("sugarcrepe", [*given, root / "val2017", root / "images"])
    return present(sources, named, images, "SugarCrepe", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "sugarcrepe")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (caption, negative) per row, by subset. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
