"""metadata.json and images/, as NaturalBench-Retrieval.zip unpacks."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json


def write(root: Path) -> None:
    rows = [
        {
            "index": number,
            "image_0": f"{number}_0.jpg",
            "image_1": f"{number}_1.jpg",
            "caption_0": f"a person {number} sits",
            "caption_1": f"a person {number} stands",
        }
        for number in range(3)
    ]
    write_json(root / "NaturalBench-Retrieval" / "metadata.json", rows)
    for row in rows:
        for side in (0, 1):
            paint(root / "NaturalBench-Retrieval" / "images" / str(row[f"image_{side}"]))
