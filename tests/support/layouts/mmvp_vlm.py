"""Questions.csv and a folder of images for each of the nine patterns, one pair of each."""

from __future__ import annotations

import csv
from pathlib import Path

from . import paint

PATTERNS = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)


def write(root: Path, pairs: int = 1) -> None:
    with open(root / "Questions.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["Question ID", "Type", "Statement"])
        number = 0
        for pattern in PATTERNS:
            for _ in range(pairs):
                for side in ("left", "right"):
                    number += 1
                    lines.writerow([number, pattern, f"a dog, number {(number + 1) // 2}, facing {side}"])
                    paint(root / "MLLM_VLM Images" / pattern / f"{number}.jpg")
