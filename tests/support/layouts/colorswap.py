"""test.json, train.json and images/, as the official archive unpacks."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json

COLOURS = ("red", "blue", "green", "black", "white")


def rows(count: int, first: int = 0) -> list[dict[str, object]]:
    found = []
    for number in range(first, first + count):
        one, other = COLOURS[number % 5], COLOURS[(number + 1) % 5]
        found.append(
            {
                "id": number,
                "caption_1": f"a {one} cup beside a {other} plate, number {number}",
                "caption_2": f"a {other} cup beside a {one} plate, number {number}",
                "image_1": f"images/img_{number}_1.png",
                "image_2": f"images/img_{number}_2.png",
                "image_source": "midjourney",
                "caption_source": "human",
            }
        )
    return found


def write(root: Path) -> None:
    for split, found in {"test": rows(3), "train": rows(2, 3)}.items():
        write_json(root / f"{split}.json", found)
        for row in found:
            for side in (1, 2):
                paint(root / str(row[f"image_{side}"]))
