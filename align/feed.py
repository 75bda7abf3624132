"""A run's batches, stretch by stretch: mined negatives are renewed between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from torch import Tensor

from .batches import Batch, FeatureTable
from .distributed import Team
from .loader import Loader
from .mining import Miner
from .sampling import Sampler
from .scorer import Scorer


class Feed:
    """The batches of a run's steps, `accumulate` of them a step. A context manager.

    No batch is drawn ahead of a mining that it depends on, so the loader ends where the next one is due. Of several
    processes the first mines; each has its share of a batch's images (`Loader`).
    """

    def __init__(
        self,
        sampler: Sampler,
        features: FeatureTable,
        team: Team,
        accumulate: int,
        scorer: Scorer,
        miner: Miner | None,
    ) -> None:
        self.sampler, self.features, self.team = sampler, features, team
        self.accumulate, self.scorer, self.miner = accumulate, scorer, miner
        self._loader: Loader | None = None
        self._end, self._loaded = 0, (0.0, 0.0)

    def batches(self, step: int, last: int) -> Iterator[Batch]:
        """Those of one step of a run that ends before `last`; steps are asked for in order."""
        if self._loader is None or step >= self._end:
            self._loader = self._begin(step, last)
        for number in range(self.accumulate):
            loader, wanted = self._loader, step * self.accumulate + number
            yield self.team.agreed(lambda: loader(wanted))  # noqa: B023 - called at once

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of it."""
        return {} if self.miner is None else self.miner.state()

    def loaded(self) -> tuple[float, float]:
        """Seconds that steps waited for data (mining is not among them), and of issuing copies to a CUDA device."""
        waited, copied = self._loaded
        loader = self._loader
        return self._loaded if loader is None else (waited + loader.waited, copied + loader.copied)

    def _begin(self, step: int, last: int) -> Loader:
        self._close()
        self._end = last
        if self.miner is not None:
            self._mine(self.miner, step)
            self.sampler.candidates = self.miner.candidates
            self._end = min(last, self.miner.next_refresh(step, self.scorer) or last)
        span = step * self.accumulate, self._end * self.accumulate
        team = self.team
        loader = Loader(self.sampler, self.features, team.fabric.device, *span, rank=team.rank, world=team.world)
        return loader.__enter__()

    def _mine(self, miner: Miner, step: int) -> None:
        found = self.team.led(lambda: miner.state() if miner.refresh(step, self.scorer) else None)
        if found is not None and not self.team.lead:
            miner.restore(found)

    def _close(self) -> None:
        if self._loader is not None:
            self._loader.__exit__(None, None, None)
            self._loaded, self._loader = self.loaded(), None

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
