"""What every backbone gives back, and how a name becomes a spec and a spec an encoder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, runtime_checkable

from .. import registry
from ..errors import InputError, SpecMismatch, UnknownName, UsageError
from ..stores.dtypes import READ
from ..stores.spec import LEVELS, FeatureSpec
from .spans import Span

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .tokenizers import Tokenized

# Of the forward pass. Weights are float32; the others are autocast's.
PRECISIONS = ("float32", "bfloat16", "float16")
_BLOCK = re.compile(r"block:-([1-9]\d*)")


class ImageFeatures(NamedTuple):
    """Features of B images at one level.

    tokens  (B, P, D): the states of the level, prefix tokens first, then the patch grid row by row; at the level
            "pixels" (B, H, 3·W) uint8, the preprocessed picture row by row; at dense regions the patches in the
            joint space (B, n, E) float32; None at "pooled" and the other "regions"
    pooled  (B, E), not normalised; None at the level "pixels"
    """

    tokens: Tensor | None
    pooled: Tensor | None


class TextFeatures(NamedTuple):
    """Features of B captions at one level.

    tokens      of each caption (L, D): the states of its valid tokens, and of the pooled position after them where
                that is a pad or an appended CLS; of all positions of the context at "block:-K" where the tower
                attends to padding; at "pixels" (L, 4) uint8, each id little-endian; None at "pooled" and "regions"
    pooled      (B, E), not normalised; None at the level "pixels"
    spans       of each caption: the (start, end) characters of each stored token, (-1, -1) for special tokens
                and for padding
    pool_index  which stored token the tower pools; -1 if it pools none or several
    truncated   whether the caption was longer than the context
    """

    tokens: list[Tensor] | None
    pooled: Tensor | None
    spans: list[list[Span]]
    pool_index: list[int]
    truncated: list[bool]


class Encoder(Protocol):
    """A backbone with its weights. Pixels and tokens may come from any device; results stay on its own.

    An encoder may also have what `Levelled` asks: several levels from one pass of the model.
    """

    spec: FeatureSpec

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image → (3, H, W) uint8 on the CPU, resized and cropped only. Called from decoder threads."""

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, H, W) → features at the spec's level; uint8 as `preprocess` gives it, or floats that are scaled
        and normalised already."""

    def encode_texts(self, captions: Sequence[str]) -> TextFeatures:
        """Captions → features at the spec's level."""

    def pool_images(self, tokens: Tensor) -> Tensor:
        """Cached tokens of the spec's level (B, P, D) → (B, E) float32: what of the tower follows them, then its
        own pooling."""

    def pool_texts(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        """Cached tokens of the spec's level, B of (L, D) → (B, E) float32, as `pool_images`."""


@runtime_checkable
class Levelled(Protocol):
    """What an encoder may have beside `Encoder`: several levels from one pass of the model. Levels of the rung
    "regions" give the pooled vector: which crops and segments there are is the caller's."""

    def tokenize(self, captions: Sequence[str]) -> Tokenized:
        """Captions → ids. Runs on the CPU and may be called from threads."""

    def images_at(self, pixels: Tensor, levels: Collection[str]) -> dict[str, ImageFeatures]:
        """(B, 3, H, W), as `encode_images` takes them → features by level."""

    def texts_at(self, tokenized: Tokenized, levels: Collection[str]) -> dict[str, TextFeatures]:
        """Ids → features by level."""


def resolve(
    name: str,
    level: str = "tokens",
    dtype: str = "float16",
    precision: str = "float32",
    segmenter: str = "dataset",
    **options: str,
) -> FeatureSpec:
    """The spec of a backbone by the name `compal extract --backbone` takes (`open_clip:ViT-B-32`).

    Aliases and defaults are resolved, so that equal features have equal fingerprints however they were named: at
    the level "pixels" the dtype is always uint8 and the precision float32, as nothing is computed. `segmenter`
    counts at levels of the rung "regions" alone; `options` are the backbone's own. Raises `UnknownName` for a
    backbone, level, dtype or precision that does not exist, `InputError` for a level that the backbone lacks, and
    what the backbone raises.
    """
    if rung_of(level) not in LEVELS:
        raise UnknownName.among("level", level, LEVELS)
    if precision not in PRECISIONS:
        raise UnknownName.among("precision", precision, PRECISIONS)
    if rung_of(level) == "pixels":
        dtype, precision = "uint8", "float32"
    elif dtype == "uint8":
        raise UsageError("only the level pixels is stored as uint8", "Choose --dtype float16.")
    elif dtype not in READ:
        raise UnknownName.among("dtype", dtype, (known for known in READ if known != "uint8"))
    part, argument = registry.split_argument(name)
    module = registry.load("backbones", part)
    spec = cast(FeatureSpec, module.spec(argument, level=level, dtype=dtype, **options))
    if spec.rung == "regions":
        from . import regions

        spec = dataclasses.replace(spec, extra={**spec.extra, **regions.describe(level, segmenter)})
    return dataclasses.replace(spec, precision=precision)


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
    today = resolve(spec.backbone, spec.level, spec.dtype, spec.precision)
    # What cut the captions is no matter of the encoder's.
    segments = {key: spec.extra[key] for key in ("segments",) if key in spec.extra}
    extra = {key: value for key, value in today.extra.items() if key != "segments"} | segments
    today = dataclasses.replace(today, extra=extra, format_version=spec.format_version)
    fields = [
        field.name for field in dataclasses.fields(spec) if getattr(spec, field.name) != getattr(today, field.name)
    ]
    if fields:
        raise SpecMismatch(
            f"backbone {spec.backbone} is not what the spec says: its {', '.join(fields)} changed",
            "Extract again into a new store, or restore the weights and library versions of this one.",
        )


def rung_of(level: str) -> str:
    """A level without its argument: `"block:-2"` → `"block"`."""
    return level.partition(":")[0]


def block_of(level: str) -> int:
    """K of `"block:-K"`, whose states enter the K-th last block; 0 for other levels."""
    found = _BLOCK.fullmatch(level)
    return int(found[1]) if found else 0


def at_level(spec: FeatureSpec, level: str, dtype: str, blocks: int = 0, dense: str = "") -> FeatureSpec:
    """The spec of a backbone's last states turned into that of a level.

    blocks  how many of its last blocks both towers can be entered at; 0 where one has no uniform blocks
    dense   the level whose states its dense projection reads, "tokens" or "block:-1"; else why it has none

    The level "pixels" exists where the preprocessing names a size. Raises `InputError` naming the levels the
    backbone has for one that it lacks.
    """
    rung, size = rung_of(level), _size(spec)
    missing = level not in ("pooled", "tokens", "pixels") and rung != "regions" and not 0 < block_of(level) <= blocks
    if missing or (rung == "pixels" and size is None):
        raise InputError(
            f"backbone {spec.backbone} has no level '{level}'",
            f"It has {', '.join(_levels(blocks, size is not None))}.",
        )
    if rung == "tokens":
        return dataclasses.replace(spec, level=level, dtype=dtype)
    if rung == "block":
        return dataclasses.replace(spec, level=level, dtype=dtype, layer=f"-{block_of(level)}")
    cut = dataclasses.replace(spec, level=level, dtype=dtype, image_shape=(0, 0), image_prefix=0, image_grid=(0, 0))
    if rung == "pooled":
        return dataclasses.replace(cut, text_dim=0)
    if rung == "regions":
        from . import regions

        width, extra = spec.pooled_dim, {**spec.extra, **regions.describe(level)}
        cut = dataclasses.replace(cut, image_shape=(0, width), text_dim=width, extra=extra)
        return _dense(cut, spec, dense) if regions.is_dense(level) else cut
    assert size is not None
    shape = (size[0], 3 * size[1])
    return dataclasses.replace(cut, image_shape=shape, text_dim=4, pooled_dim=0, layer="input", dtype="uint8")


def _dense(cut: FeatureSpec, full: FeatureSpec, dense: str) -> FeatureSpec:
    from . import regions

    if dense not in ("tokens", "block:-1"):
        why = dense or "its family defines no dense projection"
        raise InputError(f"backbone {cut.backbone} has no level '{cut.level}': {why}", "Use --level regions:roi.")
    grid = full.image_grid if regions.source_of(cut.level).each else (0, 0)
    return dataclasses.replace(cut, image_grid=grid, layer="last" if dense == "tokens" else "-1")


def _size(spec: FeatureSpec) -> tuple[int, int] | None:
    """(height, width) of the preprocessed picture, if there is one of a fixed size."""
    found = re.fullmatch(r"(\d+)x(\d+)", spec.preprocess.get("size", ""))
    return (int(found[1]), int(found[2])) if found else None


def _levels(blocks: int, pixels: bool) -> list[str]:
    deep = ["block:-1"] if blocks == 1 else [f"block:-1 to block:-{blocks}"] if blocks else []
    return ["pooled", "tokens", *deep, *(["pixels"] if pixels else []), "regions"]


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"device '{device}' cannot be used: {reason}", "Use --device cpu.") from None
