"""Retrieval among 300 scenes of the embedded world: does an encoder see what is there, binding aside.

One group of 300 pictures and their full captions, scored by recall at 1, 5 and 10 in both directions. It
stands beside `shapes`: an encoder that fails there for want of training fails here too.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...stores.items import Item, caption_key
from ...world.captions import Caption
from ...world.items import caption, picture
from ...world.scenes import Scene
from ...world.splits import plain
from ..sources import Group, Sources

SCENES = 300
INFO = {
    "title": "shapes-retrieval (300 scenes of the embedded world)",
    "metric": "recall",
    "ks": (1, 5, 10),
    "chance": {f"{way}_r@{k}": 100 * k / SCENES for way in ("i2t", "t2i") for k in (1, 5, 10)},
    "citation": "compal",
    "licence": "Apache-2.0",
    "url": "generated, nothing to download",
    "size": 1,
}


def _scenes() -> Iterator[tuple[Scene, Caption]]:
    """Plain test scenes of two to four objects, as the swap quadruplets have, with distinct full captions."""
    seen: set[str] = set()
    number = 0
    while len(seen) < SCENES:
        scene, told = plain("test", number)
        number += 1
        if scene.count > 1 and told[0].text not in seen:
            seen.add(told[0].text)
            yield scene, told[0]


def items(sources: Sources) -> Iterator[Item]:
    """The pictures and captions that must be in the store."""
    for scene, told in _scenes():
        yield picture(scene, "shapes/retrieval")
        yield caption(told, "shapes/retrieval")


def groups(sources: Sources) -> Iterator[Group]:
    """One group of all pictures and captions."""
    found = list(_scenes())
    images = tuple(picture(scene, "").key for scene, _ in found)
    captions = tuple(caption_key(told.text) for _, told in found)
    truth = tuple(tuple(row == column for column in range(SCENES)) for row in range(SCENES))
    yield Group("retrieval", images, captions, truth, "", "shapes/retrieval")
