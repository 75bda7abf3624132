"""MaxSim late interaction: each token takes its best partner, then the mean; no training (arXiv 2111.07783).

FILIP's token-wise similarity on L2-normalised tokens. On a store of level `regions` the image tokens are
crops and the text tokens are segments, each embedded by its own tower: every segment takes its best
region, then the mean, which is the paper's structure-guided inference (arXiv 2506.09691, 2604.11496).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..batches import Batch
from ..kernels.maxsim import maxsim
from ..scorer import Alignment, Dims, Scorer, cosines, tokens_of, unit
from ._projection import require_one_space


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

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return maxsim(
            unit(images),
            unit(texts),
            image_mask=image_mask,
            text_mask=text_mask,
            direction=self.direction,
            pairs=pairs,
        )

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return cosines(unit(images), image_mask, unit(texts), text_mask, pairs)


def build(config: Config, dims: Dims) -> MaxSim:
    """Raises `InputError` if image and text tokens have different widths, so that no product is defined."""
    dims.require_tokens("maxsim")
    require_one_space(
        dims,
        "maxsim",
        "Extract with --level regions, where both are pooled embeddings, or fit a head that projects them: tflocal.",
    )
    return MaxSim(config)
