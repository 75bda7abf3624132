"""InfoNCE, and staying near a teacher: KL between its choices and the head's, in both directions (arXiv 1503.02531).

The teacher is the moving average of the head (`[ema]`; Mean Teacher, arXiv 1703.01780), or with `ema.decay = 1` the
head as the run began. What is distilled is the score block, so that it serves every head, also those without an
embedding; DeGLA (arXiv 2504.16801) instead draws embeddings together, which only some heads have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batches import Batch
from ..scorer import full
from . import infonce

TEACHER = True  # `loss` is given the teacher's scores


@dataclass(frozen=True)
class Config(infonce.Config):
    """distill      weight of the distillation beside InfoNCE's terms
    softness     temperature of both distributions on top of the scores' own; the term is multiplied by its square, so
                 that its gradient does not shrink with it (arXiv 1503.02531, section 2)
    """

    distill: float = 1.0
    softness: float = 1.0


parameters = infonce.parameters


def loss(
    scores: Tensor,
    batch: Batch,
    config: Config,
    fitted: Mapping[str, Tensor] | None = None,
    *,
    teacher: Tensor,
) -> Tensor:
    """A scalar float32 from `scores` and `teacher` (I, C). Entries outside `batch.scored` are ignored; a row or column
    with fewer than two entries decides nothing and is left out."""
    total = infonce.loss(scores, batch, config, fitted)
    if not config.distill:
        return total
    scale = infonce.scale_of(config, fitted)
    scale = (scale.detach() if isinstance(scale, Tensor) else scale) / config.softness
    taken = torch.ones_like(batch.positives) if batch.scored is None else batch.scored
    rows = _divergence(full(scores) * scale, full(teacher) * scale, taken)
    columns = _divergence(full(scores).T * scale, full(teacher).T * scale, taken.T)
    return total + config.distill * config.softness**2 * (rows + columns) / 2


def _divergence(scores: Tensor, teacher: Tensor, taken: Tensor) -> Tensor:
    """The mean over rows of KL(softmax(teacher) ‖ softmax(scores)), over the entries taken."""
    choice = taken.sum(1) > 1
    if not bool(choice.any()):
        return (scores * 0).masked_fill(~taken, 0).sum()
    scores, teacher, taken = scores[choice], teacher[choice], taken[choice]
    ours = scores.masked_fill(~taken, -torch.inf).log_softmax(1).masked_fill(~taken, 0)
    theirs = teacher.masked_fill(~taken, -torch.inf).log_softmax(1).masked_fill(~taken, 0)
    weights = theirs.exp().masked_fill(~taken, 0)
    return (weights * (theirs - ours)).sum(1).mean()
