"""What the machine can do at best: memory copies, positioned reads, O_DIRECT reads and writes; and its facts."""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compal.stores.buffers import PAGE, Array, aligned_empty
from compal.stores.reading import spread

BLOCK = 8 << 20
GB = 1e9


def machine(folder: Path) -> dict[str, str]:
    """CPU, cores, kernel and file system, for whoever compares figures."""
    cpu = platform.processor()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    mounts = [line.split()[:3] for line in _lines("/proc/mounts")]
    inside = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    device, point, kind = max(inside, key=lambda mount: len(mount[1]), default=("?", "?", "?"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "file system": f"{kind} ({device} on {point})",
        "python": f"{platform.python_version()}, numpy {np.__version__}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def drop(paths: list[Path]) -> None:
    """Take files out of the page cache. Pages that a process has mapped stay: close maps first."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def cached(paths: list[Path]) -> None:
    """Into the page cache, as one sequential read leaves them there: drop, then read."""
    drop(paths)
    block = bytearray(BLOCK)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(block):
                pass


_own = threading.local()


def direct_sequential(paths: list[Path], threads: int) -> Callable[[], float]:
    """A call reads whole blocks of the files by O_DIRECT and returns GB/s."""

    def block() -> Array:
        if not hasattr(_own, "block"):
            _own.block = aligned_empty((BLOCK,), np.uint8)
            _own.block[:] = 0
        found: Array = _own.block
        return found

    handles = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
    jobs = [
        (handle, start) for handle in handles for start in range(0, os.fstat(handle).st_size // BLOCK * BLOCK, BLOCK)
    ]

    def read(job: tuple[int, int]) -> None:
        os.preadv(job[0], [block()], job[1])

    def run() -> float:
        started = time.perf_counter()
        spread(read, jobs, threads)
        return len(jobs) * BLOCK / GB / (time.perf_counter() - started)

    return run


def direct_one(paths: list[Path]) -> Callable[[int], float]:
    """A call reads a block of the size of a sample (74 pages) by O_DIRECT, another at each call, and returns
    seconds."""
    handles = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
    block = aligned_empty((74 * PAGE,), np.uint8)
    block[:] = 0
    blocks = os.path.getsize(paths[0]) // len(block)

    def read(number: int) -> float:
        part, local = divmod(number * 7 + 3, blocks)
        started = time.perf_counter()
        os.preadv(handles[part % len(handles)], [block], local * len(block))
        return time.perf_counter() - started

    return read


def direct_write(path: Path, values: Array) -> float:
    """Seconds to write the bytes of `values` by O_DIRECT, 8 MiB at a time, and fsync; whole pages."""
    raw = np.frombuffer(memoryview(values).cast("B"), np.uint8)
    block = aligned_empty((BLOCK,), np.uint8)
    block[:] = raw[:BLOCK]
    size = len(raw) // PAGE * PAGE
    started = time.perf_counter()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    for start in range(0, size, BLOCK):
        os.write(handle, block[: min(BLOCK, size - start)])
    os.fsync(handle)
    os.close(handle)
    return time.perf_counter() - started


def raw_preadv(paths: list[Path], step: int, out: Array) -> Callable[[Array], None]:
    """`preadv` of the payload of each row in ascending order: what any positioned reader costs at least."""
    handles = [os.open(path, os.O_RDONLY) for path in paths]
    rows_each = [os.path.getsize(path) // step for path in paths]
    flat = out.reshape(len(out), -1).view(np.uint8)

    def read(rows: Array) -> None:
        order = np.argsort(rows, kind="stable")
        for row, position in zip(rows[order].tolist(), order.tolist(), strict=True):
            part, local = divmod(row, rows_each[0])
            os.preadv(handles[part], [flat[position]], local * step)

    return read


def in_turns(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each candidate's results (GB/s), taken in turns so that whatever else the machine does hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            found[name].append(candidate())
    return found


def ratio(found: dict[str, list[float]], ours: str, other: str) -> float:
    """The median over the rounds of ours / other."""
    pairs = zip(found[ours], found[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def percentiles(seconds: list[float], scale: float) -> dict[str, float]:
    """p50 and p99, scaled."""
    return {f"p{q}": round(float(np.percentile(seconds, q)) * scale, 4) for q in (50, 99)}


def figures(found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of all candidates."""
    return {name: round(statistics.median(values), 3) for name, values in found.items()}
