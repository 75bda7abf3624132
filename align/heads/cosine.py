"""Cosine of the pooled embeddings: the backbone's own score, and the row every table starts from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..batches import Batch
from ..scorer import Dims, VectorScorer, unit


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class Cosine(VectorScorer):
    """s(i, c) = <f_I / |f_I|, f_T / |f_T|>."""

    needs = "pooled"
    trainable = False

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return unit(batch.image_pooled), unit(batch.text_pooled)


def build(config: Config, dims: Dims) -> Cosine:
    """A scorer without parameters."""
    return Cosine()
