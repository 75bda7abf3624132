"""COCO retrieval, Karpathy's test split: 5,000 photographs among 25,010 captions, both ways.

A photograph is found if one of its captions is among the first k. Reads dataset_coco.json, or a file of the test split
alone (coco_test_karpathy.json, coco_karpathy_test.json).
"""

from __future__ import annotations

from collections.abc import Iterator

from ...stores.items import Item
from ..sources import Group, Sources
from . import _retrieval
from ._files import keyed, keyed_items

NAMES = {
    "test": ("dataset_coco.json", "coco_test_karpathy.json", "coco_karpathy_test.json"),
    "val": ("dataset_coco.json", "coco_val_karpathy.json", "coco_karpathy_val.json"),
}
FOLDERS = ("val2014", "train2014", "val2017", "train2017", "images", ".")

INFO = {
    "title": "COCO retrieval (Karpathy 5k)",
    "metric": "recall",
    "ks": (1, 5, 10),
    "chance": {},
    "citation": "Lin et al., Microsoft COCO, arXiv:1405.0312; the split: Karpathy and Fei-Fei, Deep Visual-Semantic "
    "Alignments, arXiv:1412.2306",
    "licence": "captions CC BY 4.0; images: Flickr terms, per image; the split: none stated",
    "url": "https://cs.stanford.edu/people/karpathy/deepimagesent",
    "files": "Put dataset_coco.json of cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip in ROOT and "
    "the photographs of images.cocodataset.org/zips/val2014.zip in ROOT/val2014.",
    "splits": tuple(NAMES),
    "size": 1,
    "revision": "Karpathy's caption_datasets, 5,000 photographs of test",
    "tie_rule": "half",
    "variants": _retrieval.VARIANTS,
}
LAYOUT = _retrieval.Layout("coco_retrieval", "COCO retrieval", str(INFO["files"]), NAMES, FOLDERS)


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and their captions. Raises `InputError` for files that lack or break."""
    group, images = _retrieval.named(LAYOUT, sources)
    yield from keyed_items([group], images, "coco_retrieval")


def groups(sources: Sources) -> Iterator[Group]:
    """All photographs × all captions; `limit` takes so many photographs. Raises `InputError` as `items` does."""
    group, images = _retrieval.named(LAYOUT, sources)
    yield from keyed([group], images)
