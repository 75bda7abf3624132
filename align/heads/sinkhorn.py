"""Soft assignment: all segments and regions take part in an optimal transport of equal masses; no training.

The score is the entropy-regularised transport between the uniform distributions over an image's and a caption's tokens
(Cuturi 2013, arXiv 1306.0895), as `kernels.transport` defines it: between the mean similarity (large epsilon) and the
exact transport (small epsilon). Where `maxsim` leaves all but the best regions out and `assignment` matches as many as
the smaller side has, here every region must go somewhere: background counts. Meant for a store of level `regions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..batches import Batch
from ..kernels.transport import transport
from ..scorer import Alignment, Dims, Scorer, cosines, require, tokens_of, unit
from ._projection import require_one_space

CITE = ("arXiv:1306.0895",)


@dataclass(frozen=True)
class Config:
    """epsilon     weight of the entropy, in units of the cosine
    iterations  rounds of Sinkhorn
    """

    epsilon: float = 0.1
    iterations: int = 20


class Sinkhorn(Scorer):
    """The regularised transport of all tokens; a side without real tokens gives the score 0."""

    trainable = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.settings = config

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return transport(
            unit(images),
            unit(texts),
            image_mask=image_mask,
            text_mask=text_mask,
            epsilon=self.settings.epsilon,
            iterations=self.settings.iterations,
            pairs=pairs,
        )

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return cosines(unit(images), image_mask, unit(texts), text_mask, pairs)


def build(config: Config, dims: Dims) -> Sinkhorn:
    """A scorer without parameters. A pair costs P · L (D + 2 · iterations) multiplications. Raises `InputError` if the
    store keeps no tokens, or image and text tokens of different widths; `UsageError` for an epsilon or iterations that
    are not positive."""
    dims.require_tokens("sinkhorn")
    require_one_space(
        dims,
        "sinkhorn",
        "Extract with --level regions, where both are pooled embeddings, or fit a head that projects them: filip.",
    )
    require(
        config.epsilon > 0 and math.isfinite(config.epsilon) and config.iterations >= 1,
        f"head.epsilon = {config.epsilon} with head.iterations = {config.iterations} gives no plan",
        "Set head.epsilon above 0 and head.iterations to 1 or more.",
    )
    return Sinkhorn(config)
