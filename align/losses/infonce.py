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
from ..kernels.contrastive import infonce
from ..scorer import full

MAX_SCALE = 100.0  # CLIP's bound on 1 / temperature


@dataclass(frozen=True)
class Temperature:
    """temperature        scores are divided by it
    learn_temperature  it is fitted, from this value on, and stays ≥ 0.01
    """

    temperature: float = 0.07
    learn_temperature: bool = True


@dataclass(frozen=True)
class Config(Temperature):
    """block_weight       of the symmetric InfoNCE over the whole block
    quad_weight        of the swap groups' own term: in each 2 × 2 block both images choose between the two
                       captions and both captions between the two images
    """

    block_weight: float = 1.0
    quad_weight: float = 0.0


def parameters(config: Temperature) -> dict[str, nn.Parameter]:
    """What is fitted beside the head: the logarithm of 1 / temperature."""
    if not config.learn_temperature:
        return {}
    return {"log_scale": nn.Parameter(torch.tensor(-math.log(config.temperature)))}


def loss(scores: Tensor, batch: Batch, config: Config, fitted: Mapping[str, Tensor] | None = None) -> Tensor:
    """A scalar float32 from `scores` (I, C). Entries outside `batch.scored` are ignored. `fitted` holds the
    current values of `parameters`; without it the temperature is the configured one."""
    scale = scale_of(config, fitted)
    total = torch.zeros((), device=scores.device)
    if config.block_weight:
        block = infonce(full(scores), batch.positives, scale=scale, taken=batch.scored)
        total = total + config.block_weight * block
    if config.quad_weight and len(batch.groups):
        total = total + config.quad_weight * _swaps(scores, batch, scale)
    return total


def scale_of(config: Temperature, fitted: Mapping[str, Tensor] | None) -> Tensor | float:
    """1 / temperature: the fitted one, at most `MAX_SCALE`, or the configured."""
    if not fitted:
        return 1 / config.temperature
    return bounded(fitted["log_scale"])


def bounded(log_scale: Tensor) -> Tensor:
    """exp(log_scale), at most `MAX_SCALE`: a parameter beyond is set back to the bound first, as open_clip does between
    steps. A clamp of the value would leave it without a gradient there, and CLIP's temperature of 0.01 is the bound:
    exp(-log 0.01) is 100.0000076 in float32."""
    with torch.no_grad():
        log_scale.clamp_(max=math.log(MAX_SCALE))
    return log_scale.exp()


def _swaps(scores: Tensor, batch: Batch, scale: Tensor | float) -> Tensor:
    """Mean cross-entropy of the four binary choices in each group."""
    i0, i1, c0, c1 = batch.groups.unbind(1)
    rows, columns = torch.stack([i0, i1, i0, i1]), torch.stack([c0, c1, c1, c0])
    found = full(scores[rows, columns])
    if batch.scored is not None:
        # Before scaling: the gradient of the scale would be 0 · inf.
        found = found.masked_fill(~batch.scored[rows, columns], 0)
    s00, s11, s01, s10 = (found * scale).unbind(0)
    right = torch.stack([s00, s11, s00, s11])
    wrong = torch.stack([s01, s10, s10, s01])
    return F.softplus(wrong - right).mean()
