"""Units of one plan among several processes: what is done, what is claimed, and a worker's share of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from .claims import Claims
from .job import Job
from .patience import Patience, passing_write
from .plan import Unit
from .plan_file import UnitEntry
from .work import Done, Tick, Worker

# Seconds between looks at what others do: from the first, doubling, to the longest.
FIRST_LOOK, LONGEST_LOOK = 0.1, 5.0


class Named(Protocol):
    """A unit by its name, with or without its items."""

    @property
    def name(self) -> str:
        """Of its largest part."""


class Progress:
    """Which units of a job are done, by the done files of their parts: the store is the only record.

    A part that is done stays done while the job runs, so each is looked for until it was found once.
    """

    def __init__(self, job: Job, parts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """`parts` are the names of the parts by unit and level."""
        places = {spec.level: folder / "done" for spec, folder in zip(job.specs, job.folders, strict=True)}
        self._lacking = {
            unit: [places[level] / f"{name}.json" for level, names in own.items() for name in names]
            for unit, own in parts.items()
        }

    @classmethod
    def of_units(cls, job: Job, units: Sequence[Unit]) -> Progress:
        """From units with their items."""
        return cls(
            job, {unit.name: {level: [p.name for p in own] for level, own in unit.parts.items()} for unit in units}
        )

    @classmethod
    def of_entries(cls, job: Job, entries: Mapping[str, UnitEntry]) -> Progress:
        """From the index of a plan file."""
        return cls(
            job,
            {
                entry.name: {level: [name for name, _ in own] for level, own in entry.parts.items()}
                for entry in entries.values()
            },
        )

    def done(self, unit: str) -> bool:
        """Whether every part of the unit is complete on disk."""
        lacking = self._lacking.get(unit)
        while lacking:
            if not lacking[-1].exists():
                return False
            lacking.pop()
        self._lacking.pop(unit, None)
        return True

    def left(self) -> list[str]:
        """The units that are not done, in the order of the plan."""
        return [unit for unit in list(self._lacking) if not self.done(unit)]


class Share:
    """What one process does of a plan: its own units first, then those that nobody has done or claimed.

    order  names of the units in the order in which this process looks at them
    load   a unit by its name
    """

    def __init__(self, job: Job, progress: Progress, order: Sequence[str], load: Callable[[str], Unit]) -> None:
        self.progress, self.order, self.load = progress, order, load
        self.patience = Patience(job.config.patience)
        self.claims = Claims(job.folders[0])

    def run(
        self,
        worker: Worker,
        report: Callable[[Done], None],
        tick: Tick | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Work until every unit is done, by whomever, or `stop` says so. Raises what the worker raises.

        A unit that another holds is waited for: it is done one day, or its claim becomes free or stale.
        """

        def reported(done: Done) -> None:
            self.claims.release(done.unit)
            report(done)

        pause = FIRST_LOOK
        with self.claims:
            while not stop():
                before = len(self.progress.left())
                worker.run(self._free(stop), reported, tick)
                left = len(self.progress.left())
                if not left:
                    break
                pause = FIRST_LOOK if left < before else min(2 * pause, LONGEST_LOOK)
                time.sleep(pause)
            self.claims.collect()

    def _free(self, stop: Callable[[], bool]) -> Iterator[Unit]:
        """Claimed one by one as the worker asks, which is one ahead of what it computes."""
        for name in self.order:
            if stop():
                return
            if self.progress.done(name) or not self._take(name):
                continue
            if self.progress.done(name):  # by whoever held it until now
                self.claims.release(name)
                continue
            yield self.load(name)

    def _take(self, name: str) -> bool:
        return self.patience.through(lambda: self.claims.take(name), passing_write, f"claim unit {name}")
