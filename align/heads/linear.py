"""LABCLIP: one linear map of the caption's pooled embedding, starting as the identity (arXiv 2502.03566).

The paper's claim is that the words' binding is in the pooled vectors of each tower and is lost between
them; a single E × E matrix over frozen towers recovers part of it (SugarCrepe swap-attribute from .62 to
.746 with CLIP ViT-B/32, as published). The temperature is the objective's (`loss.temperature`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..batches import Batch
from ..scorer import Dims, Side, VectorScorer, full_precision, unit


@dataclass(frozen=True)
class Config:
    """bias: add a vector to the mapped caption, zero at the start (not in the paper)."""

    bias: bool = False


class Linear(VectorScorer):
    """s(i, c) = <f_I / |f_I|, A f_T / |f_T|>, A identity-initialised: before fitting it is the cosine."""

    needs = "pooled"

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.map = nn.Linear(dims.pooled_dim, dims.pooled_dim, bias=config.bias)
        nn.init.eye_(self.map.weight)
        if self.map.bias is not None:
            nn.init.zeros_(self.map.bias)

    def image_side(self, batch: Batch, local: bool) -> Side:
        return Side(unit(batch.image_pooled))

    def text_side(self, batch: Batch, local: bool) -> Side:
        with full_precision(batch):
            return Side(self.map(unit(batch.text_pooled)))


def build(config: Config, dims: Dims) -> Linear:
    """E² parameters: 262,144 for E = 512."""
    return Linear(config, dims)
