"""The embedded world: rendered scenes of coloured, textured, sized and counted objects, and their swap twins.

Splits: `pretrain` holds plain scenes, what `shapes-vit` learnt from; `train` and `validation` hold swap
quadruplets (two pictures and two captions that differ by one exchange), the grammar's own hard negatives;
`test` and the `unseen_*` splits are what the benchmark `shapes` judges. Held-out combinations, counts and
templates occur in no other split. Nothing is read from disk; `root` is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import UnknownName
from ...stores.items import Item, Pair
from ...world.captions import Caption
from ...world.items import caption, picture
from ...world.scenes import RENDERER, Scene
from ...world.splits import PLAIN, QUADS, plain, quads

INFO = {
    "title": "The embedded world of shapes",
    "licence": "Apache-2.0",
    "revision": f"renderer {RENDERER}",
    "citation": "compal",
    "splits": ("pretrain", *QUADS),
}


def _told(split: str, limit: int | None) -> Iterator[tuple[str, str, Scene, tuple[Caption, ...]]]:
    """(group, category, scene, captions) of every picture of a split."""
    if split == "pretrain":
        for number in range(PLAIN["train"] if limit is None else limit):
            scene, captions = plain("train", number)
            yield f"pretrain/{number:06d}", "", scene, captions
    elif split in QUADS:
        for number, quad in enumerate(quads(split, limit)):
            for scene, told in zip(quad.scenes, quad.captions, strict=True):
                yield f"{split}/{number:06d}", quad.category, scene, (told,)
    else:
        raise UnknownName.among("split of shapes", split, INFO["splits"])


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The pictures and captions of a split; `limit` counts scenes of `pretrain`, quadruplets elsewhere."""
    for group, _, scene, captions in _told(split, limit):
        yield picture(scene, f"shapes/{group}")
        for told in captions:
            yield caption(told, f"shapes/{group}")


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The pairs of a split. The two pairs of a quadruplet share a group and are each other's negatives."""
    waiting: list[tuple[str, str, str]] = []
    for group, category, scene, captions in _told(split, limit):
        image = picture(scene, group).key
        texts = [caption(told, group).key for told in captions]
        if not category:
            yield from (Pair(image, text) for text in texts)
            continue
        waiting.append((image, texts[0], category))
        if len(waiting) == 2:
            (first, own, _), (second, other, _) = waiting
            yield Pair(first, own, (other,), group, category)
            yield Pair(second, other, (own,), group, category)
            waiting.clear()
