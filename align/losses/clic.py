"""CLIC: captions of a picture, each against one hard negative, and two orders of one drawn together (2505.24424).

L = 0.5 L_cont + 0.5 L_sneg + 1.0 L_uni (arXiv 2505.24424, equations 4 to 7; `losses.py` of github.com/AmitPeleg/CLIC),
with p_1 a pair's own caption, p_2 … the further captions of its image, n its hard negatives, s = 1 / temperature:

- L_cont  symmetric InfoNCE over the m-th captions of all pairs, in the mean over m; negatives are no columns of it
- L_sneg  -log exp(s v·p_m) / (exp(s v·p_m) + Σ_k exp(s v·n_k)), in the mean over the pairs, then over m
- L_uni   ‖t(p_1) - t(p_2)‖², unit vectors of text; p_2 is the first further caption, for a picture of two the same in
          the other order (data set `clic`)

A batch of single pictures, whose pairs have neither further captions nor negatives, is plain InfoNCE at weight 1: every
other step of the published training (`data.turns`). There is one negative a picture there; with more, L_sneg is the
choice among them. Ours: a pair without an m-th caption or without a negative has no part in that term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batches import Batch
from ..kernels.contrastive import infonce as symmetric
from ..scorer import Views, full
from . import infonce
from ._terms import Choices, mean, pick

VIEWS = True


@dataclass(frozen=True)
class Config(infonce.Temperature):
    """contrastive, separate, invariance  weights of L_cont, L_sneg, L_uni"""

    temperature: float = 0.01
    contrastive: float = 0.5
    separate: float = 0.5
    invariance: float = 1.0


parameters = infonce.parameters


def loss(
    scores: Tensor,
    batch: Batch,
    config: Config,
    fitted: Mapping[str, Tensor] | None = None,
    *,
    views: Views,
) -> Tensor:
    """A scalar float32 from `scores` (I, C) and the head's text vectors. Entries outside `batch.scored` are ignored.
    Raises `UsageError` for a head without vectors, and for a batch that does not say which pairs were drawn."""
    _, text = views.vectors()
    choices, scale = Choices.of(batch), infonce.scale_of(config, fitted)
    captions = _captions(batch, choices)
    contrastive = _contrastive(scores, batch, captions, scale)
    if not (captions[:, 1:] >= 0).any() and not choices.real.any():
        return contrastive
    total = config.contrastive * contrastive + config.separate * _separate(scores, choices, captions, scale)
    return total + config.invariance * _invariance(text, captions)


def _captions(batch: Batch, choices: Choices) -> Tensor:
    """(N, M) long: the columns of each pair's captions, its own first; -1 = none, or not scored."""
    captions = choices.columns[:, None]
    if batch.further is not None:
        captions = torch.cat([captions, batch.further], 1)
    if batch.scored is None:
        return captions
    return captions.masked_fill(~batch.scored[choices.rows[:, None], captions.clamp(min=0)], -1)


def _contrastive(scores: Tensor, batch: Batch, captions: Tensor, scale: Tensor | float) -> Tensor:
    """L_cont, in the mean over those m of which there is any caption."""
    terms = []
    for column in captions.unbind(1):
        columns: Tensor = torch.unique(column[column >= 0])
        if len(columns):
            taken = None if batch.scored is None else batch.scored[:, columns]
            terms.append(symmetric(full(scores[:, columns]), batch.positives[:, columns], scale=scale, taken=taken))
    return _mean(terms, scores)


def _separate(scores: Tensor, choices: Choices, captions: Tensor, scale: Tensor | float) -> Tensor:
    """L_sneg, in the mean over those m of which any pair has a choice."""
    _, others = choices.scores(scores)
    terms = []
    for column in captions.unbind(1):
        there = column >= 0
        real = choices.real & there[:, None]
        if real.any():
            own = full(scores[choices.rows, column.clamp(min=0)]).masked_fill(~there, 0)
            terms.append(pick(own * scale, others * scale, real))
    return _mean(terms, scores)


def _invariance(text: Tensor, captions: Tensor) -> Tensor:
    """L_uni, in the mean over the pairs that have a further caption."""
    both = captions[:, :2] if captions.shape[1] > 1 else captions[:0]
    both = both[(both >= 0).all(1)]
    return mean((text[both[:, 0]] - text[both[:, -1]]).square().sum(1), text)


def _mean(terms: list[Tensor], scores: Tensor) -> Tensor:
    return torch.stack(terms).mean() if terms else full(scores).masked_fill(scores.isinf(), 0).sum() * 0
