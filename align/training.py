"""What a step computes: from a batch over scores to the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import registry
from ..config import from_dict
from ..errors import UsageError
from .batches import Batch
from .cached import Encode, encoded
from .distributed import Team
from .ema import EmaConfig, follow, taught, teacher_of
from .scorer import Scorer, VectorScorer, Views, vector_width, views_of


class Training(nn.Module):
    """Scorer and objective as one module from a batch to the loss, so that Fabric wraps both. With a `team`, this
    process scores the rows that it holds, and the loss is that of the whole batch.

    fitted   parameters of the loss
    built    a module of the loss's own, which it is given as `module`: what `build(config, E)` of its file makes for
             vectors of E; None where it has none. What is trained of it is saved with the run
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
        build = getattr(self._module, "build", None)
        self.built: nn.Module | None = build(self._config, vector_width(scorer)) if build else None
        self.teacher = teacher_of(scorer) if self.ema.decay else None

    @property
    def judged(self) -> Scorer:
        """What is validated and saved as the run's checkpoint."""
        return self.teacher if self.teacher is not None and self.ema.judged else self.scorer

    def beside(self) -> Iterator[nn.Parameter]:
        """The parameters of the loss: those of which every process has the whole gradient."""
        yield from self.fitted.parameters()
        if self.built is not None:
            yield from self.built.parameters()

    def forward(self, batch: Batch) -> Tensor:
        """A scalar."""
        guide = self.guide(batch)
        if not self.looks:
            return self.objective(self.score(batch), batch, guide)
        if not batch.shape[0]:
            raise UsageError("this loss looks at vectors, and a process has no images", "Raise data.batch_size.")
        return self.seen(self.scorer.views(self._own(batch)), batch, guide)

    def score(self, batch: Batch) -> Tensor:
        """The scores (n, C) of the rows that are here, all (I, C) in one process."""
        if not batch.shape[0]:  # a share without images; heads are written for at least one
            return torch.zeros(batch.shape, device=batch.device, requires_grad=True)
        scores: Tensor = self.scorer(self._own(batch))
        return scores

    @property
    def looks(self) -> bool:
        """Whether the loss looks at vectors beside the scores (`VIEWS`)."""
        return bool(getattr(self._module, "VIEWS", False))

    def encoders(self, scorer: VectorScorer) -> tuple[Encode, Encode]:
        """The sides of the rows that are here, and of all captions, as the loss looks at them."""
        return (
            lambda part: scorer.image_side(part, self.looks),
            lambda part: scorer.text_side(part, self.looks),
        )

    def guide(self, batch: Batch, chunk: int = 0) -> dict[str, Any]:
        """What the loss asks for beside the scores and views: its `teacher`'s (`TEACHER`), of the whole batch, `chunk`
        images or captions at a time."""
        if self.teacher is None or not getattr(self._module, "TEACHER", False):
            return {}
        if self.looks:
            return {"teacher": self._gathered(self._taught(self.teacher, self._own(batch), chunk), batch)}
        if not batch.shape[0]:
            scores = torch.zeros(batch.shape, device=batch.device)
        else:
            scores = taught(self.teacher, self._own(batch), chunk)
        return {"teacher": self._whole(scores, batch)}

    @torch.no_grad()
    def _taught(self, teacher: Scorer, batch: Batch, chunk: int) -> Views:
        if isinstance(teacher, VectorScorer):
            return views_of(*encoded(self.encoders(teacher), batch, chunk))
        return teacher.views(batch)

    def objective(self, scores: Tensor, batch: Batch, guide: dict[str, Any] | None = None) -> Tensor:
        """The loss, given the scores of the rows that are here and what `guide` found."""
        return self._loss(self._whole(scores, batch), batch, guide or {})

    def seen(self, views: Views, batch: Batch, guide: dict[str, Any]) -> Tensor:
        """The loss, given the views of the rows that are here and of all captions."""
        if not self.looks:
            return self.objective(views.scores, batch, guide)
        views = self._gathered(views, batch)
        return self._loss(views.scores, batch, guide | {"views": views})

    def _loss(self, scores: Tensor, batch: Batch, guide: dict[str, Any]) -> Tensor:
        fitted = (dict(self.fitted.items()),) if len(self.fitted) else ()
        if self.built is not None:
            guide = guide | {"module": self.built}
        loss: Tensor = self._module.loss(scores, batch, self._config, *fitted, **guide)
        return loss

    def _gathered(self, views: Views, batch: Batch) -> Views:
        """The views of the whole batch, from those of the rows that are here and of all captions."""
        if self.team is None or batch.rows is None:
            return views
        team, found = self.team, {}
        for field in dataclasses.fields(views):
            value = getattr(views, field.name)
            if value is not None:
                numbers = value.float() if value.dtype == torch.bool else value
                if field.name in ("patches", "patch_mask"):  # each process has padded regions to its own longest row
                    more = team.most(numbers.shape[1]) - numbers.shape[1]
                    numbers = F.pad(numbers, (0, 0, 0, more) if numbers.ndim == 3 else (0, more))
                captions = field.name in ("text", "tokens", "token_mask")
                whole = team.columns(numbers) if captions else team.gathered(numbers, batch)
                found[field.name] = whole.to(value.dtype)
        return Views(**found)

    def follow(self) -> None:
        """Move the teacher after the optimiser's step."""
        if self.teacher is not None:
            follow(self.teacher, self.scorer, self.ema.decay)

    def _own(self, batch: Batch) -> Batch:
        return batch if self.team is None else self.team.own(batch)

    def _whole(self, block: Tensor, batch: Batch) -> Tensor:
        return block if self.team is None else self.team.gathered(block, batch)
