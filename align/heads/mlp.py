"""A residual MLP over the pooled vectors, starting as the identity: what capacity can do behind pooling.

    s(i, c) = <g(f_I), g(f_T)>,   g(x) = unit(x + W₂ GELU(W₁ √E x + b₁) + b₂)   of x = f / |f|,   W₂ = b₂ = 0 at first

The closest published form is CLIP-Adapter (arXiv 2110.04544), a two-layer network blended with its frozen
input at a fixed ratio. Ours: GELU, a wide hidden layer in place of a bottleneck, biases, the residual added instead of
blended, so that the first step starts from the backbone's own cosine; √E gives the inputs of the MLP a mean square of
1. Both sides end in one vector, so negatives are mined with it and retrieval stays an index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..batches import Batch
from ..scorer import Dims, Side, VectorScorer, full_precision, require, unit
from ._projection import require_pooled


@dataclass(frozen=True)
class Config:
    """sides    "both": an MLP for images and another for captions; "text": captions alone, as in `linear`
    width    of the hidden layer
    dropout  on the hidden layer
    """

    sides: Literal["both", "text"] = "both"
    width: int = 2048
    dropout: float = 0.0


class ResidualMLP(nn.Module):
    """(…, E) unit vectors → (…, E) unit vectors, the same ones before fitting."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = math.sqrt(dim), nn.Dropout(dropout)
        self.hidden, self.output = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        return unit(x + self.output(self.dropout(F.gelu(self.hidden(self.scale * x)))))


class MLP(VectorScorer):
    """The cosine of what two MLPs make of the pooled vectors; before fitting it is the backbone's."""

    needs = "pooled"

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.text = ResidualMLP(dims.pooled_dim, config.width, config.dropout)
        both = config.sides == "both"
        self.image = ResidualMLP(dims.pooled_dim, config.width, config.dropout) if both else None

    def image_side(self, batch: Batch, local: bool) -> Side:
        with full_precision(batch):
            images = unit(batch.image_pooled)
            return Side(images if self.image is None else self.image(images))

    def text_side(self, batch: Batch, local: bool) -> Side:
        with full_precision(batch):
            return Side(self.text(unit(batch.text_pooled)))


def build(config: Config, dims: Dims) -> MLP:
    """2 E W + W + E parameters a side: 2,099,712 for E = 512, W = 2,048, and 4,199,424 for both. A pair costs the E
    multiplications of an inner product; image and caption pass their MLP once. Raises `UsageError` for a width below
    1, `InputError` if the store keeps no pooled embeddings."""
    require_pooled(dims, "mlp")
    require(config.width >= 1, f"head.width = {config.width} leaves no hidden layer", "Set head.width to 1 or more.")
    return MLP(config, dims)
