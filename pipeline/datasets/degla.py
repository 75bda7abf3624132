"""DeGLA's captions with four hard negatives each: a JSON of COCO 2014, `original` and `enhanced`.

    [{"image_id": 57870, "original": "A restaurant has…", "enhanced": ["…", "…", "…", "…"]}, …]

    --data 'degla:DeGLA.json?images=/data/coco'    images as /data/coco/train2014/COCO_train2014_000000057870.jpg
    --data degla:FOLDER                            FOLDER/DeGLA.json and FOLDER/train2014

The images may also lie in `images` or beside the JSON, and under their names of 2017. One split, `train`.
The layout is the one that the code of the paper reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item, Pair
from ._files import (
    Photo,
    Told,
    check_split,
    first,
    merged,
    photo_items,
    photo_pairs,
    read_json,
    require_root,
    split_options,
)
from ._places import image_folders, locate

INFO: dict[str, Any] = {
    "licence": "unknown (the code is MIT); COCO captions CC BY 4.0, each image under its own Flickr licence",
    "revision": "the JSON given",
    "citation": "Hu et al., Decoupled Global-Local Alignment, arXiv:2504.16801",
    "splits": ("train",),
}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images, each followed by its captions, each of these by its negatives."""
    return photo_items(first(_photos(root, split), limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """Each original caption with its image and its negatives."""
    return photo_pairs(first(_photos(root, split), limit))


def files(root: Path | None, split: str) -> list[Path]:
    """The files that say what the split holds."""
    return [_find(root)[0]]


def _find(root: Path | None) -> tuple[Path, list[Path]]:
    root, given = split_options("degla", require_root("degla", root, "FILE"), ("images",))
    file = root / "DeGLA.json" if root.is_dir() else root
    if not file.is_file():
        raise InputError(f"no file {file} for dataset 'degla'", "Point --data degla:FILE at its JSON.")
    images = Path(given["images"]).expanduser() if "images" in given else file.parent
    return file, image_folders(images, ("train2014", "train2017"))


def _photos(root: Path | None, split: str) -> list[Photo]:
    file, folders = _find(root)
    check_split(split, INFO["splits"], file)
    return merged(
        Photo(
            locate(folders, f"COCO_train2014_{number:012d}.jpg"),
            f"degla/COCO_train2014_{number:012d}.jpg",
            (Told(original, f"degla/row {row}", negatives),),
        )
        for row, (number, original, negatives) in enumerate(_read(file, file.stat().st_mtime_ns), 1)
    )


@lru_cache(maxsize=1)
def _read(file: Path, mtime_ns: int) -> tuple[tuple[int, object, tuple[object, ...]], ...]:
    data = read_json(file)
    if not isinstance(data, list) or not data:
        raise InputError(f"{file} is not a list of captions", 'Each is {"image_id", "original", "enhanced"}.')
    rows = []
    for number, row in enumerate(data, 1):
        if (
            not isinstance(row, dict)
            or type(row.get("image_id")) is not int
            or not isinstance(row.get("enhanced"), list)
        ):
            raise InputError(f"{file}, row {number} has no image_id or no list 'enhanced'", "Correct the row.")
        rows.append((row["image_id"], row.get("original"), tuple(row["enhanced"])))
    return tuple(rows)
