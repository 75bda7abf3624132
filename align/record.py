"""What follows a step: log, validation, checkpoints, progress, and the decision to stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..stores.spec import FeatureSpec
from . import runs
from .checkpoint import load_state, save_scorer, save_state
from .feed import Feed
from .recipe import FitConfig
from .stopping import Stopping
from .training import Training
from .validate import Validation


@dataclass(frozen=True)
class Progress:
    """What the progress callback gets after every step. `validation` holds percentages after a validation,
    the deciding metric first; {} after other steps."""

    step: int
    steps: int
    loss: float
    rate: float
    seconds: float
    validation: dict[str, float]


@dataclass
class State:
    """Where a run stands; saved with every checkpoint. `stale` counts validations without a better score."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0

    def observe(self, score: float | None) -> bool:
        """Take in a validation. Whether this is the checkpoint to keep: a strictly better score, or the
        latest where nothing is validated."""
        better = score is None or self.best is None or score > self.best
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best, self.best_step = score, self.step
        return better

    def exhausted(self, patience: int) -> bool:
        """Whether the run has waited long enough."""
        return 0 < patience <= self.stale


class Record:
    """What follows a step, in the first process: log, validation, checkpoints, progress, and Ctrl-C, after which the
    step is saved and the run ends. A context manager; in the other processes (no `log`) it only hears Ctrl-C."""

    def __init__(
        self,
        log: runs.Log | None,
        config: FitConfig,
        state: State,
        saved: Checkpoints,
        validation: Validation | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.config, self.state, self.saved = config, state, saved
        self.validation, self.progress = validation, progress
        self._started = time.monotonic() - state.seconds
        self._opened: ExitStack = ExitStack()
        self._stopping = self._opened.enter_context(Stopping())
        self._log = self._opened.enter_context(log) if log else None

    def __call__(self, loss: Tensor, rate: float, more: Callable[[], dict[str, Any]]) -> bool:
        """Take in the step that `state` counts; `more` values for a line of the log. Whether the run ends here."""
        log, state, config = self._log, self.state, self.config
        assert log is not None
        state.seconds = time.monotonic() - self._started
        measured: dict[str, float] = {}
        if state.step % config.log_every == 0:
            log.write(state.step, loss=loss.item(), rate=rate, seconds=round(state.seconds, 3), **more())
        if state.step % config.validation.every == 0 or state.step == config.optim.steps:
            if self.validation is not None:
                measured = self.validation.measure(self.saved.model.judged)
                log.write(state.step, validation=measured)
            self.saved.save(state, state.observe(next(iter(measured.values()), None)))
        elif self.stopped or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
            self.saved.save_state(state)
        if self.progress is not None:
            self.progress(Progress(state.step, config.optim.steps, loss.item(), rate, state.seconds, measured))
        return self.stopped or (bool(measured) and state.exhausted(config.validation.patience))

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C ends the run before its time."""
        return self._stopping.asked and self.state.step < self.config.optim.steps

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """What a run's checkpoints take on the disk at the most: best and last, and two states, of which one is being
    written: weights and, of what is trained, the two moments of Adam."""
    whole = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    return int(2 * whole + 2 * (whole + 2 * trained))


class Checkpoints:
    """best and last as scorers, and the state that a run resumes from. The state is written last and holds
    its own weights, so a run killed between two files goes on from the former state."""

    def __init__(
        self, folder: Path, model: Training, optimizer: torch.optim.Optimizer, spec: FeatureSpec, feed: Feed
    ) -> None:
        self.folder, self.model, self.optimizer, self.spec, self.feed = folder, model, optimizer, spec, feed

    def save(self, state: State, best: bool) -> None:
        """Write all three, or only two if this is not the best so far."""
        if best:
            save_scorer(self.folder / "best.safetensors", self.model.judged, self.spec)
        save_scorer(self.folder / "last.safetensors", self.model.judged, self.spec)
        self.save_state(state)

    def save_state(self, state: State) -> None:
        """What the run resumes from, alone."""
        facts = dataclasses.asdict(state)
        extra = self.feed.state() | self.feed.team.scale_state()
        save_state(self.folder / "state.safetensors", self.model, self.optimizer, facts, extra)

    def load(self) -> State:
        """Weights, optimiser, scale of the loss and random generators as they were saved."""
        facts, extra = load_state(self.folder / "state.safetensors", self.model, self.optimizer)
        if self.feed.miner is not None:
            self.feed.miner.restore(extra)
        self.feed.team.restore_scale(extra)
        return State(**facts)
