"""A Karpathy file and the negatives that `compal.pipeline.order` freezes of it."""

from __future__ import annotations

from pathlib import Path

from compal.pipeline.order import freeze

from . import paint, write_json

CAPTIONS = (
    "A small brown dog sits on a wide wooden bench near two old trees.",
    "Three young women in bright red coats walk past a closed store.",
    "The man with a black hat holds an open umbrella over a little girl.",
)
TABLE = "coco_order.jsonl"


def write(root: Path, annotation: str = "coco_karpathy_test.json", table: str = TABLE) -> None:
    rows = [{"image": f"val2014/COCO_val2014_{n:012d}.jpg", "caption": [text]} for n, text in enumerate(CAPTIONS)]
    for row in rows:
        paint(root / str(row["image"]))
    write_json(root / annotation, rows)
    freeze(root / annotation, root / table, tagger="own")
