"""What to type next: the closing words of the commands, so that init → extract → fit → eval → view needs no manual."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..workspace import OWN_DATA, OWN_PAIRS
from . import terminal

if TYPE_CHECKING:
    from ..pipeline.extract import Summary


def _at(work: Path | None) -> str:
    return f" --work {shlex.quote(str(work))}" if work else ""


def after_init() -> None:
    """A workspace has been described: its file says what a command without options takes."""
    terminal.follow("compal extract")


def after_extract(done: Iterable[Summary], benchmark: str, work: Path | None = None) -> None:
    """Features are there, of a dataset, or of a benchmark where that was named."""
    levels = list(dict.fromkeys(one.level for one in done))
    if benchmark:
        level = "" if "tokens" in levels else f" --level {levels[0]}"
        terminal.follow(f"compal eval {benchmark}{level}{_at(work)}")
    elif "tokens" in levels:
        terminal.follow(f"compal fit linear{_at(work)}")
    elif "pooled" in levels:
        terminal.follow(f"compal fit linear --level pooled{_at(work)}")
    elif tuned := next((level for level in levels if level == "pixels" or level.startswith("block")), ""):
        terminal.follow(f"compal fit finetune --level {tuned}{_at(work)}")
    else:
        terminal.follow(f"compal eval shapes --level {levels[0]} --head cosine --extract{_at(work)}")


def after_fit(run: Path, data: str, work: Path | None = None, level: str = "tokens") -> None:
    """A run is complete; `data` is what it was fitted on."""
    asked = f"--run {run.name}" + ("" if level == "tokens" else f" --level {level}")
    towers = (run / "towers").is_dir()
    if towers:
        asked = f"--backbone run:{run.name} --level pooled --head cosine"
    name = data.partition(":")[0]
    if name in OWN_DATA:
        benchmark, more = OWN_PAIRS, " --extract" if towers else ""
    elif name == "shapes":
        benchmark, more = "shapes", " --extract"
    else:
        benchmark, more = "BENCHMARK", " --extract    (which are here: compal eval --list)"
    terminal.follow(f"compal eval {benchmark} {asked}{_at(work)}{more}")


def after_eval(work: Path | None = None) -> None:
    """Scores are saved."""
    terminal.follow(f"compal view{_at(work)}")
