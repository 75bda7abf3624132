"""What'sUp, the controlled photographs: one of four prepositions between two things, each told with each picture.

Sets A (on, under, left of, right of) and B (in front of, behind, left of, right of). `accuracy` is one picture with its
four captions; `pair` both pictures of two opposites, `set` all four pictures of two things, as the paper has them. The
first caption is the right one and the official argmax lets it win ties. The sets on COCO and GQA are `whatsup-qa`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item
from ..sources import Group, Sources
from ._files import FolderImages, keyed, keyed_items, parts, present, read_rows, text_of

TABLES = {"A": "controlled_images_dataset.json", "B": "controlled_clevr_dataset.json"}
# What a file name says between its two things, and which pair of opposites that is.
OPPOSITES = {
    "A": {"left": "left-right", "right": "left-right", "on": "on-under", "under": "on-under"},
    "B": {"left": "left-right", "right": "left-right", "in-front": "front-behind", "behind": "front-behind"},
}
OPTIONS = 4
MEMBERS = {"pair": 2, "set": 4}

INFO = {
    "title": "What'sUp (controlled)",
    "metric": "pairs",
    "chance": {
        "accuracy": 100 / OPTIONS,
        "pair": 100 / OPTIONS ** MEMBERS["pair"],
        "set": 100 / OPTIONS ** MEMBERS["set"],
    },
    "citation": "Kamath et al., What's 'up' with vision-language models? Investigating their struggle with spatial "
    "reasoning, EMNLP 2023, arXiv:2310.19785",
    "licence": "MIT",
    "url": "https://github.com/amitakamath/whatsup_vlms",
    "files": "Put controlled_images_dataset.json, controlled_clevr_dataset.json and the folders controlled_images and "
    "controlled_clevr of the Google Drive that github.com/amitakamath/whatsup_vlms names in ROOT.",
    "splits": tuple(TABLES),
    "size": 820,
    "revision": "amitakamath/whatsup_vlms 7c1f2550eace",
    "tie_rule": "win",
}
AVERAGES = {"A and B": tuple(TABLES)}


def _group(name: str, number: int, row: dict[str, Any], where: str) -> Group:
    # The paths begin with the repository's data/; only the folder of the set and the file are kept.
    image = "/".join(text_of(row, "image_path", where).split("/")[-2:])
    words = image.rpartition("/")[2].rpartition(".")[0].split("_")
    if len(words) < 3 or words[1] not in OPPOSITES[name]:
        raise InputError(f"{where}: '{image}' does not name a thing, a preposition of set {name} and a thing")
    captions = row.get("caption_options")
    if not isinstance(captions, list) or len(captions) != OPTIONS:
        raise InputError(f"{where}: 'caption_options' is not {OPTIONS} texts")
    if not all(isinstance(text, str) and text.strip() for text in captions):
        raise InputError(f"{where}: 'caption_options' is not {OPTIONS} texts")
    things = f"{name}/{words[0]}_{words[-1]}"
    sets = (("pair", f"{things}/{OPPOSITES[name][words[1]]}"), ("set", things))
    truth = ((True, *[False] * (OPTIONS - 1)),)
    # A set has all prepositions, so that they are no categories; the id tells which it is.
    return Group(f"{name}/{words[1]}/{number}", (image,), tuple(captions), truth, name, where, sets=sets)


def _rows(folder: Path, name: str) -> list[Group]:
    path = folder / TABLES[name]
    groups = [_group(name, number, row, f"{path} row {number}") for number, row in enumerate(read_rows(path))]
    pictured = Counter(member for group in groups for member in group.sets)
    odd = next((member for member, count in pictured.items() if count != MEMBERS[member[0]]), None)
    if odd is not None:
        raise InputError(f"{path}: the {odd[0]} '{odd[1]}' has {pictured[odd]} pictures, not {MEMBERS[odd[0]]}")
    return groups


def _complete(groups: list[Group]) -> list[Group]:
    """The groups, in pairs and sets only where all members are there: of a part of a set nobody can be right in all."""
    found = Counter(member for group in groups for member in group.sets)
    return [
        dataclasses.replace(group, sets=tuple(one for one in group.sets if found[one] == MEMBERS[one[0]]))
        for group in groups
    ]


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    files = {name: (file,) for name, file in TABLES.items()}
    _, folder, wanted = parts(sources, "whatsup", "What'sUp", files, str(INFO["files"]))
    named = [group for name in wanted for group in _rows(folder, name)]
    images = FolderImages("whatsup", [*([sources.images] if sources.images else []), folder])
    return _complete(present(sources, named, images, "What'sUp", str(INFO["files"]))), images


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and their four captions. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "whatsup")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (caption, three others) per row, with its pair and its set. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
