"""What workers tell who leads them, through files that they share: units done, items ticked off, errors.

A worker appends lines to a file of its own and the leader reads what is new, so neither waits for the other and a
dead worker's last words stay. The store, not this, says what is done: a message that is lost costs a count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import CompalError, InputError
from .work import Done, Tick

FOLDER, STOP = "mail", "stop"
TICK_SECONDS = 0.5  # at most so often a worker says how far it is


class Postbox:
    """The messages of one worker, `<folder>/mail/<name>.jsonl`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / FOLDER / f"{name}.{os.getpid()}.jsonl"
        self._ticks: dict[str, int] = {}
        self._sent = time.monotonic()

    def done(self, done: Done) -> None:
        """A unit is complete."""
        self._send_ticks()
        self._send({"done": dataclasses.asdict(done)})

    def tick(self, kind: str, count: int) -> None:
        """So many items of a kind more; several ticks travel as one."""
        self._ticks[kind] = self._ticks.get(kind, 0) + count
        if time.monotonic() - self._sent >= TICK_SECONDS:
            self._send_ticks()

    def error(self, error: CompalError) -> None:
        """What stops the whole run: another worker would meet it too."""
        self._send({"error": [type(error).__name__, error.what, error.cure]})
        with contextlib.suppress(FileNotFoundError):
            (self.path.parent / STOP).touch()

    def _send_ticks(self) -> None:
        if self._ticks:
            self._send({"ticks": self._ticks})
            self._ticks = {}
        self._sent = time.monotonic()

    def _send(self, message: dict[str, Any]) -> None:
        # Opened and closed for each message: NFS shows others what was written when a file is closed.
        # A leader that has seen all parts in the store does not wait for who tells of them.
        with contextlib.suppress(FileNotFoundError), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(message) + "\n")


class Mail:
    """The messages of all workers of a plan, as the leader hears them."""

    def __init__(self, folder: Path, report: Callable[[Done], None], tick: Tick | None) -> None:
        self.folder, self._report, self._tick = folder / FOLDER, report, tick
        self._read: dict[Path, int] = {}
        self.error: CompalError | None = None
        self.folder.mkdir(exist_ok=True)

    def read(self) -> None:
        """Hear what came since the last call."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            if whole:
                self._read[path] = self._read.get(path, 0) + len(whole) + 1
                for line in whole.split(b"\n"):
                    self._hear(json.loads(line))

    def _hear(self, message: dict[str, Any]) -> None:
        if "done" in message:
            self._report(Done(**message["done"]))
        elif "error" in message and self.error is None:
            name, what, cure = message["error"]
            kind = getattr(errors, name, InputError)
            self.error = kind(what, cure)
        elif self._tick:
            for kind, count in message.get("ticks", {}).items():
                self._tick(kind, count)


def stopped(folder: Path) -> bool:
    """Whether a worker has said that the run cannot go on, or the plan is gone with whoever led."""
    return (folder / FOLDER / STOP).exists() or not folder.exists()
