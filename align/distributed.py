"""Data parallel fitting: what the processes of a run do together, what the first one does alone.

Every process draws the same batch, holds all its captions and its share of the images (`loader.share`), and scores
those: a block of rows. The blocks are gathered into the (I, C) scores of the whole batch, on which every process
computes the same, whole loss. So negatives are those of the whole batch, and the loss is that of one process.

Gradients. The loss reaches the head of a process through its own rows only: the gradient of one process is the sum
over all. The loss's own parameters are behind the gathering: each process has their whole gradient, and the mean over
the processes is that. Both are reduced once a step, after the last batch of an accumulation, in one buffer. That
stands in for the hooks of `DistributedDataParallel`, which would reduce in every backward pass of the two-pass form
and would wait forever for a process whose share is empty.

The first process alone claims and writes the run's folder, validates and mines. What it finds is told to the others,
and so is an error: all raise it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from .. import errors
from ..errors import CompalError, InputError, UsageError
from . import messages, processes
from .batches import Batch
from .loader import share
from .recipe import Precision

PATIENCE = timedelta(hours=6)  # that the others wait while the first process validates or mines; a death is heard of

T = TypeVar("T")


class Processes(DDPStrategy):  # type: ignore[misc, unused-ignore]
    """Fabric's processes and their groups (gloo on CPUs, nccl on CUDA), with the module left as it is: see above."""

    def setup_module(self, module: nn.Module) -> Any:
        return module


class Team:
    """The processes of a run; of one process, everything here is what it would be without. A context manager:
    leaving it with an error lets the others know.

    rank, world  which process of how many       lead   whether it is the first
    here         processes on this machine       cuda   the CUDA devices whose random generators are used
    scaler       of a float16 loss, None in other precisions. Its gradients are reduced before it looks for what
                 overflowed, so that all processes leave out the same steps and have the same scale
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.lead, self.several = self.rank == 0, self.world > 1
        self.here = int(getattr(fabric.strategy, "num_processes", 1)) if self.several else 1
        self.scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
        # Words and decisions go over gloo also beside nccl: they must neither wait for a GPU nor time out like one.
        self._words: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if self.several else None

    @property
    def cuda(self) -> list[int]:
        device = self.fabric.device
        if device.type != "cuda":
            return []
        return [device.index or 0] if self.several else list(range(torch.cuda.device_count()))

    # --- words -----------------------------------------------------------------------------------------

    def agreed(self, do: Callable[[], T]) -> T:
        """`do()`, in every process. If it raises in one, all raise that."""
        if not self.several:
            return do()
        result, error = _tried(do)
        self._agree(error)
        return result  # type: ignore[return-value]

    def led(self, do: Callable[[], T]) -> T:
        """`do()` of the first process, whose result or error all have.

        The result is what `messages.pack` carries: None, bool, int, float, str, `Path`, tensors (on the host then), and
        lists, tuples and dicts of them. Anything else is a `TypeError`, in all.
        """
        if not self.several:
            return do()
        message, error = _tried(lambda: messages.pack(do())) if self.lead else (None, None)
        self._agree(error)
        told: T = self._told(message, 0)
        return told

    def decided(self, do: Callable[[], bool]) -> bool:
        """`led` for a yes or no, in one message."""
        if not self.several:
            return do()
        yes, error = _tried(do) if self.lead else (None, None)
        return self._agree(error, bool(yes))

    def _agree(self, error: Exception | None, yes: bool = False) -> bool:
        """Whether the first process says yes. Raises the error of the first process that has one."""
        flags = torch.tensor([self.world if error is None else self.rank, -int(yes and self.lead)])
        with _others():
            dist.all_reduce(flags, dist.ReduceOp.MIN, group=self._words)
        failed = int(flags[0])
        if failed < self.world:
            text = str(error) or type(error).__name__
            said = [type(error).__name__, text]
            name, told = self._told(messages.pack(said) if self.rank == failed else None, failed)
            if error is not None:
                raise error
            raise _relayed(name, told, failed, self)
        return bool(flags[1] < 0)

    def _told(self, message: messages.Message | None, rank: int) -> Any:
        with _others():
            return messages.broadcast(message, rank, self._words)

    # --- numbers ---------------------------------------------------------------------------------------

    def own(self, batch: Batch) -> Batch:
        """The rows whose images are here as a batch of its own, without groups; `batch` itself if all are."""
        if batch.rows is None:
            return batch
        here = batch.rows
        scored = None if batch.scored is None else batch.scored[here]
        groups, positives = batch.groups[:0], batch.positives[here]
        return dataclasses.replace(batch, positives=positives, groups=groups, scored=scored, rows=None)

    def gathered(self, block: Tensor, batch: Batch) -> Tensor:
        """The scores (I, C) of the whole batch, from those of the rows that are here (n, C) float32; n may be 0. The
        gradient of `block` is its rows of the gradient of the whole."""
        if batch.rows is None:
            return block
        whole: Tensor = _Gathered.apply(block, len(batch.positives), self.rank, self.world)  # type: ignore[no-untyped-call]
        return whole

    def most(self, count: int) -> int:
        """The largest `count` of all processes."""
        if not self.several:
            return count
        found = torch.tensor([count])
        with _others():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self._words)
        return int(found)

    def columns(self, block: Tensor) -> Tensor:
        """A tensor (C, …) of captions, which every process has whole, with the gradient of its share of them alone: as
        of `gathered`, the gradient of one process is then the sum over all."""
        if not self.several:
            return block
        own = share(len(block), self.rank, self.world)
        whole: Tensor = _Gathered.apply(block[own], len(block), self.rank, self.world)  # type: ignore[no-untyped-call]
        return whole

    def reduce(self, shared: Iterable[nn.Parameter], whole: Iterable[nn.Parameter]) -> None:
        """Make each gradient that of one process: the sum over the processes for `shared`, the mean for `whole`. One
        that no process has stays None, so that the optimiser passes it over."""
        if not self.several:
            return
        pairs = [(parameter, 1.0) for parameter in shared if parameter.requires_grad]
        pairs += [(parameter, 1.0 / self.world) for parameter in whole if parameter.requires_grad]
        for dtype in sorted({parameter.dtype for parameter, _ in pairs}, key=str):
            _reduce([pair for pair in pairs if pair[0].dtype == dtype])

    def align(self, module: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.several:
            with _others(), torch.no_grad():
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, 0)

    def seed(self, seed: int, step: int) -> None:
        """Of several processes, give each random numbers of its own for a step (dropout), a function of (seed, step,
        rank), so that a resumed run needs no state of theirs. One process goes on with what it has."""
        if self.several:
            mixed = np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(mixed) >> 1)

    def scale_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of the scale of the loss."""
        if self.scaler is None:
            return {}
        state = self.scaler.state_dict()
        return {
            "scaler.scale": torch.tensor(state["scale"], dtype=torch.float64),
            "scaler.steps": torch.tensor(state["_growth_tracker"]),  # since it last changed
        }

    def restore_scale(self, state: dict[str, Tensor]) -> None:
        """Take up what `scale_state` gave."""
        if self.scaler is not None:
            scale, steps = float(state["scaler.scale"]), int(state["scaler.steps"])
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": steps})

    # --- the end ---------------------------------------------------------------------------------------

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes.rest()
        if kind is None or not self.several or not dist.is_initialized():
            return
        if dist.get_backend() == "nccl":  # shutting it down in order would wait for the others
            dist.group.WORLD.abort()  # type: ignore[union-attr]
        self._words = None
        dist.destroy_process_group()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, block: Tensor, count: int, rank: int, world: int) -> Tensor:
        sizes = [len(range(count)[share(count, each, world)]) for each in range(world)]
        context.rows = share(count, rank, world)
        padded = block.new_zeros(max(sizes), *block.shape[1:])
        padded[: len(block)] = block
        parts = [torch.empty_like(padded) for _ in sizes]
        with _others():
            dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0][context.rows], None, None, None


def _reduce(pairs: list[tuple[nn.Parameter, float]]) -> None:
    """Sum gradients of one dtype over the processes, each times its factor. Behind them in the buffer stands for each
    whether a process has it."""
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad * factor
        for parameter, factor in pairs
    ]
    first = gradients[0]
    there = torch.tensor([parameter.grad is not None for parameter, _ in pairs], dtype=first.dtype)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [there.to(first.device)])
    with _others():
        dist.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients] + [len(pairs)])
    for (parameter, _), part, count in zip(pairs, parts, parts[-1].tolist(), strict=False):
        parameter.grad = part.view_as(parameter) if count else None


def open_team(device: str, precision: Precision, devices: int = 1, nodes: int = 1) -> Team:
    """The processes of a run: this one, or `devices` on each of `nodes` machines, or those of a torchrun.

    Raises `UsageError` for a device that cannot be, `InputError` for one that is not there or if the processes do not
    find each other; see `processes.start`.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UsageError(f"no device '{device}'", "Examples: cpu, cuda, cuda:1, mps.") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted.type):
        raise InputError(f"this machine has no device '{device}' that torch can use", "Use --device cpu.")
    devices, nodes = processes.asked(devices, nodes)
    if devices * nodes == 1:
        chosen = 1 if wanted.index is None or wanted.type != "cuda" else [wanted.index]
        return Team(Fabric(accelerator=wanted.type, devices=chosen, plugins=_precision(precision, wanted.type)))
    if wanted.index is not None or wanted.type == "mps":
        raise UsageError(f"{devices * nodes} processes on the one device '{device}'", "Use --device cuda or cpu.")
    if wanted.type == "cuda" and torch.cuda.device_count() < devices:
        raise InputError(f"{devices} devices where there are {torch.cuda.device_count()} GPUs", "Lower --devices.")
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # it announces every group in three lines
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=wanted.type,
        devices=devices,
        num_nodes=nodes,
        strategy=Processes(),
        plugins=_precision(precision, wanted.type),
    )
    processes.start(fabric.strategy.cluster_environment, devices, nodes)
    with _others("the processes of this run did not find each other"):
        fabric.launch()
    return Team(fabric)


def _precision(precision: Precision, device: str) -> list[Any]:
    """Fabric's plugin. By its name it would take float16 on a CPU for bfloat16."""
    return [] if precision == "32-true" else [MixedPrecision(precision, device=device)]


def _tried(do: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return do(), None
    except Exception as error:
        return None, error


def _relayed(name: str, text: str, rank: int, team: Team) -> CompalError:
    """The error of another process; the first process says it too, the others need not."""
    kind: Any = getattr(errors, name, None)
    known = isinstance(kind, type) and issubclass(kind, CompalError)
    said = text if known else f"{name}: {text}"
    error: CompalError = (kind if known else InputError)(f"process {rank + 1} of {team.world} has ended: {said}")
    error.relayed = not team.lead
    return error


@contextmanager
def _others(what: str = "another process of this run has ended") -> Iterator[None]:
    """torch.distributed raises RuntimeErrors, bare with gloo, when a process is gone."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[:1]
        raise InputError(
            f"{what} ({first[0][:120] if first else type(error).__name__})",
            "Its own message says why; --resume goes on from the last checkpoint.",
        ) from error
