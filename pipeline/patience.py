"""Waiting out a network share that is gone for a while, at listing and reading images and at writing parts.

A share that is being restarted answers with errors that say nothing about the file: an item must not land in the
quarantine for them, nor a night's run end. They are tried again, at growing intervals, for as long as the user allows.
"""

from __future__ import annotations

import copy
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import InputError
from ..stores.files import TRANSIENT

T = TypeVar("T")

FIRST, LONGEST = 0.1, 5.0  # seconds between attempts: doubling from the first to the longest


class Patience:
    """How long to wait for a share; one for all threads of a worker.

    seconds  from the first failure of an action on; 0 gives up at once
    roots    folders that the items lie in: while one is gone or empty, a file in it is not missing but unreachable
    """

    def __init__(self, seconds: float = 120.0, roots: Sequence[Path] = ()) -> None:
        self.seconds, self._roots = seconds, [Path(os.path.abspath(root)) for root in roots]
        self._closed = threading.Event()
        self._read_from: set[str] = set()  # folders that files were read from before

    def apart(self) -> Patience:
        """The same, but closed by itself: who holds the other goes on waiting."""
        other = copy.copy(self)
        other._closed = threading.Event()
        return other

    def close(self) -> None:
        """Stop waiting in every thread."""
        self._closed.set()

    def open(self) -> None:
        """Wait again from now on."""
        self._closed.clear()

    def through(self, action: Callable[[], T], passing: Callable[[Exception], bool], what: str) -> T:
        """The result of `action`, tried again while what it raises is `passing`.

        Raises `InputError` that says `what` could not be done when patience ends, and whatever else it raises.
        """
        until, pause = 0.0, FIRST
        while True:
            try:
                return action()
            except Exception as error:
                if not passing(error):
                    raise
                until = until or time.monotonic() + self.seconds
                left = until - time.monotonic()
                if left <= 0:
                    reason = getattr(_cause(error), "strerror", "") or str(error)
                    waited = f" for {self.seconds:.0f} s" if self.seconds else ""
                    cure = "Bring the share back, then run again: complete parts are kept."
                    raise InputError(f"cannot {what}{waited}: {reason}", cure) from None
            if self._closed.wait(min(pause, left)):
                raise InputError(f"stopped waiting to {what}", "Run again: complete parts are kept.")
            pause = min(2 * pause, LONGEST)

    def read(self, path: Path | str | None, action: Callable[[], T]) -> T:
        """What `action` reads of `path` (None: of no known file). Raises `OSError` for a file that is missing or
        refused, `InputError` when patience ends. ENOENT passes only where a folder that held the file is gone."""
        gone = False

        def look() -> T:
            nonlocal gone
            try:
                return action()
            except FileNotFoundError:
                gone = path is not None and self._gone(path)
                if gone or path is None:
                    raise
            return action()  # the share may have come back between the two looks

        def passing(error: Exception) -> bool:
            number = getattr(_cause(error), "errno", None)
            return number in TRANSIENT or (number == errno.ENOENT and gone)

        data = self.through(look, passing, f"read {path or 'an image'}")
        if path is not None:
            self._read_from.add(os.path.dirname(path))
        return data

    def _gone(self, path: Path | str) -> bool:
        """Whether a folder that held `path` is not there or empty, as an unmounted one is."""
        absolute, parent = Path(os.path.abspath(path)), os.path.dirname(path)
        held = [root for root in self._roots if root in absolute.parents]
        held += [Path(parent)] if parent in self._read_from else []
        return any(_absent(folder) for folder in held)


def _absent(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(iter(entries), None) is None
    except NotADirectoryError:
        return False
    except OSError:
        return True


def passing_write(error: Exception) -> bool:
    """Whether a part could not be written because of a share that may come back."""
    return getattr(_cause(error), "errno", None) in TRANSIENT


def _cause(error: BaseException | None) -> BaseException | None:
    """The `OSError` that an error is or comes from, if any."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error
