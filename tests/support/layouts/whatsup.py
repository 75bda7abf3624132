"""Both controlled sets: two sets of four photographs of each, with the captions of the official files' pattern."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json

SETS = {
    "A": (
        "controlled_images",
        {"on": "on", "under": "under", "left_of": "to the left of", "right_of": "to the right of"},
    ),
    "B": (
        "controlled_clevr",
        {
            "in-front_of": "in front of",
            "behind": "behind",
            "left_of": "to the left of",
            "right_of": "to the right of",
        },
    ),
}
THINGS = {"A": (("beer-bottle", "armchair"), ("mug", "table")), "B": (("knife", "plate"), ("cup", "bowl"))}


def write(root: Path) -> None:
    for name, (folder, words) in SETS.items():
        rows = []
        for one, other in THINGS[name]:
            captions = {word: f"A {one.replace('-', ' ')} {said} a {other}" for word, said in words.items()}
            for word, caption in captions.items():
                image = f"{folder}/{one}_{word}_{other}.jpeg"
                others = [text for text in captions.values() if text != caption]
                rows.append({"image_path": f"data/{image}", "caption_options": [caption, *others]})
                paint(root / image)
        write_json(root / f"{folder}_dataset.json", rows)
