"""What is left to do, cut into parts: pure, seeded, and the same on every machine.

The order of the rows is a hash of (seed, key), so a sequential read of a part is already shuffled, and a
part's name is a hash of what it will hold, so two runs over the same items plan the same parts: resuming is
skipping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from ..errors import UsageError
from ..stores.items import Item
from ..stores.spec import FeatureSpec
from ..workspace import Remote

if TYPE_CHECKING:
    from ..stores.rows import Quarantined

T = TypeVar("T")

Kind = Literal["image", "text"]
KINDS: tuple[Kind, ...] = ("image", "text")

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}
# The mean of COCO captions is 21.7 tokens; a part's size needs no better guess.
CAPTION_TOKENS = 22
MIN_PART_ROWS, MAX_PART_ROWS = 64, 8192


@dataclass(frozen=True)
class ExtractConfig:
    """How to extract: what shapes the parts and the speed, and the features by no more than float rounding.

    batch_size     images or captions of one forward pass; batches never cross parts
    workers        threads that decode and preprocess ahead of the forward pass
    part_bytes     the size a part aims at, bytes; its rows are the nearest power of two from 64 to 8192
    seed           of the order of the rows
    device         torch device of the forward pass
    max_part_rows  upper bound of a part's rows, rounded down to a power of two; may be below 64
    remotes        asked, in this order, for what others have extracted before anything is computed
    """

    batch_size: int = 64
    workers: int = 2
    part_bytes: int = 256 * 2**20
    seed: int = 0
    device: str = "cpu"
    max_part_rows: int = MAX_PART_ROWS
    remotes: tuple[Remote, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "part_bytes", "max_part_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class PlannedPart:
    """One part to extract: its name, its kind and its items in the order of its rows."""

    name: str
    kind: Kind
    items: tuple[Item, ...]


class Known(Protocol):
    """What a plan asks of a store (`stores.store.Store`), or of the absence of one (`Nothing`)."""

    @property
    def spec(self) -> FeatureSpec:
        """What shapes the features."""

    def keys(self, kind: Kind) -> set[str]:
        """Keys of the committed rows of a kind."""

    def quarantined(self) -> Sequence[Quarantined]:
        """Items that earlier parts found unreadable."""


@dataclass(frozen=True)
class Nothing:
    """A store that does not exist yet."""

    spec: FeatureSpec

    def keys(self, kind: Kind) -> set[str]:
        """None."""
        return set()

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
    refused = {item.key for item in store.quarantined()}
    unique = unique_items(items)
    parts: list[PlannedPart] = []
    for kind in KINDS:
        known = store.keys(kind) | refused
        left = [item for item in unique if item.kind == kind and item.key not in known]
        left.sort(key=lambda item: _order(config.seed, item.key))
        rows = part_rows(kind, left, store.spec, config)
        parts.extend(_part(kind, left[start : start + rows], store.spec) for start in range(0, len(left), rows))
    return parts


def part_rows(kind: Kind, items: Sequence[Item], spec: FeatureSpec, config: ExtractConfig) -> int:
    """Rows of a full part: the power of two nearest to part_bytes / sample_bytes, from 64 to 8192 and at most
    `config.max_part_rows`."""
    ideal = max(1, round(config.part_bytes / sample_bytes(kind, items, spec)))
    below = 1 << (ideal.bit_length() - 1)
    nearest = below if ideal * ideal <= 2 * below * below else 2 * below
    rows = min(max(nearest, MIN_PART_ROWS), MAX_PART_ROWS)
    return min(rows, 1 << (config.max_part_rows.bit_length() - 1))


def sample_bytes(kind: Kind, items: Sequence[Item], spec: FeatureSpec) -> int:
    """Bytes of one stored row: exact for dense images, a mean for what is ragged."""
    width = ITEM_BYTES.get(spec.dtype, 4)
    vectors = 1
    if spec.level == "regions" and items:
        vectors += round(sum(max(1, len(item.boxes) + len(item.segments)) for item in items) / len(items))
    tokens = 0
    if spec.level == "tokens" and kind == "image":
        tokens = spec.image_shape[0] * spec.image_shape[1]
    elif spec.level == "tokens":
        tokens = min(spec.context_length or CAPTION_TOKENS, CAPTION_TOKENS) * spec.text_dim
    return max(1, width * (tokens + vectors * spec.pooled_dim))


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of `size` items, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _order(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _part(kind: Kind, items: Sequence[Item], spec: FeatureSpec) -> PlannedPart:
    digest = hashlib.sha256(spec.fingerprint.encode())
    for item in items:
        digest.update(b"\0" + item.key.encode())
    return PlannedPart(f"{kind[0]}-{digest.hexdigest()[:16]}", kind, tuple(items))
