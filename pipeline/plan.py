"""What is left to do, cut into parts: pure, seeded, and the same on every machine.

The order of the rows is a hash of (seed, key), so a sequential read of a part is already shuffled, and a
part's name is a hash of what it will hold, so two runs over the same items plan the same parts: resuming is
skipping.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ..errors import InputError, UsageError
from ..stores import sizes
from ..stores.items import Item
from ..stores.spec import FeatureSpec
from ..workspace import Remote
from .regions import LEVELS, named_segments, region_count

if TYPE_CHECKING:
    from ..stores.rows import Quarantined

T = TypeVar("T")

Kind = Literal["image", "text"]
KINDS: tuple[Kind, ...] = ("image", "text")

# By level: the version of the store, and the keys of its quarantine, which are tried again.
Again = Mapping[str, tuple[int, Collection[str]]]

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1, "uint8": 1}
# The mean of COCO captions is 21.7 tokens; a part's size needs no better guess.
CAPTION_TOKENS = 22


@dataclass(frozen=True)
class ExtractConfig:
    """How to extract: what shapes the parts and the speed, and the features by no more than float rounding.

    batch_size     images or captions of one forward pass; batches never cross parts. None: found by a probe
    workers        threads that decode and preprocess ahead of the forward pass. None: 2 beside a forward pass on the
                   processor, all cores beside one on a GPU
    part_bytes     the size a part aims at, bytes; its rows are the nearest power of two from 64 to 8192
    seed           of the order of the rows
    device         torch device of the forward pass; auto: cpu, but the GPUs, if any, with torchrun and ray
    max_part_rows  upper bound of a part's rows, rounded down to a power of two; may be below 64
    remotes        asked, in this order, for what others have extracted before anything is computed
    engine         who runs the units, see `compal ls engines`
    through        for engine "ray": where its machines exchange plan and parts if they share no disk
    processes      how many of them the engine starts; 0 lets it choose
    compile        whether the towers go through torch.compile
    patience       seconds that a network share may be gone before the run stops
    retry          whether items in the quarantine are tried again
    """

    batch_size: int | None = 64
    workers: int | None = None
    part_bytes: int = sizes.PART_BYTES
    seed: int = 0
    device: str = "cpu"
    max_part_rows: int = sizes.MAX_PART_ROWS
    remotes: tuple[Remote, ...] = ()
    engine: str = "local"
    processes: int = 0
    through: Remote | None = None
    compile: bool = False
    patience: float = 120.0
    retry: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "part_bytes", "max_part_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if self.through is not None and self.engine != "ray":
            what = f"the engine {self.engine} needs a disk that its processes share"
            raise UsageError(what, "Use --engine ray, or leave out --through.")
        if self.processes < 0 or not self.patience >= 0:
            raise UsageError("processes and patience must be at least 0")


@dataclass(frozen=True)
class PlannedPart:
    """One part to extract: its name, its kind and its items in the order of its rows."""

    name: str
    kind: Kind
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Unit:
    """What a worker does at a stretch: the same items at every level that lacks them.

    name   of its largest part
    items  in the order of the rows
    parts  by level; the parts of a level hold exactly `items`, in order, and begin where parts of larger levels do
    """

    name: str
    kind: Kind
    items: tuple[Item, ...]
    parts: Mapping[str, tuple[PlannedPart, ...]]


class Known(Protocol):
    """What a plan asks of a store (`stores.store.Store`), or of the absence of one (`Nothing`)."""

    @property
    def spec(self) -> FeatureSpec:
        """What shapes the features."""

    @property
    def manifest(self) -> int:
        """Number of the newest version, 0 before the first commit."""

    def has(self, kind: Kind, keys: Sequence[str]) -> Any:
        """Which of the keys are committed rows of a kind, (N,) bool."""

    def lengths(self, kind: Kind, keys: Sequence[str]) -> Any:
        """How many vectors each of these rows has, (N,) int."""

    def quarantined(self) -> Sequence[Quarantined]:
        """Items that earlier parts found unreadable."""


@dataclass(frozen=True)
class Nothing:
    """A store that does not exist yet."""

    spec: FeatureSpec
    manifest: int = 0

    def has(self, kind: Kind, keys: Sequence[str]) -> Any:
        """None."""
        return [False] * len(keys)

    def lengths(self, kind: Kind, keys: Sequence[str]) -> Any:
        """Asked of no key, as none is there."""
        return [0] * len(keys)

    def quarantined(self) -> Sequence[Quarantined]:
        """None."""
        return ()


def unique_items(items: Iterable[Item]) -> list[Item]:
    """Items by key, first come first kept; where a later one brings segments or boxes and the first has none,
    the later one is kept, so that a plain copy of a caption cannot hide what is known about it."""
    found: dict[str, Item] = {}
    for item in items:
        kept = found.setdefault(item.key, item)
        if (item.segments or item.boxes) and not (kept.segments or kept.boxes):
            found[item.key] = item
    return list(found.values())


def plan(items: Iterable[Item], store: Known, config: ExtractConfig) -> list[PlannedPart]:
    """The parts to extract so that `store` holds `items` but the quarantined ones, images before texts."""
    units = plan_units(items, [store], config)
    return [part for unit in units for part in unit.parts[store.spec.level]]


def plan_units(items: Iterable[Item], stores: Sequence[Known], config: ExtractConfig) -> list[Unit]:
    """The units to extract so that stores of several levels hold `items` but the quarantined ones.

    Items are grouped by the levels that lack them, so that one pass of the towers serves all of these. The parts
    of one level alone are what `plan` says. Images come before texts, items that most levels lack first. With
    `config.retry` quarantined items are like any other, in parts of a name that no earlier try had. Raises
    `InputError` if a store has items with other boxes or segments than they bring.
    """
    refused = [{item.key for item in store.quarantined()} for store in stores]
    again: Again = {}
    if config.retry:
        again = {store.spec.level: (store.manifest, keys) for store, keys in zip(stores, refused, strict=True)}
        refused = [set() for _ in stores]
    unique = unique_items(items)
    units: list[Unit] = []
    for kind in KINDS:
        some = [item for item in unique if item.kind == kind]
        keys = [item.key for item in some]
        held = [store.has(kind, keys) for store in stores]
        for store, there in zip(stores, held, strict=True):
            _check_regions(kind, [item for item, known in zip(some, there, strict=True) if known], store)
        groups: dict[tuple[int, ...], list[Item]] = {}
        for row, item in enumerate(some):
            lacking = tuple(n for n in range(len(stores)) if not held[n][row] and item.key not in refused[n])
            if lacking:
                groups.setdefault(lacking, []).append(item)
        for lacking in sorted(groups, key=lambda group: (-len(group), group)):
            units += _units(kind, groups[lacking], [stores[number].spec for number in lacking], config, again)
    return units


def _check_regions(kind: Kind, known: Sequence[Item], store: Known) -> None:
    """Boxes and segments are no part of a key: an item that brings other ones would be taken for the one stored.

    Their numbers are compared, which costs no reading. An item that brings none takes those that are stored, as it
    does beside a copy that has some (`unique_items`).
    """
    if store.spec.rung != "regions" or (kind == "image" and not LEVELS[store.spec.level].boxed):
        return
    asked = [(item, _region_rows(kind, item, store.spec)) for item in known if item.boxes or item.segments]
    stored = store.lengths(kind, [item.key for item, _ in asked])
    unlike = [(item, count, int(there)) for (item, count), there in zip(asked, stored, strict=True) if count != there]
    if unlike:
        item, count, there = unlike[0]
        what = f"{len(unlike):,} {kind}s are stored with other regions, first {item.source}: {there}, not {count}"
        cure = "Use another workspace: --work FOLDER" + (", or --level regions:grid." if kind == "image" else ".")
        raise InputError(f"{what} ({store.spec.folder})", cure)


def _region_rows(kind: Kind, item: Item, spec: FeatureSpec) -> int:
    if kind == "image":
        return region_count(item, spec.level, math.prod(spec.image_grid))
    return max(1, len(named_segments(item)))


def _units(
    kind: Kind, items: list[Item], specs: Sequence[FeatureSpec], config: ExtractConfig, again: Again
) -> Iterator[Unit]:
    """Items that the same levels lack, in runs of the largest part of any level."""
    items.sort(key=lambda item: _order(config.seed, item.key))
    rows = {spec.level: part_rows(kind, items, spec, config) for spec in specs}
    size = max(rows.values())
    for start in range(0, len(items), size):
        own = items[start : start + size]
        parts = {
            spec.level: tuple(_part(kind, some, spec, again) for some in batches(own, rows[spec.level]))
            for spec in specs
        }
        largest = max(parts, key=lambda level: rows[level])
        yield Unit(parts[largest][0].name, kind, tuple(own), parts)


def stretches(unit: Unit) -> Iterator[tuple[Sequence[Item], dict[str, PlannedPart]]]:
    """Runs of a unit's items that lie in one part of every level, with these parts: the smallest parts, as rows are
    powers of two and so divide each other."""
    rows = {level: len(parts[0].items) for level, parts in unit.parts.items()}
    start = 0
    for part in max(unit.parts.values(), key=len):
        yield part.items, {level: parts[start // rows[level]] for level, parts in unit.parts.items()}
        start += len(part.items)


def part_rows(kind: Kind, items: Sequence[Item], spec: FeatureSpec, config: ExtractConfig) -> int:
    """Rows of a full part: the power of two nearest to part_bytes / sample_bytes, from 64 to 8192 and at most
    `config.max_part_rows`."""
    rows = sizes.part_rows(sample_bytes(kind, items, spec), config.part_bytes)
    return min(rows, 1 << (config.max_part_rows.bit_length() - 1))


def sample_bytes(kind: Kind, items: Sequence[Item], spec: FeatureSpec) -> int:
    """Bytes of one stored row: exact for dense images, a mean for what is ragged."""
    width = ITEM_BYTES.get(spec.dtype, 4)
    vectors, tokens = 1, 0
    if spec.rung == "regions":
        vectors += _regions(kind, items, spec)
    elif spec.keeps_tokens and kind == "image":
        tokens = spec.image_shape[0] * spec.image_shape[1]
    elif spec.keeps_tokens:
        tokens = min(spec.context_length or CAPTION_TOKENS, CAPTION_TOKENS) * spec.text_dim
    return max(1, width * (tokens + vectors * spec.pooled_dim))


def _regions(kind: Kind, items: Sequence[Item], spec: FeatureSpec) -> int:
    """The mean number of regions of an item, rounded."""
    if not items:
        return 0
    patches = math.prod(spec.image_grid)
    counts = [
        region_count(item, spec.level, patches) if kind == "image" else max(1, len(item.segments)) for item in items
    ]
    return round(sum(counts) / len(items))


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of `size` items, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _order(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _part(kind: Kind, items: Sequence[Item], spec: FeatureSpec, again: Again) -> PlannedPart:
    digest = hashlib.sha256(spec.fingerprint.encode())
    for item in items:
        digest.update(b"\0" + item.key.encode())
    number, refused = again.get(spec.level, (0, ()))
    # The part that refused these same items is complete, and would count as done.
    if any(item.key in refused for item in items):
        digest.update(b"\0again %d" % number)
    return PlannedPart(f"{kind[0]}-{digest.hexdigest()[:16]}", kind, tuple(items))
