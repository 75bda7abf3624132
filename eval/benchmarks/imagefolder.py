"""Zero-shot classification of your own images: a folder for each class, or WebDataset shards with class numbers.

ROOT/tench/a.jpg  ROOT/goldfish/b.jpg            or below ROOT/test, ROOT/val: the splits
ROOT/test/0.tar (000.jpg, 000.cls)               with ROOT/classnames.txt, as CLIP_benchmark exports them
ROOT/classnames.txt                              a name for each class in order of folder; else the folders' names
ROOT/templates.txt                               prompts, one a line, {c} standing for the class; else ImageNet's 80
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError, UnknownName
from ...stores.items import Item
from ..sources import Group, Sources
from . import _class_layouts, _labelled
from ._files import Images, keyed, keyed_items

USUAL = ("test", "val", "validation")

INFO = {
    "title": "images in folders (zero-shot)",
    "metric": "classification",
    "ks": (1, 5),
    "chance": {},
    "citation": "the set's own; prompts: Radford et al., arXiv:2103.00020",
    "licence": "the set's own; prompts: MIT (CLIP_benchmark)",
    "url": "https://github.com/LAION-AI/CLIP_benchmark",
    "files": "Put a folder of pictures for each class in ROOT or ROOT/test, or shards in ROOT/test with "
    "ROOT/classnames.txt; prompts, if you like, in ROOT/templates.txt.",
    "splits": (),
    "revision": "the files given",
    "tie_rule": "half",
    "variants": _labelled.VARIANTS,
}


def _split(root: Path, asked: str | None) -> str:
    """The folder of the split; "" for ROOT itself. Raises `UnknownName` for one that is not there."""
    there = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if asked is not None and asked not in there:
        raise UnknownName.among(f"split of {root}", asked, there)
    return asked or next((name for name in USUAL if name in there), "")


def _named(sources: Sources) -> tuple[Group, Images]:
    root = sources.folder("imagefolder", str(INFO["files"]))
    if not root.is_dir():
        raise InputError(f"{root} is no folder", str(INFO["files"]))
    split = _split(root, sources.split)
    if _class_layouts.shards_of(root, split):
        found = _class_layouts.shards("imagefolder", root, split)
    else:
        found = _class_layouts.folders("imagefolder", sources.images or root / split)
        names = root / "classnames.txt"
        if names.is_file():
            found = _labelled.with_names(found, _labelled.lines_of(names), str(names))
    if len(found.classes) < 2:
        raise InputError(f"{root / split} has one class, and there is nothing to choose from", str(INFO["files"]))
    ensemble = _labelled.prompts_in(root) or _labelled.templates()["imagenet"]
    return _labelled.one_group(sources, split or root.name, "images in folders", str(INFO["files"]), found, ensemble)


def items(sources: Sources) -> Iterator[Item]:
    """The images and every class's prompts. Raises `InputError` for files that lack or break."""
    group, images = _named(sources)
    yield from keyed_items([group], images, "imagefolder")


def groups(sources: Sources) -> Iterator[Group]:
    """All images × the prompts of all classes; `limit` takes so many images of every class. Raises `InputError` as
    `items` does."""
    group, images = _named(sources)
    yield from keyed([group], images)
