"""ColorSwap: two images and two captions of the same words, whose colours are exchanged.

Reads train.json and test.json of the official archive (image_1, image_2, caption_1, caption_2), or the Parquet shards
of the Hugging Face dataset. The published figures are of the 300 rows of `test`, the default here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ...errors import UnknownName
from ...stores.items import Item
from ..sources import Group, Sources
from . import _quads
from ._files import Images, keyed, keyed_items

SPLITS = ("test", "train")

INFO = {
    "title": "ColorSwap",
    "metric": "quads",
    "chance": _quads.CHANCE,
    "citation": "Burapacheep et al., ColorSwap: A Color and Word Order Dataset for Multimodal Evaluation, "
    "Findings of ACL 2024, arXiv:2402.04492",
    "licence": "MIT",
    "url": "https://huggingface.co/datasets/stanfordnlp/colorswap",
    "files": "Put test.json and images/ of the archive that github.com/Top34051/colorswap names, or the "
    "test-*.parquet of huggingface.co/datasets/stanfordnlp/colorswap (gated: accept its terms), in ROOT.",
    "splits": SPLITS,
    "size": 300,
    "revision": "Top34051/colorswap 4f2c9e40ab4c",
    "tie_rule": "lose",
}
LAYOUT = _quads.Layout(
    "colorswap",
    "ColorSwap",
    str(INFO["files"]),
    (),
    columns=("image_1", "image_2", "caption_1", "caption_2"),
)


def _named(sources: Sources) -> tuple[list[Group], Images]:
    split = sources.split or SPLITS[0]
    if split not in SPLITS:
        raise UnknownName.among("split of colorswap", split, SPLITS)
    tables = (f"{split}.json", f"data/{split}.json", f"{split}-*.parquet", f"data/{split}-*.parquet")
    return _quads.named(dataclasses.replace(LAYOUT, tables=tables), sources)


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "colorswap")


def groups(sources: Sources) -> Iterator[Group]:
    """Two images × two captions per row. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
