"""ConMe: SugarCrepe's photographs and captions with harder negatives, found by what large models get wrong.

Reads the CSV files of the three subsets: a photograph, its caption, a wrong one. The columns are those of the official
reader (`image`, `orig_pos`, `new_neg`, `orig_neg`) or SugarCrepe's names for them; a file with other ones is refused by
name. The benchmark asks generative models which of two captions fits; here the right one must score higher.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError, UnknownName
from ...stores.items import Item
from ..sources import PAIR_TRUTH, Group, Sources
from ._files import FolderImages, keyed, keyed_items, present, read_rows, text_of

SUBSETS = ("replace_att", "replace_obj", "replace_rel")
COLUMNS = {
    "image": ("image", "filename", "image_path"),
    "caption": ("orig_pos", "caption", "positive"),
    "negative": ("new_neg", "negative_caption", "negative"),
    "first negative": ("orig_neg",),
}

INFO = {
    "title": "ConMe",
    "metric": "pairs",
    "chance": {"accuracy": 50.0},
    "citation": "Huang et al., ConMe: Rethinking Evaluation of Compositional Reasoning for Modern VLMs, NeurIPS 2024, "
    "arXiv:2406.08164",
    "licence": "Apache-2.0 by the card of the Hugging Face repository; COCO images: Flickr terms, per image",
    "url": "https://huggingface.co/conme/ConMe",
    "files": "Put replace-att.csv, replace-obj.csv and replace-rel.csv of huggingface.co/conme/ConMe in ROOT and its "
    "images in ROOT/images, or COCO val2017 in ROOT/val2017.",
    "splits": SUBSETS,
    "revision": "conme/ConMe c34cbf0e3bbd",
    "tie_rule": "lose",
    "variants": {
        "human-filter": "only the rows that people kept, from the files *_HUMAN_FILTER.csv",
        "original-negatives": "SugarCrepe's own negatives of the same rows, the official baseline 'orig_neg'",
    },
}
AVERAGES = {"3-subset": SUBSETS}


def _path(folder: Path, name: str, variant: str | None) -> Path:
    ending = "_HUMAN_FILTER" if variant == "human-filter" else ""
    places = [folder / f"{stem}{ending}.csv" for stem in (name.replace("_", "-"), name)]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise InputError(f"ConMe: {folder} lacks {places[0].name}", str(INFO["files"]))
    return found


def _subset(path: Path, name: str, negative: str) -> Iterator[Group]:
    rows = read_rows(path)
    there = list(rows[0]) if rows else []
    columns = {}
    for what in ("image", "caption", negative):
        column = next((column for column in COLUMNS[what] if column in there), None)
        if column is None:
            told = f"{path} has no column {' or '.join(COLUMNS[what])}"
            raise InputError(told, f"It has: {', '.join(map(str, there)) or 'no rows'}.")
        columns[what] = column
    for number, row in enumerate(rows):
        where = f"{path} row {number}"
        image, *captions = (text_of(row, column, where) for column in columns.values())
        # The official files name images by paths of the machine they were made on.
        yield Group(f"{name}/{number}", (image.rpartition("/")[2],), tuple(captions), PAIR_TRUTH, name, where)


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    root = sources.folder("conme", str(INFO["files"]))
    if sources.split is not None and sources.split not in SUBSETS:
        raise UnknownName.among("split of conme", sources.split, SUBSETS)
    wanted = SUBSETS if sources.split is None else (sources.split,)
    negative = "first negative" if sources.variant == "original-negatives" else "negative"
    paths = {name: _path(root, name, sources.variant) for name in wanted}
    found = [group for name, path in paths.items() for group in _subset(path, name, negative)]
    given = [sources.images] if sources.images else []
    images = FolderImages("conme", [*given, root / "images", root / "val2017"])
    return present(sources, found, images, "ConMe", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "conme")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (caption, negative) per row, by subset. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
