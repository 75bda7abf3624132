"""FILIP: trainable projections of patches and words to one small space, then MaxSim (arXiv 2111.07783, eq. 3-5).

    i2t: s_I(i, c) = mean over patches of the best word        t2i: s_T(i, c) = mean over words of the best patch

The paper's loss takes s_I for its image → text half and s_T for its text → image half; an objective here sees one
block of scores. "both" is the mean of s_I and s_T for both halves (a caption of two words and one of twenty then differ
less than in s_T alone); "i2t" and "t2i" train one of the paper's two scores for both. What else differs: the towers are
frozen, states are normalised without parameters before they are projected, and the paper's exchange of the 25 % most
informative tokens between devices, which saves its memory, is left out: the kernel never holds the similarities.
Widths of 256 and the temperature of 0.07 (the objective's) are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..batches import Batch
from ..kernels.maxsim import maxsim
from ..scorer import Alignment, Dims, Scorer, cosines, require, tokens_of, unit
from ._projection import Projection


@dataclass(frozen=True)
class Config:
    """width      of the common space
    direction  "i2t", "t2i" or "both", see above
    """

    width: int = 256
    direction: Literal["t2i", "i2t", "both"] = "both"


class FILIP(Scorer):
    """MaxSim of projected tokens; a side without real tokens gives the score 0."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.settings = config
        self.image, self.text = Projection(dims.image_dim, config.width), Projection(dims.text_dim, config.width)

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return maxsim(
            unit(self.image(images)),
            unit(self.text(texts)),
            image_mask=image_mask,
            text_mask=text_mask,
            direction=self.settings.direction,
            pairs=pairs,
        )

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return cosines(unit(self.image(images)), image_mask, unit(self.text(texts)), text_mask, pairs)


def build(config: Config, dims: Dims) -> FILIP:
    """W (D_I + D_T) parameters: 327,680 for CLIP ViT-B/32 (768, 512) at W = 256. Tokens are projected once; a pair
    costs P · L · W multiplications, 153,600 for 50 patches and 12 words, either direction or both. Raises `UsageError`
    for a width below 1, `InputError` if the store keeps no tokens."""
    dims.require_tokens("filip")
    require(config.width >= 1, f"head.width = {config.width} is no space", "Set head.width to 1 or more.")
    return FILIP(config, dims)
