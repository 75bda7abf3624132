"""Winoground's format with a category; the four of the papers, in their capitals."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_lines


def write(root: Path) -> None:
    rows = []
    for number, category in enumerate(("Color", "Material", "Size", "Quantity") * 2):
        images = {f"image_{side}": f"scene_{number}_{side}.png" for side in (0, 1)}
        captions = {f"caption_{side}": f"a {category.lower()} {side} of scene {number}" for side in (0, 1)}
        rows.append({"id": number, **images, **captions, "category": category})
        for name in images.values():
            paint(root / "images" / name)
    write_lines(root / "examples.jsonl", rows)
