"""Symmetric InfoNCE with hard-negative captions and swap groups (arXiv 2103.00020, 2210.01936).

Image → text: each image picks its caption among all columns, given negatives included (NegCLIP's extra
columns); text → image: each caption that describes one of the images picks it among all rows. A row may
have several positives (an image's captions, equal keys): each of them competes with the negatives alone,
the other positives are masked, so that perfect scores give a loss of zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batches import Batch

# The logit of what does not take part: finite, so that a row without negatives has no NaN gradient.
EXCLUDED = -1e30
MAX_SCALE = 100.0  # CLIP's bound on 1 / temperature


@dataclass(frozen=True)
class Config:
    """temperature        scores are divided by it
    learn_temperature  it is fitted, from this value on, and stays ≥ 0.01
    block_weight       of the symmetric InfoNCE over the whole block
    quad_weight        of the swap groups' own term: in each 2 × 2 block both images choose between the two
                       captions and both captions between the two images
    """

    temperature: float = 0.07
    learn_temperature: bool = True
    block_weight: float = 1.0
    quad_weight: float = 0.0


def parameters(config: Config) -> dict[str, nn.Parameter]:
    """What is fitted beside the head: the logarithm of 1 / temperature."""
    if not config.learn_temperature:
        return {}
    return {"log_scale": nn.Parameter(torch.tensor(-math.log(config.temperature)))}


def loss(scores: Tensor, batch: Batch, config: Config, fitted: Mapping[str, Tensor] | None = None) -> Tensor:
    """A scalar float32 from `scores` (I, C). Entries outside `batch.scored` are ignored. `fitted` holds the
    current values of `parameters`; without it the temperature is the configured one."""
    taken = torch.ones_like(batch.positives) if batch.scored is None else batch.scored
    # Before scaling: the gradient of the scale would be 0 · inf.
    logits = scores.float().masked_fill(~taken, 0) * _scale(config, fitted)
    positives, negatives = taken & batch.positives, taken & ~batch.positives
    total = logits.new_zeros(())
    if config.block_weight:
        i2t, t2i = _choice(logits, positives, negatives), _choice(logits.T, positives.T, negatives.T)
        total = total + config.block_weight * (i2t + t2i) / 2
    if config.quad_weight and len(batch.groups):
        total = total + config.quad_weight * _swaps(logits, batch.groups)
    return total


def _scale(config: Config, fitted: Mapping[str, Tensor] | None) -> Tensor | float:
    if not fitted:
        return 1 / config.temperature
    return fitted["log_scale"].exp().clamp(max=MAX_SCALE)


def _choice(logits: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Mean over the rows that have a positive and a negative of the mean over the row's positives of
    -log(exp s⁺ / (exp s⁺ + Σ exp s⁻))."""
    against = logits.masked_fill(~negatives, EXCLUDED).logsumexp(1, keepdim=True)
    counted = positives & negatives.any(1, keepdim=True)
    losses = F.softplus(against - logits).masked_fill(~counted, 0)
    rows = counted.any(1)
    per_row = losses.sum(1) / counted.sum(1).clamp(min=1)
    return per_row.sum() / rows.sum().clamp(min=1)


def _swaps(logits: Tensor, groups: Tensor) -> Tensor:
    """Mean cross-entropy of the four binary choices in each group."""
    i0, i1, c0, c1 = groups.unbind(1)
    right = torch.stack([logits[i0, c0], logits[i1, c1], logits[i0, c0], logits[i1, c1]])
    wrong = torch.stack([logits[i0, c1], logits[i1, c0], logits[i1, c0], logits[i0, c1]])
    return F.softplus(wrong - right).mean()
