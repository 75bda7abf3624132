"""ARO's COCO-Order: a photograph, its caption and four orders of the caption's words.

The official rule takes the first of equal scores, which is the caption, so ties win there; shuffles that equal their
caption are what ties mostly are, and are no negatives here (variant with-identical has them).
"""

from __future__ import annotations

from collections.abc import Iterator

from ...stores.items import Item
from ..sources import Group, Sources
from . import _aro, _order
from ._files import FolderImages, keyed, keyed_items

TABLE = "coco_order.jsonl"
ANNOTATION = "coco_karpathy_test.json"

INFO = {
    "title": "ARO COCO-Order",
    "metric": "pairs",
    "chance": {"accuracy": 100 / (1 + _order.SHUFFLES)},
    "citation": _aro.CITATION,
    "licence": "MIT (code); COCO captions CC BY 4.0, images: Flickr terms, per image",
    "url": _aro.URL,
    "files": f"Put {ANNOTATION} of storage.googleapis.com/sfr-vision-language-research/datasets and its images "
    f"(val2014/COCO_val2014_*.jpg) in ROOT, and beside them {TABLE}, the frozen negatives.",
    "size": 25010,
    "revision": _aro.REVISION,
    "tie_rule": "win",
    "variants": _order.VARIANTS,
}


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    rows = _order.read(sources, "aro-coco-order", INFO, TABLE, ANNOTATION)
    return _order.there(sources, "aro-coco-order", INFO, rows)


def items(sources: Sources) -> Iterator[Item]:
    """The photographs, captions and shuffles. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "aro-coco-order")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (caption, its shuffles) per row. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
