"""The command line: parse, call one function, print, turn errors into one line. Imports lazily.

Results go to stdout, progress to stderr. Exit codes: 0 good, 1 fixable input, 2 usage, 3 verification
failed, 4 remote, 130 interrupted (the command to go on is printed).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from ..console import terminal
from ..errors import CompalError
from . import (
    cite,
    diagnose,
    evaluate,
    extract,
    fit,
    hub,
    init,
    look,
    negatives,
    options,
    patch,
    peers,
    speaking,
    view,
)  # fmt: skip
from .share import store_app

app = typer.Typer(
    help="Extract frozen dual-encoder features once, train alignment heads from the store, score benchmarks honestly.",
    epilog="Three stages, each useful alone: extract → fit → eval. See it happen in minutes: compal demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point: run a command, print an error as one line, exit with its code."""
    terminal.settle()
    terminal.hush()
    try:
        sys.exit(speaking.run(app))
    except CompalError as error:
        if os.environ.get("COMPAL_TRACEBACK"):
            raise
        if not error.relayed:
            terminal.error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # before a command began
        sys.exit(speaking.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.callback()
def _root(
    version: options.Version = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    terminal.speak(quiet, verbose)


# In the order of the panels and of the help page. Commands of `compal store` register themselves.
COMMANDS: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("The three stages", "extract", extract.extract),
    ("The three stages", "fit", fit.fit),
    ("The three stages", "eval", evaluate.evaluate),
    ("The three stages", "diagnose", diagnose.diagnose),
    ("The three stages", "report", evaluate.report),
    ("Data", "init", init.init),
    ("Data", "negatives", negatives.negatives),
    ("Data", "import", peers.import_),
    ("Weights", "patch", patch.patch),
    ("Share", "cite", cite.cite),
    ("Share", "push-hub", hub.push_hub),
    ("Look", "view", view.view),
    ("Look", "plot", view.plot),
    ("Look", "demo", look.demo),
    ("Look", "ls", look.ls),
    ("Look", "doctor", look.doctor),
)
for _panel, _name, _command in COMMANDS:
    app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(store_app, name="store")
for _registered in (*app.registered_commands, *store_app.registered_commands):
    if _registered.callback:
        _registered.callback = speaking.speaking(_registered.callback)
