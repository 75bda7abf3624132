"""VL-CheckList: one photograph, its text and one with an object, an attribute or a relation exchanged.

Thirteen types on images of Visual Genome, SWiG and HAKE; a category here is one of the repository's files (type and
source of images), pools are its types and the paper's three parts. A row may hold several texts: only the first of
each side is compared, as the official ITC code does.

The official code passes over rows whose image is missing; here they stop the run or are listed (--allow-missing).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError, UnknownName
from ...stores.items import Item
from ..sources import PAIR_TRUTH, Group, Sources
from . import _identical
from ._files import FolderImages, keyed, keyed_items, present, read_json

SWIG = ("agent", "destination", "item", "tool")
# MAX_NUM of the official configuration is 2,000 texts, which its ITC code halves.
FIRST = 1000


class Part(NamedTuple):
    """One file of the repository: its path below `data`, and the folder of its images."""

    path: str
    images: str


def _objects(kind: str, value: str) -> dict[str, Part]:
    """The files of `Object/<kind>/<value>`: of Visual Genome's subjects and objects, SWiG's roles, and HAKE."""
    name, low = f"Object_{kind}_{value}", kind.lower()
    found = {}
    for role in ("obj", "subj"):
        found[f"{name}_vg_{role}"] = Part(f"Object/{kind}/vg_{low}/vg_{role}_{value}.json", "vg")
    for role in SWIG:
        path = f"Object/{kind}/swig_{low}/swig_{role}/swig_{role}_{value}.json"
        found[f"{name}_swig_{role}"] = Part(path, "swig")
    found[f"{name}_hake"] = Part(f"Object/{kind}/hake_{low}/hake_obj_{value}.json", "hake")
    return found


def _parts() -> dict[str, Part]:
    """Every file that the official corpus/v1 names, by its name there."""
    found: dict[str, Part] = {}
    for kind, values in {"Location": ("center", "mid", "margin"), "Size": ("large", "medium", "small")}.items():
        for value in values:
            found |= _objects(kind, value)
    for attribute in ("action", "color", "material", "size", "state"):
        for source in ("vg", "vaw"):
            found[f"Attribute_{attribute}_{source}"] = Part(f"Attribute/{source}/{attribute}.json", "vg")
    found["Relation_action_vg"] = Part("Relation/vg/action.json", "vg")
    found["Relation_action_swig"] = Part("Relation/swig_action.json", "swig")
    found["Relation_action_hake"] = Part("Relation/hake_action.json", "hake")
    found["Relation_spatial_vg"] = Part("Relation/vg/spatial.json", "vg")
    return found


PARTS = _parts()
TYPES = tuple(dict.fromkeys("_".join(name.split("_")[: 3 if name.startswith("Object") else 2]) for name in PARTS))
KINDS = ("Object", "Attribute", "Relation")
# A type's files begin with its name; so do a kind's.
POOLS = {pool: tuple(name for name in PARTS if name.startswith(f"{pool}_")) for pool in (*TYPES, *KINDS)}
AVERAGES = {"13-type": TYPES, "3-kind": KINDS}

INFO = {
    "title": "VL-CheckList",
    "metric": "pairs",
    "chance": {"accuracy": 50.0},
    "citation": "Zhao et al., VL-CheckList: Evaluating Pre-trained Vision-Language Models with Objects, Attributes and "
    "Relations, EMNLP 2022 Demo, arXiv:2207.00221",
    "licence": "none stated (annotations: not to be passed on); images: the terms of Visual Genome, SWiG and HAKE",
    "url": "https://github.com/om-ai-lab/VL-CheckList",
    "files": "Put the folder data of github.com/om-ai-lab/VL-CheckList in ROOT and the images in ROOT/vg (VG_100K and "
    "VG_100K_2 in it), ROOT/swig and ROOT/hake, as its DATASETS.md says.",
    "splits": (*TYPES, *KINDS, *PARTS),
    "revision": "om-ai-lab/VL-CheckList 6f8d6a3281c4",
    "tie_rule": "lose",
    "variants": _identical.VARIANT
    | {f"first-{FIRST}": f"the first {FIRST:,} rows of every file, as the official configuration has it"},
}


def _text(row: Any, side: str, where: str) -> str:
    texts = row[1].get(side)
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str) or not texts[0].strip():
        raise InputError(f"{where} has no text under '{side}'")
    return texts[0]


def _rows(path: Path, name: str, first: int | None) -> Iterator[Group]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path} is not a list of rows", str(INFO["files"]))
    for number, row in enumerate(islice(rows, first)):
        where = f"{path} row {number}"
        shaped = isinstance(row, list) and len(row) == 2
        if not (shaped and isinstance(row[0], str) and row[0].strip() and isinstance(row[1], dict)):
            raise InputError(f"{where} is not [image, {{POS, NEG}}]")
        captions = (_text(row, "POS", where), _text(row, "NEG", where))
        image = f"{PARTS[name].images}/{row[0]}"
        yield Group(f"{name}/{number}", (image,), captions, PAIR_TRUTH, name, where)


def _wanted(split: str | None) -> tuple[str, ...]:
    if split is None:
        return tuple(PARTS)
    if split in POOLS:
        return POOLS[split]
    if split not in PARTS:
        raise UnknownName.among("split of vl-checklist", split, (*POOLS, *PARTS))
    return (split,)


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    root = sources.folder("vl-checklist", str(INFO["files"]))
    folder = root / "data" if (root / "data").is_dir() else root
    wanted = _wanted(sources.split)
    lacking = [PARTS[name].path for name in wanted if not (folder / PARTS[name].path).is_file()]
    if lacking:
        few = ", ".join(lacking[:3])
        what = f"VL-CheckList: {folder} lacks {len(lacking)} of {len(wanted)} files (first: {few})"
        raise InputError(what, f"{INFO['files']} Or take a part of it with --split.")
    first = FIRST if sources.variant == f"first-{FIRST}" else None
    named = [group for name in wanted for group in _rows(folder / PARTS[name].path, name, first)]
    named = _identical.told(sources, named)
    images = FolderImages("vl-checklist", [*([sources.images] if sources.images else []), root])
    return present(sources, named, images, "VL-CheckList", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and the first text of each side. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "vl-checklist")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (text, exchanged text) per row, by file. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
