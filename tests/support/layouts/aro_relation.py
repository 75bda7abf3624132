"""visual_genome_relation.json and images/: rows of three relations, one of them symmetric."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json


def write(root: Path) -> None:
    rows = []
    for number, relation in enumerate(["on", "on", "on", "to the left of", "to the left of", "next to", "next to"]):
        image = f"{number // 2}.jpg"
        paint(root / "images" / image)
        rows.append(
            {
                "image_path": image,
                "bbox_x": number % 4,
                "bbox_y": 2,
                "bbox_w": 4,
                "bbox_h": 3,
                "true_caption": f"the dog {number} is {relation} the mat",
                "false_caption": f"the mat {number} is {relation} the dog",
                "relation_name": relation,
            }
        )
    write_json(root / "visual_genome_relation.json", rows)
