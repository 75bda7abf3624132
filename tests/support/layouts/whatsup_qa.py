"""The four files of [image id, caption, wrong caption], a row of each preposition."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json

TURNED = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
    "on top of": "under",
}
SIDES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def write(root: Path) -> None:
    for source, folder, words in (
        ("coco", "val2017", ("left of", "right of", "above", "below")),
        ("vg", "vg_images", ("left of", "right of", "in front of", "behind", "on top of")),
    ):
        one = [
            [n + 1, f"A photo of a dog {n} on the {w}", f"A photo of a dog {n} on the {SIDES[w]}"]
            for n, w in enumerate(SIDES)
        ]
        two = [
            [n + 1, f"A photo of a dog {n} {w} a cat", f"A photo of a dog {n} {TURNED[w]} a cat"]
            for n, w in enumerate(words)
        ]
        write_json(root / f"{source}_qa_one_obj.json", one)
        write_json(root / f"{source}_qa_two_obj.json", two)
        for number in range(1, 1 + max(len(one), len(two))):
            name = f"{number:012d}.jpg" if source == "coco" else f"{number}.jpg"
            paint(root / folder / name)
