"""What a step computes: from a batch over scores to the loss."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .. import registry
from ..config import from_dict
from .batches import Batch
from .distributed import Team
from .ema import EmaConfig, follow, taught, teacher_of
from .scorer import Scorer


class Training(nn.Module):
    """Scorer and objective as one module from a batch to the loss, so that Fabric wraps both. With a `team`, this
    process scores the rows that it holds, and the loss is that of the whole batch.

    fitted   parameters of the loss
    teacher  the moving average of the scorer (`ema`), None without
    """

    def __init__(
        self, scorer: Scorer, loss: dict[str, Any], team: Team | None = None, ema: EmaConfig | None = None
    ) -> None:
        super().__init__()
        options = dict(loss)
        self.scorer, self.team, self.ema = scorer, team, ema or EmaConfig()
        self._module: ModuleType = registry.load("losses", options.pop("name"))
        self._config = from_dict(self._module.Config, options, "loss")
        make = getattr(self._module, "parameters", None)
        self.fitted = nn.ParameterDict(make(self._config) if make else {})
        self.teacher = teacher_of(scorer) if self.ema.decay else None

    @property
    def judged(self) -> Scorer:
        """What is validated and saved as the run's checkpoint."""
        return self.teacher if self.teacher is not None and self.ema.judged else self.scorer

    def forward(self, batch: Batch) -> Tensor:
        """A scalar."""
        return self.objective(self.score(batch), batch, self.guide(batch))

    def score(self, batch: Batch) -> Tensor:
        """The scores (n, C) of the rows that are here, all (I, C) in one process."""
        if not batch.shape[0]:  # a share without images; heads are written for at least one
            return torch.zeros(batch.shape, device=batch.device, requires_grad=True)
        scores: Tensor = self.scorer(self._own(batch))
        return scores

    def guide(self, batch: Batch, chunk: int = 0) -> Tensor | None:
        """The teacher's scores of the rows that are here, `chunk` images at a time, if the loss asks for them."""
        if self.teacher is None or not getattr(self._module, "TEACHER", False):
            return None
        if not batch.shape[0]:
            return torch.zeros(batch.shape, device=batch.device)
        return taught(self.teacher, self._own(batch), chunk)

    def objective(self, scores: Tensor, batch: Batch, guide: Tensor | None = None) -> Tensor:
        """The loss, given the scores and the teacher's of the rows that are here."""
        fitted = (dict(self.fitted.items()),) if len(self.fitted) else ()
        more = {} if guide is None else {"teacher": self._whole(guide, batch)}
        loss: Tensor = self._module.loss(self._whole(scores, batch), batch, self._config, *fitted, **more)
        return loss

    def follow(self) -> None:
        """Move the teacher after the optimiser's step."""
        if self.teacher is not None:
            follow(self.teacher, self.scorer, self.ema.decay)

    def _own(self, batch: Batch) -> Batch:
        return batch if self.team is None else self.team.own(batch)

    def _whole(self, block: Tensor, batch: Batch) -> Tensor:
        return block if self.team is None else self.team.gathered(block, batch)
