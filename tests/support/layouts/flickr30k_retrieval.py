"""dataset_flickr30k.json with twelve photographs of the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import paint, write_json

NUMBERS = (1007129816, 1009434119, 101362133, *range(2001, 2010))


def entries() -> list[dict[str, Any]]:
    return [
        {
            "filename": f"{number}.jpg",
            "split": "test",
            "sentids": list(range(5 * place, 5 * place + 5)),
            "sentences": [
                {"raw": f"Caption {told} of {number}.", "sentid": 5 * place + told, "imgid": place} for told in range(5)
            ],
        }
        for place, number in enumerate(NUMBERS)
    ]


def write(root: Path) -> None:
    write_json(root / "dataset_flickr30k.json", {"images": entries(), "dataset": "flickr30k"})
    for number in NUMBERS:
        paint(root / "flickr30k-images" / f"{number}.jpg")
