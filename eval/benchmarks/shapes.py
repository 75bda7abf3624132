"""Swap quadruplets of the embedded world: colour, material, size, quantity and relation, in and out of domain.

Two pictures and two captions that differ by one exchange (2 × 2, as BiSCoR-Ctrl and Winoground), 500 per
category and split, scored I2T / T2I / group with strict comparison. Splits: `in_domain` (one to four objects,
nothing held out), `unseen_combinations` (of shape with colour or texture), `unseen_counts` (five objects),
`unseen_templates` (arrangements of words that no training caption has).
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import UnknownName
from ...stores.items import Item, caption_key
from ...world.items import caption, picture
from ...world.splits import JUDGED, Quad, quads
from ...world.vocabulary import CATEGORIES
from ..sources import QUAD_TRUTH, Group, Sources

INFO = {
    "title": "shapes (swap quadruplets of the embedded world)",
    "metric": "quads",
    "chance": {"i2t": 25.0, "t2i": 25.0, "group": 100 / 6},
    "splits": JUDGED,
    "citation": "compal; metric after Winoground (arXiv 2204.03162) and BiSCoR-Ctrl (arXiv 2506.09691)",
    "licence": "Apache-2.0",
    "url": "generated, nothing to download",
}


def _quads(sources: Sources) -> Iterator[tuple[str, Quad]]:
    """(name, quadruplet) of the split asked for; all four splits if none is."""
    if sources.split is not None and sources.split not in JUDGED:
        raise UnknownName.among("split of shapes", sources.split, JUDGED)
    for split in JUDGED if sources.split is None else (sources.split,):
        limit = None if sources.limit is None else sources.limit * len(CATEGORIES)
        made = quads("test" if split == "in_domain" else split, limit)
        yield from ((f"{split}/{number:06d}", quad) for number, quad in enumerate(made))


def items(sources: Sources) -> Iterator[Item]:
    """The pictures (with boxes) and captions (with segments) that must be in the store."""
    for name, quad in _quads(sources):
        for scene, told in zip(quad.scenes, quad.captions, strict=True):
            yield picture(scene, f"shapes/{name}")
            yield caption(told, f"shapes/{name}")


def groups(sources: Sources) -> Iterator[Group]:
    """One group per quadruplet: pictures 0 and 1, captions 0 and 1; caption i tells picture i."""
    for name, quad in _quads(sources):
        images = tuple(picture(scene, name).key for scene in quad.scenes)
        captions = tuple(caption_key(told.text) for told in quad.captions)
        yield Group(name, images, captions, QUAD_TRUTH, quad.category, f"shapes/{name}")
