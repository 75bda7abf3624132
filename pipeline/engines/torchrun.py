"""torch.distributed.run: a process per GPU of this machine, or the ranks of a torchrun or srun that is running.

Outside of one, the process that planned starts `python -m torch.distributed.run` and waits for it. Inside of one
(RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set) rank 0 plans and tells the others where the plan
lies; the store is on a file system that all see. Either way a rank does every N-th unit and then what is left, and
ranks say nothing to each other: a collective would make the living wait for the dead.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.files import staging
from ..job import Job
from ..mailbox import Mail
from ..plan import Unit
from ..plan_file import PlanFile, write
from ..rank import Rank, gone, take_part
from ..sharing import Progress
from ..work import Done, Tick, cores

RESTARTS = 3  # of all ranks, when one dies; what they were at is done again, at most a unit a rank
LOOK_SECONDS = 0.2
END_SECONDS = 60.0  # that agents and ranks have to end when they are told to
HEAR_SECONDS = 15.0  # that ranks have to hear the end: one may sleep for a third of it between two looks
FAILED = re.compile(r"exitcode: (-?\d+)\) local_rank: (\d+)")


def run(job: Job, units: Sequence[Unit], report: Callable[[Done], None], tick: Tick | None = None) -> None:
    """Do `units`; returns when all are done. The number of processes is `job.config.processes`, else that of the
    GPUs, else 1.

    Raises what a rank raises, and `InputError` naming the rank that died and its log if not all could be done.
    """
    with staging(job.folders[0], "plan") as folder:
        write(job, units, folder)
        mail = Mail(folder, report, tick)
        rank = Rank.here()
        if rank is None:
            _launch(job, folder, mail)
        else:
            _lead(job, folder, mail, rank)


# --- started from here -----------------------------------------------------------------------------------


def _launch(job: Job, folder: Path, mail: Mail) -> None:
    logs = Path(tempfile.mkdtemp(prefix="compal-torchrun-"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={_count(job)}",
        f"--max-restarts={RESTARTS}", "--monitor-interval=0.2", f"--log-dir={logs}", "--redirects=3",
        "-m", f"{__package__.rpartition('.')[0]}.rank", str(folder), str(os.getpid()),
    ]  # fmt: skip
    with open(logs / "agent.log", "wb") as log:
        agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(job))
        try:
            while agent.poll() is None and mail.error is None:
                mail.read()
                time.sleep(LOOK_SECONDS)
        finally:
            _end(agent)
    mail.read()
    if mail.error is None and (left := _progress(folder).left()):
        raise _death(logs, len(left))
    shutil.rmtree(logs, ignore_errors=True)
    if mail.error is not None:
        raise mail.error


def _count(job: Job) -> int:
    import torch

    return job.config.processes or (torch.cuda.device_count() if torch.cuda.is_available() else 0) or 1


def _environment(job: Job) -> dict[str, str]:
    threads = str(max(1, cores() // _count(job)))
    return {"OMP_NUM_THREADS": threads, **os.environ}


def _end(agent: subprocess.Popen[bytes]) -> None:
    """Ask the agent to end its ranks; it kills those that do not."""
    if agent.poll() is None:
        agent.terminate()
        try:
            agent.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            agent.kill()


def _death(logs: Path, left: int) -> InputError:
    """What to say when ranks died more often than they are started again."""
    text = (logs / "agent.log").read_text(encoding="utf-8", errors="replace")
    failures = FAILED.findall(text)
    if not failures:
        return InputError(f"torch.distributed.run failed with {left} units left; its log is {logs / 'agent.log'}")
    code, local = failures[-1]
    how = f"was killed by signal {-int(code)}" if int(code) < 0 else f"ended with exit code {code}"
    found = sorted(logs.glob(f"*/attempt_*/{local}/stderr.log"), key=lambda path: path.stat().st_mtime)
    log = found[-1] if found else logs / "agent.log"
    cure = "Run the command again: complete parts are kept."
    return InputError(
        f"rank {local} {how}, {RESTARTS + 1} times in all, with {left} units left; its log is {log}", cure
    )


def _progress(folder: Path) -> Progress:
    plan = PlanFile.open(folder)
    return Progress.of_entries(plan.job, plan.entries)


# --- inside a torchrun or srun ---------------------------------------------------------------------------


def _lead(job: Job, folder: Path, mail: Mail, rank: Rank) -> None:
    """Rank 0: tell the others, do a share, hear them."""
    if rank.world > 1:
        _Board.here().post(str(folder.resolve()))

    def hear() -> bool:
        mail.read()
        return mail.error is not None

    take_part(folder, rank, hear)
    mail.read()
    if mail.error is not None:
        raise mail.error


@contextlib.contextmanager
def ranks() -> Iterator[bool]:
    """Whether this process is to plan and commit. False for the ranks behind rank 0, which by then have done
    their share of every plan that it wrote. Raises what their worker raises."""
    rank = Rank.here()
    if rank is None or rank.world == 1:
        yield True
    elif rank.rank == 0:
        board = _Board.here()
        try:
            yield True
        finally:
            board.close(rank)
    else:
        board = _Board.here()
        while folder := board.next():
            while gone(Path(folder)) and not board.waits():  # a network share may show it late
                time.sleep(LOOK_SECONDS)
            take_part(Path(folder), rank)
        board.leave(rank)
        yield False


class _Board:
    """Where rank 0 posts the paths of its plans: the key-value server of torch.distributed's rendezvous, which
    runs in torchrun's agent, or in rank 0 under srun."""

    _only: _Board | None = None

    def __init__(self) -> None:
        from torch.distributed.rendezvous import rendezvous

        self._store: Any = next(iter(rendezvous("env://")))[0]
        self._count = 0

    @classmethod
    def here(cls) -> _Board:
        """The board of this process."""
        if cls._only is None:
            try:
                cls._only = cls()
            except (RuntimeError, ValueError) as error:
                reason = str(error).split("\n", 1)[0]
                cure = "Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun does."
                raise InputError(f"the ranks cannot meet: {reason}", cure) from None
        return cls._only

    def post(self, text: str) -> None:
        """Rank 0: the next message; "" is the last."""
        self._store.set(f"compal/{self._count}", text or "end")
        self._count += 1

    def waits(self) -> bool:
        """The others: whether the next message is there, or can no longer come."""
        try:
            return bool(self._store.check([f"compal/{self._count}"]))
        except RuntimeError:
            return True

    def next(self) -> str:
        """The others: wait for the next message, "" if there are no more. Raises `InputError` if rank 0 is gone
        before the first."""
        while not self.waits():
            time.sleep(LOOK_SECONDS)
        try:
            text = str(self._store.get(f"compal/{self._count}").decode())
        except RuntimeError:
            if self._count:  # its own exit code says how it went
                return ""
            what, cure = "rank 0 has ended without a word", "See its output; run again: complete parts are kept."
            raise InputError(what, cure) from None
        self._count += 1
        return "" if text == "end" else text

    def leave(self, rank: Rank) -> None:
        """The others: say that the last message has come. Under srun rank 0, and the server with it, may be gone."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"compal/left/{rank.rank}", "yes")

    def close(self, rank: Rank) -> None:
        """Rank 0: post the end, and wait a little for those who live to hear it; the dead never will."""
        until = time.monotonic() + HEAR_SECONDS
        others = [f"compal/left/{number}" for number in range(1, rank.world)]
        with contextlib.suppress(RuntimeError):
            self.post("")
            while not self._store.check(others) and time.monotonic() < until:
                time.sleep(LOOK_SECONDS / 4)
