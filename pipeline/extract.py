"""From items to stores: plan, ask the remotes, let an engine's workers encode and write, commit.

Every part is complete or absent, so a run that is killed goes on where it was by starting again, and ends in
the same bytes. Nothing that is computed becomes visible to readers before the one commit at the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .. import registry
from ..errors import CompalError
from ..stores import space
from ..stores.items import Item, Pair
from ..stores.pairs import read_info, write_pairs
from ..stores.rows import Quarantined
from ..stores.spec import FeatureSpec
from ..stores.store import Store
from ..workspace import Workspace
from . import listing as listings
from . import negatives_table
from .asking import Asked, ask
from .job import Job, Listing
from .plan import KINDS, ExtractConfig, PlannedPart, Unit, plan_units, sample_bytes, stretches, unique_items
from .provenance import describe
from .regions import LEVELS, states_of
from .segments import OWN
from .segments import load as load_segmenter

if TYPE_CHECKING:
    from .encoder import Encoder
    from .units import Done

LOG = logging.getLogger("compal")
__all__ = ["ExtractConfig", "Progress", "Summary", "extract", "extract_dataset", "extract_levels", "extract_listing"]


class Progress(Protocol):
    """Hears how many of the planned items of a kind, "image" or "text", are done, quarantined ones too; of "pull"
    how many bytes have come from a remote, of "written" how many have gone to the disk; and of "mfu" the percentage
    of a GPU's peak that the passes reach."""

    def __call__(self, kind: str, done: int, total: int, /) -> None: ...


@dataclass(frozen=True, repr=False)
class Summary:
    """What an extraction did at one level. Levels of one pass share its seconds.

    store            the store's folder
    images, texts    how many this run encoded
    reused           how many of the wanted items were in the store before
    quarantined      the wanted items that cannot be read, found now or before
    truncated        how many of the captions encoded now were longer than the context
    seconds          of the whole run, wall clock
    forward_seconds  of the forward passes, transfers included, added up over processes
    pulled           how many of the wanted items came from remotes
    saved_seconds    of forward passes that those took where they were computed
    notes            remotes that could not be asked and why, batches that found no memory; one line each
    level            as the spec says
    bytes            of the files that were written
    mfu              share of the GPU's peak that the passes reached; None where it is not known
    """

    store: Path
    images: int
    texts: int
    reused: int
    quarantined: list[Quarantined]
    truncated: int
    seconds: float
    forward_seconds: float
    pulled: int = 0
    saved_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    level: str = ""
    bytes: int = 0
    mfu: float | None = None

    def __repr__(self) -> str:
        lost = f", {len(self.quarantined):,} could not be read" if self.quarantined else ""
        done = f"{self.images:,} images and {self.texts:,} captions extracted, {self.reused:,} were there{lost}"
        return f"<{self.store.name}: {done}>"


def extract(
    items: Iterable[Item],
    spec: FeatureSpec,
    folder: Path,
    config: ExtractConfig | None = None,
    progress: Progress | None = None,
    encoder: Encoder | None = None,
) -> Summary:
    """Make the store in `folder` hold the features of `items`, and say what was done; see `extract_levels`."""
    return extract_levels(items, Job((spec,), (folder,), config or ExtractConfig()), progress, encoder)[0]


def extract_levels(
    items: Iterable[Item], job: Job, progress: Progress | None = None, encoder: Encoder | None = None
) -> list[Summary]:
    """Make the stores of a job hold the features of `items`, each image decoded and each pass made once for all
    levels that lack it; a summary for each level.

    Captions without segments get those of the listing's segmenter, which the stores keep. `encoder` is loaded from
    the specs if none is given and something is left to encode; one that is given stays in this process, whatever
    engine the job names. Unreadable items are listed in the quarantine and stop nothing. What
    `config.remotes` hold is pulled instead of computed; one that fails is named in the notes. Raises `SpecMismatch`
    if a folder holds features of another spec, `InputError` for features that are not finite, a full or read-only
    disk, no memory for one item; complete parts are kept in every case, and on KeyboardInterrupt too.
    """
    wanted = _segmented(unique_items(items), job)
    levels = {spec.level for spec in job.specs}
    later = [
        spec
        for spec in job.specs
        if spec.level in LEVELS
        and LEVELS[spec.level].pooled
        # A dense level whose states are not asked for comes from the pass that the others take.
        and (not LEVELS[spec.level].dense or states_of(spec) in levels)
    ]
    if not later or len(later) == len(job.specs):
        return _extract(wanted, job, progress, encoder)
    # What is pooled from cached tokens comes when these are committed.
    found: dict[str, Summary] = {}
    for specs in ([spec for spec in job.specs if spec not in later], later):
        folders = tuple(folder for spec, folder in zip(job.specs, job.folders, strict=True) if spec in specs)
        own = replace(job, specs=tuple(specs), folders=folders)
        found |= {summary.level: summary for summary in _extract(wanted, own, progress, encoder)}
    return [found[spec.level] for spec in job.specs]


def _segmented(wanted: list[Item], job: Job) -> list[Item]:
    """The items with the segments of the listing's segmenter, which are then in all stores of the job, and with the
    noun phrases that it asks for."""
    if job.listing is None:
        return wanted
    if job.listing.segments in ("", OWN):
        return list(job.listing.segmented(wanted))
    load_segmenter(job.listing.segments)  # one that does not exist makes no store
    for spec, folder in zip(job.specs, job.folders, strict=True):
        Store.create(folder, spec)
    return list(job.listing.segmented(wanted, *job.folders))


def _extract(wanted: Sequence[Item], job: Job, progress: Progress | None, encoder: Encoder | None) -> list[Summary]:
    started = time.perf_counter()
    stores = [Store.create(folder, spec) for spec, folder in zip(job.specs, job.folders, strict=True)]
    units = _plan_and_recover(wanted, stores, job.config)
    asked = [ask(job.config.remotes, _todo(units, store), store, progress) for store in stores]
    if any(one.pulled for one in asked):
        stores = [Store.open(folder) for folder in job.folders]
        units = plan_units(wanted, stores, job.config)
    todo = [_todo(units, store) for store in stores]
    counts = _Counts(units, todo, stores, progress)
    for store, parts in zip(stores, todo, strict=True):
        LOG.info("store %s: %s parts are to be made of %s items wanted", store.path, len(parts), len(wanted))
    space.check(job.folders[0], 0 if job.config.through else counts.bytes, f"features of {counts.left:,} items")
    if counts.left:
        _run(replace(job, items=counts.left), units, counts, encoder)
    for store in stores:
        store.commit(part.name for unit in units for part in unit.parts.get(store.spec.level, ()))
    seconds = time.perf_counter() - started
    return [
        _summary(store, parts, wanted, pulled, counts, seconds)
        for store, parts, pulled in zip(stores, todo, asked, strict=True)
    ]


def _run(job: Job, units: Sequence[Unit], counts: _Counts, encoder: Encoder | None) -> None:
    if encoder is None:
        registry.load("engines", job.config.engine).run(job, units, counts.report, counts.tick)
        return
    from .work import Worker

    Worker(job, encoder).run(units, counts.report, counts.tick)


def _summary(
    store: Store, todo: Sequence[PlannedPart], wanted: Sequence[Item], asked: Asked, counts: _Counts, seconds: float
) -> Summary:
    wanted_keys = {item.key for item in wanted}
    quarantined = [item for item in store.quarantined() if item.key in wanted_keys]
    refused = {item.key for item in quarantined}
    encoded = {
        kind: sum(item.key not in refused for part in todo if part.kind == kind for item in part.items)
        for kind in KINDS
    }
    names = {part.name for part in todo}
    reports = [done for done in counts.done if store.spec.level in counts.levels[done.unit]]
    forward = sum(done.forward_seconds for done in reports)
    seen = [done for done in reports if done.peak and done.kind == "image" and done.forward_seconds]
    ideal, spent = sum(done.flops / done.peak for done in seen), sum(done.forward_seconds for done in seen)
    return Summary(
        store=store.path,
        images=encoded["image"],
        texts=encoded["text"],
        reused=len(wanted) - len(quarantined) - sum(encoded.values()) - asked.pulled,
        quarantined=quarantined,
        truncated=sum(done.truncated for done in reports),
        seconds=seconds,
        forward_seconds=forward,
        pulled=asked.pulled,
        saved_seconds=asked.saved_seconds,
        notes=tuple(dict.fromkeys([*asked.notes, *(note for done in reports for note in done.notes)])),
        level=store.spec.level,
        bytes=sum(part.bytes for part in store.parts if part.name in names),
        mfu=ideal / spent if ideal else None,
    )


def _plan_and_recover(wanted: Sequence[Item], stores: Sequence[Store], config: ExtractConfig) -> list[Unit]:
    """The plan, after making complete parts of an interrupted run with another plan part of the stores."""
    units = plan_units(wanted, stores, config)
    changed = False
    for store in stores:
        left = store.uncommitted()
        # What goes through a remote is listed there too, and that has not seen what is complete here.
        planned = {part.name for unit in units for part in unit.parts.get(store.spec.level, ())}
        if (left and config.through) or not set(left) <= planned:
            store.commit(left)
            changed = True
    return plan_units(wanted, stores, config) if changed else units


def _todo(units: Sequence[Unit], store: Store) -> list[PlannedPart]:
    """The parts that a store lacks."""
    parts = (part for unit in units for part in unit.parts.get(store.spec.level, ()))
    return [part for part in parts if not store.part_done(part.name)]


class _Counts:
    """What was done, for the progress and the summary.

    left    how many items are to be encoded, at whatever level; they take about `bytes` on the disk
    done    the reports of units
    levels  that each unit serves
    """

    def __init__(
        self,
        units: Sequence[Unit],
        todo: Sequence[Sequence[PlannedPart]],
        stores: Sequence[Store],
        progress: Progress | None,
    ) -> None:
        self.done: list[Done] = []
        self.levels = {unit.name: set(unit.parts) for unit in units}
        self._total: dict[str, int] = dict.fromkeys(KINDS, 0)
        left: dict[str, int] = dict.fromkeys(KINDS, 0)
        names = {part.name for parts in todo for part in parts}
        for unit in units:
            self._total[unit.kind] += len(unit.items)
            runs = (items for items, parts in stretches(unit) if any(part.name in names for part in parts.values()))
            left[unit.kind] += sum(map(len, runs))
        self._done: dict[str, int] = {kind: self._total[kind] - left[kind] for kind in KINDS}
        self.left = sum(left.values())
        self.bytes = sum(
            len(part.items) * sample_bytes(part.kind, part.items, store.spec)
            for parts, store in zip(todo, stores, strict=True)
            for part in parts
        )
        self._progress = progress

    def tick(self, kind: str, count: int) -> None:
        """Add to what is done of a kind."""
        self._done[kind] += count
        if self._progress:
            self._progress(kind, min(self._done[kind], self._total[kind]), self._total[kind])

    def report(self, done: Done) -> None:
        """Keep what became of a unit."""
        self.done.append(done)
        if self._progress:
            written = sum(one.bytes for one in self.done)
            self._progress("written", written, max(self.bytes, written))
            if done.peak and done.flops and done.forward_seconds:
                self._progress("mfu", round(100 * done.flops / done.peak / done.forward_seconds), 100)


def extract_dataset(
    data: str,
    split: str,
    spec: FeatureSpec,
    workspace: Workspace,
    config: ExtractConfig | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Extract one split of a dataset, `NAME[:ROOT]`, at one level; see `extract_listing`."""
    listing = listing_of(data, split, workspace, limit)
    return extract_listing(listing, [spec], workspace, config, progress)[0]


def listing_of(
    data: str,
    split: str,
    workspace: Workspace,
    limit: int | None = None,
    segments: str = "",
    negatives: Sequence[str | Path] = (),
    phrases: bool = False,
) -> Listing:
    """How to list a split of `NAME[:ROOT]`, the root made absolute. Raises what `negatives_table.find` raises."""
    tables = dict.fromkeys(str(negatives_table.find(workspace, str(table)).resolve()) for table in negatives)
    name, root = workspace.dataset(data)
    if root is not None and root.exists():  # else a name of the dataset's own, or its error to raise
        root = root.absolute()
    data = name if root is None else f"{name}:{root}"
    return Listing(data, split, limit, segments, negatives=tuple(tables), phrases=phrases)


def extract_listing(
    listing: Listing,
    specs: Sequence[FeatureSpec],
    workspace: Workspace,
    config: ExtractConfig | None = None,
    progress: Progress | None = None,
) -> list[Summary]:
    """Extract a split of a dataset, or a benchmark, into the workspace's stores of `specs`; of a dataset write also
    its table of pairs, `workspace.pairs_path(data, split)`, without those of quarantined items. Tables of negatives
    that have none for its captions, or that the former table had, are named in the notes.

    Raises `UnknownName` for a dataset or split that does not exist, and what the dataset and `extract_levels` raise.
    """
    folders = tuple(workspace.find_store(spec) for spec in specs)
    job = Job(tuple(specs), folders, config or ExtractConfig(), listing)
    listed = listings.use(workspace.path / "listing.sqlite", create=True, patience=listing.patience(job.config))
    with workspace.used(), listed:
        summaries = extract_levels(listing.items(), job, progress)
        if listing.data:
            refused = {item.key for summary in summaries for item in summary.quarantined}
            notes = tuple(_write_pairs(listing, workspace.pairs_path(listing.data, listing.split), refused))
            summaries[0] = replace(summaries[0], notes=(*summaries[0].notes, *notes))
    return summaries


def _write_pairs(listing: Listing, path: Path, refused: set[str]) -> Iterator[str]:
    """Write a split's table of pairs; yields what there is to know of its negatives."""
    former, names = "", ", ".join(Path(table).stem for table in listing.negatives)
    with suppress(CompalError):  # a damaged table is about to be written anew
        former = read_info(path).get("negatives", "") if path.is_file() else ""
    said = {"negatives": names} if names else {}
    info = describe(listing.data, listing.split, listing.limit) | said
    write_pairs(path, _without(listing.pairs(), refused), info)
    where = f"split '{listing.split}' of {listing.data}"
    if gone := set(former.split(", ")) - set(names.split(", ")) - {""}:
        yield f"the pairs of {where} no longer have the negatives of {', '.join(sorted(gone))}: add --negatives"
    for table in listing.negatives:
        if negatives_table.shares_none(Path(table), path):
            yield f"{where} has no caption of the table of negatives {Path(table).stem}"


def _without(pairs: Iterable[Pair], refused: set[str]) -> Iterator[Pair]:
    for pair in pairs:
        if not {pair.image, pair.caption} & refused:
            yield replace(pair, negatives=tuple(key for key in pair.negatives if key not in refused))


def splits(data: str, workspace: Workspace) -> list[str]:
    """The splits of a dataset, `NAME[:ROOT]`: those of its root if it can tell, else those of its INFO."""
    name, root = workspace.dataset(data)
    dataset = registry.load("datasets", name)
    return list(dataset.splits(root) if hasattr(dataset, "splits") else dataset.INFO["splits"])
