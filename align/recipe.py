"""A complete training run as a value: head, objective, optimiser, data, validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .. import registry
from ..config import apply_settings, from_dict
from ..errors import UsageError
from . import setups
from .ema import EmaConfig
from .sampling import DataConfig
from .scorer import tunes_towers

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    steps         optimiser steps of the run
    lr            the highest learning rate
    weight_decay  on matrices; never on biases, norms and scales
    betas, eps    of Adam
    schedule      "one-cycle": half a cosine up from lr / 25 in `warmup`, half a cosine down to 0 (as in
                  PyTorch's, betas left alone); "cosine": straight up, half a cosine down; "constant" after it
    warmup        share of the steps
    clip          the largest gradient norm, 0 = unbounded
    accumulate    batches whose gradients are averaged in a step; each batch has its own negatives
    chunk         images, and captions, computed at a time, 0 = all of a batch: the same gradients from two passes, so
                  that memory depends on the chunk and not on the batch (see `cached`). A head without a vector a
                  side scores a chunk of images with all captions
    """

    steps: int = 2000
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.1
    clip: float = 1.0
    accumulate: int = 1
    chunk: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0: a pure function, so resuming needs no state."""
        rising = self.warmup * self.steps
        if step < rising:
            share = (step + 1) / max(rising, 1)
            if self.schedule == "one-cycle":
                return self.lr * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * min(share, 1))) / 2)
            return self.lr * min(share, 1)
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * (step - rising) / max(self.steps - rising, 1))) / 2


@dataclass(frozen=True)
class ValidationConfig:
    """every     steps between validations, each of which also saves a checkpoint
    patience  validations without a better score after which the run stops; 0 = never
    limit     the most swap groups (or pairs, where there are no groups) that are scored
    """

    every: int = 200
    patience: int = 0
    limit: int = 500


@dataclass(frozen=True)
class FitConfig:
    """head, loss  "name" and the options of that part
    ema         a teacher that follows the head: see `EmaConfig`
    level       of the store that is fitted on, where the ladder is cut: tokens, pooled, block:-K, pixels
    init        checkpoint of the same head on the same features to start from, "" = at random
    precision   "32-true"; or products in half precision, with parameters, scores and loss in float32: "bf16-mixed", or
                "16-mixed", float16 with a loss that is scaled so that small gradients do not vanish
    log_every   steps between lines of metrics.jsonl
    checkpoint_every  steps between checkpoints beside those of the validations, 0 = none
    deterministic     only operators that give the same bits each time; one that cannot ends the run
    compile     run the head's modules through torch.compile: the same losses but for rounding
    """

    head: dict[str, Any]
    loss: dict[str, Any] = field(default_factory=lambda: {"name": "infonce"})
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    level: str = "tokens"
    init: str = ""
    seed: int = 0
    precision: Precision = "32-true"
    log_every: int = 10
    checkpoint_every: int = 0
    deterministic: bool = False
    compile: bool = False

    def complete(self) -> FitConfig:
        """With every option of head and loss written out. Raises `UnknownName`, `UsageError`."""
        config = dataclasses.replace(self, head=_completed("heads", self.head), loss=_completed("losses", self.loss))
        if config.optim.steps < 1 or config.validation.every < 1 or config.log_every < 1:
            raise UsageError("optim.steps, validation.every and log_every must be at least 1")
        if config.optim.accumulate < 1 or config.optim.chunk < 0 or config.checkpoint_every < 0:
            raise UsageError("optim.accumulate must be at least 1, optim.chunk and checkpoint_every at least 0")
        if config.compile and tunes_towers(config.head["name"]):
            raise UsageError("towers are not compiled while they are tuned", "Set compile = false.")
        if not 0 <= config.optim.warmup <= 1:
            raise UsageError(f"optim.warmup = {config.optim.warmup} is no share of the steps", "Give 0 to 1.")
        name = config.loss["name"]
        config.ema.check(getattr(registry.load("losses", name), "TEACHER", False), name)
        return config


def _completed(kind: str, table: dict[str, Any]) -> dict[str, Any]:
    singular = registry.KINDS[kind].singular
    options = dict(table)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"[{singular}] has no name", f'Example: name = "{registry.names(kind)[0]}"')
    module = registry.load(kind, name)
    return {"name": name, **dataclasses.asdict(from_dict(module.Config, options, singular))}


def load_recipe(name: str, settings: Sequence[str] = ()) -> FitConfig:
    """A recipe or a set-up by name, or by the path of a TOML file, with `a.b=value` settings on top; complete.

    Raises `UnknownName` for a recipe, a setting, a head or a loss that does not exist, `UsageError` for a
    value that does not fit, `InputError` for a file that cannot be parsed.
    """
    return from_dict(FitConfig, apply_settings(setups.read(name).settings, list(settings))).complete()
