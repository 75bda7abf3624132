"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

STAGES = ("wait", "copy", "forward", "backward", "optimizer")


class Clock:
    """Seconds by stage, in the mean a step.

    wait       the step waited for its data; mining is not among it
    copy       issuing copies to a CUDA device, in the loader's thread and beside the step; 0 on others
    forward    scores and loss; with `optim.chunk` both passes, so that an image's scores count twice
    backward   gradients
    optimizer  gradients reduced over the processes and clipped, the step itself, the teacher's

    What follows a step (log, validation, checkpoints) is in none. On CUDA, forward, backward and optimizer are the
    device's own time, between events on its stream: the program runs ahead of it, and its clock would measure how fast
    work is issued. On other devices they are the program's time; MPS runs behind it, and there they say less.

    loaded  () → seconds waited and copied so far
    """

    def __init__(self, device: torch.device, loaded: Callable[[], tuple[float, float]]) -> None:
        self.cuda, self._loaded = device.type == "cuda", loaded
        self._spent = dict.fromkeys(STAGES, 0.0)
        self._steps = 0
        self._told, self._told_steps = dict(self._spent), 0
        self._events: list[tuple[str, Any, Any]] = []
        self._mark: Any = None

    def start(self) -> None:
        """What was before belongs to no stage."""
        self._mark = self._now()

    def lap(self, stage: str) -> None:
        """What was since the last mark belongs to `stage`."""
        now = self._now()
        if self.cuda:
            self._events.append((stage, self._mark, now))
        else:
            self._spent[stage] += now - self._mark
        self._mark = now

    def end(self) -> None:
        """A step is over."""
        self._steps += 1
        if self.cuda:  # the loss was read before the optimiser's step: what is older is over on the device too
            while self._events and self._events[0][2].query():
                self._fold()

    def line(self) -> dict[str, float]:
        """Of the steps since the last call."""
        whole = self._whole()
        steps = max(1, self._steps - self._told_steps)
        found = {stage: (whole[stage] - self._told[stage]) / steps for stage in STAGES}
        self._told, self._told_steps = whole, self._steps
        return found

    @property
    def waited(self) -> float:
        """Seconds of all steps."""
        return self._loaded()[0]

    def mean(self) -> dict[str, float]:
        """Of all steps."""
        return {stage: seconds / max(1, self._steps) for stage, seconds in self._whole().items()}

    def _whole(self) -> dict[str, float]:
        if self._events:
            self._events[-1][2].synchronize()
        while self._events:
            self._fold()
        waited, copied = self._loaded()
        return {**self._spent, "wait": waited, "copy": copied}

    def _fold(self) -> None:
        stage, start, end = self._events.pop(0)
        self._spent[stage] += start.elapsed_time(end) / 1000

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
