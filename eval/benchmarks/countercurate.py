"""CounterCurate: which of two captions fits an image, where left and right, above and below, or a count are exchanged.

Position (Flickr30k-Positions): a row has a photograph, a changed image and a caption of each; either image is asked
by itself, and accuracy is the mean over both, as official. Counting (PointQA on Visual Genome): "there are N X in the
image." against N + 1.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ...stores.items import Item
from ..sources import PAIR_TRUTH, Group, Sources
from ._files import FolderImages, keyed, keyed_items, present, read_json, read_text, text_of

# As the official train/prep_clip_pos_count.py names them.
TABLES = {name: (f"test_{name}_.csv", f"test_{name}.csv") for name in ("left_right", "up_down")}
COUNTS = "vg_dict.json"
SUBSETS = (*TABLES, "counting")
COLUMNS = ("captions", "images", "neg_captions", "neg_images")

INFO = {
    "title": "CounterCurate",
    "metric": "pairs",
    "chance": {"accuracy": 50.0},
    "citation": "Zhang et al., CounterCurate: Enhancing Physical and Semantic Visio-Linguistic Compositional Reasoning "
    "via Counterfactual Examples, Findings of ACL 2024, arXiv:2402.13254",
    "licence": "none stated; Flickr30k: research and education; Visual Genome: CC BY 4.0",
    "url": "https://huggingface.co/datasets/HanSolo9682/Flickr30k-Counterfactuals",
    "files": "Put clip_sample_data/test_*.csv of huggingface.co/datasets/HanSolo9682/Flickr30k-Counterfactuals, its "
    "unpacked train_data, and for counting vg_dict.json (github.com/HanSolo9682/CounterCurate, "
    "benchmark/prep_count_benchmark.py) with Visual Genome's images in visual_genome, in ROOT.",
    "splits": SUBSETS,
    "revision": "HanSolo9682/CounterCurate fccfc4e14e41",
    "tie_rule": "lose",
}
POOLS = {"position": tuple(TABLES)}


def _positions(path: Path, name: str) -> Iterator[Group]:
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t"))
    lacking = [column for column in COLUMNS if not rows or column not in rows[0]]
    if lacking:
        raise InputError(f"{path} lacks the columns {', '.join(lacking)}; it is separated by tabs", str(INFO["files"]))
    for number, row in enumerate(rows):
        where = f"{path} row {number}"
        caption, image, other, changed = (text_of(row, column, where) for column in COLUMNS)
        yield Group(f"{name}/{number}/0", (_below(image),), (caption, other), PAIR_TRUTH, name, where)
        yield Group(f"{name}/{number}/1", (_below(changed),), (other, caption), PAIR_TRUTH, name, where)


def _below(path: str) -> str:
    """Official paths lead out of the folder that training ran in (`../../train_data/…`)."""
    while path.startswith(("../", "./")):
        path = path.partition("/")[2]
    return path


def _counts(path: Path) -> Iterator[Group]:
    images = read_json(path)
    if not isinstance(images, dict) or not all(isinstance(asked, list) for asked in images.values()):
        raise InputError(f"{path} is not an object of lists by image", str(INFO["files"]))
    for image, asked in images.items():
        for number, row in enumerate(asked):
            where = f"{path} image {image} row {number}"
            name, count = _count(row, where)
            right, wrong = (f"there are {many} {name} in the image." for many in (count, count + 1))
            yield Group(f"counting/{image}/{number}", (f"{image}.jpg",), (right, wrong), PAIR_TRUTH, "counting", where)


def _count(row: Any, where: str) -> tuple[str, int]:
    if not isinstance(row, dict):
        raise InputError(f"{where} is not an object of name and ans")
    answer = str(row.get("ans"))
    if not answer.isdecimal():
        raise InputError(f"{where}: 'ans' is {row.get('ans')!r}, not a count")
    return text_of(row, "name", where), int(answer)


def _read(root: Path, name: str) -> list[Group]:
    """The groups of a subset. Raises `InputError` if it has no file."""
    names = (COUNTS,) if name == "counting" else TABLES[name]
    places = [folder / file for file in names for folder in (root, root / "clip_sample_data", root / "benchmark")]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise InputError(f"CounterCurate: {root} lacks {names[0]} ({name})", str(INFO["files"]))
    return list(_counts(path) if name == "counting" else _positions(path, name))


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    root = sources.folder("countercurate", str(INFO["files"]))
    if sources.split is not None and sources.split not in SUBSETS:
        raise UnknownName.among("split of countercurate", sources.split, SUBSETS)
    wanted = SUBSETS if sources.split is None else (sources.split,)
    found = [group for name in wanted for group in _read(root, name)]
    given = [sources.images] if sources.images else []
    images = FolderImages("countercurate", [*given, root, root / "visual_genome", root / "images"])
    return present(sources, found, images, "CounterCurate", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """The images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "countercurate")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (its caption, the other's) per image, by subset. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
