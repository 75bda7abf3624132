"""The CSV files of the three subsets, whole and as people filtered them, images named by foreign paths."""

from __future__ import annotations

import csv
from pathlib import Path

from . import paint

SUBSETS = ("replace-att", "replace-obj", "replace-rel")
COLUMNS = ("orig_ind", "image", "orig_pos", "orig_neg", "new_neg")


def write(root: Path) -> None:
    for subset in SUBSETS:
        rows = [
            (
                number,
                f"/system/data/coco/val2017/{subset}_{number}.jpg",
                f"A dog, {subset} {number}.",
                f"A cat, {subset} {number}.",
                f"A small wolf, {subset} {number}.",
            )
            for number in range(3)
        ]
        for ending, kept in (("", rows), ("_HUMAN_FILTER", rows[:2])):
            with open(root / f"{subset}{ending}.csv", "w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *kept])
        for number in range(3):
            paint(root / "images" / f"{subset}_{number}.jpg")
