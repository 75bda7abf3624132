"""MaxSim late interaction: each token takes its best partner, then the mean; no training (arXiv 2111.07783).

FILIP's token-wise similarity on L2-normalised tokens. On a store of level `regions` the image tokens are
crops and the text tokens are segments, each embedded by its own tower: every segment takes its best
region, then the mean, which is the paper's structure-guided inference (arXiv 2506.09691, 2604.11496).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...errors import InputError
from ..batches import Batch
from ..kernels.maxsim import maxsim
from ..scorer import Dims, Scorer, tokens_of, unit


@dataclass(frozen=True)
class Config:
    """direction  "t2i": the mean over text tokens of the best image token; "i2t": the other way; "both":
    the mean of the two
    """

    direction: Literal["t2i", "i2t", "both"] = "t2i"


class MaxSim(Scorer):
    """Mean of maxima over the real tokens; a side without any gives the score 0."""

    trainable = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.direction = config.direction

    def score(self, batch: Batch) -> Tensor:
        return self._score(batch, None)

    def score_pairs(self, batch: Batch, pairs: Tensor) -> Tensor:
        return self._score(batch, pairs)

    def _score(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return maxsim(
            unit(images),
            unit(texts),
            image_mask=image_mask,
            text_mask=text_mask,
            direction=self.direction,
            pairs=pairs,
        )


def build(config: Config, dims: Dims) -> MaxSim:
    """Raises `InputError` if image and text tokens have different widths, so that no product is defined."""
    dims.require_tokens("maxsim")
    if dims.image_dim != dims.text_dim:
        raise InputError(
            f"maxsim compares image tokens with text tokens: {dims.image_dim} and {dims.text_dim} wide here",
            "Extract with --level regions, where both are pooled embeddings, or fit a head that projects"
            " them: tflocal.",
        )
    return MaxSim(config)
