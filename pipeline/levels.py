"""What a user asks of a backbone, turned into the spec of each level."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..errors import UnknownName, UsageError
from ..stores.spec import FeatureSpec
from .encoder import resolve
from .regions import source_of

# How JPEGs are decoded, and what the spec's preprocessing says of it: nothing where it is exact.
JPEG = {"exact": "", "reduced": "reduced scale, short side at least twice the size"}


def levels_of(level: str | Sequence[str]) -> list[str]:
    """`"tokens,pooled"`, or several of that kind, as a list. Raises `UsageError` for a level that stands twice."""
    asked = [level] if isinstance(level, str) else list(level)
    found = [name.strip() for text in asked for name in text.split(",") if name.strip()]
    if not found or len(set(found)) < len(found):
        raise UsageError(f"levels {', '.join(found) or 'none'}: name each level once", "Example: --level tokens,pooled")
    return found


def resolve_levels(
    backbone: str,
    level: str | Sequence[str] = "tokens",
    dtype: str = "float16",
    precision: str = "float32",
    jpeg: str = "exact",
    segments: str = "",
) -> list[FeatureSpec]:
    """The spec of each level that is asked for.

    `jpeg` "reduced" is part of the preprocessing, as it changes numbers. Raises what `encoder.resolve` raises, and
    `UsageError` for crops of images at reduced scale: these have too few pixels. Regions of cached tokens need none.
    """
    if jpeg not in JPEG:
        raise UnknownName.among("way to decode JPEGs", jpeg, JPEG)
    specs = [resolve(backbone, one, dtype, precision, segments or "dataset") for one in levels_of(level)]
    if not JPEG[jpeg]:
        return specs
    for spec in specs:
        crops = spec.rung == "regions" and not source_of(spec.level).pooled
        if crops or "size" not in spec.preprocess:
            why = "crops regions" if crops else "does not say the size that it resizes to"
            raise UsageError(f"--jpeg reduced is for whole images: {spec.backbone} at level {spec.level} {why}")
    return [dataclasses.replace(spec, preprocess={**spec.preprocess, "jpeg": JPEG[jpeg]}) for spec in specs]
