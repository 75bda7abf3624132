"""VisMin: two images that differ in one object, attribute, count or place, and the captions that say so.

Reads the Arrow shards of the Hugging Face dataset, or its Parquet conversion, whose images are inside; or a table
test.json, test.jsonl or test.csv of the columns image_0, text_0, image_1, text_1, category, and a folder of images.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...stores.items import Item
from ..sources import Group, Sources
from . import _quads
from ._files import Images, keyed, keyed_items

CATEGORIES = ("object", "attribute", "relation", "counting")

INFO = {
    "title": "VisMin",
    "metric": "quads",
    "chance": _quads.CHANCE,
    "citation": "Awal et al., VisMin: Visual Minimal-Change Understanding, NeurIPS 2024, arXiv:2407.16772",
    "licence": "CC BY 4.0 by the card of the Hugging Face dataset; the repository states none",
    "url": "https://huggingface.co/datasets/mair-lab/vismin-bench",
    "files": "Put data/test/data-*.arrow of huggingface.co/datasets/mair-lab/vismin-bench, or its Parquet "
    "conversion, in ROOT; or test.csv with columns id, image_0, text_0, image_1, text_1, category, and images/.",
    "splits": CATEGORIES,
    "size": 2084,
    "revision": "mair-lab/vismin-bench 2f379d5b9a3a",
    "tie_rule": "lose",
}
# The paper's table has a column for each category; its average is over these.
AVERAGES = {"4-category": CATEGORIES}
LAYOUT = _quads.Layout(
    "vismin",
    "VisMin",
    str(INFO["files"]),
    ("data/test/*.arrow", "**/test*/*.parquet", "**/test*.parquet", "*.arrow", "test.jsonl", "test.json", "test.csv"),
    columns=("image_0", "image_1", "text_0", "text_1"),
    category="category",
    categories=CATEGORIES,
)


def _named(sources: Sources) -> tuple[list[Group], Images]:
    return _quads.named(LAYOUT, sources)


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "vismin")


def groups(sources: Sources) -> Iterator[Group]:
    """Two images × two captions per row, by category. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
