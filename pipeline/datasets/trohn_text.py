"""TROHN-Text: captions of COCO 2017 train with a hard negative a row, written by a language model.

    ROOT/data/train-00000-of-00001.parquet, ROOT/data/validation-…   a copy of imirandam/TROHN-Text; any .parquet,
                                                                     .csv, .json or .jsonl with its columns will do
    ROOT/train2017/000000391979.jpg   the images of COCO, or in ROOT/images, ROOT, or ?images=FOLDER

Columns: `image_id` (a file's name), `caption`, `negative_caption`. What the rows say of one image and caption is
joined: one pair with all its negatives. Layout, columns and sizes (train 2,922,276 rows, validation 730,570) are
those of the dataset's card; the files themselves were not at hand. Other columns go by
`?image=…&caption=…&negatives=…`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item, Pair
from ._files import Photo, check_split, first, merged, photo_items, photo_pairs, require_root, split_options
from ._patterns import find_files
from ._places import by_split, image_folders, locate
from ._tables import READERS, open_table

INFO: dict[str, Any] = {
    "licence": "MIT; COCO captions CC BY 4.0, each image under its own Flickr licence",
    "revision": "the files given",
    "citation": "Miranda et al., BiVLC, arXiv:2406.09952",
    "splits": ("train", "validation"),
}

COLUMNS = {
    "image": ("image_id", "image", "filename"),
    "caption": ("caption",),
    "negatives": ("negative_caption", "negative_captions", "negatives"),
}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images, each followed by its captions, each of these by its negatives."""
    return photo_items(first(_photos(root, split), limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """Each image with each of its captions and that caption's negatives."""
    return photo_pairs(first(_photos(root, split), limit))


def splits(root: Path | None) -> list[str]:
    """The splits that the files' names say."""
    return sorted(_find(root)[0])


def files(root: Path | None, split: str) -> list[Path]:
    """The files of a split."""
    found = _find(root)[0]
    check_split(split, found, root)
    return found[split]


def _find(root: Path | None) -> tuple[dict[str, list[Path]], Path, dict[str, str]]:
    """The files by split, where the images lie, and the columns given."""
    place, given = split_options("trohn-text", require_root("trohn-text", root, "FOLDER"), (*COLUMNS, "images"))
    folder, found = find_files("trohn-text", place, tuple(READERS))
    images = given.pop("images", "")
    return (by_split(found, folder), Path(images).expanduser() if images else folder, given)


def _photos(root: Path | None, split: str) -> list[Photo]:
    by_name, images, given = _find(root)
    check_split(split, by_name, root)
    table = open_table("trohn-text", by_name[split], COLUMNS, tuple(COLUMNS), given)
    folders = image_folders(images, ("train2017", "train2014", "val2017"))
    places: dict[str, Path] = {}

    def photos() -> Iterator[Photo]:
        for where, row in table.rows():
            name = coco_file(table.cell(row, "image"), where)
            if name not in places:
                places[name] = locate(folders, name)
            yield Photo(places[name], f"trohn-text/{name}", table.told(where, row))

    return merged(photos())


def coco_file(image: object, where: str) -> str:
    """The file's name that a row gives, or that its number stands for. Raises `InputError`."""
    if type(image) is int:
        return f"{image:012d}.jpg"
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise InputError(f"{where}: image {image!r:.60} is no file name", "Correct the row.")
    return image
