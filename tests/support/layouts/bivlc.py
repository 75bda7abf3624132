"""A CSV of the official columns; its images are files."""

from __future__ import annotations

from pathlib import Path

from . import paint


def write(root: Path) -> None:
    lines = ["image,caption,negative_caption,negative_image,type,subtype"]
    for number in range(3):
        lines.append(f"pos_{number}.png,a dog {number},a cat {number},neg_{number}.png,swap,obj")
        paint(root / "images" / f"pos_{number}.png")
        paint(root / "images" / f"neg_{number}.png")
    (root / "rows.csv").write_text("\n".join(lines) + "\n")
