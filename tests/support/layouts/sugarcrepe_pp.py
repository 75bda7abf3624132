"""Fifteen official rows of the five subsets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from . import DATA, paint


def write(root: Path) -> None:
    shutil.copytree(DATA / "sugarcrepe_pp", root, dirs_exist_ok=True)
    for file in root.glob("*.json"):
        for row in json.loads(file.read_text()):
            paint(root / "val2017" / row["filename"])
