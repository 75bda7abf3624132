"""Cosine of the pooled embeddings: the backbone's own score, and the row every table starts from."""

from __future__ import annotations

from dataclasses import dataclass

from ..batches import Batch
from ..scorer import Dims, Side, VectorScorer, unit


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class Cosine(VectorScorer):
    """s(i, c) = <f_I / |f_I|, f_T / |f_T|>."""

    needs = "pooled"
    trainable = False

    def image_side(self, batch: Batch, local: bool) -> Side:
        return Side(unit(batch.image_pooled))

    def text_side(self, batch: Batch, local: bool) -> Side:
        return Side(unit(batch.text_pooled))


def build(config: Config, dims: Dims) -> Cosine:
    """A scorer without parameters."""
    return Cosine()
