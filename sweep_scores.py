"""What the runs of a sweep score, what that would cost, and both in one call: `patch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry
from .errors import UnknownName, UsageError
from .sweep import Patched, Sweep, Ticker, open_sweep
from .workspace import Workspace

if TYPE_CHECKING:
    from .eval.results import ResultRow
    from .eval.sources import Sources
    from .eval.tradeoff import Tradeoff


def patch(  # noqa: PLR0913 - the command's options, by keyword
    base: str,
    tuned: str,
    alpha: str | float | Sequence[float] = 0.6,
    *,
    name: str = "",
    benchmarks: Sequence[str | Judged] = (),
    extract_missing: bool = False,
    device: str = "cpu",
    seed: int = 0,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
) -> tuple[list[Patched], Tradeoff | None]:
    """Runs between two heads or two towers, (1 − α) base + α tuned, and what they score on `benchmarks` (names,
    `NAME[:SPLIT]`, or what `judged` makes of them; the first is the axis of composition), None without any.

    Raises what `sweep.open_sweep`, `Sweep.make` and `score` raise.
    """
    workspace = workspace or Workspace.find()
    asked = [one for given in benchmarks for one in (judged([given], workspace) if isinstance(given, str) else [given])]
    found = open_sweep(base, tuned, alpha, name, workspace)
    runs = found.make(progress)
    if not asked:
        return runs, None
    how: dict[str, Any] = {"extract_missing": extract_missing, "device": device, "seed": seed, "progress": progress}
    return runs, score(found, runs, asked, **how)


@dataclass(frozen=True)
class Judged:
    """A benchmark of the sweep, by name, with where its files lie and which split and how much of it to take."""

    benchmark: str
    sources: Sources


def judged(
    benchmarks: Sequence[str],
    workspace: Workspace,
    limit: int | None = None,
    roots: dict[str, Path] | None = None,
    images: dict[str, Path] | None = None,
) -> list[Judged]:
    """`NAME[:SPLIT]` → benchmarks to score. Raises `UnknownName` for a benchmark or a split that does not exist,
    `UsageError` for one that is named twice and for files of one that is not asked for."""
    from .eval.sources import Sources

    found = []
    for text in benchmarks:
        name, split = registry.split_argument(text)
        info = registry.load("benchmarks", name).INFO
        root = (roots or {}).get(name) or workspace.root_for(name)
        sources = Sources(root, (images or {}).get(name), split=split or None, limit=limit)
        sources.check_choices(name, info)
        found.append(Judged(name, sources))
    if len(set(benchmarks)) != len(benchmarks):
        raise UsageError("a benchmark is named twice", "Name each once; NAME:SPLIT for several splits of one.")
    for name in {**(roots or {}), **(images or {})}:
        if name not in {one.benchmark for one in found}:
            raise UnknownName.among("benchmark of this sweep", name, {one.benchmark for one in found})
    return found


@dataclass(frozen=True)
class Cost:
    """What scoring one benchmark costs. pairs: image–caption pairs scored, of all α together; items, bytes, seconds: of
    the features to extract first (for towers at most: of every α), seconds None where that is not known."""

    benchmark: str
    groups: int
    pairs: int
    items: int
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What a sweep would do. bytes: of the runs that are not there."""

    kind: str
    base: str
    tuned: str
    runs: tuple[Patched, ...]
    bytes: int
    costs: tuple[Cost, ...]


def plan(sweep: Sweep, benchmarks: Sequence[Judged]) -> Plan:
    """What `Sweep.make` and `score` would do; nothing is written."""
    runs = sweep.runs()
    size = sum(tensor.numel() * tensor.element_size() for tensor in sweep.ends.states()[1].values())
    costs = tuple(_cost(sweep, one) for one in benchmarks)
    new = sum(not run.existed for run in runs)
    return Plan(sweep.ends.kind, sweep.base, sweep.tuned, tuple(runs), new * size, costs)


def _cost(sweep: Sweep, one: Judged) -> Cost:
    from . import api

    groups = list(registry.load("benchmarks", one.benchmark).groups(one.sources))
    pairs = sum(len(group.images) * len(group.captions) for group in groups)
    backbone, level, times = *_features(sweep, None), len(sweep.alphas)
    dtype = sweep.ends.spec.dtype if sweep.ends.kind == "head" else "float16"
    (preview,) = api.preview(
        backbone, benchmark=one.benchmark, sources=one.sources, level=level, dtype=dtype, timed=True,
        workspace=sweep.workspace,
    )  # fmt: skip
    new, share = preview.images + preview.texts, 1.0
    if sweep.ends.kind == "towers":  # each has features of its own, so none of those that are there count
        share = times * (new + preview.reused) / new if new else 0.0
        new = times * (new + preview.reused)
    seconds = preview.seconds * share if preview.seconds is not None and share else None
    size = int(preview.bytes * share)
    return Cost(one.benchmark, len(groups), pairs * times, new, size, seconds)


def _features(sweep: Sweep, run: Patched | None) -> tuple[str, str]:
    """Backbone and level of the features that a run is scored on; of None, those to preview."""
    spec = sweep.ends.spec
    if sweep.ends.kind == "towers":
        return (f"run:{run.name}" if run else sweep.ends.backbone), "pooled"
    stored = (sweep.workspace.stores / spec.folder / "spec.json").is_file()
    return (spec.folder if stored and run else spec.backbone), spec.level


def score(
    sweep: Sweep,
    runs: Sequence[Patched],
    benchmarks: Sequence[Judged],
    *,
    extract_missing: bool = False,
    device: str = "cpu",
    seed: int = 0,
    progress: Ticker | None = None,
) -> Tradeoff:
    """Score every run on every benchmark, the first of them the compositional axis. The rows are saved as those of
    `compal eval`; towers are extracted first, at level pooled, and scored by their cosine. The first α brings
    the rows to compare with: chance and random, over one backbone text-only and cosine too."""
    from . import api
    from .eval.references import NAMES
    from .eval.tradeoff import gather

    towers = sweep.ends.kind == "towers"
    found = []
    for one in benchmarks:
        rows: list[ResultRow] = []
        for number, run in enumerate(runs):
            backbone, level = _features(sweep, run)
            beside = (("random",) if towers else NAMES) if number == 0 else ()
            who: dict[str, Any] = {"runs": [run.name]}
            if towers:
                who = {"heads": ["cosine"], "labels": {"cosine": run.name}}
            rows += api.evaluate(
                one.benchmark, backbone=backbone, level=level, sources=one.sources, references=beside,
                extract_missing=extract_missing or towers, device=device, seed=seed, workspace=sweep.workspace,
                progress=progress, extracting=progress, remember=False, **who,
            )  # fmt: skip
        found.append(rows)
    return gather(sweep.base, sweep.tuned, {run.name: run.alpha for run in runs}, found)
