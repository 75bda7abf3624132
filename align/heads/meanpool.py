"""Trainable projections of patches and words, averaged into one vector a side: what local objectives are fitted on.

The score is a cosine of two vectors, so that retrieval stays an index; patches and words in the same space are shown to
objectives that look at them: SPARC (arXiv 2401.09865), FSC-CLIP's local term (arXiv 2410.05210). Both methods train
towers; over frozen tokens the projections are what is left to train. Prefix tokens (CLS, registers) count as patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..batches import Batch
from ..scorer import Dims, VectorScorer, Views, full_precision, require, tokens_of, unit
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

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """image (I, E) and text (C, E) unit vectors, whose products are the scores. What negatives are mined with."""
        patches, patch_mask, tokens, token_mask = self._tokens(batch)
        return _pooled(patches, patch_mask), _pooled(tokens, token_mask)

    def views(self, batch: Batch) -> Views:
        patches, patch_mask, tokens, token_mask = self._tokens(batch)
        image, text = _pooled(patches, patch_mask), _pooled(tokens, token_mask)
        with full_precision(batch):
            return Views(image @ text.T, image, text, patches, patch_mask, tokens, token_mask)

    def _tokens(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return self.image(images), image_mask, self.text(texts), text_mask


def _pooled(tokens: Tensor, mask: Tensor) -> Tensor:
    """The direction of the mean of the real tokens (n, S, E) → (n, E)."""
    return unit(tokens.masked_fill(~mask[..., None], 0).sum(1))


def build(config: Config, dims: Dims) -> MeanPool:
    """W (D_I + D_T) parameters: 327,680 for CLIP ViT-B/32 (768, 512) at W = 256; a pair costs W multiplications. Raises
    `UsageError` for a width below 1, `InputError` if the store keeps no tokens."""
    dims.require_tokens("meanpool")
    require(config.width >= 1, f"head.width = {config.width} is no space", "Set head.width to 1 or more.")
    return MeanPool(config, dims)
