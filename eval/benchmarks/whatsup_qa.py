"""What'sUp on photographs of COCO and Visual Genome: where one thing is, or two to each other, told rightly or turned.

Four sets: one and two things of COCO (val2017) and of Visual Genome (the paper's GQA). The first caption is the right
one and the official argmax lets it win ties. The controlled photographs are `whatsup`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item
from ..sources import PAIR_TRUTH, Group, Sources
from ._files import FolderImages, keyed, keyed_items, parts, present, read_json

TABLES = {
    "coco_one": "coco_qa_one_obj.json",
    "coco_two": "coco_qa_two_obj.json",
    "vg_one": "vg_qa_one_obj.json",
    "vg_two": "vg_qa_two_obj.json",
}
FOLDERS = ("val2017", "vg_images")
# Of two things, in the order in which the official code looks; of one it takes the caption's last word.
BETWEEN = {
    "coco_two": (("left of", "left"), ("right of", "right"), ("above", "above"), ("", "below")),
    "vg_two": (("left of", "left"), ("right of", "right"), ("front of", "front"), ("behind", "behind"), ("", "top")),
}
WORDS = ("left", "right", "above", "below", "top", "bottom", "front", "behind")

INFO = {
    "title": "What'sUp (COCO and Visual Genome)",
    "metric": "pairs",
    "chance": {"accuracy": 50.0},
    "citation": "Kamath et al., What's 'up' with vision-language models? Investigating their struggle with spatial "
    "reasoning, EMNLP 2023, arXiv:2310.19785",
    "licence": "MIT (annotations); COCO images: Flickr terms, per image; Visual Genome images: CC BY 4.0",
    "url": "https://github.com/amitakamath/whatsup_vlms",
    "files": "Put coco_qa_one_obj.json, coco_qa_two_obj.json, vg_qa_one_obj.json, vg_qa_two_obj.json and the folder "
    "vg_images of the Google Drive that github.com/amitakamath/whatsup_vlms names in ROOT, and COCO's val2017.",
    "splits": tuple(TABLES),
    "size": 4138,
    "revision": "amitakamath/whatsup_vlms 7c1f2550eace",
    "tie_rule": "win",
}
POOLS = {name: tuple(f"{name}/{word}" for word in WORDS) for name in TABLES}
AVERAGES = {"COCO": ("coco_one", "coco_two"), "GQA": ("vg_one", "vg_two")}


def _word(name: str, caption: str) -> str:
    """Which preposition the right caption has."""
    if name in BETWEEN:
        return next(word for said, word in BETWEEN[name] if said in caption)
    return caption.split()[-1]


def _group(name: str, number: int, row: Any, where: str) -> Group:
    if not isinstance(row, list) or len(row) != 3 or isinstance(row[0], bool) or not isinstance(row[0], int | str):
        raise InputError(f"{where} is not [image id, caption, wrong caption]")
    image, *captions = row
    if not all(isinstance(text, str) and text.strip() for text in captions):
        raise InputError(f"{where} is not [image id, caption, wrong caption]")
    file = f"{str(image).zfill(12)}.jpg" if name.startswith("coco") else f"{image}.jpg"
    category = f"{name}/{_word(name, captions[0])}"
    return Group(f"{name}/{number}", (file,), tuple(captions), PAIR_TRUTH, category, where)


def _rows(folder: Path, name: str) -> Iterator[Group]:
    path = folder / TABLES[name]
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path} is not a list of rows", str(INFO["files"]))
    for number, row in enumerate(rows):
        yield _group(name, number, row, f"{path} row {number}")


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    files = {name: (file,) for name, file in TABLES.items()}
    _, folder, wanted = parts(sources, "whatsup-qa", "What'sUp", files, str(INFO["files"]))
    named = [group for name in wanted for group in _rows(folder, name)]
    given = [sources.images, *(sources.images / place for place in FOLDERS)] if sources.images else []
    images = FolderImages("whatsup-qa", [*given, *(folder / place for place in FOLDERS)])
    return present(sources, named, images, "What'sUp", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "whatsup-qa")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (caption, turned caption) per row, by set and preposition. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
