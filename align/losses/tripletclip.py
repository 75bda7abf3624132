"""TripletCLIP: NegCLIP's loss twice, with the negative image and its caption as a pair of their own (arXiv 2411.02545).

L = L_NegCLIP(I, T, T⁻) + L_NegCLIP(I⁻, T⁻, T): images choose among all captions T and T⁻, captions among the images of
their own kind. A swap group gives the four: its first pair is (I, T), its second (I⁻, T⁻). Where a batch has no group,
nothing is learnt; pairs outside of groups take no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batches import Batch
from ..kernels.contrastive import infonce as pick
from ..scorer import full
from . import infonce


@dataclass(frozen=True)
class Config(infonce.Temperature):
    """negative: weight of the half whose pairs are the negative images with their captions."""

    temperature: float = 0.01
    negative: float = 1.0


parameters = infonce.parameters


def loss(scores: Tensor, batch: Batch, config: Config, fitted: Mapping[str, Tensor] | None = None) -> Tensor:
    """A scalar float32 from `scores` (I, C). Entries outside `batch.scored` are ignored."""
    scale = infonce.scale_of(config, fitted)
    i0, i1, c0, c1 = batch.groups.unbind(1)
    total = scores.masked_fill(scores.isinf(), 0).sum() * 0
    if not len(i0):
        return full(total)
    for rows, own, other, weight in ((i0, c0, c1, 1.0), (i1, c1, c0, config.negative)):
        columns = torch.cat([own, other])
        taken = None if batch.scored is None else batch.scored[rows][:, columns]
        block, positives = full(scores)[rows][:, columns], batch.positives[rows][:, columns].clone()
        # Captions of the other kind are negatives of these images and ask for none of them, whatever else they say.
        positives[:, len(own) :] = False
        total = total + weight * pick(block, positives, scale=scale, taken=taken)
    return total
