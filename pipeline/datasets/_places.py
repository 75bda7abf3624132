"""Where the image files of COCO-like datasets lie: by split, by year, in `images`, or beside the annotations."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from ...stores.files import TRANSIENT
from .. import listing

SPLITS = ("train", "validation", "val", "test")


def image_folders(root: Path, labels: Iterable[str]) -> list[Path]:
    """The folders below `root` where images may lie, the most specific place first; `root` if there is none."""
    places = [base / label for label in dict.fromkeys(labels) if label for base in (root, root / "images")]
    return [folder for folder in (*places, root / "images", root) if listing.is_dir(folder)] or [root]


def locate(folders: list[Path], file: str) -> Path:
    """The first place that has the image, also without 2014's prefix; the first place if none has."""
    names = dict.fromkeys((file, re.sub(r"^COCO_[a-z]+2014_", "", file)))

    def look() -> Path:
        for path in (folder / name for folder in folders for name in names):
            try:
                if stat.S_ISREG(os.stat(path).st_mode):
                    return path
            except OSError as error:
                if error.errno in TRANSIENT:
                    raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)

    try:  # all lie below the last of them
        return listing.patiently(os.path.join(folders[-1], ""), look)
    except (OSError, ValueError):
        return folders[0] / file


def by_split(paths: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """The files of each split: what the first of train, validation, val and test says that is a word of the
    path below `root` (`data/train-00000-of-00016.parquet`, `val/00000.tar`); `train` where there is none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(paths):
        inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        words = re.split(r"[^a-z]+", inside.lower())
        found.setdefault(next((word for word in words if word in SPLITS), "train"), []).append(path)
    return found


def below(root: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files below `root` with these endings, without hidden ones."""
    endings = tuple(suffixes)

    def look() -> list[Path]:
        return [path for path in root.rglob("*") if path.name.lower().endswith(endings) and path.is_file()]

    found = listing.patiently(os.path.join(root, ""), look)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
