"""dataset_coco.json with twelve photographs of the test split, of which one has six captions, and one of train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import paint, write_json

NUMBERS = (391895, 60623, 483108, 384213, *range(1001, 1009))


def entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for place, number in enumerate((*NUMBERS, 522418)):
        sentences = [
            {"raw": f"Caption {told} of photograph {number}", "sentid": 10 * place + told, "imgid": place}
            for told in range(6 if place == 0 else 5)
        ]
        found.append(
            {
                "filepath": "val2014",
                "filename": f"COCO_val2014_{number:012d}.jpg",
                "imgid": place,
                "cocoid": number,
                "split": "test" if number in NUMBERS else "train",
                "sentids": [sentence["sentid"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    return found


def write(root: Path) -> None:
    write_json(root / "dataset_coco.json", {"images": entries(), "dataset": "coco"})
    for number in NUMBERS:
        paint(root / "val2014" / f"COCO_val2014_{number:012d}.jpg")
