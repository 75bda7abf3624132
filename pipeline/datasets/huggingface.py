"""A Hugging Face dataset: parquet or arrow files, a saved dataset, or `org/name` of the hub.

    --data huggingface:/data/my-dataset                     .parquet and .arrow files, or what save_to_disk wrote
    --data 'huggingface:org/name?revision=main'             of the hub; the commit is what is recorded
    --data 'huggingface:org/name?image=jpg&caption=txt,alt' columns by name, several captions with commas between

The image column holds image files as bytes, or their paths; a caption column holds texts or lists of texts.
A column of negatives, captions that do not describe the image, is read where there is one. Other options:
`config` of a dataset that has several. Needs `pip install "compal[interop]"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...stores.items import Item, Pair
from ._files import Photo, check_split, first, photo_items, photo_pairs, require_root, split_options
from ._hub import Loaded, load, row_photos
from ._tables import choose_columns

INFO: dict[str, Any] = {
    "licence": "what the dataset's card says, else unknown",
    "revision": "the commit on the hub, or the files given",
    "citation": "",
    "splits": ("train", "validation", "val", "test"),
}

COLUMNS = {
    "image": ("image", "jpg", "png", "img", "image_path", "file_name", "filename"),
    "caption": ("caption", "captions", "text", "texts", "txt", "sentences", "alt_text", "sentence"),
    "negatives": ("negatives", "negative_captions", "negative_caption"),
}
OPTIONS = ("image", "caption", "negatives", "revision", "config")


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` rows' images, each followed by its captions. Raises `InputError`, `UnknownName`."""
    return photo_items(first(_photos(root, split), limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(first(_photos(root, split), limit))


def splits(root: Path | None) -> list[str]:
    """The splits of the dataset."""
    return sorted(_load(root)[0].splits)


def files(root: Path | None, split: str) -> list[Path]:
    """The files that were read; none for the hub, whose commit says it all."""
    return list(_load(root)[0].files)


def about(root: Path | None, split: str) -> dict[str, str]:
    """Licence, revision and citation where the dataset says them."""
    loaded = _load(root)[0]
    found = {"licence": loaded.licence or "unknown", "revision": loaded.revision, "citation": loaded.citation}
    return {name: value for name, value in found.items() if value}


def _load(root: Path | None) -> tuple[Loaded, dict[str, str]]:
    place, given = split_options("huggingface", require_root("huggingface", root, "FOLDER"), OPTIONS)
    return load("huggingface", place, given.pop("revision", ""), given.pop("config", "")), given


def _photos(root: Path | None, split: str) -> Iterator[Photo]:
    loaded, given = _load(root)
    check_split(split, loaded.splits, root)
    present = list(loaded.splits[split].column_names)
    columns = choose_columns("huggingface", loaded.label, present, COLUMNS, ("image", "caption"), given)
    return row_photos(loaded, split, columns)
