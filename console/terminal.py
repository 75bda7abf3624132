"""How much is said, and how it looks: quiet or verbose; on a terminal, in a pipe, on a dumb terminal.

Results are stdout's and are printed whatever is asked. All else is stderr's: errors always, progress, hints and
choices unless `--quiet`, and with `--verbose` also what was decided and why, which every layer says to the logger
"compal" (`logging.getLogger("compal")`), and the warnings of libraries.

Colour is for terminals. NO_COLOR takes it from them; FORCE_COLOR and CLICOLOR_FORCE give it to a pipe too (JSON and
files never have any); TERM=dumb has neither colour nor bars. Source of the rules: no-color.org, bixense.com/clicolors.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TextIO

from ..errors import UsageError

QUIET, NORMAL, VERBOSE = -1, 0, 1
WIDTH = 80  # of help and tables where there is no terminal to ask
LOG = logging.getLogger("compal")
_LEVELS = {QUIET: logging.ERROR, NORMAL: logging.WARNING, VERBOSE: logging.DEBUG}
_CODES = {"error": "1;31", "good": "32", "careful": "33", "command": "36", "faint": "2"}
_state = {"level": NORMAL, "hushed": 0}


class _Said(logging.Handler):
    """Lines of the logger on the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(paint(self.format(record), "faint" if record.levelno < logging.WARNING else "careful"), file=sys.stderr)


def speak(quiet: bool = False, verbose: bool = False) -> None:
    """Set how much is said from here on. Raises `UsageError` for both at once."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other", "Give one.")
    _state["level"] = VERBOSE if verbose else QUIET if quiet else NORMAL
    LOG.setLevel(_LEVELS[level()])
    if not any(isinstance(handler, _Said) for handler in LOG.handlers):
        LOG.addHandler(_Said())
    if verbose and _state["hushed"]:
        _state["hushed"] = 0
        warnings.resetwarnings()


def level() -> int:
    """QUIET, NORMAL or VERBOSE."""
    return _state["level"]


def hush() -> None:
    """Keep the warnings of libraries from stderr until `speak(verbose=True)`; those asked for by -W or
    PYTHONWARNINGS stay."""
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    _state["hushed"] = 1
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)


def settle() -> None:
    """Make typer and rich agree with this module: a stable width where stdout is no terminal, no colour in a pipe
    unless it is forced. For the process of the command line, before help is shown."""
    if not sys.stdout.isatty():
        os.environ.setdefault("TERMINAL_WIDTH", os.environ.get("COLUMNS") or str(WIDTH))
    if not colour(sys.stdout):
        os.environ.setdefault("_TYPER_FORCE_DISABLE_TERMINAL", "1")  # in some CI systems typer colours pipes unasked
    elif _forced():
        os.environ.setdefault("FORCE_COLOR", "1")


def _forced() -> bool:
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE"))


def colour(stream: TextIO) -> bool:
    """Whether a stream takes colour."""
    if os.environ.get("NO_COLOR"):
        return False
    return _forced() or moves(stream)


def moves(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor, as bars need."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style (error, good, careful, command, faint) where the stream, stderr by default, takes colour."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if colour(stream or sys.stderr) else text


def say(text: str) -> None:
    """A line on stderr, unless quiet."""
    if level() > QUIET:
        print(text, file=sys.stderr)


def chose(**what: object) -> None:
    """What a command works with, on one line of stderr, unless quiet; what is empty is left out."""
    told = (f"{paint(name, 'faint')} {value}" for name, value in what.items() if value not in ("", None, ()))
    say(f"with   {' · '.join(told)}")


def follow(*commands: str) -> None:
    """The commands to type next, a line each on stderr, unless quiet."""
    for number, command in enumerate(commands):
        say(f"{paint('then' if number else 'next', 'good')}   {paint(command, 'command')}")


def error(text: str) -> None:
    """The one line of an error."""
    print(f"{paint('compal:', 'error')} {text}", file=sys.stderr)


class Lines:
    """Progress as plain lines, for what is no terminal: one at the end of every kind of work, and before that one
    every tenth of it, `SECONDS` after the former at the earliest, or every `LATEST` seconds.

    clock  seconds, for tests
    """

    SECONDS, LATEST = 2.0, 10.0

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last: dict[str, tuple[float, int]] = {}

    def show(self, label: str, done: int, total: int, note: str = "") -> None:
        """Take in how much of `label` is done, and print a line if it is time for one."""
        now = self._clock()
        if label not in self._last or done < self._last[label][1]:  # a total that changes begins anew
            self._last[label] = now, -1 if done >= total else done
        when, before = self._last[label]
        waited, tenth = now - when, 10 * (done - before) >= total
        timely = done >= total or waited >= self.LATEST or (tenth and waited >= self.SECONDS)
        if done == before or not total or not timely:
            return
        self._last[label] = now, done
        share = f" ({100 * done // total} %)" if 0 < total != done else ""
        more = f"  {' '.join(note.split())}" if note.strip() else ""
        print(f"{label} {done:,} of {total:,}{share}{more}", file=self._stream or sys.stderr, flush=True)
