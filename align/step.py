"""One step of the optimiser: gradients of its batches, reduced, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from .batches import Batch
from .cached import backward, backward_sides
from .clock import Clock
from .distributed import Team
from .recipe import OptimConfig
from .scorer import VectorScorer, views_of
from .training import Training

T = TypeVar("T")
LEAST_SCALE = 1e-4  # of a float16 loss; where fairseq gives up too (fairseq/optim/fp16_optimizer.py, min_loss_scale)


@dataclass(frozen=True, eq=False)
class Step:
    """What is the same in all steps of a run. `stepper` is Fabric's, around `optimizer`."""

    team: Team
    model: Training
    optimizer: torch.optim.Optimizer
    stepper: Any
    optim: OptimConfig
    clock: Clock

    def __call__(self, batches: Iterable[Batch], step: int) -> tuple[Tensor, float]:
        """Take step `step`, counted from 0; the mean loss of its batches, detached, and the learning rate.

        With a float16 loss, a step whose gradients overflowed is left out: the scale of the loss falls by half, and
        weights and optimiser stay. The gradients are reduced before they are looked at, so all processes agree.

        Raises `InputError` if the loss is not finite, or the gradient without being a matter of the scale.
        """
        rate = self.optim.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(batches)
        self.team.reduce(self.model.scorer.parameters(), self.model.beside())
        norm = self.team.fabric.clip_gradients(
            self.model, self.stepper, max_norm=self.optim.clip or math.inf, error_if_nonfinite=False
        )
        self._apply(loss, norm, step)
        self.stepper.zero_grad()
        self.model.follow()
        self.clock.lap("optimizer")
        self.clock.end()
        return loss, rate

    def line(self) -> dict[str, Any]:
        """What a line of the log says of the steps since the last one."""
        scaler = self.team.scaler
        scale = {} if scaler is None else {"scale": scaler.get_scale()}
        return {"step_time": {stage: round(seconds, 7) for stage, seconds in self.clock.line().items()}, **scale}

    def _apply(self, loss: Tensor, norm: Tensor | None, step: int) -> None:
        """The optimiser's step, if all is finite."""
        scaler = self.team.scaler
        overflowed = norm is not None and not math.isfinite(norm.item())
        if not math.isfinite(loss.item()) or (overflowed and scaler is None):
            raise _not_finite(loss, step, "its gradient is no longer finite")
        before = scaler.get_scale() if scaler is not None and overflowed else 0.0
        self.stepper.step()
        if scaler is not None and overflowed:
            scale = scaler.get_scale()
            if scale >= before:  # each number is finite, the norm of all is not
                raise _not_finite(loss, step, "the norm of its gradient is no longer finite")
            if scale < LEAST_SCALE:
                raise _not_finite(loss, step, f"its gradient overflows float16 also at a scale of {before:.2g}")

    def _gradients(self, batches: Iterable[Batch]) -> Tensor:
        """Add up the gradients of a step's batches; the mean loss, detached."""
        fabric, losses = self.team.fabric, []
        for batch in batches:
            self.clock.start()
            if self.optim.chunk:
                losses.append(self._in_two_passes(batch))
            else:
                with fabric.autocast():
                    loss = self.model(batch)
                self.clock.lap("forward")
                fabric.backward(loss / self.optim.accumulate)
                losses.append(loss.detach())
            self.clock.lap("backward")
        return torch.stack(losses).mean()

    def _in_two_passes(self, batch: Batch) -> Tensor:
        fabric, model, optim, clock = self.team.fabric, self.model, self.optim, self.clock

        def forward(compute: Callable[[Batch], T]) -> Callable[[Batch], T]:
            def computed(part: Batch) -> T:
                clock.lap("backward")  # of the part before; nothing was before the first
                with fabric.autocast():
                    found = compute(part)
                clock.lap("forward")
                return found

            return computed

        def timed(loss: Tensor) -> Tensor:
            clock.lap("forward")
            return loss / optim.accumulate

        with fabric.autocast():
            guide = model.guide(batch, optim.chunk)
        clock.lap("forward")
        if isinstance(model.scorer, VectorScorer):
            image, text = (forward(encode) for encode in model.encoders(model.scorer))
            loss = backward_sides(
                (image, text),
                batch,
                lambda *sides: timed(model.seen(views_of(*sides), batch, guide)),
                optim.chunk,
                fabric.backward,
            )
        else:
            loss = backward(
                forward(model.score),
                batch,
                lambda scores: timed(model.objective(scores, batch, guide)),
                optim.chunk,
                fabric.backward,
            )
        return loss * optim.accumulate


def _not_finite(loss: Tensor, step: int, what: str) -> InputError:
    return InputError(
        f"the loss is {loss.item():.4g} at step {step + 1} and {what}",
        "Lower optim.lr or raise optim.warmup; --resume goes on from the last checkpoint.",
    )


def adamw(model: Training, optim: OptimConfig) -> torch.optim.AdamW:
    """Weight decay on matrices only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    first, second = optim.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        betas=(first, second),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )
