"""FeatureSpec: everything that shaped the numbers in a store, and its fingerprint."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from ..config import canonical, fingerprint, from_dict
from ..errors import InputError

FORMAT_VERSION = 1
MAX_SAMPLE_VALUES = 1 << 27  # 256 MiB of float16; 4,096 patches of 8,192 channels take a quarter
# The rungs of the ladder; some take an argument: block:-2, regions:grid.
LEVELS = ("pooled", "tokens", "block", "pixels", "regions")
LEVEL = re.compile(rf"({'|'.join(LEVELS)})(:[a-z0-9-]+)?")


def slug_of(backbone: str) -> str:
    """A backbone's name as folders begin with it: `open_clip:ViT-B-32` → `open-clip-vit-b-32`."""
    return re.sub(r"[^a-z0-9]+", "-", backbone.lower()).strip("-")


@dataclass(frozen=True)
class FeatureSpec:
    """Equal spec ⇔ equal fingerprint; every field changes it.

    backbone        what computes the features, as `compal extract --backbone` takes it
    weights         sha256 of the weights (64 hex digits), or a seed tag for random initialisation
    image_shape     (P, D) of the patch states of one image, prefix tokens included; (0, 0) if none are kept
    image_prefix    how many of the P come before the patch grid (CLS, registers)
    image_grid      (rows, columns) of the patch grid, row-major
    text_dim        D of a text token state; 0 if none are kept
    pooled_dim      E of the pooled embeddings of images and texts; 0 at level pixels, which has none
    context_length  the most tokens the text tower takes
    preprocess      the resolved image preprocessing (size, resize mode, interpolation, mean, std)
    tokenizer       the resolved tokenizer (name, cleaning, context length)
    level           pooled | tokens | block:-K | pixels | regions[:SOURCE]; see `rung`
    layer           which states are kept ("last" = after the last block, with the final norm where the pool sees it;
                    "-K" = those that enter the K-th last block; "input" = what the tower takes)
    normalized      whether pooled embeddings are stored L2-normalised
    dtype           dtype on disk; uint8 at level pixels and only there
    precision       dtype of the forward pass
    extra           what else shaped the numbers (activation, region source, …)
    """

    backbone: str
    weights: str
    pooled_dim: int
    image_shape: tuple[int, ...] = (0, 0)
    image_prefix: int = 0
    image_grid: tuple[int, ...] = (0, 0)
    text_dim: int = 0
    context_length: int = 0
    preprocess: dict[str, str] = field(default_factory=dict)
    tokenizer: dict[str, str] = field(default_factory=dict)
    level: str = "tokens"
    layer: str = "last"
    normalized: bool = False
    dtype: str = "float16"
    precision: str = "float32"
    extra: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> bytes:
        """Canonical JSON: the content of `spec.json`."""
        return canonical(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FeatureSpec:
        """The inverse of `to_json` after parsing. Raises `UnknownName` for a field this version does not know,
        `InputError` for values that no features have: a forged level names another folder, a forged shape asks
        for memory that no sample needs."""
        spec = from_dict(cls, data, "spec")
        numbers = (spec.pooled_dim, spec.text_dim, spec.image_prefix, spec.context_length)
        shapes = (spec.image_shape, spec.image_grid)
        known = LEVEL.fullmatch(spec.level) is not None and spec.format_version == FORMAT_VERSION
        if not known or any(len(one) != 2 for one in shapes) or min(min(one) for one in (numbers, *shapes)) < 0:
            raise InputError("the spec has a level, a format or a shape that no features have")
        if max(*numbers, spec.image_shape[0] * spec.image_shape[1]) > MAX_SAMPLE_VALUES:
            raise InputError(f"the spec claims samples of more than {MAX_SAMPLE_VALUES:,} values")
        spec.check_level()
        try:
            spec.to_json()
        except ValueError:
            raise InputError("the spec holds half a surrogate pair, which has no bytes") from None
        return spec

    def check_level(self) -> None:
        """Raises `InputError` unless dtype and pooled embeddings are those of the level: pixels and token ids are
        uint8 and have no pooled embeddings; all else is made of floats and has them."""
        pixels = self.rung == "pixels"
        if (self.dtype == "uint8") != pixels:
            cure = "Level pixels has the dtype uint8, and no other level has."
            raise InputError(f"features of level {self.level} cannot be stored as {self.dtype}", cure)
        if (self.pooled_dim == 0) != pixels:
            raise InputError(f"the spec has pooled embeddings of {self.pooled_dim} values at level {self.level}")

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON, 64 hex digits."""
        return fingerprint(dataclasses.asdict(self))

    @property
    def folder(self) -> str:
        """The store's folder: a readable slug and the fingerprint's first 16 digits."""
        slug = slug_of(self.backbone)[:40]
        level = self.level.replace(":", "-").replace("--", "-")
        return f"{slug}-{level}-{self.fingerprint[:16]}"

    @property
    def rung(self) -> str:
        """The level without its argument: pooled, tokens, block, pixels or regions."""
        return self.level.partition(":")[0]

    @property
    def keeps_tokens(self) -> bool:
        """Whether more than one pooled vector is kept of an image and of a caption."""
        return self.rung != "pooled"

    @property
    def ragged_images(self) -> bool:
        """Whether images have unequal numbers of tokens."""
        return self.rung == "regions"

    def with_dtype(self, dtype: str) -> FeatureSpec:
        """The same features stored as another dtype."""
        return dataclasses.replace(self, dtype=dtype)
