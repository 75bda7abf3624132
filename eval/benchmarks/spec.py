"""SPEC: size, position, existence and count, each an image among captions and a caption among images, 2 to 9 of them.

Every subset asks both ways, in image2text.json and text2image.json (`query`, `keys`, `label`). A category is a subset
and a way; the published figures are the means over the six subsets of each way. Officially argmax decides, so an
equality falls to whoever stands first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item
from ..sources import Group, Sources
from ._files import FolderImages, keyed, keyed_items, parts, present, read_rows, text_of

# Rows of each way and how many there are to choose from.
SUBSETS = {
    "absolute_size": (1_500, 3),
    "relative_size": (1_500, 3),
    "absolute_spatial": (4_500, 9),
    "relative_spatial": (2_000, 4),
    "existence": (1_000, 2),
    "count": (4_500, 9),
}
WAYS = {"i2t": "image2text.json", "t2i": "text2image.json"}

INFO = {
    "title": "SPEC",
    "metric": "pairs",
    # Over all rows: 500 sets of each subset, of which every row is one of as many as it chooses from.
    "chance": {"accuracy": 20.0},
    "citation": "Peng et al., Synthesize, Diagnose, and Optimize: Towards Fine-Grained Vision-Language Understanding, "
    "CVPR 2024, arXiv:2312.00081",
    "licence": "none stated",
    "url": "https://huggingface.co/datasets/wjpoom/SPEC",
    "files": "Unpack data.zip of huggingface.co/datasets/wjpoom/SPEC into ROOT: six folders with image2text.json, "
    "text2image.json and images.",
    "splits": tuple(SUBSETS),
    "size": 2 * sum(rows for rows, _ in SUBSETS.values()),
    "revision": "wjpoom/SPEC ad982a42d023",
    "tie_rule": "half",
}
POOLS = {way: tuple(f"{name}_{way}" for name in SUBSETS) for way in WAYS}
AVERAGES = {f"{way}, 6-subset": POOLS[way] for way in WAYS}


def _row(row: dict[str, Any], where: str) -> tuple[str, list[str]]:
    """The query, and what it is to choose from, the right one first."""
    keys, label = row.get("keys"), row.get("label")
    if not isinstance(keys, list) or len(keys) < 2 or not all(isinstance(key, str) and key.strip() for key in keys):
        raise InputError(f"{where}: 'keys' is not a list of two texts or more")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(keys):
        raise InputError(f"{where}: 'label' is {label!r}, not a place among {len(keys)} keys")
    return text_of(row, "query", where), [keys[label], *keys[:label], *keys[label + 1 :]]


def _asked(folder: Path, name: str, way: str) -> Iterator[Group]:
    path = folder / name / WAYS[way]
    for number, row in enumerate(read_rows(path)):
        where = f"{path} row {number}"
        query, keys = _row(row, where)
        group, category = f"{name}/{way}/{number}", f"{name}_{way}"
        if way == "i2t":
            truth = ((True,) + (False,) * (len(keys) - 1),)
            yield Group(group, (f"{name}/{query}",), tuple(keys), truth, category, where)
        else:
            column = tuple((place == 0,) for place in range(len(keys)))
            yield Group(group, tuple(f"{name}/{key}" for key in keys), (query,), column, category, where)


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    files = {name: tuple(f"{name}/{file}" for file in WAYS.values()) for name in SUBSETS}
    _, folder, wanted = parts(sources, "spec", "SPEC", files, str(INFO["files"]))
    found = [group for name in wanted for way in WAYS for group in _asked(folder, name, way)]
    given = [sources.images] if sources.images else []
    images = FolderImages("spec", [*given, folder])
    return present(sources, found, images, "SPEC", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """Queries and what they choose from. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "spec")


def groups(sources: Sources) -> Iterator[Group]:
    """An image × captions, or images × a caption, the right one first; by subset and way. Raises `InputError` as
    `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
