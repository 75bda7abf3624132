"""VALSE: one photograph, its caption and one foil; eleven pieces on six linguistic phenomena and FOIL-it.

Only rows that two of three annotators found valid are the benchmark (7,702 of 8,782): the files hold the others too,
among them foils that equal their caption. The paper's pairwise accuracy, acc_r; its average is over the eleven pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item
from ..sources import PAIR_TRUTH, Group, Sources
from ._files import FolderImages, keyed, keyed_items, parts, present, read_json, text_of

PIECES = (
    "existence",
    "plurals",
    "counting-hard",
    "counting-small-quant",
    "counting-adversarial",
    "relations",
    "action-replacement",
    "actant-swap",
    "coreference-standard",
    "coreference-hard",
    "foil-it",
)
# Of three annotators, how many must have chosen the caption and not the foil.
VALID_VOTES = 2
UNVALIDATED = "unvalidated"

INFO = {
    "title": "VALSE",
    "metric": "pairs",
    "chance": {"accuracy": 50.0},
    "citation": "Parcalabescu et al., VALSE: A Task-Independent Benchmark for Vision and Language Models Centered on "
    "Linguistic Phenomena, ACL 2022, arXiv:2112.07566",
    "licence": "MIT (annotations); images: the terms of COCO, Visual Genome (Visual7W), SWiG and VisDial",
    "url": "https://github.com/Heidelberg-NLP/VALSE",
    "files": "Put the eleven data/*.json of github.com/Heidelberg-NLP/VALSE in ROOT and the images of Visual7W, COCO, "
    "SWiG and VisDial, under their own names, in ROOT/images (or in visual7w, val2017, val2014, swig and visdial).",
    "splits": PIECES,
    "size": 7702,
    "revision": "Heidelberg-NLP/VALSE 2152d90d4aec",
    "tie_rule": "lose",
    "variants": {
        UNVALIDATED: "with the rows that annotators did not confirm: 8,782, of which 24 foils are the caption"
    },
}
FOLDERS = ("images", "visual7w", "val2017", "val2014", "swig", "visdial")
POOLS = {
    "counting": tuple(name for name in PIECES if name.startswith("counting")),
    "actions": ("action-replacement", "actant-swap"),
    "coreference": ("coreference-standard", "coreference-hard"),
}
AVERAGES = {
    "11-piece": PIECES,
    "7-phenomenon": ("existence", "plurals", "counting", "relations", "actions", "coreference", "foil-it"),
}


def _votes(row: dict[str, Any], where: str) -> int:
    found = row.get("mturk")
    votes = found.get("caption") if isinstance(found, dict) else None
    if not isinstance(votes, int):
        raise InputError(f"{where} has no count of votes 'mturk.caption'", f"It has: {', '.join(row)}.")
    return votes


def _piece(folder: Path, name: str, every: bool) -> Iterator[Group]:
    path = folder / f"{name}.json"
    rows = read_json(path)
    if not isinstance(rows, dict):
        raise InputError(f"{path} is not an object of rows by key", str(INFO["files"]))
    for key, row in rows.items():
        where = f"{path} row '{key}'"
        if not isinstance(row, dict):
            raise InputError(f"{where} is not an object")
        if _votes(row, where) >= VALID_VOTES or every:
            captions = (text_of(row, "caption", where), text_of(row, "foil", where))
            yield Group(f"{name}/{key}", (text_of(row, "image_file", where),), captions, PAIR_TRUTH, name, where)


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    files = {name: (f"{name}.json",) for name in PIECES}
    root, folder, wanted = parts(sources, "valse", "VALSE", files, str(INFO["files"]))
    named = [group for name in wanted for group in _piece(folder, name, sources.variant == UNVALIDATED)]
    given = [sources.images, *(sources.images / name for name in FOLDERS)] if sources.images else []
    images = FolderImages("valse", [*given, *(root / name for name in FOLDERS)])
    return present(sources, named, images, "VALSE", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """The photographs, captions and foils. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "valse")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (caption, foil) per row that counts, by piece. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
