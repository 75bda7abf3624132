"""Whether a disk has room for what is about to be written, asked before the work and not after hours of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import InputError

RESERVE = 64 << 20  # bytes left free on a disk
CURE = "Free space, or choose another workspace: --work FOLDER, or workspace = … in compal.toml."


def free(folder: Path) -> int:
    """Bytes free on the disk that a folder lies on, or will lie on once it is made."""
    place = Path(os.path.abspath(folder))
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def lacking(folder: Path, needed: int, what: str) -> str:
    """One sentence if the disk of `folder` has no room for `needed` bytes of `what`; "" if it has."""
    there = free(folder)
    if not needed or needed + RESERVE <= there:
        return ""
    return f"{what} take about {needed / 1e9:.3g} GB, and the disk of {folder} has {there / 1e9:.3g} GB free"


def check(folder: Path, needed: int, what: str) -> None:
    """Raises `InputError` if the disk of `folder` has no room for `needed` bytes of `what`."""
    if problem := lacking(folder, needed, what):
        raise InputError(problem, CURE)
