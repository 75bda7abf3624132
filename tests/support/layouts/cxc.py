"""COCO's test split as for retrieval, and the ratings of its captions and photographs."""

from __future__ import annotations

from pathlib import Path

from . import coco_retrieval


def write(root: Path) -> None:
    coco_retrieval.write(root)
    image = "COCO_val2014_{:012d}.jpg".format
    first, second, third = coco_retrieval.NUMBERS[:3]
    rows = {
        "sits": [
            ("COCO_val2014:sentid:10", image(first), 3.0, "c2i_intrasim"),
            ("COCO_val2014:sentid:20", image(first), 2.99, "c2i_intrasim"),
            ("COCO_val2014:sentid:10", image(second), 2.0, "c2i_original"),
            ("COCO_val2014:sentid:1", image(third), 4.97, "c2i_intrasim"),
        ],
        "sts": [
            ("COCO_val2014:sentid:0", "COCO_val2014:sentid:1", 4.2, "c2c_cocaption"),
            ("COCO_val2014:sentid:0", "COCO_val2014:sentid:10", 3.1, "c2c_isim"),
            ("COCO_val2014:sentid:20", "COCO_val2014:sentid:30", 0.4, "c2c_isim"),
        ],
        "sis": [
            (image(first), image(second), 3.4, "i2i_csim"),
            (image(first), image(third), 1.2, "i2i_csim"),
            (image(second), image(third), 0.2, "i2i_csim"),
        ],
    }
    names = {"sits": "caption,image", "sts": "caption1,caption2", "sis": "image1,image2"}
    for kind, found in rows.items():
        lines = [f"{names[kind]},agg_score,sampling_method", *(",".join(map(str, row)) for row in found)]
        (root / f"{kind}_test.csv").write_text("\n".join(lines) + "\n")
