"""BiVLC: SugarCrepe's captions with a generated image for each negative; 2 images × 2 captions.

Reads the Hugging Face parquet shards (images as bytes inside) or a CSV of the same columns whose image
columns name files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ...stores.items import Item
from ..sources import QUAD_TRUTH, Group, Sources
from . import _columns
from ._files import FolderImages, Images, keyed, keyed_items, present, read_rows, text_of

COLUMNS = ("image", "caption", "negative_caption", "negative_image", "type", "subtype")
CATEGORIES = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")

INFO = {
    "title": "BiVLC",
    "metric": "quads",
    "chance": {"i2t": 25.0, "t2i": 25.0, "group": 100 / 6},
    "citation": "Miranda et al., BiVLC: Extending Vision-Language Compositionality Evaluation with "
    "Text-to-Image Retrieval, NeurIPS 2024, arXiv:2406.09952",
    "licence": "MIT (annotations, generated images); COCO images: Flickr terms, per image",
    "url": "https://huggingface.co/datasets/imirandam/BiVLC",
    "files": "Put the test-*.parquet of huggingface.co/datasets/imirandam/BiVLC in ROOT/data, or a CSV with "
    "columns image, caption, negative_caption, negative_image, type, subtype in ROOT and its images in "
    "ROOT/images.",
    "splits": ("replace", "swap", "add"),
    "size": 2933,
    "revision": "IMirandaM/BiVLC 84f0d1751e72",
    "tie_rule": "lose",
}
POOLS = {kind: tuple(name for name in CATEGORIES if name.startswith(kind)) for kind in ("replace", "swap", "add")}
# The lab's table is micro over all rows; POOLS gives its rows by type.
AVERAGES: dict[str, tuple[str, ...]] = {}


def _quad(number: int, row: dict[str, Any], images: tuple[str, str], where: str) -> Group:
    captions = (text_of(row, "caption", where), text_of(row, "negative_caption", where))
    category = f"{text_of(row, 'type', where)}_{text_of(row, 'subtype', where)}"
    if category not in CATEGORIES:
        raise UnknownName.among("type of BiVLC", f"{category} ({where})", CATEGORIES)
    # The published set repeats one pair of captions, so a row is known by its number.
    return Group(str(number), images, captions, QUAD_TRUTH, category, where)


def _from_parquet(shards: list[Path]) -> Iterator[Group]:
    texts, images = ("caption", "negative_caption", "type", "subtype"), ("image", "negative_image")
    for number, (where, row) in enumerate(_columns.rows(shards, texts, images, str(INFO["files"]))):
        yield _quad(number, row, (row["image"], row["negative_image"]), where)


def _need_columns(path: Path, columns: list[str]) -> None:
    lacking = [name for name in COLUMNS if name not in columns]
    if lacking:
        raise InputError(f"{path} lacks the columns {', '.join(lacking)}", str(INFO["files"]))


def _from_csv(path: Path) -> Iterator[Group]:
    rows = read_rows(path)
    _need_columns(path, list(rows[0]) if rows else [])
    for number, row in enumerate(rows):
        where = f"{path} row {number}"
        names = (text_of(row, "image", where), text_of(row, "negative_image", where))
        yield _quad(number, row, names, where)


def _named(sources: Sources) -> tuple[list[Group], Images]:
    root = sources.folder("bivlc", str(INFO["files"]))
    if sources.split is not None and sources.split not in POOLS:
        raise UnknownName.among("split of bivlc", sources.split, POOLS)
    folder = root.parent if root.is_file() else root
    tables = [root] if root.is_file() else sorted(root.glob("*.csv"))
    shards = (
        tables if root.suffix == ".parquet" else sorted(root.glob("*.parquet")) or sorted(root.glob("data/*.parquet"))
    )
    images: Images
    if shards:
        images, named = _columns.ColumnImages("bivlc", shards[0].parent), _from_parquet(shards)
    elif len(tables) == 1 and tables[0].suffix == ".csv":
        given = [sources.images] if sources.images else []
        images, named = FolderImages("bivlc", [*given, folder / "images", folder]), _from_csv(tables[0])
    else:
        what = f"{len(tables)} CSV files" if tables else "neither parquet shards nor a CSV"
        raise InputError(f"BiVLC: {root} has {what}", str(INFO["files"]))
    wanted = CATEGORIES if sources.split is None else POOLS[sources.split]
    chosen = [group for group in named if group.category in wanted]
    return present(sources, chosen, images, "BiVLC", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "bivlc")


def groups(sources: Sources) -> Iterator[Group]:
    """(image, negative_image) × (caption, negative_caption) per row. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
