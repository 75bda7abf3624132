"""A folder of images, each with its captions in a text file of the same name, one caption a line.

    ROOT/a.jpg  ROOT/a.txt  ROOT/more/b.png  ROOT/more/b.txt

Where ROOT has a folder `train`, `val` or `test`, its folders are the splits; otherwise all of it is `train`, unless
`ROOT?holdout=0.2` makes a fifth of the images, chosen by name, the split `val`.
Images without captions are extracted; text files without an image are not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName, UsageError
from ...stores import holdout
from ...stores.files import TRANSIENT
from ...stores.items import Item, Pair
from ...workspace import PICTURES
from .. import listing
from ._files import (
    Photo,
    Told,
    decoded,
    photo_items,
    photo_pairs,
    require_folder,
    require_root,
    split_options,
)

INFO: dict[str, Any] = {
    "licence": "that of your files",
    "revision": "the folder given",
    "citation": "",
    "splits": ("train", "val", "test"),
}


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The first `limit` images by path, each followed by its captions. Raises `InputError`, `UnknownName`."""
    return photo_items(_photos(root, split, limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(_photos(root, split, limit))


def splits(root: Path | None) -> list[str]:
    """The splits of `root`: its folders if `train`, `val` or `test` is among them, else `train` alone, and `val` where
    some are held out. Raises `UsageError` for a share that is none, or of a folder that has splits."""
    root, share = _open(root)
    with os.scandir(root) as entries:  # which knows what is a folder without asking the disk once a file
        folders = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    own = folders if set(folders) & set(INFO["splits"]) else []
    if own and share:
        raise UsageError(f"{root} has splits, and holdout={share} would make others", "Leave holdout out.")
    return own or ([holdout.FITTED, holdout.HELD] if share else ["train"])


def _open(root: Path | None) -> tuple[Path, float]:
    """The folder, and the share of its images that is held out."""
    folder, given = split_options("folder", require_root("folder", root, "FOLDER"), (holdout.OPTION,))
    share = holdout.share_of(given[holdout.OPTION]) if given else 0.0
    return require_folder("folder", folder), share


def _photos(asked: Path | None, split: str, limit: int | None) -> list[Photo]:
    root, share = _open(asked)
    known = splits(asked)
    if split not in known:
        raise UnknownName.among("split", split, known, f"To add it, make a folder {root / split}.")
    top = root / split if listing.is_dir(root / split) else root
    images = sorted(listing.patiently(os.path.join(top, ""), lambda: list(_images(top))))
    if not images:
        raise InputError(f"no images in {top}", f"Known endings: {', '.join(sorted(PICTURES))}.")
    if share:
        images = [one for one in images if holdout.split_of("/".join(one[0]), share) == split]
    above = top.relative_to(root).parts
    return [_photo(top.joinpath(*parts), "/".join((*above, *parts)), told) for parts, told in images[:limit]]


def _images(top: Path) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The path below `top` of each image that is not hidden, and whether there is a text of its name."""

    def heard(error: OSError) -> None:
        # A folder that may not be read is passed over; one whose share is gone must not be.
        if error.errno in TRANSIENT or not os.path.exists(top):
            raise error

    for place, folders, names in os.walk(top, onerror=heard):
        folders[:] = [name for name in folders if not name.startswith(".")]
        parts, present = Path(place).relative_to(top).parts, set(names)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in PICTURES and not name.startswith("."):
                yield (*parts, name), f"{stem}.txt" in present


def _photo(path: Path, name: str, told: bool) -> Photo:
    if not told:
        return Photo(path, name, ())
    beside, label = path.with_suffix(".txt"), Path(name).with_suffix(".txt").as_posix()
    try:
        lines = decoded(listing.patiently(beside, beside.read_bytes)).split("\n")
    except OSError as error:
        raise InputError(f"cannot read {beside}: {error.strerror or error}", "Check the file.") from None
    captions = (Told(line.strip(), f"{label}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    return Photo(path, name, tuple(captions))
