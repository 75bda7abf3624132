"""What every backbone gives back, and how a name becomes a spec and a spec an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from .. import registry
from ..errors import InputError, SpecMismatch, UnknownName, UsageError
from ..stores.dtypes import READ
from ..stores.spec import LEVELS, FeatureSpec
from .spans import Span

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class ImageFeatures(NamedTuple):
    """Features of B images.

    tokens  (B, P, D): last-layer states, prefix tokens first, then the patch grid row by row; None unless the
            level is "tokens"
    pooled  (B, E), not normalised
    """

    tokens: Tensor | None
    pooled: Tensor


class TextFeatures(NamedTuple):
    """Features of B captions.

    tokens      of each caption (L, D): the states of its valid tokens, and of the pooled position after
    them where
                that is a pad or an appended CLS; None unless the level is "tokens"
    pooled      (B, E), not normalised
    spans       of each caption: the (start, end) characters of each stored token, (-1, -1) for special tokens
    pool_index  which stored token the tower pools; -1 if it pools none or several
    truncated   whether the caption was longer than the context
    """

    tokens: list[Tensor] | None
    pooled: Tensor
    spans: list[list[Span]]
    pool_index: list[int]
    truncated: list[bool]


class Encoder(Protocol):
    """A backbone with its weights. Pixels and tokens may come from any device; results stay on its own."""

    spec: FeatureSpec

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image → (3, H, W) float32 on the CPU. Called from decoder threads."""

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, H, W) float32 → features."""

    def encode_texts(self, captions: Sequence[str]) -> TextFeatures:
        """Captions → features."""

    def pool_images(self, tokens: Tensor) -> Tensor:
        """Cached tokens (B, P, D) → (B, E), through the tower's own pooling."""

    def pool_texts(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        """Cached tokens, B of (L, D) → (B, E), through the tower's own pooling."""


def resolve(name: str, level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of a backbone by the name `compal extract --backbone` takes (`open_clip:ViT-B-32`).

    Aliases and defaults are resolved, so that equal features have equal fingerprints however they were named.
    Raises `UnknownName` for a backbone, level or dtype that does not exist, and what the backbone raises.
    """
    if level not in LEVELS:
        raise UnknownName.among("level", level, LEVELS)
    if dtype not in READ:
        raise UnknownName.among("dtype", dtype, READ)
    part, argument = registry.split_argument(name)
    return cast(FeatureSpec, registry.load("backbones", part).spec(argument, level=level, dtype=dtype))


def load_encoder(spec: FeatureSpec, device: str = "cpu") -> Encoder:
    """The encoder that a spec describes, on a torch device (`cpu`, `cuda`, `cuda:1`, `mps`).

    Raises `InputError` if the device does not exist or the weights cannot be had; `SpecMismatch` if they
    are no longer those of the spec; `UsageError` for a dtype that is cast from another store, int8.
    """
    if spec.dtype == "int8":
        cure = "Extract with --dtype float16, then: compal store cast STORE --dtype int8"
        raise UsageError("features are not extracted as int8, whose scales need whole parts", cure)
    part, _ = registry.split_argument(spec.backbone)
    module = registry.load("backbones", part)
    if device != "cpu":
        _check_device(device)
    _check_unchanged(spec)
    return cast(Encoder, module.load(spec, device=device))


def _check_unchanged(spec: FeatureSpec) -> None:
    today = resolve(spec.backbone, spec.level, spec.dtype)
    today = dataclasses.replace(today, precision=spec.precision, format_version=spec.format_version)
    fields = [
        field.name for field in dataclasses.fields(spec) if getattr(spec, field.name) != getattr(today, field.name)
    ]
    if fields:
        raise SpecMismatch(
            f"backbone {spec.backbone} is not what the spec says: its {', '.join(fields)} changed",
            "Extract again into a new store, or restore the weights and library versions of this one.",
        )


def at_level(spec: FeatureSpec, level: str, dtype: str) -> FeatureSpec:
    """A spec with all tokens cut down to a level: none at "pooled", one pooled vector a view at "regions"."""
    if level == "tokens":
        return dataclasses.replace(spec, level=level, dtype=dtype)
    shape, width = (0, 0), 0
    extra = dict(spec.extra)
    if level == "regions":
        from .regions import DESCRIPTION

        shape, width = (0, spec.pooled_dim), spec.pooled_dim
        extra["regions"] = DESCRIPTION
    return dataclasses.replace(
        spec,
        level=level,
        dtype=dtype,
        image_shape=shape,
        image_prefix=0,
        image_grid=(0, 0),
        text_dim=width,
        extra=extra,
    )


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"device '{device}' cannot be used: {reason}", "Use --device cpu.") from None
