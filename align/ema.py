"""A teacher that follows the head it teaches: the exponential moving average of its weights.

Mean Teacher (arXiv 1703.01780) averages for a better target; DeGLA (arXiv 2504.16801) distils from the average to keep
what fine-tuning would forget. A loss asks for the teacher's scores by `TEACHER = True`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from .batches import Batch
from .scorer import Scorer


@dataclass(frozen=True)
class EmaConfig:
    """decay   of the teacher's weights a step, 0 = no teacher, 1 = one that stays where the run began;
            DeGLA: 0.9996
    judged  the teacher is validated and saved as the run's checkpoint, not the head
    """

    decay: float = 0.0
    judged: bool = False

    def check(self, needed: bool, loss: str) -> None:
        """Raises `UsageError` for a decay that is none, and where a teacher is needed and not there."""
        if not 0 <= self.decay <= 1:
            raise UsageError(f"ema.decay = {self.decay} is no share", "Give 0 to 1.")
        if not self.decay and (needed or self.judged):
            what = f"loss '{loss}' learns from a teacher" if needed else "ema.judged asks for a teacher"
            raise UsageError(f"{what}, and ema.decay is 0", "Set ema.decay, for example 0.9996.")


def teacher_of(scorer: Scorer) -> Scorer:
    """A copy at the weights of now that is not trained and has no dropout."""
    teacher = copy.deepcopy(scorer).requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def follow(teacher: Scorer, scorer: Scorer, decay: float) -> None:
    """θ' ← decay θ' + (1 - decay) θ for every parameter, after the optimiser's step; buffers are copied."""
    for mean, weight in zip(teacher.parameters(), scorer.parameters(), strict=True):
        mean.lerp_(weight.to(mean.dtype), 1 - decay)
    for copied, value in zip(teacher.buffers(), scorer.buffers(), strict=True):
        copied.copy_(value)


@torch.no_grad()
def taught(teacher: Scorer, batch: Batch, chunk: int = 0) -> Tensor:
    """The teacher's scores (I, C), `chunk` images at a time (0 = all at once)."""
    count, captions = batch.shape
    if not chunk or count <= chunk:
        return teacher(batch)  # type: ignore[no-any-return]
    columns = torch.arange(captions, device=batch.device)
    rows = torch.split(torch.arange(count, device=batch.device), chunk)
    return torch.cat([teacher(batch.select(some, columns)) for some in rows])
