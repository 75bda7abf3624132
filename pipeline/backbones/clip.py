"""OpenAI CLIP ViT-B/32: open_clip:ViT-B-32-quickgelu/openai; 224 px, bicubic, centre crop, CLIP's mean and std."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UsageError
from ...stores.spec import FeatureSpec

if TYPE_CHECKING:
    from ..encoder import Encoder

NAME = "ViT-B-32-quickgelu/openai"


def spec(argument: str = "", level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of `open_clip:ViT-B-32-quickgelu/openai`, under that name. Raises what `open_clip` raises."""
    if argument:
        raise UsageError("backbone 'clip' takes no argument", f"Use open_clip:{NAME.split('/')[0]}/{argument}.")
    from . import open_clip

    return open_clip.spec(NAME, level=level, dtype=dtype)


def load(spec: FeatureSpec, device: str = "cpu") -> Encoder:
    """The encoder of the spec. Raises what `open_clip` raises."""
    from . import open_clip

    return open_clip.load(spec, device=device)
