"""What people see: progress on stderr, results on stdout. rich is imported when something is shown."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..stores.space import RESERVE
from . import terminal

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from ..align.fit import Progress, RunResult
    from ..eval.inventory import Entry
    from ..fit_plan import FitPlan
    from ..pipeline.extract import Summary
    from ..pipeline.preview import Preview
    from ..stores.verify import Problem

PLURAL = {"image": "images", "text": "captions"}


class _Live:
    """Progress on stderr, of this run only: bars on a terminal, a plain line now and then elsewhere, nothing if
    quiet."""

    def __enter__(self) -> Any:
        self.tasks: dict[str, TaskID] = {}
        self.lines = terminal.Lines()
        self.bars: Bars | None = None
        if terminal.level() > terminal.QUIET and terminal.moves(sys.stderr):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self.bars = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self.bars:
            self.bars.stop()

    def show(self, label: str, done: int, total: int, note: str = "") -> None:
        """One bar per label; a bar whose total changes starts anew."""
        if terminal.level() == terminal.QUIET:
            return
        if self.bars is None:
            self.lines.show(label, done, total, note)
            return
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total, note=note)
        self.bars.update(self.tasks[label], completed=done, total=total, note=note)


class Ticking(_Live):
    """Bars for extraction and scoring: `tick(what, done, total)`."""

    def __enter__(self) -> Ticking:
        super().__enter__()
        self.begun: dict[str, tuple[float, int]] = {}
        self.latest: dict[str, int] = {}
        self.mfu = self.written = ""
        return self

    def tick(self, what: str, done: int, total: int) -> None:
        if what == "mfu":
            self.mfu = f", MFU {done} %"
            return
        if what == "written":
            self.written = f", {size(done)} of {size(total)} written"
            return
        label = PLURAL.get(what, what)
        self.show(label, done, total, self._pace(label, done, total))

    def _pace(self, label: str, done: int, total: int) -> str:
        """Items a second of this run, the time left at that pace, and what else is known. Where less is done than
        before, something else has begun."""
        if done < self.latest.get(label, 0):
            self.begun.pop(label)
            self.written = ""
        self.latest[label] = done
        started, before = self.begun.setdefault(label, (time.perf_counter(), done))
        seconds = time.perf_counter() - started
        if done <= before or seconds < 1:
            return ""
        rate = (done - before) / seconds
        return f"{rate:,.1f} {label}/s, {duration((total - done) / rate)} left{self.written}{self.mfu}"


class Fitting(_Live):
    """One bar for a fit, with the loss and the latest validation."""

    def __enter__(self) -> Fitting:
        super().__enter__()
        self.validation = ""
        return self

    def tick(self, progress: Progress) -> None:
        if progress.validation:
            self.validation = ", ".join(f"{name} {value:.1f}" for name, value in progress.validation.items())
        self.show("step", progress.step, progress.steps, f"loss {progress.loss:.3f}  {self.validation}")


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(data, indent=1, ensure_ascii=False, default=str))


def show_benchmarks(entries: Sequence[Entry], as_json: bool) -> None:
    """What is here to be scored, then what is not, with what it lacks and where that comes from."""
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in entries])
        return
    width = max(len(entry.name) for entry in entries)
    here = [entry for entry in entries if not entry.lacks]
    print("here")
    for entry in here:
        size = f"{entry.size:,} rows" if entry.size else ""
        facts = [entry.title, size, entry.metric, entry.root or "generated", f"licence: {entry.licence}"]
        print(f"  {entry.name:<{width}}  {' · '.join(fact for fact in facts if fact)}")
        for name, sentence in entry.variants.items():
            print(f"  {'':<{width}}    --variant {name}: {sentence}")
    print("not here")
    for entry in entries:
        if entry.lacks:
            print(f"  {entry.name:<{width}}  {entry.title} · {entry.state}: {entry.lacks}")
            print(f"  {'':<{width}}    {entry.get}")


def show_summaries(done: Sequence[Summary], as_json: bool) -> None:
    """What extractions did."""
    if as_json:
        print_json([dataclasses.asdict(summary) for summary in done])
        return
    for summary in done:
        _show_summary(summary, len({one.level for one in done}) > 1)
    for store in dict.fromkeys(summary.store for summary in done):
        print(f"store  {store}")


def _show_summary(summary: Summary, named: bool) -> None:
    """A line of what was done at a level, `named` where there are several, and what there is to know besides."""
    rate = (summary.images + summary.texts) / summary.seconds if summary.seconds else 0.0
    print(
        f"{f'{summary.level}: ' if named else ''}{summary.images:,} images and {summary.texts:,} captions extracted,"
        f" {summary.reused:,} were there"
        f" ({summary.seconds:.1f} s, {summary.forward_seconds:.1f} s of them forward, {rate:,.1f} items/s,"
        f" {size(summary.bytes)} written{f', MFU {summary.mfu:.0%}' if summary.mfu else ''})"
    )
    if summary.pulled:
        print(f"  {summary.pulled:,} came from a remote, which saved {summary.saved_seconds:.1f} s of forward passes")
    for note in summary.notes:
        print(f"  {note}")
    if summary.truncated:
        print(f"  {summary.truncated:,} captions were longer than the context and are flagged as truncated")
    if summary.quarantined:
        print(f"  {len(summary.quarantined):,} items could not be read and are in the quarantine (try again: --retry):")
        for item in summary.quarantined[:5]:
            print(f"    {item.source}: {item.reason}")
        if len(summary.quarantined) > 5:
            print("    … the others: compal store info --json")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"


def show_previews(previews: Sequence[Preview], as_json: bool) -> None:
    """What an extraction would do."""
    if as_json:
        print_json([dataclasses.asdict(preview) for preview in previews])
        return
    for preview in previews:
        print(
            f"{f'{preview.level}: ' if len(previews) > 1 else ''}would extract {preview.images:,} images and"
            f" {preview.texts:,} captions in {preview.parts:,} parts, about {size(preview.bytes)};"
            f" {preview.reused:,} are there"
        )
    timed = next((preview for preview in previews if preview.basis), None)
    if timed:
        print(f"time   {'' if timed.seconds is None else f'about {duration(timed.seconds)}, from '}{timed.basis}")
    needed, first = sum(preview.bytes for preview in previews), previews[0]
    little = "; that is too little: free some, or choose another workspace" if needed + RESERVE > first.free else ""
    print(f"disk   {size(needed)} of {size(first.free)} that are free{little if needed else ''}")
    for preview in previews:
        print(f"store  {preview.store}")


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def show_fit_plan(plan: FitPlan, as_json: bool) -> None:
    """What a fit would do, and what must be made before."""
    if as_json:
        print_json(dataclasses.asdict(plan))
        return
    pairs = "no pairs yet" if plan.pairs is None else f"{plan.pairs:,} pairs, {plan.epochs:.1f} epochs"
    print(
        f"would fit {plan.head} ({plan.parameters:,} parameters) by {plan.loss} on {plan.backbone}, level {plan.level}"
    )
    print(f"steps  {plan.steps:,} of {plan.batch_size * plan.accumulate:,} pairs: {pairs}")
    print(f"store  {plan.store}")
    print(f"run    {plan.run}")
    print(f"disk   {size(plan.bytes)} of checkpoints, of {size(plan.free)} that are free")
    for what in plan.lacks:
        print(f"lacks  {what}")
    for command in plan.prepare:
        print(f"first  {command}")


def show_run(run: RunResult, as_json: bool) -> None:
    """What a fit did and where it lies."""
    if as_json:
        print_json(dataclasses.asdict(run))
        return
    best = "" if run.score is None else f", best validation {run.metric} {run.score:.1f} % at step {run.best_step:,}"
    print(f"{run.parameters:,} parameters, {run.steps:,} steps in {run.seconds:.0f} s{best}")
    print(f"run    {run.run_dir}")


def show_info(info: dict[str, Any], as_json: bool) -> None:
    """What a store holds."""
    if as_json:
        print_json(info)
        return
    for name, value in info.items():
        if name == "bytes":
            value = f"{value:,} ({value / 2**20:,.1f} MiB)"
        if isinstance(value, dict):
            print(name)
            for key, inner in value.items():
                print(f"  {key:<16} {inner}")
        else:
            print(f"{name:<18} {', '.join(value) if isinstance(value, list) else value}")


def show_problems(path: Path, problems: Sequence[Problem], as_json: bool) -> None:
    """What verification found."""
    if as_json:
        print_json({"store": str(path), "problems": [dataclasses.asdict(problem) for problem in problems]})
        return
    for problem in problems:
        print(f"{problem.file or problem.part}: {problem.what}. {problem.cure}")
    print(f"{path}: {'whole' if not problems else f'{len(problems)} problems'}")
