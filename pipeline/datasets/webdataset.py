"""Images and captions in uncompressed tars, as WebDataset and img2dataset write them: CC3M, CC12M, anything.

    --data webdataset:/data/cc3m                              a folder of .tar
    --data 'webdataset:/data/cc3m/{00000..00331}.tar'         numbered ones; or a wildcard, *.tar
    --data 'webdataset:/data/cc3m?caption=raw_caption,long'   captions by ending, or by key of the .json member

Members that share a name up to the first dot are one sample: 000012.jpg, 000012.txt, 000012.json. Without
`caption` the caption is the .txt member, else .caption, else the key `caption` of .json; a list holds several.
Splits are words of the path (`train/…`, `cc3m-validation-0001.tar`), and `train` where there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...stores.items import Item, Pair
from ._files import Photo, check_split, first, photo_items, photo_pairs, require_root, split_options
from ._patterns import find_files
from ._places import by_split
from ._shards import shard_photos

INFO: dict[str, Any] = {
    "licence": "that of your files",
    "revision": "the shards given",
    "citation": "",
    "splits": ("train", "validation", "val", "test"),
}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images, each followed by its captions. Raises `InputError`, `UnknownName`."""
    return photo_items(first(_photos(root, split), limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(first(_photos(root, split), limit))


def splits(root: Path | None) -> list[str]:
    """The splits that the paths of the shards name."""
    return sorted(_find(root)[0])


def files(root: Path | None, split: str) -> list[Path]:
    """The shards of a split."""
    return _shards(root, split)[0]


def _find(root: Path | None) -> tuple[dict[str, list[Path]], list[str]]:
    """The shards by split, and the captions wanted."""
    root, given = split_options("webdataset", require_root("webdataset", root, "FOLDER"), ("caption",))
    # Compressed ones are found too: reading them says what to do.
    folder, found = find_files("webdataset", root, (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))
    return by_split(found, folder), [name for name in given.get("caption", "").split(",") if name]


def _shards(root: Path | None, split: str) -> tuple[list[Path], list[str]]:
    shards, wanted = _find(root)
    check_split(split, shards, root)
    return shards[split], wanted


def _photos(root: Path | None, split: str) -> Iterator[Photo]:
    return shard_photos(*_shards(root, split))
