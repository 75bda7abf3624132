"""Which images of a set without splits are held out: by name, so that every row of an image is on one side, and the
choice is the same on every machine and whatever rows are added."""

from __future__ import annotations

import hashlib

from ..errors import UsageError

OPTION = "holdout"
FITTED, HELD = "train", "val"


def share_of(text: str) -> float:
    """The share that an option `holdout=0.2` names, above 0 and below 1. Raises `UsageError`."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UsageError(f"holdout={text} is no share of the images", "Give one between 0 and 1, as holdout=0.2.")
    return share


def split_of(name: str, share: float) -> str:
    """`val` for about `share` of all names, `train` for the others."""
    number = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    return HELD if number < share * 2**64 else FITTED
