"""Extraction as functions: of a dataset, of a benchmark, and what either would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import registry
from ..pipeline.naming import dataset_name, default_splits
from ..workspace import Workspace

if TYPE_CHECKING:
    from ..eval.sources import Sources
    from ..pipeline.extract import ExtractConfig, Summary
    from ..pipeline.job import Listing
    from ..pipeline.preview import Preview

Ticker = Callable[[str, int, int], None]
Named = Sequence[str | Path]


def extract(
    backbone: str,
    data: str = "shapes",
    splits: Sequence[str] = (),
    *,
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
    progress: Ticker | None = None,
) -> list[Summary]:
    """Extract splits of a dataset (all the dataset needs for fitting by default) into a store for each level; a
    summary for each split and level.

    level      one, or several: each image is then decoded once and each pass made once for all of them
    precision  of the forward pass: float32, or bfloat16 or float16 by autocast
    jpeg       exact, or reduced: JPEGs are decoded at a half, a quarter or an eighth where they stay twice as large
               as the tower's pictures
    segments   a segmenter (`compal ls segmenters`) of captions that come without segments
    negatives  tables of `compal negatives` (files, or how names begin), whose captions are extracted and paired too
    phrases    extract the noun phrases of the captions too, which `data.phrases` of a recipe draws
    What the workspace's remotes hold is pulled instead of computed (`config.remotes` says which are asked).
    Writes the pairs tables that `fit` reads. Raises what `pipeline.extract.extract_listing` raises.
    """
    from ..pipeline.extract import extract_listing
    from ..pipeline.levels import resolve_levels

    workspace = workspace or Workspace.find()
    with workspace.used():
        specs = resolve_levels(backbone, level, dtype, precision, jpeg, segments)
    config = config or asking(workspace)
    return [
        summary
        for listing in _listings(data, splits, workspace, limit, segments, negatives, phrases)
        for summary in extract_listing(listing, specs, workspace, config, progress)
    ]


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


def asking(workspace: Workspace) -> ExtractConfig:
    """How to extract where nothing is said: the workspace's remotes are asked first."""
    from ..pipeline.plan import ExtractConfig

    return ExtractConfig(remotes=tuple(workspace.remotes))
