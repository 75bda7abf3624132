"""How bytes are read: by memory map, by positioned reads or past the page cache, and which checksums are checked.

Measured on shuffled batches of 301 KB samples: a map copies at the speed of memory, positioned reads at
0.8–1.0 of it, and where the store exceeds the memory O_DIRECT with 8 threads reads as fast as the disk, which
buffered reads do not. A crc32c costs a warm read a quarter, so by default each is checked once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .buffers import PAGE, scratch

Mode = Literal["auto", "map", "pread", "direct"]
Check = Literal["first", "always", "sampled", "never"]
Rows = NDArray[np.int64]
Job = TypeVar("Job")
O_DIRECT: int = getattr(os, "O_DIRECT", 0)


@dataclass(frozen=True)
class Reading:
    """How bytes are read.

    mode     "map": copy out of a memory map, for a store that fits into memory; a disk that fails below a map
             ends the process (SIGBUS). "pread": positioned reads. "direct": O_DIRECT by several threads, past
             the page cache. "auto": see `resolve`
    check    when a sample's crc32c is checked: "first" (once per open array), "always", "sampled" (one read
             in `sample`, at random), "never"
    threads  how many reads "direct" keeps in flight
    sample   see `check`
    Raises `UsageError` for any other value.
    """

    mode: Mode = "auto"
    check: Check = "first"
    threads: int = 8
    sample: int = 64

    def __post_init__(self) -> None:
        for name, value, known in (("mode", self.mode, Mode), ("check", self.check, Check)):
            if value not in get_args(known):
                raise UsageError(f"no reading {name} {value!r}", f"Choose one of {', '.join(get_args(known))}.")
        if self.threads < 1 or self.sample < 1:
            raise UsageError("reading takes at least one thread and a sample of at least 1")

    def resolve(self, store_bytes: int, folder: Path) -> Reading:
        """This, with "auto" decided: "map" if the store takes at most half of the available memory, "direct"
        if it exceeds the memory and the file system of `folder` allows that, "pread" otherwise."""
        if self.mode != "auto":
            return self
        available = available_memory()
        if store_bytes <= available // 2:
            return replace(self, mode="map")
        if store_bytes > available and allows_direct(folder):
            return replace(self, mode="direct")
        return replace(self, mode="pread")


def available_memory() -> int:
    """Bytes that files can fill without pushing programs out; a container's own limit counts."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError, StopIteration):  # not Linux, no limit ("max"), or no cgroup
        pass
    return available


def allows_direct(folder: Path) -> bool:
    """Whether the file system under `folder` takes O_DIRECT: tried on the first file found in it."""
    path = next((path for path in sorted(folder.glob("*")) if path.is_file()), None)
    if not O_DIRECT or path is None:
        return False
    try:
        handle = os.open(path, os.O_RDONLY | O_DIRECT)
    except OSError:
        return False
    try:
        page: list[Any] = [scratch(PAGE)]
        os.preadv(handle, page, 0)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


class Checks:
    """Which of an array's checksums are due, by the policy of a `Reading`.

    Threads share it without a lock: what can be lost is the mark that a checksum was right, and then it is
    checked once more.
    """

    def __init__(self, reading: Reading, count: int) -> None:
        self._reading = reading
        self._unseen = np.ones(count, bool)
        self._draw = np.random.default_rng() if reading.check == "sampled" else None

    def due(self, which: Rows) -> list[bool]:
        """Whether each of `which` (N,) is to be checked now."""
        if self._reading.check == "first":
            found: list[bool] = self._unseen[which].tolist()
            return found
        if self._draw is None:
            return [self._reading.check == "always"] * len(which)
        drawn: list[bool] = (self._draw.random(len(which)) * self._reading.sample < 1).tolist()
        return drawn

    def due_one(self, index: int) -> bool:
        """`due` of one, without the price of an array."""
        if self._reading.check == "first":
            return bool(self._unseen[index])
        if self._draw is None:
            return self._reading.check == "always"
        return self._draw.random() * self._reading.sample < 1

    def passed(self, index: int) -> None:
        """The checksum `index` was found right."""
        self._unseen[index] = False


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def spread(work: Callable[[Job], None], jobs: Iterable[Job], threads: int) -> None:
    """`work` on each of `jobs` in a pool of threads that is kept; one job runs in the caller's.

    Returns when none runs any more, also after an error (the first one is raised, jobs not begun are left):
    no thread writes to a buffer that its owner has taken back. A child after a fork makes a pool of its own.
    """
    queue = deque(jobs)
    if threads == 1 or len(queue) < 2:
        for job in queue:
            work(job)
        return

    def drain() -> None:
        while True:
            try:
                job = queue.popleft()
            except IndexError:
                return
            try:
                work(job)
            except BaseException:
                queue.clear()
                raise

    key = os.getpid(), threads
    pool = _pools.get(key) or _pools.setdefault(key, ThreadPoolExecutor(threads, "compal-read"))
    running = [pool.submit(drain) for _ in range(min(threads, len(queue)))]
    try:
        for future in running:
            future.result()
    finally:
        queue.clear()
        wait(running)
