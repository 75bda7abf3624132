"""visual_genome_attribution.json and images/: two pairs of attributes with 25 rows or more, one with fewer."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json


def write(root: Path) -> None:
    rows = []
    for attributes in [["red", "white"]] * 30 + [["old", "young"]] * 25 + [["big", "wet"]] * 24:
        number = len(rows)
        image = f"{number % 4}.jpg"
        paint(root / "images" / image)
        one, other = attributes
        rows.append(
            {
                "image_path": image,
                "bbox_x": number % 4,
                "bbox_y": number % 3,
                "bbox_w": 4,
                "bbox_h": 3,
                "true_caption": f"the {one} dog and the {other} mat {number}",
                "false_caption": f"the {other} dog and the {one} mat {number}",
                "attributes": attributes,
            }
        )
    write_json(root / "visual_genome_attribution.json", rows)
