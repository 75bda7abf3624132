"""`compal extract`: its options, what they ask of `api`, and the choices that other commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import console
from ..console import steps, terminal
from ..errors import UsageError
from . import options
from .store import find_workspace

if TYPE_CHECKING:
    from ..eval.sources import Sources
    from ..pipeline.extract import Summary
    from ..workspace import Workspace


def choose(
    workspace: Workspace, backbone: str, data: str | None = None, more: Mapping[str, object] | None = None
) -> tuple[str, str]:
    """The names to use, remembered for next time; says on stderr what was not given, and what the command works with,
    `more` of it by name."""
    chosen, origin = workspace.choose("backbone", backbone, "shapes-vit")
    said = [] if origin == "given" else [f"--backbone {chosen} ({origin})"]
    dataset = ""
    if data is not None:
        dataset, origin = workspace.choose("data", data, "shapes")
        said += [] if origin == "given" else [f"--data {dataset} ({origin})"]
    if said:
        terminal.say(f"using  {', '.join(said)}")
    terminal.chose(backbone=chosen, data=dataset, **(more or {}), work=workspace.path)
    return chosen, dataset


def sources_of(
    workspace: Workspace, benchmark: str, root: Path | None, images: Path | None, allow_missing: bool,
    split: str | None, limit: int | None, variant: str | None = None,
) -> Sources:  # fmt: skip
    """Where a benchmark's files are: given, or where the workspace says."""
    from ..eval.sources import Sources

    return Sources(root or workspace.root_for(benchmark), images, allow_missing, split, limit, variant)


def led(command: Callable[..., None]) -> Callable[..., None]:
    """The command, run by rank 0 alone inside a torchrun or srun that is running: the other ranks do their share of
    its plans and print nothing."""

    @functools.wraps(command)
    def called(**given: Any) -> None:
        if given.get("engine") != "torchrun":
            command(**given)
            return
        from ..pipeline.engines.torchrun import ranks

        with ranks() as leading:
            if leading:
                command(**given)

    return called


@led
def extract(
    backbone: options.Backbone = "",
    data: options.Data = "",
    split: options.Splits = None,
    benchmark: options.Benchmark = "",
    root: options.Root = None,
    images: options.Images = None,
    allow_missing: options.AllowMissing = False,
    limit: options.Limit = None,
    variant: options.Variant = None,
    segments: options.Segments = "",
    negatives: options.Negatives = None,
    phrases: options.Phrases = False,
    level: options.Levels = None,
    dtype: options.Dtype = "float16",
    precision: options.Precision = "float32",
    jpeg: options.Jpeg = "exact",
    batch_size: options.BatchSize = "auto",
    workers: options.Workers = None,
    device: options.Devices = "auto",
    compile_: options.Compile = False,
    engine: options.Engine = "local",
    processes: options.Processes = 0,
    through: options.Through = "",
    patience: options.PatienceSeconds = 120.0,
    retry: options.Retry = False,
    no_remote: options.NoRemote = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Run a frozen encoder once over images and captions and keep its features.

    Writes WORKSPACE/stores/BACKBONE-LEVEL-FINGERPRINT and WORKSPACE/pairs.
    Killed at any moment, the same command goes on where it was.
    What another dataset, or a teammate (see `compal store push`), has extracted is not extracted again.

    Example: compal extract --backbone open_clip:ViT-B-32-quickgelu --data coco:/data/coco --level tokens,pooled

    Example: compal extract --backbone shapes-vit --data shapes --limit 50 --dry-run
    """
    from .. import api
    from ..pipeline.plan import ExtractConfig

    workspace = find_workspace(work)
    _refuse_both(benchmark, variant, data or split or negatives or phrases)
    place, levels = _device(device, engine, dry_run), level or ["tokens"]
    more = {"benchmark": benchmark, "level": ",".join(levels), "device": place}
    chosen, dataset = choose(workspace, backbone, None if benchmark else data, more)
    config = ExtractConfig(
        batch_size=_batch_size(batch_size), workers=workers, device=place,
        compile=compile_, engine=engine, processes=processes, patience=patience, retry=retry,
        remotes=() if no_remote else tuple(workspace.remotes), through=workspace.remote(through) if through else None,
    )  # fmt: skip
    asked: dict[str, Any] = {"level": levels, "dtype": dtype, "precision": precision, "jpeg": jpeg}
    asked |= {"segments": segments, "config": config, "workspace": workspace}
    items: dict[str, Any] = {"limit": limit, "negatives": negatives or (), "phrases": phrases}
    sources = sources_of(workspace, benchmark, root, images, allow_missing, None, limit, variant) if benchmark else None
    if dry_run:
        asked |= {"benchmark": benchmark, "sources": sources, "timed": True}
        found = api.preview(chosen, dataset, split or (), **asked, **items)
        console.show_previews(found, as_json)
        return
    with console.Ticking() as ticking:
        if sources:
            done = api.extract_benchmark(chosen, benchmark, sources, progress=ticking.tick, **asked)
        else:
            done = api.extract(chosen, dataset, split or (), progress=ticking.tick, **asked, **items)
    _say(workspace, chosen, dataset, done, benchmark, as_json, work)


def _say(
    workspace: Workspace, backbone: str, data: str, done: list[Summary], benchmark: str, as_json: bool,
    work: Path | None,
) -> None:  # fmt: skip
    workspace.remember(backbone, data)
    console.show_summaries(done, as_json)
    if not as_json:
        steps.after_extract(done, benchmark, work)


def _refuse_both(benchmark: str, variant: str | None, data: object) -> None:
    """A benchmark brings its own items, and only a benchmark has variants."""
    if variant and not benchmark:
        raise UsageError("--variant is of a benchmark", "Name it with --benchmark, or leave --variant out.")
    if benchmark and data:
        cure = "Drop --data, --split, --negatives and --phrases, or --benchmark."
        raise UsageError("--benchmark brings its own items", cure)


def _device(asked: str, engine: str, dry_run: bool) -> str:
    """What "auto" means: where this process computes the processor, else what the engine finds."""
    return "cpu" if asked == "auto" and (engine == "local" or dry_run) else asked


def _batch_size(text: str) -> int | None:
    """None for "auto". Raises `UsageError` for anything but that or a number above 0."""
    if text == "auto":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"--batch-size {text} is neither 'auto' nor a number above 0")
