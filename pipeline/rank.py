"""One rank: its share of a plan file on its device, then what other ranks have left.

python -m compal.pipeline.rank PLAN DRIVER_PID     started by torch.distributed.run, see `engines/torchrun.py`
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CompalError
from . import mailbox
from .claims import alive, started
from .job import Job
from .mailbox import Postbox
from .plan_file import INDEX, ITEMS, PlanFile
from .sharing import Progress, Share
from .work import Worker, cores

CUDA, AUTO = "cuda", "auto"
DECODERS = 32  # threads that decode for a GPU, at most


@dataclass(frozen=True)
class Rank:
    """Which of the processes of a torchrun or srun this is; the fields are its environment's."""

    rank: int
    world: int
    local: int
    local_world: int

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Rank | None:
        """None outside of torchrun and srun, where RANK, WORLD_SIZE and LOCAL_RANK are not set."""
        try:
            rank, world, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        except (KeyError, ValueError):
            return None
        return cls(rank, world, local, int(environment.get("LOCAL_WORLD_SIZE", world)))

    def device(self, asked: str) -> str:
        """For "cuda", and for "auto" where there are GPUs, cuda:LOCAL_RANK; else what was asked for, and "cpu" for
        "auto". Ranks on a CPU share its cores."""
        import torch

        if asked in (CUDA, AUTO) and torch.cuda.is_available():
            return f"{CUDA}:{self.local % torch.cuda.device_count()}"
        if asked.startswith(CUDA):
            return asked
        torch.set_num_threads(self.cores)
        return "cpu" if asked == AUTO else asked

    @property
    def cores(self) -> int:
        """This rank's share of what its machine's ranks may use. srun may have bound it to its share already."""
        own, whole = cores(), os.cpu_count() or 1
        return own if own <= whole // self.local_world else max(1, own // self.local_world)

    def order(self, names: list[str]) -> list[str]:
        """The units in the order in which this rank looks at them: every world-th first, then the others', from
        its own on, so that ranks that are done early do not all go for the same."""
        own = [name for number, name in enumerate(names) if number % self.world == self.rank]
        others = [
            name for k in range(1, self.world) for name in names[(self.rank + k) % self.world :: self.world][::-1]
        ]
        return own + others


def sharing_cores(job: Job, count: int) -> Job:
    """The job for one of several workers of a machine: it decodes on so many cores."""
    workers = job.config.workers or max(1, min(DECODERS, count))
    return dataclasses.replace(job, config=dataclasses.replace(job.config, workers=workers))


def take_part(folder: Path, rank: Rank, leading: Callable[[], bool] = lambda: False) -> None:
    """Work on the plan in `folder` until it is done, or somebody says that it cannot be.

    `leading` is asked at every unit whether to stop. A `CompalError` is told to the leader, and raised; a plan that
    is gone is finished.
    """
    post = Postbox(folder, str(rank.rank))
    try:
        plan = PlanFile.open(folder)
        device = rank.device(plan.job.config.device)
        job = sharing_cores(plan.job, rank.cores) if device.startswith(CUDA) else plan.job
        worker = Worker(job, device=device)
        progress = Progress.of_entries(plan.job, plan.entries)
        share = Share(plan.job, progress, rank.order(list(plan.entries)), plan.unit)
        share.run(worker, post.done, post.tick, stop=lambda: mailbox.stopped(folder) or leading())
    except CompalError as error:
        if gone(folder):
            return
        post.error(error)
        raise


def gone(folder: Path) -> bool:
    """Whether whoever led the plan has taken it away: it is done, or that process says why not."""
    return not all((folder / name).is_file() for name in (INDEX, ITEMS))


def main(arguments: list[str]) -> int:
    """The exit code is 0 too if another rank has met an error: that one tells it."""
    folder, driver = Path(arguments[0]), int(arguments[1])
    rank, born = Rank.here(), started(driver)
    assert rank is not None, "torch.distributed.run sets RANK, WORLD_SIZE and LOCAL_RANK"
    try:
        # Ranks are sessions of their own: nobody else ends them if the driver was killed.
        take_part(folder, rank, lambda: not alive(driver, born))
    except CompalError as error:
        print(f"compal: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
