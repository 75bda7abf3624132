"""The training loop: a scorer from a configuration, a store and two pairs tables."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .. import registry
from ..config import from_dict
from ..errors import InputError, SpecMismatch, UsageError
from ..stores.spec import FeatureSpec
from . import runs
from .batches import Batch, Features, FeatureTable, open_table
from .cached import backward
from .checkpoint import load_scorer, load_state, save_scorer, save_state
from .feed import Feed
from .mining import Miner
from .pairs import PairTable
from .recipe import FitConfig, OptimConfig, load_recipe
from .sampling import Sampler
from .scorer import Dims, Scorer, build_head
from .validate import Validation

__all__ = ["FitConfig", "Progress", "RunResult", "fit", "load_recipe"]


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


@dataclass(frozen=True)
class RunResult:
    """checkpoint  the best scorer by validation, or the last one where there is nothing to validate on
    metric      "group", "pairs" or "recall" (see `validate`), "" without validation
    score       its best value in percent, at `best_step`
    steps       optimiser steps taken; `stopped` = "patience" if the run ended before its time
    parameters  trainable parameters of the head
    resident    whether the features were held in memory
    waited      seconds that steps waited for data, since the run was begun or resumed
    """

    run_dir: Path
    checkpoint: Path
    metric: str
    score: float | None
    best_step: int
    steps: int
    stopped: str
    seconds: float
    parameters: int
    resident: bool
    waited: float


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


class Training(nn.Module):
    """Scorer and objective as one module from a batch to the loss, so that Fabric wraps both."""

    def __init__(self, scorer: Scorer, loss: dict[str, Any]) -> None:
        super().__init__()
        options = dict(loss)
        self.scorer = scorer
        self._module: ModuleType = registry.load("losses", options.pop("name"))
        self._config = from_dict(self._module.Config, options, "loss")
        make = getattr(self._module, "parameters", None)
        self.fitted = nn.ParameterDict(make(self._config) if make else {})

    def forward(self, batch: Batch) -> Tensor:
        """A scalar."""
        return self.objective(self.scorer(batch), batch)

    def objective(self, scores: Tensor, batch: Batch) -> Tensor:
        """The loss of given scores (I, C)."""
        fitted = (dict(self.fitted.items()),) if len(self.fitted) else ()
        loss: Tensor = self._module.loss(scores, batch, self._config, *fitted)
        return loss


@dataclass(frozen=True, eq=False)
class Work:
    """What a run reads: pairs tables by name ("train", "validation"), and what is made of them."""

    tables: dict[str, PairTable]
    sampler: Sampler
    features: FeatureTable
    validation: Validation | None
    miner: Miner | None


def fit(  # noqa: PLR0913 - one call is the whole stage
    config: FitConfig,
    store: Features,
    train_pairs_path: Path,
    val_pairs_path: Path | None,
    run_dir: Path,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    resume: bool = False,
) -> RunResult:
    """Fit a head and return where its best checkpoint lies.

    A run is a function of (config, features, pairs tables): on one machine it gives the same losses again,
    and a run that was stopped and resumed gives those of an undisturbed one. A checkpoint is written after
    every validation. The caller's random generators are left as they were.

    Raises `UsageError` for a head with nothing to fit, `InputError` if the folder holds a run and `resume`
    is not asked for, if the loss is no longer finite, or if the device is not there, `MissingFeatures`.
    """
    config, run_dir = config.complete(), Path(run_dir)
    fabric = _fabric(device, config.precision)
    resuming = runs.claim(run_dir, config, store.spec, resume)
    with torch.random.fork_rng(devices=_cuda(fabric)), _deterministic(config.deterministic):
        torch.manual_seed(config.seed)
        model = Training(_head(config, store), config.loss)
        work = _open(config, store, train_pairs_path, val_pairs_path, fabric.device, model.scorer)
        optimizer = _adamw(model, config.optim)
        wrapped, stepper = fabric.setup(model, optimizer)
        feed = Feed(work.sampler, work.features, fabric.device, config.optim.accumulate, model.scorer, work.miner)
        saved = Checkpoints(run_dir / "checkpoints", model, optimizer, store.spec, feed)
        state = saved.load() if resuming else State()
        if not resuming:
            facts = runs.provenance(config, store.spec, work.tables)
            runs.describe(run_dir, config, {**facts, "device": device, "parameters": _parameters(model)})

        started = time.monotonic() - state.seconds
        optim, check = config.optim, config.validation
        last = state.step if state.exhausted(check.patience) else optim.steps
        with runs.Log(run_dir, state.step) as log, feed:
            for step in range(state.step, last):
                rate = _set_rate(optimizer, optim.rate(step))
                loss = _gradients(fabric, wrapped, feed.batches(step, last), optim)
                norm = fabric.clip_gradients(
                    wrapped, stepper, max_norm=optim.clip or math.inf, error_if_nonfinite=False
                )
                _require_finite(loss, norm, step)
                stepper.step()
                stepper.zero_grad()

                state.step, state.seconds = step + 1, time.monotonic() - started
                measured: dict[str, float] = {}
                if state.step % config.log_every == 0:
                    log.write(state.step, loss=loss.item(), rate=rate, seconds=round(state.seconds, 3))
                if state.step % check.every == 0 or state.step == optim.steps:
                    if work.validation is not None:
                        measured = work.validation.measure(model.scorer)
                        log.write(state.step, validation=measured)
                    saved.save(state, state.observe(next(iter(measured.values()), None)))
                elif config.checkpoint_every and state.step % config.checkpoint_every == 0:
                    saved.save_state(state)
                if progress is not None:
                    progress(Progress(state.step, optim.steps, loss.item(), rate, state.seconds, measured))
                if measured and state.exhausted(check.patience):
                    break
    return _finish(run_dir, config, state, model, work, feed.waited)


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
            save_scorer(self.folder / "best.safetensors", self.model.scorer, self.spec)
        save_scorer(self.folder / "last.safetensors", self.model.scorer, self.spec)
        self.save_state(state)

    def save_state(self, state: State) -> None:
        """What the run resumes from, alone."""
        facts = dataclasses.asdict(state)
        save_state(self.folder / "state.safetensors", self.model, self.optimizer, facts, self.feed.state())

    def load(self) -> State:
        """Weights, optimiser and random generators as they were saved."""
        facts, extra = load_state(self.folder / "state.safetensors", self.model, self.optimizer)
        if self.feed.miner is not None:
            self.feed.miner.restore(extra)
        return State(**facts)


def _gradients(fabric: Fabric, wrapped: Any, batches: Iterable[Batch], optim: OptimConfig) -> Tensor:
    """Add up the gradients of a step's batches; the mean loss, detached."""
    losses = []
    for batch in batches:
        if optim.chunk:
            losses.append(_in_two_passes(fabric, wrapped.module, batch, optim))
        else:
            loss = wrapped(batch)
            fabric.backward(loss / optim.accumulate)
            losses.append(loss.detach())
    return torch.stack(losses).mean()


def _in_two_passes(fabric: Fabric, model: Training, batch: Batch, optim: OptimConfig) -> Tensor:
    def score(part: Batch) -> Tensor:
        with fabric.autocast():
            scores: Tensor = model.scorer(part)
            return scores

    loss = backward(score, batch, lambda scores: model.objective(scores, batch) / optim.accumulate, optim.chunk)
    return loss * optim.accumulate


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Operators that give the same bits each time, where it is asked for; then as it was. On CUDA, cuBLAS also
    needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment, and says so."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _fabric(device: str, precision: Literal["32-true", "bf16-mixed"]) -> Fabric:
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UsageError(f"no device '{device}'", "Examples: cpu, cuda, cuda:1, mps.") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted.type):
        raise InputError(f"this machine has no device '{device}' that torch can use", "Use --device cpu.")
    devices = 1 if wanted.index is None or wanted.type != "cuda" else [wanted.index]
    return Fabric(accelerator=wanted.type, devices=devices, precision=precision)


def _cuda(fabric: Fabric) -> list[int]:
    return list(range(torch.cuda.device_count())) if fabric.device.type == "cuda" else []


def _head(config: FitConfig, store: Features) -> Scorer:
    options = dict(config.head)
    name = options.pop("name")
    scorer = build_head(name, options, Dims.of(store.spec))
    if not scorer.trainable:
        raise UsageError(f"head '{name}' has nothing to fit", f"Evaluate it as it is: --head {name}")
    if not config.init:
        return scorer
    start = load_scorer(Path(config.init), store.spec)
    if (start.head, start.config) != (scorer.head, scorer.config):
        raise SpecMismatch(
            f"init = {config.init} is a '{start.head}' with other settings than this run's",
            "Start from a checkpoint of the same [head] table, or leave init out.",
        )
    return start.train()


def _open(
    config: FitConfig,
    store: Features,
    train: Path,
    validation: Path | None,
    device: torch.device,
    scorer: Scorer,
) -> Work:
    columns = [stage.column for stage in config.data.curriculum]
    tables = {"train": PairTable.read(Path(train), store, columns)}
    if validation is not None:
        tables["validation"] = PairTable.read(Path(validation), store)
    budget = int(config.data.resident_gib * 2**30)
    features = {}
    for name, table in tables.items():
        images, captions = table.image_keys, table.caption_keys
        features[name] = open_table(store, images, captions, device, scorer.needs, config.data.resident, budget)
    parts = store.parts_of("image", tables["train"].image_keys) if config.data.shuffle_window else None
    sampler = Sampler(tables["train"], config.data, config.optim.steps * config.optim.accumulate, config.seed, parts)
    mined = config.data.mined
    miner = Miner(tables["train"], features["train"], mined, config.seed) if mined.k else None
    judge = None
    if validation is not None:
        judge = Validation(tables["validation"], features["validation"], config.validation.limit)
    return Work(tables, sampler, features["train"], judge, miner)


def _adamw(model: Training, optim: OptimConfig) -> torch.optim.AdamW:
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


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _require_finite(loss: Tensor, norm: Tensor | None, step: int) -> None:
    if not math.isfinite(loss.item()) or (norm is not None and not math.isfinite(norm.item())):
        raise InputError(
            f"the loss is {loss.item():.4g} at step {step + 1} and its gradient is no longer finite",
            "Lower optim.lr or raise optim.warmup; --resume goes on from the last checkpoint.",
        )


def _parameters(model: Training) -> int:
    return sum(parameter.numel() for parameter in model.scorer.parameters() if parameter.requires_grad)


def _finish(run_dir: Path, config: FitConfig, state: State, model: Training, work: Work, waited: float) -> RunResult:
    result = RunResult(
        run_dir=run_dir,
        checkpoint=run_dir / "checkpoints" / "best.safetensors",
        metric=work.validation.metric if work.validation else "",
        score=state.best,
        best_step=state.best_step,
        steps=state.step,
        stopped="steps" if state.step == config.optim.steps else "patience",
        seconds=state.seconds,
        parameters=_parameters(model),
        resident=work.features.resident != "disk",
        waited=waited,
    )
    places = {"run_dir": run_dir.name, "checkpoint": "checkpoints/best.safetensors"}
    runs.write_json(run_dir / "result.json", dataclasses.asdict(result) | places)
    return result
