"""Flickr30k retrieval, Karpathy's test split: 1,000 photographs among 5,000 captions, both ways.

A photograph is found if one of its captions is among the first k. Reads dataset_flickr30k.json, or a file of the test
split alone (flickr30k_test.json, flickr30k_test_karpathy.txt).
"""

from __future__ import annotations

from collections.abc import Iterator

from ...stores.items import Item
from ..sources import Group, Sources
from . import _retrieval
from ._files import keyed, keyed_items

NAMES = {
    "test": ("dataset_flickr30k.json", "flickr30k_test.json", "flickr30k_test_karpathy.txt"),
    "val": ("dataset_flickr30k.json", "flickr30k_val.json", "flickr30k_val_karpathy.txt"),
}
FOLDERS = ("flickr30k-images", "flickr30k_images", "images", ".")

INFO = {
    "title": "Flickr30k retrieval (Karpathy 1k)",
    "metric": "recall",
    "ks": (1, 5, 10),
    "chance": {},
    "citation": "Young et al., From image descriptions to visual denotations, TACL 2014, "
    "doi:10.1162/tacl_a_00166; the split: Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, arXiv:1412.2306",
    "licence": "non-commercial research and education; images: Flickr terms",
    "url": "https://shannon.cs.illinois.edu/DenotationGraph",
    "files": "Put dataset_flickr30k.json of cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip in ROOT "
    "and the photographs (on request, shannon.cs.illinois.edu/DenotationGraph) in ROOT/flickr30k-images.",
    "splits": tuple(NAMES),
    "size": 1,
    "revision": "Karpathy's caption_datasets, 1,000 photographs of test",
    "tie_rule": "half",
    "variants": _retrieval.VARIANTS,
}
LAYOUT = _retrieval.Layout("flickr30k_retrieval", "Flickr30k retrieval", str(INFO["files"]), NAMES, FOLDERS)


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and their captions. Raises `InputError` for files that lack or break."""
    group, images = _retrieval.named(LAYOUT, sources)
    yield from keyed_items([group], images, "flickr30k_retrieval")


def groups(sources: Sources) -> Iterator[Group]:
    """All photographs × all captions; `limit` takes so many photographs. Raises `InputError` as `items` does."""
    group, images = _retrieval.named(LAYOUT, sources)
    yield from keyed([group], images)
