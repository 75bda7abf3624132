"""Trainable projections of patches and words, averaged into one vector a side: what local objectives are fitted on.

The score is a cosine of two vectors, so that retrieval stays an index; patches and words in the same space are shown to
objectives that look at them: SPARC (arXiv 2401.09865), FSC-CLIP's local term (arXiv 2410.05210). Both methods train
towers; over frozen tokens the projections are what is left to train. Prefix tokens (CLS, registers) count as patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..batches import Batch
from ..scorer import Dims, Side, VectorScorer, cut, require, unit
from ._projection import Projection


@dataclass(frozen=True)
class Config:
    """width: of the common space."""

    width: int = 256


class MeanPool(VectorScorer):
    """s(i, c) = cos(mean_p v_ip, mean_l t_cl) of the real tokens."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.image, self.text = Projection(dims.image_dim, config.width), Projection(dims.text_dim, config.width)

    def image_side(self, batch: Batch, local: bool) -> Side:
        patches, mask = cut(batch.images, batch.image_mask)
        return _side(self.image(patches), mask)

    def text_side(self, batch: Batch, local: bool) -> Side:
        tokens, mask = cut(batch.texts, batch.text_mask)
        return _side(self.text(tokens), mask)


def _side(tokens: Tensor, mask: Tensor) -> Side:
    """The direction of the mean of the real tokens (n, S, E), and they themselves."""
    return Side(unit(tokens.masked_fill(~mask[..., None], 0).sum(1)), tokens, mask)


def build(config: Config, dims: Dims) -> MeanPool:
    """W (D_I + D_T) parameters: 327,680 for CLIP ViT-B/32 (768, 512) at W = 256; a pair costs W multiplications. Raises
    `UsageError` for a width below 1, `InputError` if the store keeps no tokens."""
    dims.require_tokens("meanpool")
    require(config.width >= 1, f"head.width = {config.width} is no space", "Set head.width to 1 or more.")
    return MeanPool(config, dims)
