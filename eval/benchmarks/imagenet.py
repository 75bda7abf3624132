"""ImageNet-1k by its names: 50,000 validation images, 1,000 classes, 80 prompts each.

The names are those of CLIP's authors, two of which name two classes each ("missile", "sunglasses"): an image of either
is right where the name is. The variant "names-apart" counts the classes apart, as published; strictly, all four are
then missed, 0.4 points at most, where argmax gives them to whichever stands first.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...stores.items import Item
from ..sources import Group, Sources
from . import _class_layouts, _labelled
from ._files import Images, keyed, keyed_items

INFO = {
    "title": "ImageNet-1k (zero-shot)",
    "metric": "classification",
    "ks": (1, 5),
    "chance": {},
    "citation": "Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015, arXiv:1409.0575; "
    "prompts and names: Radford et al., arXiv:2103.00020",
    "licence": "ImageNet terms: non-commercial research and education; prompts and names: MIT (CLIP_benchmark)",
    "url": "https://image-net.org",
    "files": "Put the validation images in ROOT/val/<wnid>/*.JPEG, one folder a class, or CLIP_benchmark's WebDataset "
    "(test/*.tar, classnames.txt) in ROOT.",
    "size": 1,
    "revision": "ILSVRC 2012 validation; prompts of LAION-AI/CLIP_benchmark 48de38c1689f",
    "tie_rule": "half",
    "variants": _labelled.VARIANTS,
}


def _named(sources: Sources) -> tuple[Group, Images]:
    root = sources.folder("imagenet", str(INFO["files"]))
    found = _class_layouts.known_set("imagenet", "imagenet", root, sources)
    cure, ensemble = str(INFO["files"]), _labelled.templates()["imagenet"]
    return _labelled.one_group(sources, "imagenet", "ImageNet-1k", cure, found, ensemble)


def items(sources: Sources) -> Iterator[Item]:
    """The images and every class's prompts. Raises `InputError` for files that lack or break."""
    group, images = _named(sources)
    yield from keyed_items([group], images, "imagenet")


def groups(sources: Sources) -> Iterator[Group]:
    """All images × the prompts of all classes; `limit` takes so many images of every class. Raises `InputError` as
    `items` does."""
    group, images = _named(sources)
    yield from keyed([group], images)
