"""One set of every subset, asked both ways: as many of each as the official sizes give, so that chance is the same."""

from __future__ import annotations

from pathlib import Path

from . import paint, write_json

CHOICES = {
    "absolute_size": 3,
    "relative_size": 3,
    "absolute_spatial": 9,
    "relative_spatial": 4,
    "existence": 2,
    "count": 9,
}


def rows(subset: str) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """image2text and text2image; the right key stands at another place in every row."""
    number = CHOICES[subset]
    images = [f"images/{subset}_{place}.jpg" for place in range(number)]
    texts = [f"the {subset} of the dog is {place}" for place in range(number)]

    def turned(keys: list[str], by: int) -> list[str]:
        return keys[by:] + keys[:by]

    asked = []
    for queries, keys in ((images, texts), (texts, images)):
        asked.append(
            [
                {"query": query, "keys": turned(keys, place // 2), "label": place - place // 2}
                for place, query in enumerate(queries)
            ]
        )
    return asked[0], asked[1]


def write(root: Path) -> None:
    for subset in CHOICES:
        i2t, t2i = rows(subset)
        write_json(root / subset / "image2text.json", i2t)
        write_json(root / subset / "text2image.json", t2i)
        for row in i2t:
            paint(root / subset / str(row["query"]))
