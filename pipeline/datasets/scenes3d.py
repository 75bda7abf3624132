"""Rendered 3-D scenes of coloured solids of rubber and metal, and their swap twins.

`train` and `validation` hold quadruplets like those of `plain` under other seeds; `plain` and the harder splits are
what the benchmark `scenes3d` judges. Nothing is read but pictures that were rendered before; `root` is ignored.
Rendering needs `pip install 'compal[render]'`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import UnknownName
from ...stores.items import Item, Pair, caption_key, content_key
from ...world.items import caption, picture3d
from ...world.scenes3d import RENDERER
from ...world.splits3d import SPLITS3D, Quad3D, quads

INFO = {
    "title": "Rendered scenes of solids",
    "licence": "Apache-2.0",
    "revision": f"renderer {RENDERER}",
    "citation": "compal; scenes after CLEVR (arXiv 1612.06890)",
    "splits": SPLITS3D,
}


def _quads(split: str, limit: int | None) -> Iterator[tuple[str, Quad3D]]:
    if split not in SPLITS3D:
        raise UnknownName.among("split of scenes3d", split, SPLITS3D)
    yield from ((f"{split}/{number:06d}", quad) for number, quad in enumerate(quads(split, limit)))


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The pictures and captions of a split; `limit` counts quadruplets."""
    for name, quad in _quads(split, limit):
        for scene, told in zip(quad.scenes, quad.captions, strict=True):
            yield picture3d(scene, f"scenes3d/{name}")
            yield caption(told, f"scenes3d/{name}")


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The two pairs of a quadruplet share a group and are each other's negatives."""
    for name, quad in _quads(split, limit):
        images = [content_key("image-recipe", scene.recipe()) for scene in quad.scenes]
        first, second = (caption_key(told.text) for told in quad.captions)
        yield Pair(images[0], first, (second,), name, quad.category)
        yield Pair(images[1], second, (first,), name, quad.category)
