"""The training loop: a scorer from a configuration, a store and two pairs tables."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..errors import SpecMismatch, UsageError
from ..stores import space
from ..stores.spec import FeatureSpec
from . import runs
from .batches import Features, FeatureTable, open_table
from .checkpoint import load_scorer
from .clock import Clock
from .compiled import compile_modules, compiling
from .distributed import Team, open_team
from .feed import Feed
from .mining import Miner
from .pairs import PairTable
from .recipe import FitConfig, load_recipe
from .record import Checkpoints, Progress, Record, State, checkpoint_bytes
from .sampling import Sampler
from .scorer import Dims, Scorer, build_head
from .step import Step, adamw
from .training import Training
from .validate import Validation

LOG = logging.getLogger("compal")
__all__ = ["FitConfig", "Progress", "RunResult", "fit", "load_recipe"]


@dataclass(frozen=True, repr=False)
class RunResult:
    """checkpoint  the best scorer by validation, or the last one where there is nothing to validate on
    metric      "group", "pairs" or "recall" (see `validate`), "" without validation
    score       its best value in percent, at `best_step`
    steps       optimiser steps taken; `stopped` = "patience" if the run ended before its time
    parameters  trainable parameters of the head
    resident    whether the features were held in memory
    waited      seconds that steps waited for data, since the run was begun or resumed
    step_time   where the time of a step went in the mean since then, seconds: see `Clock`; of the first process
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
    step_time: dict[str, float]

    def __repr__(self) -> str:
        best = "" if self.score is None else f", best validation {self.metric} {self.score:.1f} % at {self.best_step:,}"
        return f"<Run {self.run_dir.name}: {self.parameters:,} parameters, {self.steps:,} steps{best}>"


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
    devices: int = 1,
    nodes: int = 1,
    towers: Callable[[str], Any] | None = None,
    log: Sequence[str] = (),
) -> RunResult:
    """Fit a head and return where its best checkpoint lies.

    A run is a function of (config, features, pairs tables): on one machine it gives the same losses again,
    and a run that was stopped and resumed gives those of an undisturbed one. A checkpoint is written after
    every validation. The caller's random generators are left as they were.

    devices, nodes  processes a machine and machines; a torchrun decides itself. The command line is started again for
                    each further process, so a script must come to this call in all of them. They share the images of
                    every batch, and the losses are those of one process but for rounding and dropout. The store and
                    `run_dir` are on disks that all see; the first process writes and calls `progress`, and all return
                    its result.

    towers  opens the towers above the store's cut on a device, for a head that tunes them
    log     loggers beside metrics.jsonl and TensorBoard: "wandb"

    At Ctrl-C the step is finished and saved, and KeyboardInterrupt raised: `resume` goes on there.

    Raises `UsageError` for a head with nothing to fit, `InputError` if the folder holds a run and `resume`
    is not asked for, if the loss is no longer finite, if the device is not there, if there is no compiler for
    `compile`, or if another process of the run has ended, `MissingFeatures`.
    """
    config, run_dir = config.complete(), Path(run_dir)
    team = open_team(device, config.precision, devices, nodes)
    fabric, optim = team.fabric, config.optim
    with (
        team,
        torch.random.fork_rng(devices=team.cuda),
        _deterministic(config.deterministic),
        compiling(config.compile),
    ):
        resuming = team.led(lambda: runs.claim(run_dir, config, store.spec, resume))
        torch.manual_seed(config.seed)
        model = team.agreed(lambda: Training(_head(config, store, team, towers), config.loss, team, config.ema))
        if config.compile:
            team.agreed(lambda: compile_modules([model.scorer, model.teacher], fabric.device))
        team.led(lambda: space.check(run_dir, checkpoint_bytes(model), "the run's checkpoints"))
        work = team.agreed(lambda: _open(config, store, train_pairs_path, val_pairs_path, team, model.scorer))
        optimizer = adamw(model, optim)
        _, stepper = fabric.setup(model, optimizer)
        LOG.info("%s pairs to fit on, features on %s", len(work.tables["train"]), work.features.resident)
        feed = Feed(work.sampler, work.features, team, optim.accumulate, model.scorer, work.miner)
        saved = Checkpoints(run_dir / "checkpoints", model, optimizer, store.spec, feed)
        state = team.agreed(saved.load) if resuming else State()
        team.align(model)
        if not resuming:
            facts = {"device": device, "parameters": _parameters(model)}
            facts |= {"processes": team.world} if team.several else {}
            team.led(lambda: _describe(run_dir, config, store.spec, work, facts))

        last = state.step if state.exhausted(config.validation.patience) else optim.steps
        clock = Clock(fabric.device, feed.loaded)
        take = Step(team, model, optimizer, stepper, optim, clock)
        written = runs.Log(run_dir, state.step, config, log) if team.lead else None
        with Record(written, config, state, saved, work.validation, progress) as record, feed:
            for step in range(state.step, last):
                team.seed(config.seed, step)
                loss, rate = take(feed.batches(step, last), step)
                state.step = step + 1
                if team.decided(lambda: record(loss, rate, take.line)):  # noqa: B023 - called at once
                    break
            if team.decided(lambda: record.stopped):
                raise KeyboardInterrupt
        return RunResult(**team.led(lambda: vars(_finish(run_dir, config, state, model, work, clock))))


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


def _head(config: FitConfig, store: Features, team: Team, towers: Callable[[str], Any] | None) -> Scorer:
    options = dict(config.head)
    name = options.pop("name")
    opened = None if towers is None else partial(towers, str(team.fabric.device))
    scorer = build_head(name, options, Dims.of(store.spec), opened)
    if not scorer.trainable:
        raise UsageError(f"head '{name}' has nothing to fit", f"Evaluate it as it is: --head {name}")
    if not config.init:
        return scorer
    start = load_scorer(Path(config.init), store.spec, towers=opened)
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
    team: Team,
    scorer: Scorer,
) -> Work:
    columns = [stage.column for stage in config.data.curriculum] + ["category"] * bool(config.data.turns)
    tables = {"train": PairTable.read(Path(train), store, columns, phrases=config.data.phrases != 0)}
    if validation is not None and team.lead:
        tables["validation"] = PairTable.read(Path(validation), store)
    budget, device = int(config.data.resident_gib * 2**30) // team.here, team.fabric.device
    features = {}
    for name, table in tables.items():
        images, captions = table.image_keys, table.caption_keys
        features[name] = open_table(store, images, captions, device, scorer.needs, config.data.resident, budget)
    check = getattr(registry.load("losses", config.loss["name"]), "check", None)
    if check is not None:  # a loss may refuse a table from which it would learn nothing
        check(tables["train"])
    parts = store.parts_of("image", tables["train"].image_keys) if config.data.shuffle_window else None
    sampler = Sampler(tables["train"], config.data, config.optim.steps * config.optim.accumulate, config.seed, parts)
    mined = config.data.mined
    miner = Miner(tables["train"], features["train"], mined, config.seed) if mined.k else None
    judge = None
    if "validation" in tables:
        judge = Validation(tables["validation"], features["validation"], config.validation.limit)
    return Work(tables, sampler, features["train"], judge, miner)


def _describe(run_dir: Path, config: FitConfig, spec: FeatureSpec, work: Work, facts: dict[str, Any]) -> None:
    runs.describe(run_dir, config, {**runs.provenance(config, spec, work.tables), **facts})


def _parameters(model: Training) -> int:
    return sum(parameter.numel() for parameter in model.scorer.parameters() if parameter.requires_grad)


def _finish(run_dir: Path, config: FitConfig, state: State, model: Training, work: Work, clock: Clock) -> RunResult:
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
        waited=clock.waited,
        step_time=clock.mean(),
    )
    places = {"run_dir": run_dir.name, "checkpoint": "checkpoints/best.safetensors"}
    runs.write_json(run_dir / "result.json", dataclasses.asdict(result) | places)
    return result
