"""SugarCrepe++: one photograph, two captions of one meaning in other words, one hard negative; five subsets.

An item counts if both captions are above the negative (ITT, the paper's image-to-text task); p1_neg and p2_neg are its
halves. The text-only task (TOT) asks whether the two captions are nearer to each other than either to the negative.
Captions were edited after SugarCrepe and `id` is a position in the file, so nothing joins the two but the text.
In rows 2 and 8 of swap_obj the negative is the first caption letter by letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...stores.items import Item
from ..sources import POSITIVES_TRUTH, Group, Sources
from . import _identical
from ._files import FolderImages, keyed, keyed_items, parts, present, read_rows, text_of

SUBSETS = ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")

INFO = {
    "title": "SugarCrepe++",
    "metric": "positives",
    "chance": {"itt": 100 / 3, "p1_neg": 50.0, "p2_neg": 50.0, "tot": 100 / 3},
    "text_metrics": ("tot",),
    "citation": "Dumpala et al., SugarCrepe++ Dataset: Vision-Language Model Sensitivity to Semantic and Lexical "
    "Alterations, NeurIPS 2024, arXiv:2406.11171",
    "licence": "CC BY 4.0 by the README, MIT by the LICENSE file; COCO images: Flickr terms, per image",
    "url": "https://github.com/Sri-Harsha/scpp",
    "files": "Put the five data/*.json of github.com/Sri-Harsha/scpp in ROOT and the photographs of "
    "images.cocodataset.org/zips/val2017.zip in ROOT/val2017.",
    "splits": SUBSETS,
    "size": 4757,
    "revision": "Sri-Harsha/scpp c083bbf039a5",
    "tie_rule": "lose",
    "headline": "itt",
    "variants": _identical.VARIANT,
}
POOLS = {kind: tuple(name for name in SUBSETS if name.startswith(kind)) for kind in ("replace", "swap")}
AVERAGES = {"5-subset": SUBSETS}


def _subset(folder: Path, name: str) -> Iterator[Group]:
    path = folder / f"{name}.json"
    for number, row in enumerate(read_rows(path)):
        where = f"{path} row {number}"
        captions = tuple(text_of(row, field, where) for field in ("caption", "caption2", "negative_caption"))
        image = text_of(row, "filename", where)
        yield Group(f"{name}/{row.get('id', number)}", (image,), captions, POSITIVES_TRUTH, name, where)


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    files = {name: (f"{name}.json",) for name in SUBSETS}
    root, folder, wanted = parts(sources, "sugarcrepe-pp", "SugarCrepe++", files, str(INFO["files"]))
    named = _identical.told(sources, [group for name in wanted for group in _subset(folder, name)])
    given = [sources.images] if sources.images else []
    images = FolderImages("sugarcrepe-pp", [*given, root / "val2017", root / "images"])
    return present(sources, named, images, "SugarCrepe++", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and the three captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "sugarcrepe-pp")


def groups(sources: Sources) -> Iterator[Group]:
    """One image × (caption, second caption, negative) per row, by subset. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
