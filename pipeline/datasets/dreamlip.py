"""DreamLIP: images with a raw caption and six sets of synthetic ones, short and long, of three models.

    --data dreamlip:/data/cc3m-shards                      tars, the captions as keys of their .json members
    --data 'dreamlip:captions.csv?images=/data/cc3m'       or a .csv, .json, .jsonl or .parquet with its columns
    --data 'dreamlip:/data/cc3m-shards?caption=raw_caption,shortLLA_captions'    some of the sets

The sets: raw_caption, and shortIB, longIB (InstructBLIP), shortSV, longSV (ShareGPT4V), shortLLA, longLLA (LLaVA
1.5), each followed by `_captions`; a set may hold a list. The public CSV files name images by URL: img2dataset
with `--save_additional_columns` makes of them the shards that are read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item, Pair
from ._files import Photo, check_split, first, photo_items, photo_pairs, require_root, split_options
from ._patterns import find_files
from ._places import by_split
from ._shards import shard_photos
from ._tables import READERS, open_table, read_rows

INFO: dict[str, Any] = {
    "licence": "captions CC BY 4.0; each image under its own licence",
    "revision": "the files given",
    "citation": "Zheng et al., DreamLIP, arXiv:2403.17007",
    "splits": ("train", "validation", "val", "test"),
}

MODELS = ("IB", "SV", "LLA")
SETS = ("raw_caption", *(f"{length}{model}_captions" for model in MODELS for length in ("short", "long")))
IMAGE = ("Image Path", "image", "image_path", "filepath", "filename")


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images, each followed by its captions. Raises `InputError`, `UnknownName`."""
    return photo_items(first(_photos(root, split), limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(first(_photos(root, split), limit))


def splits(root: Path | None) -> list[str]:
    """The splits that the paths of the files name."""
    return sorted(_find(root)[0])


def files(root: Path | None, split: str) -> list[Path]:
    """The files of a split."""
    return _of_split(root, split)[0]


def _find(root: Path | None) -> tuple[dict[str, list[Path]], Path, dict[str, str]]:
    """The files by split, where the images of a table lie, and the columns given."""
    options = ("image", "caption", "images")
    place, given = split_options("dreamlip", require_root("dreamlip", root, "FOLDER"), options)
    folder, found = find_files("dreamlip", place, (".tar", *READERS))
    # A folder of shards also holds img2dataset's own tables.
    shards = [file for file in found if file.suffix == ".tar"]
    images = given.pop("images", "")
    return (by_split(shards or found, folder), Path(images).expanduser() if images else folder, given)


def _of_split(root: Path | None, split: str) -> tuple[list[Path], Path, dict[str, str]]:
    found, images, given = _find(root)
    check_split(split, found, root)
    return found[split], images, given


def _photos(root: Path | None, split: str) -> Iterator[Photo]:
    found, images, given = _of_split(root, split)
    if found[0].suffix == ".tar":
        wanted = given.get("caption", "")
        return shard_photos(found, wanted.split(",") if wanted else SETS)
    return _table_photos(found, images, given)


def _table_photos(found: list[Path], images: Path, given: dict[str, str]) -> Iterator[Photo]:
    header = next((row for _, row in read_rows(found[0])), {})
    usual = {"image": IMAGE, "caption": SETS}
    sets = {"caption": ",".join(name for name in SETS if name in header)}
    table = open_table("dreamlip", found, usual, tuple(usual), {**({} if not sets["caption"] else sets), **given})
    for where, row in table.rows():
        image = table.cell(row, "image")
        if isinstance(image, str) and "://" in image:
            cure = "Download the images with img2dataset and give its shards: --data dreamlip:FOLDER."
            raise InputError(f"{where} names its image by URL: {image:.80}", cure)
        if not isinstance(image, str) or not image.strip() or "\0" in image:
            raise InputError(f"{where}: image {image!r:.60} is no path", "Correct the row.")
        yield Photo(images / image, f"dreamlip/{image}", table.told(where, row))
