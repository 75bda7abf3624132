"""TROHN-Img: captions of COCO 2017 train with a negative caption and a generated image of it.

    ROOT/data/train-00000-of-00016.parquet …   a copy of imirandam/TROHN-Img; or `imirandam/TROHN-Img` of the hub
    ROOT/train2017/000000391979.jpg            the images of COCO, or in ROOT/images, ROOT, or ?images=FOLDER

Columns: `image_id` (a file's name), `caption`, `negative_caption`, `negative_image`. A row is a swap quadruplet:
two images and two captions, each caption the other's negative. Layout, columns and sizes (train 236,856 rows,
validation 59,214) are those of the dataset's card; the files themselves were not at hand. Other columns go by
`?image=…&caption=…&negative=…&negative_image=…`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...stores.items import Item, Pair
from ._files import Photo, Told, check_split, photo_items, photo_pairs, require_root, split_options
from ._hub import Loaded, image_photo, image_rows, load, text_rows
from ._places import image_folders, locate
from ._tables import choose_columns
from .trohn_text import coco_file

INFO: dict[str, Any] = {
    "licence": "MIT; COCO captions CC BY 4.0, each image of COCO under its own Flickr licence",
    "revision": "the commit on the hub, or the files given",
    "citation": "Miranda et al., BiVLC, arXiv:2406.09952",
    "splits": ("train", "validation"),
}

COLUMNS = {
    "image": ("image_id", "image", "filename"),
    "caption": ("caption",),
    "negative": ("negative_caption",),
    "negative_image": ("negative_image",),
}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The two images and two captions of the first `limit` rows."""
    return photo_items(islice(_photos(root, split), limit and 2 * limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The two pairs of each row, which share a group."""
    return photo_pairs(islice(_photos(root, split), limit and 2 * limit))


def splits(root: Path | None) -> list[str]:
    """The splits of the dataset."""
    return sorted(_load(root)[0].splits)


def files(root: Path | None, split: str) -> list[Path]:
    """The files that were read; none for the hub, whose commit says it all."""
    return list(_load(root)[0].files)


def about(root: Path | None, split: str) -> dict[str, str]:
    """The commit on the hub, if it comes from there."""
    revision = _load(root)[0].revision
    return {"revision": revision} if revision else {}


def _load(root: Path | None) -> tuple[Loaded, Path, dict[str, str]]:
    options = (*COLUMNS, "images", "revision")
    place, given = split_options("trohn-img", require_root("trohn-img", root, "FOLDER"), options)
    loaded = load("trohn-img", place, given.pop("revision", ""))
    images = given.pop("images", "") or loaded.folder or "."
    return loaded, Path(images).expanduser(), given


def _photos(root: Path | None, split: str) -> Iterator[Photo]:
    loaded, images, given = _load(root)
    check_split(split, loaded.splits, root)
    data = loaded.splits[split]
    columns = choose_columns("trohn-img", loaded.label, list(data.column_names), COLUMNS, tuple(COLUMNS), given)
    folders = image_folders(images, ("train2017", "train2014", "val2017"))
    return _quadruplets(loaded, split, {role: names[0] for role, names in columns.items()}, folders)


def _quadruplets(loaded: Loaded, split: str, columns: dict[str, str], folders: list[Path]) -> Iterator[Photo]:
    names = [columns[role] for role in ("image", "caption", "negative")]
    generated = image_rows(loaded, split, columns["negative_image"])
    for number, (row, found) in enumerate(zip(text_rows(loaded.splits[split], names), generated, strict=True)):
        group = f"trohn-img/{split}/{number}"
        image, caption, negative = (row[name] for name in names)
        file = coco_file(image, group)
        yield Photo(locate(folders, file), f"trohn-img/{file}", (Told(caption, group, (negative,)),), group=group)
        other = image_photo(found, f"{group}, negative", (Told(negative, f"{group}, negative", (caption,)),))
        yield Photo(other.image, other.source, other.captions, other.key, group)
