"""The batches of a run, made ahead by a thread: drawing, reads, padding and casts run beside the training step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .batches import Batch, FeatureTable
from .sampling import Sampler
from .tables import Staging

AHEAD = 2  # batches that are ready or under way while one is used; more would only take memory


def share(count: int, rank: int, world: int) -> slice:
    """The rows of `count` that process `rank` of `world` takes: contiguous, sizes that differ by one at most, the
    larger ones first, as `numpy.array_split` cuts. Possibly none."""
    size, larger = divmod(count, world)
    start = rank * size + min(rank, larger)
    return slice(start, start + size + (rank < larger))


class Loader:
    """The batches of steps `first` to `last` (not included), asked for in order, on `device`. A context manager:
    leaving it stops the thread, also after an error or Ctrl-C.

    With `world` > 1 every process draws the same batch, and loads all its captions and its own share of the images
    (`share`, `Batch.rows`).

    waited  seconds that the caller has waited for data
    copied  seconds spent issuing copies to a CUDA device, on a stream of their own; 0 on others
    """

    def __init__(
        self,
        sampler: Sampler,
        features: FeatureTable,
        device: torch.device,
        first: int,
        last: int,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise UsageError(f"process {rank} of {world}", "Ranks go from 0 to world - 1.")
        self.sampler, self.features, self.device = sampler, features, torch.device(device)
        self.waited = 0.0
        self._step, self._last, self._rank, self._world = first, last, rank, world
        self._cuda = self.device.type == "cuda"
        self._ready: SimpleQueue[Made | BaseException] = SimpleQueue()
        self._free, self._stopped = Semaphore(AHEAD), Event()
        self._thread: Thread | None = None
        # A pinned buffer is refilled when the copies out of it are done: with two, reads and copies overlap.
        self._ring = [Staging(pinned=self._cuda) for _ in range(2 if self._cuda else 1)]

    @property
    def copied(self) -> float:
        """See above."""
        return sum(staging.copied for staging in self._ring)

    def __enter__(self) -> Loader:
        self._thread = Thread(target=self._work, name="compal-loader", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._free.release()
        if self._thread is not None:
            self._thread.join()

    def __call__(self, step: int) -> Batch:
        """The batch of `step`. Raises what the thread ran into, `UsageError` for a step out of turn."""
        if step != self._step or step >= self._last or self._thread is None or self._stopped.is_set():
            raise UsageError(f"step {step} asked for out of turn", "Ask in order, inside `with Loader(...)`.")
        started = time.perf_counter()
        made = self._ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(made, BaseException):
            self._stopped.set()
            raise made
        self._step += 1
        self._free.release()
        if made.copied is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(made.copied)
            for tensor in _tensors(made.batch):
                tensor.record_stream(now)  # made on another stream: its memory is not free before this one is done
        return made.batch

    # --- in the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        ring = self._ring
        events: list[Any] = [None] * len(ring)
        try:
            with self._copying() as stream:
                for number, step in enumerate(range(self._step, self._last)):
                    self._free.acquire()
                    if self._stopped.is_set():
                        break
                    slot = number % len(ring)
                    if events[slot] is not None:
                        events[slot].synchronize()
                    batch = self._made(step, ring[slot])
                    if stream is not None:
                        events[slot] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                        events[slot].record(stream)
                    self._ready.put(Made(batch, events[slot]))
        except BaseException as error:
            self._ready.put(error)
        finally:
            for event, staging in zip(events, ring, strict=True):
                if event is not None:
                    event.synchronize()
                staging.close()

    def _made(self, step: int, staging: Staging) -> Batch:
        draw = self.sampler.draw(step)
        rows = share(len(draw.images), self._rank, self._world) if self._world > 1 else None
        return draw.batch(self.features, rows, self.device, staging)

    @contextlib.contextmanager
    def _copying(self) -> Any:
        if not self._cuda:
            yield None
            return
        beside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device), torch.cuda.stream(beside):
            yield torch.cuda.current_stream(self.device)


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A batch, and on CUDA the event after which it is there."""

    batch: Batch
    copied: Any


def _tensors(batch: Batch) -> list[Tensor]:
    values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return [value for value in values if isinstance(value, Tensor)]
