"""The Flickr30k file and its frozen negatives, as for COCO."""

from __future__ import annotations

from pathlib import Path

from . import aro_coco_order


def write(root: Path) -> None:
    aro_coco_order.write(root, "flickr30k_test.json", "flickr30k_order.jsonl")
