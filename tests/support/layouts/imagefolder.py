"""A folder for each of six classes below test, and a file of prompts."""

from __future__ import annotations

from pathlib import Path

from . import paint

CLASSES = ("apple_pie", "bibimbap", "ceviche", "Donuts", "edamame", "falafel")


def write(root: Path) -> None:
    for name in CLASSES:
        for number in range(2):
            paint(root / "test" / name / f"{name}_{number}.png")
    (root / "templates.txt").write_text("a photo of {c}.\na dish of {}.\n")
