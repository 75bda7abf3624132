"""What every command does beside its own work: hear --quiet and --verbose, and end well at Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import shlex
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator
from typing import Any

import typer

from ..console import terminal
from . import options

INTERRUPTED = 130


def speaking(command: Callable[..., None]) -> Callable[..., None]:
    """The command with --quiet and --verbose after its name too; at Ctrl-C it says how to go on and exits with 130,
    and a second Ctrl-C ends it at once."""

    @functools.wraps(command)
    def called(*given: Any, quiet: bool = False, verbose: bool = False, **named: Any) -> None:
        if quiet or verbose:
            terminal.speak(quiet, verbose)
        started = time.perf_counter()
        try:
            with _second_ends():
                command(*given, **named)
        except KeyboardInterrupt:
            if os.environ.get("RANK", "0") == "0":  # of the processes of one run, the first speaks
                terminal.error(f"interrupted; what is complete is kept. Go on: {again(sys.argv)}")
            raise typer.Exit(INTERRUPTED) from None
        terminal.LOG.info("%s took %.1f s", command.__name__.rstrip("_"), time.perf_counter() - started)

    # typer reads the signature: the annotations, which are texts in our files, must stand in it as what they mean.
    hints = typing.get_type_hints(command, include_extras=True)
    own = [one.replace(annotation=hints[one.name]) for one in inspect.signature(command).parameters.values()]
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=told)
        for name, told in (("quiet", options.Quiet), ("verbose", options.Verbose))
    ]
    called.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in (*own, *extra)}
    return called


def again(line: list[str]) -> str:
    """The command to type to go on after `line` was interrupted: a fit needs --resume, all others nothing."""
    words = ["compal", *line[1:]]
    if "fit" in words and "--resume" not in words:
        words.append("--resume")
    return shlex.join(words)


@contextlib.contextmanager
def _second_ends() -> Iterator[None]:
    """Ctrl-C interrupts; once it has, the next is the system's own, which waits for nothing. Only where Ctrl-C is
    Python's: in the main thread, and not where it is ignored or somebody else's."""

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    try:
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler:
            raise ValueError
        signal.signal(signal.SIGINT, first)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        # After an interruption the process is about to end: a second Ctrl-C must still find the system's handler.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
            signal.signal(signal.SIGINT, before)


def run(app: typer.Typer) -> int:
    """Run the application and return its exit code; a wrong command line is one line on stderr, as any other error."""
    try:
        return int(app(standalone_mode=False, prog_name="compal") or 0)
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        # typer's and click's errors of usage share no public class over the versions that we support.
        if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
            raise
        message = " ".join(error.format_message().split()).rstrip(".")
        if not message:  # no command was named: the help has been printed
            return int(error.exit_code)
        where = getattr(getattr(error, "ctx", None), "command_path", "") or "compal"
        terminal.error(f"{message[:1].lower()}{message[1:]}. See: {where} --help")
        return int(error.exit_code)
