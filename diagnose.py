"""The diagnostic ladder of a backbone on a benchmark: what can be scored, what it takes, what it scores: `diagnose`.

A rung that cannot be had is kept, with the command that makes it. What rungs mean is in `eval.ladder`.
"""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry
from .diagnose_cost import Meter, passes
from .errors import InputError, MissingFeatures, SpecMismatch, UnknownName, UsageError
from .sweep import Ticker
from .workspace import Workspace

if TYPE_CHECKING:
    from .eval.ladder import Ladder, Rung
    from .eval.results import ResultRow
    from .eval.sources import Group, Sources
    from .stores.items import Item
    from .stores.spec import FeatureSpec

SHIPPED = {"shapes-vit": ("shipped:tflocal",)}


@dataclass(frozen=True)
class Step:
    """A rung before it is scored.

    level     that is scored from the store      cached  that would do, whose cost is the rung's
    head, run  one of them reads it: a training-free head, or a checkpoint
    missing, cure  why it cannot be had, "" where it can
    """

    kind: str
    label: str
    backbone: str
    level: str
    cached: str = ""
    head: str = ""
    run: str = ""
    missing: str = ""
    cure: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Course:
    """The ladder before it is climbed; `climb` scores it. Open it with `open_course`."""

    backbone: str
    benchmark: str
    sources: Sources
    steps: tuple[Step, ...]
    workspace: Workspace = field(repr=False)
    items: tuple[Item, ...] = field(repr=False)
    groups: tuple[Group, ...] = field(repr=False)


def diagnose(  # noqa: PLR0913 - the command's options, by keyword
    backbone: str = "shapes-vit",
    benchmark: str = "shapes",
    *,
    sources: Sources | None = None,
    crops: Sequence[int] = (18,),
    runs: Sequence[str] = (),
    tuned: Sequence[str] = (),
    extract_missing: bool = False,
    measure: int = 32,
    device: str = "cpu",
    seed: int = 0,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
) -> Ladder:
    """The rungs that there are, scored and held against one another; see `eval.ladder`. Rows are saved as those of
    `compal eval`.

    crops    windows of the grids of crop search, of pooled tokens and of patches: 18, 34, 70 or 239
    runs     of learned alignment; the shipped head by default where the backbone has one
    tuned    backbones such as run:ID, read by their cosine
    measure  images to measure the cost on, 0 for none
    Raises what `open_course` and `climb` raise.
    """
    workspace = workspace or Workspace.find()
    course = open_course(backbone, benchmark, sources, crops, runs, tuned, workspace)
    how: dict[str, Any] = {"extract_missing": extract_missing, "measure": measure, "device": device, "seed": seed}
    return climb(course, progress=progress, **how)


def default_split(benchmark: str) -> str | None:
    """The split to take where none is named: that of shapes which its heads are fitted for, else all there is."""
    return "in_domain" if benchmark == "shapes" else None


def open_course(
    backbone: str,
    benchmark: str,
    sources: Sources | None = None,
    crops: Sequence[int] = (18,),
    runs: Sequence[str] = (),
    tuned: Sequence[str] = (),
    workspace: Workspace | None = None,
) -> Course:
    """What the ladder has and what it lacks; nothing is written. Raises `UnknownName` for a part, split, run or grid
    that does not exist, `UsageError` for a benchmark of retrieval and for what is named twice, `SpecMismatch` for a run
    that was fitted on another backbone, and what the benchmark raises for its files."""
    from .eval.sources import Sources
    from .pipeline.encoder import resolve
    from .pipeline.regions import GRIDS

    workspace, sources = workspace or Workspace.find(), sources or Sources(split=default_split(benchmark))
    module = registry.load("benchmarks", benchmark)
    if module.INFO["metric"] == "recall":
        raise UsageError(f"{benchmark} asks for retrieval, and the ladder for swaps", "Take shapes, winoground, bivlc.")
    sources.check_choices(benchmark, module.INFO)
    for count in crops:
        if count not in GRIDS:
            raise UnknownName.among("grid of windows", str(count), map(str, GRIDS))
    for option, given in (("--crops", crops), ("--run", runs), ("--tuned", tuned)):
        if len(set(given)) < len(given):
            raise UsageError(f"{option} names one twice", "Name each once.")
    with workspace.used():
        spec = resolve(backbone, "tokens")
        for name in tuned:
            resolve(name, "pooled")
    items, groups = tuple(module.items(sources)), tuple(module.groups(sources))
    bare = Course(backbone, benchmark, sources, (), workspace, items, groups)
    steps = [Step("cosine", "cosine", backbone, "tokens", "pooled", "cosine"), *_parts(bare, sorted(crops))]
    steps += _learned(backbone, spec, runs, workspace)
    steps += [Step("tuned", name, name, "pooled", head="cosine") for name in tuned] or [_untuned(backbone)]
    return dataclasses.replace(bare, steps=tuple(steps))


def _parts(course: Course, crops: Sequence[int]) -> list[Step]:
    """The oracle, crop search, pooled tokens and patches projected alone."""
    from .pipeline.encoder import resolve

    grids = [f"-{count}" if count != 239 else "" for count in crops]
    asked = [("oracle", "oracle", "regions")]
    asked += [("crops", f"crops{grid}", f"regions:grid{grid}") for grid in grids]
    asked += [("pooled", "roi", "regions:roi")]
    asked += [("pooled", f"roi-grid{grid}", f"regions:roi-grid{grid}") for grid in grids]
    asked += [("dense", "dense", "regions:dense"), ("dense", "dense-roi", "regions:dense-roi")]
    asked += [("dense", f"dense-grid{grid}", f"regions:dense-grid{grid}") for grid in grids]
    steps = [_part(course, *one) for one in asked]
    try:
        with course.workspace.used():
            resolve(course.backbone, "regions:dense")
    except InputError as error:  # not every family defines it
        lacking = [step for step in steps if step.kind == "dense"]
        steps = [step for step in steps if step.kind != "dense"]
        steps += [dataclasses.replace(step, missing=error.what, cure=error.cure) for step in lacking]
    if not crops:
        why, cure = "no grid of windows was asked for", "Name one: --crops 18"
        steps.insert(1, Step("crops", "crops", course.backbone, "regions:grid", missing=why, cure=cure))
    return steps


def _part(course: Course, kind: str, label: str, level: str) -> Step:
    """A rung that matches segments with regions, or why there is none."""
    from .pipeline.regions import named_segments, source_of
    from .pipeline.stored import spec_named

    step, boxes = Step(kind, label, course.backbone, level, level, "maxsim"), source_of(level).boxed
    images, texts = ({item.key: item for item in course.items if item.kind == which} for which in ("image", "text"))
    boxed = sum(bool(item.boxes) for item in images.values())
    if boxes and not boxed:
        why = f"no image of {course.benchmark} comes with boxes"
        return dataclasses.replace(step, missing=why, cure="A benchmark's own file brings them; --crops needs none.")
    notes = []
    if boxes and boxed < len(images):
        notes.append(f"boxes for {boxed:,} of {len(images):,} images, the others are one region")
    cut = sum(bool(named_segments(item)) for item in texts.values())
    if cut < len(texts) and "segments" not in spec_named(course.backbone, level, "float16", course.workspace).extra:
        if not cut:
            levels = f"tokens,{level}" if kind == "pooled" else level
            why = f"no caption of {course.benchmark} comes with segments"
            return dataclasses.replace(step, missing=why, cure=f"`{_extraction(course, levels, '--segments rules')}`")
        notes.append(f"segments for {cut:,} of {len(texts):,} captions, the others are one segment")
    return dataclasses.replace(step, notes=tuple(notes))


def _learned(backbone: str, spec: FeatureSpec, runs: Sequence[str], workspace: Workspace) -> list[Step]:
    from . import api
    from .align.checkpoint import fitted_spec

    steps = []
    for run in runs or SHIPPED.get(spec.backbone, ()):
        path = api.checkpoint(run, workspace)
        fitted = fitted_spec(path)
        if (fitted.backbone, fitted.weights) != (spec.backbone, spec.weights):
            what = f"{run} was fitted on features of {fitted.backbone}, and the ladder is of {spec.backbone}"
            raise SpecMismatch(what, f"Take a run of this backbone, or --backbone {fitted.backbone}.")
        label = path.stem if path.parent.name != "checkpoints" else path.parent.parent.name
        steps.append(Step("learned", label, backbone, fitted.level, fitted.level, run=run))
    cure = f"`compal fit tflocal --backbone {backbone} --data DATA`, then --run ID"
    none = Step("learned", "learned", backbone, "tokens", missing="no run was given", cure=cure)
    return steps or [none]


def _untuned(backbone: str) -> Step:
    cure = (
        f"`compal extract --backbone {backbone} --data DATA --level pixels`, `compal fit finetune --backbone {backbone}"
        " --data DATA --level pixels`, then --tuned run:ID"
    )
    return Step("tuned", "tuned", backbone, "pooled", missing="no tuned towers were given", cure=cure)


def _extraction(course: Course, level: str, more: str = "", backbone: str = "") -> str:
    """The command that adds a level's features of the benchmark."""
    words = ["compal extract --backbone", backbone or course.backbone, "--benchmark", course.benchmark]
    for option, value in (("--root", course.sources.root), ("--images", course.sources.images),
                          ("--limit", course.sources.limit)):  # fmt: skip
        words += [option, shlex.quote(str(value))] if value else []
    words += ["--level", level, *([more] if more else [])]
    return " ".join(words)


@dataclass(frozen=True)
class Planned:
    """What a rung would take. pairs: to score; images, texts, bytes: to extract first; missing, cure: as of `Step`."""

    label: str
    level: str
    pairs: int
    passes: float
    images: int = 0
    texts: int = 0
    bytes: int = 0
    missing: str = ""
    cure: str = ""


def plan(course: Course) -> tuple[list[Planned], float | None]:
    """What `climb` would do, a line a rung, and the seconds of the forward passes, None where they are not known.
    Nothing is written."""
    from . import api

    levels: dict[str, list[str]] = {}
    for step in course.steps:
        if not step.missing and step.level not in levels.setdefault(step.backbone, []):
            levels[step.backbone].append(step.level)
    previews: dict[tuple[str, str], Any] = {}
    seconds: float | None = 0.0
    for backbone, wanted in levels.items():
        found = api.preview(backbone, benchmark=course.benchmark, sources=course.sources, level=wanted, timed=True,
                            workspace=course.workspace)  # fmt: skip
        previews |= {(backbone, one.level): one for one in found}
        todo = [one for one in found if one.parts]
        known = max((one.seconds for one in todo if one.seconds is not None), default=None if todo else 0.0)
        seconds = None if known is None or seconds is None else seconds + known
    pairs = sum(len(group.images) * len(group.captions) for group in course.groups)
    lines = []
    for step in course.steps:
        one = previews.pop((step.backbone, step.level), None)  # what two rungs read is extracted once
        new = {"images": one.images, "texts": one.texts, "bytes": one.bytes} if one else {}
        scored = 0 if step.missing else pairs
        lines.append(Planned(step.label, step.level, scored, passes(step, course.items), **new,
                             missing=step.missing, cure=step.cure))  # fmt: skip
    return lines, seconds


def climb(
    course: Course,
    *,
    extract_missing: bool = False,
    measure: int = 32,
    device: str = "cpu",
    seed: int = 0,
    progress: Ticker | None = None,
) -> Ladder:
    """Score the rungs that there are. One whose features the cache lacks is missing, unless `extract_missing`; where
    that is all of them, raises `MissingFeatures`. Raises what `api.evaluate` raises else."""
    from .eval.ladder import Ladder, Rung, compared

    rungs: list[Rung] = []
    chance: ResultRow | None = None
    with tempfile.TemporaryDirectory() as folder:
        meter = Meter(course, measure, Path(folder))
        for step in course.steps:
            rows, step = _scored(course, step, extract_missing, (device, seed), progress)
            row = next((one for one in rows if one.role == "scorer"), None)
            chance = chance or next((one for one in rows if one.role == "chance"), None)
            cost = meter.cost(step) if row else None
            rung = Rung(step.kind, step.label, step.level, row, cost, None, step.missing, step.cure, step.notes)
            rungs.append(rung)
    if chance is None:
        raise MissingFeatures(rungs[0].missing, rungs[0].cure)
    split = course.sources.split or ""
    return Ladder(course.backbone, course.benchmark, split, chance, compared(_alike(rungs), chance, seed))


def _alike(rungs: Sequence[Rung]) -> list[Rung]:
    """The rungs, those whose pictures could not all be read marked: their items are others."""
    first = next(rung.row.sample for rung in rungs if rung.row)
    note = "scored on other items, as some could not be read"
    return [
        dataclasses.replace(rung, notes=(*rung.notes, note)) if rung.row and rung.row.sample != first else rung
        for rung in rungs
    ]


def _scored(
    course: Course, step: Step, extract_missing: bool, how: tuple[str, int], progress: Ticker | None
) -> tuple[list[ResultRow], Step]:
    """The rows of a rung, or none and the rung with what it lacks."""
    from . import api

    if step.missing:
        return [], step
    own: dict[str, Any] = (
        {"runs": [step.run]} if step.run else {"heads": [step.head], "labels": {step.head: step.label}}
    )
    try:
        rows = api.evaluate(
            course.benchmark, backbone=step.backbone, level=step.level, sources=course.sources, references=(),
            extract_missing=extract_missing, device=how[0], seed=how[1], workspace=course.workspace,
            progress=progress, extracting=progress, remember=False, **own,
        )  # fmt: skip
        return rows, step
    except MissingFeatures as error:
        levels = f"tokens,{step.level}" if step.kind == "pooled" else step.level
        cure = f"Add --extract, or `{_extraction(course, levels, backbone=step.backbone)}`"
        return [], dataclasses.replace(step, missing=error.what.rstrip("."), cure=cure)
    except InputError as error:
        # Not every tower's tokens can be pooled by place; what else is wrong is the user's to mend.
        if step.kind not in ("pooled", "dense") or isinstance(error, SpecMismatch):
            raise
        return [], dataclasses.replace(step, missing=error.what.rstrip("."), cure=error.cure)
