"""Tables of position, separated by tabs, with official paths; counts of PointQA by image of Visual Genome."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json

WORDS = {"left_right": ("to the left of", "to the right of"), "up_down": ("above", "below")}


def write(root: Path) -> None:
    for name, (one, other) in WORDS.items():
        lines = ["captions\timages\tneg_captions\tneg_images"]
        for number in range(2):
            images = [f"train_data/{name}/pos/{name}{number}.jpg", f"train_data/{name}/neg/{name}{number}_0.png"]
            texts = [f"a man {number} is {word} a dog" for word in (one, other)]
            lines.append(f"{texts[0]}\t../../{images[0]}\t{texts[1]}\t../../{images[1]}")
            for image in images:
                paint(root / image)
        path = root / "clip_sample_data" / f"test_{name}_.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    counts = {
        "2316": [{"name": "sheep", "ans": "2"}, {"name": "trees", "ans": 3}],
        "2400": [{"name": "cars", "ans": 1}],
    }
    write_json(root / "vg_dict.json", counts)
    for image in counts:
        paint(root / "visual_genome" / f"{image}.jpg")
