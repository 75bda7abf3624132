"""Perception Encoder B/16: open_clip:PE-Core-B-16/meta; 224 px, squashed bilinear, mean and std 0.5."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UsageError
from ...stores.spec import FeatureSpec

if TYPE_CHECKING:
    from ..encoder import Encoder

NAME = "PE-Core-B-16/meta"


def spec(argument: str = "", level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of `open_clip:PE-Core-B-16/meta`, under that name. Raises what `open_clip` raises."""
    if argument:
        raise UsageError("backbone 'pe' takes no argument", f"Use open_clip:{NAME.split('/')[0]}/{argument}.")
    from . import open_clip

    return open_clip.spec(NAME, level=level, dtype=dtype)


def load(spec: FeatureSpec, device: str = "cpu") -> Encoder:
    """The encoder of the spec. Raises what `open_clip` raises."""
    from . import open_clip

    return open_clip.load(spec, device=device)
