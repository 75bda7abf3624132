"""Every file that corpus/v1 names, two rows each, in our own words: the official files carry no licence."""

from __future__ import annotations

from pathlib import Path

from compal.eval.benchmarks.vl_checklist import PARTS

from . import paint, write_json


def write(root: Path) -> None:
    for name, part in PARTS.items():
        rows = []
        for number in range(2):
            image = f"{name}_{number}.jpg"
            paint(root / part.images / image)
            texts = {"POS": [f"a right text {number} of {name}"], "NEG": [f"a wrong text {number} of {name}"]}
            if part.images == "swig":
                texts = {side: [*found, "another", "a third"] for side, found in texts.items()}
            rows.append([image, texts])
        write_json(root / "data" / part.path, rows)
