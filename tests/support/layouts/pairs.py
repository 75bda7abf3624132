"""A table of twelve pictures, of which one has three captions, another shares its own, and one is of train."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_lines

COUNT = 12


def write(root: Path) -> None:
    rows = [{"image": f"pictures/{n}.png", "caption": f"picture number {n}", "split": "val"} for n in range(COUNT)]
    rows += [{**rows[0], "caption": text} for text in ("the very first", "number nought")]
    rows += [{**rows[1], "caption": "seen twice"}, {**rows[2], "caption": "seen twice"}]
    rows += [{"image": "pictures/x.png", "caption": "fitted on", "split": "train"}]
    write_lines(root / "captions.jsonl", rows)
    for name in (*map(str, range(COUNT)), "x"):
        paint(root / "pictures" / f"{name}.png")
