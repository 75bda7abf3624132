"""examples.jsonl and images/, as facebook/winoground unzips."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_lines


def write(root: Path) -> None:
    rows = []
    for number in range(3):
        images = {f"image_{side}": f"ex_{number}_{side}" for side in (0, 1)}
        captions = {f"caption_{side}": f"caption {side} of {number}" for side in (0, 1)}
        rows.append({"id": number, **images, **captions})
        for name in images.values():
            paint(root / "images" / f"{name}.png")
    write_lines(root / "examples.jsonl", rows)
