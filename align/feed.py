"""A run's batches, stretch by stretch: mined negatives are renewed between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import torch
from torch import Tensor

from .batches import Batch, FeatureTable
from .loader import Loader
from .mining import Miner
from .sampling import Sampler
from .scorer import Scorer


class Feed:
    """The batches of a run's steps, `accumulate` of them a step. A context manager.

    No batch is drawn ahead of a mining that it depends on, so the loader ends where the next one is due.

    waited  seconds that steps waited for data; mining is not among them
    """

    def __init__(
        self,
        sampler: Sampler,
        features: FeatureTable,
        device: torch.device,
        accumulate: int,
        scorer: Scorer,
        miner: Miner | None,
    ) -> None:
        self.sampler, self.features, self.device = sampler, features, device
        self.accumulate, self.scorer, self.miner = accumulate, scorer, miner
        self._loader: Loader | None = None
        self._end, self._waited = 0, 0.0

    def batches(self, step: int, last: int) -> Iterator[Batch]:
        """Those of one step of a run that ends before `last`; steps are asked for in order."""
        if self._loader is None or step >= self._end:
            self._loader = self._begin(step, last)
        for number in range(self.accumulate):
            yield self._loader(step * self.accumulate + number)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of it."""
        return {} if self.miner is None else self.miner.state()

    @property
    def waited(self) -> float:
        return self._waited + (self._loader.waited if self._loader is not None else 0.0)

    def _begin(self, step: int, last: int) -> Loader:
        self._close()
        self._end = last
        if self.miner is not None:
            self.miner.refresh(step, self.scorer)
            self.sampler.candidates = self.miner.candidates
            self._end = min(last, self.miner.next_refresh(step, self.scorer) or last)
        span = step * self.accumulate, self._end * self.accumulate
        return Loader(self.sampler, self.features, self.device, *span).__enter__()

    def _close(self) -> None:
        if self._loader is not None:
            self._loader.__exit__(None, None, None)
            self._waited, self._loader = self.waited, None

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
