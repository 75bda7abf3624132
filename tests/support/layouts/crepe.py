"""The columns of the official CSVs in our own words: productivity in full, one file of systematicity."""

from __future__ import annotations

import csv
from pathlib import Path

from . import paint


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write(root: Path) -> None:
    for number in range(3):
        paint(root / "VG_100K" / f"{number}.jpg")
    box = {"x": 1, "y": 2, "width": 5, "height": 4}
    for kind in ("atom", "swap", "negate"):
        for atoms in range(4, 13):
            rows = [
                {
                    "image_id": number,
                    **box,
                    "caption": f"{kind} caption {number} of {atoms} atoms",
                    "hard_negs": str([f"{kind} wrong {place} of {number}, {atoms} atoms" for place in range(5)]),
                }
                for number in range(2)
            ]
            _write(root / "prod_hard_negatives" / kind / f"prod_vg_hard_negs_{kind}_complexity_{atoms}.csv", rows)
    wrong = {f"valid_hard_negs_{kind}": str([f"{kind} {n}" for n in range(5)]) for kind in ("atom", "comp", "combined")}
    rows = [{"image_id": number, **box, "caption": f"region {number}", **wrong} for number in range(3)]
    rows[2]["valid_hard_negs_comp"] = "[]"
    _write(root / "syst_hard_negatives" / "syst_vg_hard_negs_seen_compounds_in_cc12m.csv", rows)
