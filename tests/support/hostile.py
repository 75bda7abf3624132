"""What tests of forged files share: a machine with little memory, and an object that tells if it was unpickled."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = 2**30  # address space a refusal may take: libraries and threads, not 10 GB


@contextmanager
def little_memory(room: int = ROOM) -> Iterator[None]:
    """An allocation of more than `room` bytes fails inside, as it would on a small machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Canary:
    """What is unpickled leaves a mark."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))
