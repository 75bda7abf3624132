"""SigLIP 2 ViT-B/16: open_clip:ViT-B-16-SigLIP2-256/webli; 256 px, squashed bicubic, mean and std 0.5."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UsageError
from ...stores.spec import FeatureSpec

if TYPE_CHECKING:
    from ..encoder import Encoder

NAME = "ViT-B-16-SigLIP2-256/webli"


def spec(argument: str = "", level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of `open_clip:ViT-B-16-SigLIP2-256/webli`, under that name. Raises what `open_clip` raises."""
    if argument:
        raise UsageError("backbone 'siglip2' takes no argument", f"Use open_clip:{NAME.split('/')[0]}/{argument}.")
    from . import open_clip

    return open_clip.spec(NAME, level=level, dtype=dtype)


def load(spec: FeatureSpec, device: str = "cpu") -> Encoder:
    """The encoder of the spec. Raises what `open_clip` raises."""
    from . import open_clip

    return open_clip.load(spec, device=device)
