"""ARO's VG-Attribution: a crop of a Visual Genome image, and two things with their attributes, right and exchanged.

The paper's figure is `accuracy (macro)`, the mean over pairs of attributes that have at least 25 rows; plain accuracy
over all rows (MTEB's) is 2 points below it for CLIP ViT-B/32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ...errors import InputError
from ...stores.items import Item
from ..sources import Group, Sources
from . import _aro
from ._crops import CroppedImages
from ._files import keyed, keyed_items

ENOUGH = 25

INFO = {
    "title": "ARO VG-Attribution",
    "metric": "pairs",
    "chance": {"accuracy": 50.0},
    "citation": _aro.CITATION,
    "licence": "MIT (annotations); Visual Genome images: CC BY 4.0",
    "url": _aro.URL,
    "files": "Put visual_genome_attribution.json (Google Drive 13tWvOrNOLHxl3Rm9cR3geAdHx2qR3-Tw) in ROOT and the "
    "images of vgr_vga_images.zip (Google Drive 1qaPlrwhGNMrR3a11iopZUT_GPP_LrgP9) in ROOT/images.",
    "size": 28748,
    "revision": _aro.REVISION,
    "tie_rule": "lose",
}
AVERAGES: dict[str, tuple[str, ...]] = {}


def _attributes(row: dict[str, Any], where: str) -> str:
    found = row.get("attributes")
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(name, str) and name for name in found):
        raise InputError(f"{where} has no two 'attributes'", f"It has: {', '.join(row)}.")
    return "_".join(found)


def _named(sources: Sources) -> tuple[list[Group], CroppedImages]:
    rows, images = _aro.cropped(sources, "aro-attribution", INFO, "visual_genome_attribution.json", _attributes)
    often = _aro.at_least(rows, ENOUGH)
    AVERAGES[_aro.MACRO] = often
    # Thousands of pairs stand there once or twice: as categories they would be rows of a table that say nothing.
    kept = set(often)
    rows = [group if group.category in kept else dataclasses.replace(group, category="") for group in rows]
    return _aro.there(sources, INFO, rows, images), images


def items(sources: Sources) -> Iterator[Item]:
    """The crops and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "aro-attribution")


def groups(sources: Sources) -> Iterator[Group]:
    """One crop × (true, false caption) per row; the category is the pair of attributes, `a_b`, where it has 25 rows.
    Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
