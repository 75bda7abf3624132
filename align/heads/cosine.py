"""Cosine of the pooled embeddings: the backbone's own score, and the row every table starts from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..batches import Batch
from ..scorer import Dims, Scorer, full_precision, unit


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class Cosine(Scorer):
    """s(i, c) = <f_I / |f_I|, f_T / |f_T|>."""

    needs = "pooled"
    trainable = False

    def score(self, batch: Batch) -> Tensor:
        with full_precision(batch):
            return unit(batch.image_pooled) @ unit(batch.text_pooled).T

    def score_pairs(self, batch: Batch, pairs: Tensor) -> Tensor:
        images, texts = unit(batch.image_pooled), unit(batch.text_pooled)
        return (images[pairs[:, 0]] * texts[pairs[:, 1]]).sum(-1)


def build(config: Config, dims: Dims) -> Cosine:
    """A scorer without parameters."""
    return Cosine()
