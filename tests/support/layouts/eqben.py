"""The whole annotation as a list, two rows of every part, captions as lists in one; YouCook2's frames as arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from . import paint, write_json

PARTS = (
    "eqbenag",
    "eqbenyoucook2",
    "eqbengebc",
    "eqbenkubric_loc",
    "eqbenkubric_attr",
    "eqbenkubric_cnt",
    "eqbensd",
)


def frame(path: Path) -> None:
    """4 × 4 pixels from the file's name, blue first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.frombuffer(hashlib.sha512(path.name.encode()).digest()[:48], np.uint8).reshape(4, 4, 3))


def rows(part: str) -> list[dict[str, object]]:
    ending = "npy" if part == "eqbenyoucook2" else "png"
    folder = part.replace("kubric_", "kubric/")
    found: list[dict[str, object]] = []
    for number in range(2):
        said = [f"a hand holds cup {number} of {part}", f"a hand drops cup {number} of {part}"]
        captions = [[text, "another wording"] for text in said] if part == "eqbenag" else said
        images = {f"image{side}": f"{folder}/{part}_{number}_{side}.{ending}" for side in (0, 1)}
        found.append({**images, "caption0": captions[0], "caption1": captions[1]})
    return found


def write(root: Path) -> None:
    found = [row for part in PARTS for row in rows(part)]
    write_json(root / "ann_json_finegrained_random.json", found)
    for row in found:
        for side in (0, 1):
            path = root / str(row[f"image{side}"])
            frame(path) if path.suffix == ".npy" else paint(path)
