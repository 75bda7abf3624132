"""Seven classes in val/<wnid>, and their names in classnames.txt in place of the thousand."""

from __future__ import annotations

from pathlib import Path

from . import paint

NAMES = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
    "n03773504": "missile",
    "n04008634": "rocket",
}


def write(root: Path) -> None:
    for wnid in NAMES:
        for number in range(2):
            paint(root / "val" / wnid / f"{wnid}_{number}.JPEG")
    (root / "classnames.txt").write_text("\n".join(NAMES.values()) + "\n")
