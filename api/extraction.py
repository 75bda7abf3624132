"""Extraction as functions: of a dataset, of a benchmark, and what either would do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import registry
from ..errors import UsageError
from ..pipeline.naming import dataset_name, default_splits
from ..workspace import Workspace
from .choices import Place, backbone_of, data_of, listed, workspace_of

if TYPE_CHECKING:
    from ..eval.sources import Sources
    from ..pipeline.extract import ExtractConfig, Summary
    from ..pipeline.job import Listing
    from ..pipeline.preview import Preview

Ticker = Callable[[str, int, int], None]
Named = Sequence[str | Path]


def extract(
    backbone: str = "",
    data: str = "",
    splits: str | Sequence[str] = (),
    *,
    benchmark: str = "",
    root: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    allow_missing: bool = False,
    variant: str | None = None,
    level: str | Sequence[str] = "tokens",
    dtype: str = "float16",
    precision: str = "float32",
    jpeg: str = "exact",
    segments: str = "",
    negatives: str | Path | Named = (),
    phrases: bool = False,
    limit: int | None = None,
    device: str = "",
    config: ExtractConfig | None = None,
    workspace: Place = None,
    progress: Ticker | None = None,
) -> list[Summary]:
    """Run a frozen encoder once over images and captions and keep its features: of splits of a dataset, in a store for
    each level. What is in the store is not extracted again; what the workspace's remotes hold is pulled.

    backbone   a frozen encoder (`compal ls backbones`); "" is the one used last
    data       a dataset, NAME[:ROOT], or a table or folder by path; "" is the one used last
    splits     all that the dataset needs for fitting by default
    benchmark  extract a benchmark's images and captions instead; `root`, `images`, `allow_missing` and `variant` are
               its own, as of `evaluate`
    level      where the ladder is cut: pooled, tokens, block:-K, pixels, regions; of several, each image is decoded
               once and each pass made once for all of them
    dtype      on disk: float16, bfloat16 or float32
    precision  of the forward pass: float32, or bfloat16 or float16 by autocast
    jpeg       exact, or reduced: JPEGs are decoded at a half, a quarter or an eighth where they stay twice as large
               as the tower's pictures
    segments   a segmenter (`compal ls segmenters`) of captions that come without segments
    negatives  tables of `compal negatives` (files, or how names begin), whose captions are extracted and paired too
    phrases    extract the noun phrases of the captions too, which `data.phrases` of a recipe draws
    limit      the first so many of each split: scenes, photographs or, of `shapes`, quadruplets
    device     of the forward pass: cpu, cuda, cuda:1, mps; the processor by default
    config     everything else (`pipeline.plan.ExtractConfig`): batch size, engine, threads, remotes to ask
    progress   called with (what, done, in all)

    Returns a summary for each split and level: counts of images and captions that were extracted, reused, pulled and
    quarantined, bytes and seconds; `store` is the folder. Writes the pairs tables that `fit` reads.

    Raises `UnknownName` for a backbone, a dataset or a split that does not exist, `InputError` for files that are not
    there, a disk that is full or features that are not finite, `UsageError` for a benchmark beside a dataset,
    `RemoteError`. An image that cannot be read is no error: it is in the quarantine.
    """
    from ..pipeline.extract import extract_listing
    from ..pipeline.levels import resolve_levels

    workspace = workspace_of(workspace)
    if benchmark and (data or splits or negatives or phrases):
        raise UsageError("a benchmark brings its own items", "Drop data, splits, negatives and phrases, or benchmark.")
    if not benchmark and (root or images or allow_missing or variant):
        raise UsageError("root, images, allow_missing and variant are of a benchmark", "Name it: benchmark=NAME.")
    backbone = backbone_of(backbone, workspace)
    config = config or asking(workspace, device or "cpu")
    config = dataclasses.replace(config, device=device) if device else config
    with workspace.used():
        specs = resolve_levels(backbone, level, dtype, precision, jpeg, segments)
    if benchmark:
        from ..eval.sources import Sources

        files = Path(root) if root else workspace.root_for(benchmark)
        sources = Sources(files, Path(images) if images else None, allow_missing, None, limit, variant)
        listings = [of_benchmark(benchmark, sources, segments)]
    else:
        data = data_of(data, workspace)
        listings = _listings(data, listed(splits), workspace, limit, segments, listed(negatives), phrases)
    done = [one for listing in listings for one in extract_listing(listing, specs, workspace, config, progress)]
    workspace.remember(backbone, data)
    return done


def _listings(
    data: str,
    splits: Sequence[str],
    workspace: Workspace,
    limit: int | None,
    segments: str,
    negatives: Named,
    phrases: bool,
) -> list[Listing]:
    from ..pipeline.extract import listing_of

    data = dataset_name(data)
    names = splits or default_splits(data, workspace)
    return [listing_of(data, split, workspace, limit, segments, negatives, phrases) for split in names]


def item_keys(data: str, splits: Sequence[str] = (), workspace: Workspace | None = None) -> set[str]:
    """The keys of a dataset's images and captions; what `extract` asks remotes for."""
    from ..pipeline import listing as listings

    workspace = workspace or Workspace.find()
    data = dataset_name(data)
    name, root = workspace.dataset(data)
    module = registry.load("datasets", name)
    with listings.use(workspace.path / "listing.sqlite"):
        wanted = splits or default_splits(data, workspace)
        return {item.key for split in wanted for item in module.items(root, split, None)}


def preview(
    backbone: str,
    data: str = "shapes",
    splits: Sequence[str] = (),
    *,
    benchmark: str = "",
    sources: Sources | None = None,
    level: str | Sequence[str] = "tokens",
    dtype: str = "float16",
    precision: str = "float32",
    jpeg: str = "exact",
    segments: str = "",
    negatives: Named = (),
    phrases: bool = False,
    limit: int | None = None,
    config: ExtractConfig | None = None,
    workspace: Workspace | None = None,
    timed: bool = False,
) -> list[Preview]:
    """What `extract`, or `extract_benchmark` where a benchmark is named, would do at each level; nothing is written.

    timed  say also how long: from earlier parts of the store, or else from a short pass with the weights
    """
    from ..pipeline import listing as listings
    from ..pipeline.job import Job
    from ..pipeline.levels import resolve_levels
    from ..pipeline.plan import unique_items
    from ..pipeline.preview import preview_levels

    workspace = workspace or Workspace.find()
    with workspace.used():
        specs = resolve_levels(backbone, level, dtype, precision, jpeg, segments)
    if benchmark:
        found = [of_benchmark(benchmark, sources, segments)]
    else:
        found = _listings(data, splits, workspace, limit, segments, negatives, phrases)
    job = Job(tuple(specs), tuple(map(workspace.find_store, specs)), config or asking(workspace))
    with workspace.used(), listings.use(workspace.path / "listing.sqlite", patience=found[0].patience(job.config)):
        items = unique_items(item for listing in found for item in listing.items())
        return preview_levels(found[0].segmented(items, *job.folders, keep=False), job, timed)


def extract_benchmark(
    backbone: str,
    benchmark: str,
    sources: Sources,
    *,
    level: str | Sequence[str] = "tokens",
    dtype: str = "float16",
    precision: str = "float32",
    jpeg: str = "exact",
    segments: str = "",
    config: ExtractConfig | None = None,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
) -> list[Summary]:
    """Extract the images and captions of a benchmark, what `compal eval NAME --extract` adds; a summary for each
    level."""
    from ..pipeline.extract import extract_listing
    from ..pipeline.levels import resolve_levels

    workspace = workspace or Workspace.find()
    with workspace.used():
        specs = resolve_levels(backbone, level, dtype, precision, jpeg, segments)
    listing = of_benchmark(benchmark, sources, segments)
    return extract_listing(listing, specs, workspace, config or asking(workspace), progress)


def of_benchmark(benchmark: str, sources: Sources | None, segments: str) -> Listing:
    """How to list a benchmark's items again; a split that it does not have is refused here."""
    from ..eval.sources import Sources
    from ..pipeline.job import Listing

    sources = sources or Sources()
    sources.check_choices(benchmark, registry.load("benchmarks", benchmark).INFO)
    root, images = (str(path.absolute()) if path else "" for path in (sources.root, sources.images))
    chosen = sources.split or "", sources.limit, segments, benchmark, root, images, sources.allow_missing
    return Listing("", *chosen, variant=sources.variant or "")


def asking(workspace: Workspace, device: str = "cpu") -> ExtractConfig:
    """How to extract where nothing is said: the workspace's remotes are asked first; on an accelerator the batch size
    is found by a probe."""
    from ..pipeline.plan import ExtractConfig

    return ExtractConfig(64 if device == "cpu" else None, device=device, remotes=tuple(workspace.remotes))
