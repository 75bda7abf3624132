"""A table of the official columns, whose ids begin anew in every category, and images beside it."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json

CATEGORIES = ("object", "attribute", "relation", "counting")


def rows() -> list[dict[str, str]]:
    return [
        {
            "id": str(number),
            "image_0": f"{category}_{number}_0.png",
            "text_0": f"two dogs of {category} {number}",
            "image_1": f"{category}_{number}_1.png",
            "text_1": f"three dogs of {category} {number}",
            "category": category,
        }
        for category in CATEGORIES
        for number in range(2)
    ]


def write(root: Path) -> None:
    write_json(root / "test.json", rows())
    for row in rows():
        for side in (0, 1):
            paint(root / "images" / row[f"image_{side}"])
