"""Ctrl-C while a run is fitted: the step is finished and saved, then the run ends."""

from __future__ import annotations

import logging
import signal
from types import FrameType, TracebackType

LOG = logging.getLogger("compal")


class Stopping:
    """Meanwhile the first SIGINT only sets `asked`; the next one is whoever's it was before.

    Does nothing where SIGINT is not Python's to hear: outside the main thread, or where it is ignored.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: object = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        LOG.warning("stopping after this step, which is saved; once more ends at once")

    def _restore(self) -> None:
        if callable(self._before):
            signal.signal(signal.SIGINT, self._before)
        self._before = None

    def __enter__(self) -> Stopping:
        before = signal.getsignal(signal.SIGINT)
        if callable(before):
            try:
                signal.signal(signal.SIGINT, self._hear)
                self._before = before
            except ValueError:  # not in the main thread
                pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
