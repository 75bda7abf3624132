"""What an extraction would do: parts, rows, bytes and time. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CompalError, SpecMismatch
from ..stores import space
from ..stores.items import Item
from ..stores.manifest import done_names, read_done
from ..stores.spec import FeatureSpec
from ..stores.store import Store
from .job import Job
from .plan import KINDS, ExtractConfig, Kind, Known, Nothing, Unit, plan_units, sample_bytes, unique_items

# Records of parts are read until so many rows are known of.
ENOUGH_ROWS = 4096


@dataclass(frozen=True)
class Preview:
    """What an extraction would do at one level, ragged rows estimated.

    parts, images, texts, bytes  that are new
    reused   wanted items that are there, quarantined ones too
    seconds  of the forward passes, None where the time is not known; levels of one pass share it
    basis    where that is from, or why it is not known
    free     bytes free on the store's disk
    """

    store: Path
    parts: int
    images: int
    texts: int
    reused: int
    bytes: int
    level: str = ""
    seconds: float | None = None
    basis: str = ""
    free: int = 0


def preview(items: Iterable[Item], spec: FeatureSpec, folder: Path, config: ExtractConfig | None = None) -> Preview:
    """What `extract` would do, without the time. Raises `SpecMismatch` as `extract` does."""
    return preview_levels(items, Job((spec,), (folder,), config or ExtractConfig()), timed=False)[0]


def preview_levels(items: Iterable[Item], job: Job, timed: bool = True) -> list[Preview]:
    """What `extract_levels` would do. `timed` estimates the time from earlier parts of the stores that this device
    made, or else from a short pass, for which the encoder is loaded."""
    wanted = unique_items(items)
    stores = [_known(folder, spec) for spec, folder in zip(job.specs, job.folders, strict=True)]
    units = [unit for unit in plan_units(wanted, stores, job.config) if not _done(unit, stores)]
    seconds, basis = _estimated(units, job, stores) if timed and units else (None, "")
    return [
        _previewed(units, store, folder, len(wanted), (seconds, basis))
        for store, folder in zip(stores, job.folders, strict=True)
    ]


def _known(folder: Path, spec: FeatureSpec) -> Known:
    if not (folder / "spec.json").is_file():
        return Nothing(spec)
    store = Store.open(folder)
    if store.spec != spec:
        raise SpecMismatch(f"{folder} holds features of another spec", f"Use the folder {spec.folder}.")
    return store


def _done(unit: Unit, stores: Sequence[Known]) -> bool:
    """Whether all parts of a unit are complete, though not committed."""
    there = {store.spec.level: store for store in stores if isinstance(store, Store)}
    return all(
        level in there and there[level].part_done(part.name) for level, parts in unit.parts.items() for part in parts
    )


def _previewed(
    units: Sequence[Unit], store: Known, folder: Path, wanted: int, time: tuple[float | None, str]
) -> Preview:
    parts = [part for unit in units for part in unit.parts.get(store.spec.level, ())]
    if isinstance(store, Store):
        parts = [part for part in parts if not store.part_done(part.name)]
    rows = {kind: [item for part in parts if part.kind == kind for item in part.items] for kind in KINDS}
    return Preview(
        store=folder,
        parts=len(parts),
        images=len(rows["image"]),
        texts=len(rows["text"]),
        reused=wanted - len(rows["image"]) - len(rows["text"]),
        bytes=sum(len(some) * sample_bytes(kind, some, store.spec) for kind, some in rows.items()),
        level=store.spec.level,
        seconds=time[0] if parts else None,
        basis=time[1] if parts else "",
        free=space.free(folder),
    )


def _estimated(units: Sequence[Unit], job: Job, stores: Sequence[Known]) -> tuple[float | None, str]:
    """Seconds of the passes that `units` need, and where the rates are from."""
    counts = {kind: sum(len(unit.items) for unit in units if unit.kind == kind) for kind in KINDS}
    if all(spec.rung == "pixels" for spec in job.specs):
        return None, "no pass is needed; the time is that of decoding and writing"
    rates = _earlier(job, stores)
    basis = "the rate of earlier parts on this device"
    if any(counts[kind] and kind not in rates for kind in KINDS):
        try:
            rates = {**_measured(job, units), **rates}
        except CompalError as error:
            return None, f"unknown: {error}"
        basis = "a short timed pass; decoding and writing come on top where they are slower"
    if any(counts[kind] and not rates.get(kind) for kind in KINDS):
        return None, "unknown: there is no memory for a small batch"
    return sum(count / rates[kind] for kind, count in counts.items() if count), basis


def _earlier(job: Job, stores: Sequence[Known]) -> dict[Kind, float]:
    """Items a second of the newest parts that this device made, by kind."""
    from .work import hardware

    name = hardware(job.config.device)
    found: dict[Kind, float] = {}
    for kind in KINDS:
        rows, seconds = 0.0, 0.0
        for done in _records(stores):
            written = done.get("written") or {}
            if done.get("kind") == kind and written.get("hardware") == name and written.get("forward_seconds"):
                # Of a pass that several levels shared, each part's record has its share of the time.
                rows += int(done["rows"]) / int(written.get("levels") or 1)
                seconds += float(written["forward_seconds"])
            if rows >= ENOUGH_ROWS:
                break
        if rows and seconds:
            found[kind] = rows / seconds
    return found


def _records(stores: Sequence[Known]) -> Iterator[dict[str, Any]]:
    for store in stores:
        if isinstance(store, Store) and store.spec.rung != "pixels":
            for name in done_names(store.path):
                yield read_done(store.path, name)


def _measured(job: Job, units: Sequence[Unit]) -> dict[Kind, float]:
    """Items a second of one small batch of each kind."""
    from .encoder import load_encoder
    from .forward import Forward, plain
    from .probe import rates
    from .work import richest

    encoder = load_encoder(plain(richest(job.specs)), job.config.device)
    forward = Forward(encoder, job.specs, job.config.device, job.config.batch_size or 8)
    captions = [str(item.content) for unit in units if unit.kind == "text" for item in unit.items[:8]]
    images, texts = rates(forward, [text for text in captions if text.strip()])
    return {"image": images, "text": texts}
