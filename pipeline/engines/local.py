"""This process and its device. Several such runs on one store share the work, each unit claimed by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..job import Job
from ..plan import Unit
from ..sharing import Progress, Share
from ..work import Done, Tick, Worker


def run(job: Job, units: Sequence[Unit], report: Callable[[Done], None], tick: Tick | None = None) -> None:
    """Do `units`, and wait for those that another process is doing; returns when all are done.

    Raises what a worker raises; complete parts are kept.
    """
    by_name = {unit.name: unit for unit in units}
    share = Share(job, Progress.of_units(job, units), list(by_name), by_name.__getitem__)
    share.run(Worker(job), report, tick)
