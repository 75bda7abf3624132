"""Level `regions`: an image as vectors of its parts, a caption as the phrases that name what is in them.

Where the parts of an image come from is the level's argument, its source:

    regions            the boxes of the dataset, cropped and encoded
    regions:grid       the windows of a fixed grid of seven sizes, cropped and encoded (239; `grid-70` and coarser)
    regions:roi        the boxes, pooled from the cached patch tokens of a store of level tokens (`roi.py`)
    regions:roi-grid   the windows of the grid, pooled so (`roi-grid-70` and coarser)
    regions:dense      every patch, projected on its own (`dense.py`)
    regions:dense-roi, regions:dense-grid  the boxes, the windows: means of such patches (`dense-grid-70` and coarser)

Rows follow that order: row k of an image is box or window k, row k of a caption is its k-th phrase. What has none
is one region: the whole image, the whole caption, which are always the pooled row. Structure-guided inference
(arXiv 2506.09691, 2604.11496) is the head `maxsim` on these: the best region of each segment, then the mean. Its
paper gives some 270 crops of 32 to 224 px for a tower of 224 px; which ones is not known, so the grid here is ours.

A clause about two objects has no box of its own, so relation segments stay out: with them, and the whole image
beside its boxes, the best region of a phrase is often neither object's (200 swaps of colour in the embedded world:
36 % instead of 42 %, group score).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from ..errors import UnknownName
from ..stores.items import NAMING, Box, Item

if TYPE_CHECKING:
    from PIL import Image

    from ..stores.spec import FeatureSpec


class _Sliced(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


Rows = TypeVar("Rows", bound=_Sliced)

# Context on each side of a box, as a fraction of its longer side. On 500 training quadruplets of the embedded world
# that swap colours: 0.1 gives 48.0 % group score, 0.15 to 0.3 give 51 to 52 %.
MARGIN = 0.2
DESCRIPTION = "square crops of the boxes, margin 0.2, clamped; object segments as texts; the whole where there is none"
GRID = "square crops of the {0} windows of k/7 of each side, k = {1} to 7, overlapping by half or more; the last is all"
ROI = "patch tokens with their centre in {0}, the nearest where there is none, pooled by the tower; 1"
DENSE = "each patch through the last attention alone, then the tower's norm and projection (MaskCLIP, 2112.01071); 1"
AREA = "; mean of those with their centre in {0}, the nearest where there is none"
SIZES = 7
# The smallest size of a grid, by how many windows it then has: those of 1/7, 32 of 224 px, are 169 of the 239.
GRIDS = {239: 1, 70: 2, 34: 3, 18: 4}
# Kinds of segments that name something; relations say how two such stand to each other.


@dataclass(frozen=True)
class Source:
    """Where the regions of images come from.

    pooled    from the patches of one pass, so that no crop is encoded
    smallest  the smallest size of the grid, in sevenths of the image's side; 0 where there is no grid
    dense     of patches that are projected each on its own
    each      every patch is a region
    """

    pooled: bool
    smallest: int
    dense: bool = False
    each: bool = False

    @property
    def boxed(self) -> bool:
        """Whether the regions are the boxes of the dataset."""
        return not (self.smallest or self.each)


def _sources() -> dict[str, Source]:
    found = {"regions": Source(False, 0), "regions:roi": Source(True, 0)}
    found["regions:dense"] = Source(True, 0, dense=True, each=True)
    found["regions:dense-roi"] = Source(True, 0, dense=True)
    for count, smallest in GRIDS.items():
        tail = "" if smallest == 1 else f"-{count}"
        found[f"regions:grid{tail}"] = Source(False, smallest)
        found[f"regions:roi-grid{tail}"] = Source(True, smallest)
        found[f"regions:dense-grid{tail}"] = Source(True, smallest, dense=True)
    return found


LEVELS = _sources()


def source_of(level: str) -> Source:
    """The source that a level of rung regions names. Raises `UnknownName` listing those there are."""
    if level not in LEVELS:
        raise UnknownName.among("level", level, LEVELS)
    return LEVELS[level]


def describe(level: str, segmenter: str = "dataset") -> dict[str, str]:
    """What `spec.extra` says of the regions: the source and, unless it is the dataset's own, the segmenter with
    its version. Raises `UnknownName` for a level or segmenter that does not exist, `InputError` for a segmenter
    that cannot run here."""
    source = source_of(level)
    if source.pooled:
        area = "the box" if not source.smallest else f"the {len(windows(source.smallest))} windows of the grid"
        told = ROI.format(area) if not source.dense else DENSE + ("" if source.each else AREA.format(area))
    elif source.smallest:
        told = GRID.format(len(windows(source.smallest)), source.smallest)
    else:
        told = DESCRIPTION
    if segmenter in ("", "dataset"):
        return {"regions": told}
    from .segments import load

    return {"regions": told, "segments": load(segmenter).title}


@cache
def windows(smallest: int) -> tuple[Box, ...]:
    """The grid as boxes in fractions of the image: sizes k/7 from `smallest` to 7, row by row, the whole last.

    Each size covers the image with as few evenly spaced windows as overlap their neighbours by half a side or
    more: 13, 6, 4, 3, 2, 2 and 1 a side, so 169 + 36 + 16 + 9 + 4 + 4 + 1 = 239 from 1/7 on.
    """
    found = []
    for size in range(smallest, SIZES + 1):
        side, places = size / SIZES, math.ceil(2 * SIZES / size) - 1
        starts = [(1 - side) * place / max(1, places - 1) for place in range(places)]
        found += [(x, y, min(x + side, 1.0), min(y + side, 1.0)) for y in starts for x in starts]
    return tuple(found)


def is_dense(level: str) -> bool:
    """Whether a level, of any rung, is made of patches that are projected each on its own."""
    return level in LEVELS and LEVELS[level].dense


def states_of(spec: FeatureSpec) -> str:
    """The level of the cached states that the pooled regions of a spec are made of."""
    return "tokens" if spec.layer == "last" else f"block:{spec.layer}"


def boxes_of(item: Item, level: str) -> Sequence[Box]:
    """What to crop or to pool beside the whole image, which is a view of its own; patches need no box."""
    source = source_of(level)
    if source.each:
        return ()
    return windows(source.smallest)[:-1] if source.smallest else item.boxes


def region_count(item: Item, level: str, patches: int = 0) -> int:
    """How many regions an image has, of `patches` in the tower's grid."""
    if source_of(level).each:
        return patches
    boxes = len(boxes_of(item, level))
    return boxes + 1 if source_of(level).smallest else max(1, boxes)


def view_count(item: Item, level: str) -> int:
    """How many views of an image are encoded: `len(views(…))` without making them."""
    return len(boxes_of(item, level)) + 1


def views(image: Image.Image, item: Item, spec: FeatureSpec) -> list[Image.Image]:
    """What is encoded of an image: a crop of each box or window, then the whole. Raises `ValueError` as
    `crop_square` does."""
    margin = 0.0 if source_of(spec.level).smallest else MARGIN
    return image_views(image, boxes_of(item, spec.level), margin)


def regions_of(rows: Rows, level: str) -> Rows:
    """The regions among an image's rows, which are those of its views: of a grid all, of boxes (and of patches) all but
    the whole image, which is a region only where it is the only one."""
    kept = len(rows) if source_of(level).smallest else max(1, len(rows) - 1)
    return cast(Rows, rows[:kept])


def crop_square(image: Image.Image, box: Box, margin: float = MARGIN) -> Image.Image:
    """The square around `box` (x0, y0, x1, y1 as fractions) with a margin, moved and cut to the image.

    A box longer than the image's short side keeps its centre: the tower's own centre crop would do the same.
    Raises `ValueError` for a box that is empty, not finite, or outside the image.
    """
    width, height = image.size
    x0, y0, x1, y1 = checked(box)
    longer = max((x1 - x0) * width, (y1 - y0) * height)
    side = min(max(1, round(longer * (1 + 2 * margin))), width, height)
    left = min(max(round((x0 + x1) / 2 * width - side / 2), 0), width - side)
    top = min(max(round((y0 + y1) / 2 * height - side / 2), 0), height - side)
    return image.crop((left, top, left + side, top + side))


def checked(box: Box) -> Box:
    """The box cut to the image. Raises `ValueError` for one that is empty, not finite, or outside the image."""
    x0, y0, x1, y1 = (min(max(edge, 0.0), 1.0) for edge in box)
    if not (all(map(math.isfinite, box)) and x0 < x1 and y0 < y1):
        raise ValueError(f"box {tuple(box)} is empty or outside the image")
    return x0, y0, x1, y1


def image_views(image: Image.Image, boxes: Sequence[Box], margin: float = MARGIN) -> list[Image.Image]:
    """Each box's crop, then the whole. Raises `ValueError` as `crop_square` does."""
    return [*(crop_square(image, box, margin) for box in boxes), image]


def named_segments(item: Item) -> list[tuple[int, int]]:
    """Character spans of the segments of a caption that name something, unchecked."""
    return [(start, end) for start, end, kind in item.segments if kind in NAMING]


def text_spans(item: Item) -> list[tuple[int, int]]:
    """Character spans of the segments of a caption that name something, or of all of it where it has none.
    Raises `ValueError` for a span that is empty or outside the caption."""
    text = str(item.content)
    spans = named_segments(item) or [(0, len(text))]
    for start, end in spans:
        if not (0 <= start < end <= len(text) and text[start:end].strip()):
            raise ValueError(f"segment ({start}, {end}) is empty or outside the caption")
    return spans
