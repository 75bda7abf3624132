"""Zero-shot classification on the ten sets that compositional methods report beside ImageNet, each a split.

    compal eval zeroshot --root /data --split cifar10     reads /data/cifar10, or /data itself
    compal eval zeroshot --root /data                     all ten, each a category, and their mean

What is known of the sets (rows, prompts, names, layout, licence) is the table assets/zeroshot/sets.toml. The literature
quotes top-1 for some and the mean over classes for others (`metric` of the table); both are scored for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError, UnknownName
from ...stores.items import Item
from ..sources import Group, Sources
from . import _class_layouts, _labelled
from ._files import Images, keyed, keyed_items

SETS = tuple(name for name in _labelled.table() if name != "imagenet")

INFO = {
    "title": "zero-shot classification, ten sets",
    "metric": "classification",
    "headline": ("top1", "mean_per_class"),
    "ks": (1, 5),
    "chance": {},
    "citation": "each set's own; prompts and names: Radford et al., arXiv:2103.00020; the protocol: "
    "github.com/LAION-AI/CLIP_benchmark",
    "licence": "each set's own (assets/zeroshot/sets.toml); prompts and names: MIT (CLIP_benchmark)",
    "url": "https://github.com/LAION-AI/CLIP_benchmark",
    "files": "Put each set in ROOT/<name> as its authors pack it, in a folder for each class, or as CLIP_benchmark's "
    "WebDataset; docs/guides/benchmarks.md has a line for each.",
    "splits": SETS,
    "size": len(SETS),
    "revision": "the test splits of assets/zeroshot/sets.toml; prompts of LAION-AI/CLIP_benchmark 48de38c1689f",
    "tie_rule": "half",
    "variants": _labelled.VARIANTS,
}
AVERAGES = {"10-set": SETS}


def _folder(root: Path, name: str) -> Path:
    return root / name if (root / name).is_dir() else root


def _named(sources: Sources) -> Iterator[tuple[Group, Images]]:
    root = sources.folder("zeroshot", str(INFO["files"]))
    if sources.split is not None and sources.split not in SETS:
        raise UnknownName.among("split of zeroshot", sources.split, SETS)
    if sources.split is not None:
        yield _set(sources.split, _folder(root, sources.split), sources)
        return
    lacking = [name for name in SETS if not (root / name).is_dir()]
    if lacking and not (sources.allow_missing and len(lacking) < len(SETS)):
        cure = f"{INFO['files']} One alone: --split NAME; those that are there: --allow-missing."
        raise InputError(f"{root} has no folder {', '.join(lacking)}", cure)
    sources.excluded.update((name, f"no folder {root / name}") for name in lacking)
    for name in SETS:
        if name not in lacking:
            yield _set(name, root / name, sources)


def _set(name: str, root: Path, sources: Sources) -> tuple[Group, Images]:
    row = _labelled.table()[name]
    found = _class_layouts.known_set("zeroshot", name, root, sources)
    cure = f"It needs {row['files']} ({row['url']})."
    group, images = _labelled.one_group(sources, name, str(row["title"]), cure, found, _labelled.templates()[name])
    return dataclasses.replace(group, category=name), images


def items(sources: Sources) -> Iterator[Item]:
    """The images and prompts of every set. Raises `InputError` for files that lack or break."""
    seen: set[str] = set()
    for group, images in _named(sources):
        for item in keyed_items([group], images, "zeroshot"):
            if item.key not in seen:
                seen.add(item.key)
                yield item


def groups(sources: Sources) -> Iterator[Group]:
    """For every set its images × the prompts of its classes; `limit` takes so many images of every class. Raises
    `InputError` as `items` does."""
    for group, images in _named(sources):
        yield from keyed([group], images)
