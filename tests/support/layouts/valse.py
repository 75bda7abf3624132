"""Official rows of the eleven pieces, two that annotators found valid and one that they did not of each."""

from __future__ import annotations

import json
from pathlib import Path

from . import DATA, paint


def write(root: Path) -> None:
    for file in (DATA / "valse").glob("*.json"):
        (root / "data").mkdir(parents=True, exist_ok=True)
        (root / "data" / file.name).write_text(file.read_text())
        for row in json.loads(file.read_text()).values():
            paint(root / "images" / row["image_file"])
