"""Parts while they fill: batches of features go in, the rows that a store writes come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..stores.dtypes import STORED
from ..stores.items import Item
from ..stores.rows import ImageRows, Quarantined, TextRows
from ..stores.spec import FeatureSpec
from .decode import DecodedBatch
from .forward import Array, Columns
from .plan import PlannedPart
from .regions import regions_of, text_spans

ImageFeatures = tuple[Array | None, Array | None]


def named(item: Item) -> str:
    """An item in messages."""
    return f"{item.kind} {item.source} ({item.key})"


@dataclass
class Filling:
    """What is known of any part that fills.

    seen     how many of its items have come, quarantined ones too
    seconds  of the passes that it took part in, its share where several levels came out of one
    levels   how many did
    """

    part: PlannedPart
    spec: FeatureSpec
    seen: int = 0
    seconds: float = 0.0
    levels: int = 1
    refused: list[Quarantined] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether all of its items have come."""
        return self.seen == len(self.part.items)

    def shares(self, seconds: float, levels: int) -> None:
        """Count a pass that so many levels came out of."""
        self.seconds += seconds / levels
        self.levels = levels

    def refuse(self, item: Item, reason: str) -> None:
        """List an item that cannot be read."""
        self.refused.append(Quarantined(item.key, self.part.kind, item.source, reason))


class FillingImages(Filling):
    """A part of images. Dense tokens are written where they stay; regions are kept as they come."""

    def __init__(self, part: PlannedPart, spec: FeatureSpec) -> None:
        super().__init__(part, spec)
        self._items: list[Item] = []
        self._sizes: list[tuple[int, int]] = []
        self._ragged: list[Array] | None = [] if spec.ragged_images else None
        self._dense: Array | None = None
        if spec.keeps_tokens and not spec.ragged_images:
            self._dense = np.empty((len(part.items), *spec.image_shape), STORED[spec.dtype])
        self._pooled = np.empty((len(part.items), spec.pooled_dim), STORED[spec.dtype])

    def add(self, batch: DecodedBatch, features: ImageFeatures, regions: Sequence[Array] | None = None) -> None:
        """Append a batch: the tokens and pooled vectors of its readable images, and the vectors of the crops of
        each, none for one that cannot be cropped."""
        crops = batch.crops.get(self.spec.level)
        self.take(batch, features, regions, crops.refused if crops else {})

    def take(
        self, batch: DecodedBatch, features: ImageFeatures, regions: Sequence[Array] | None, refused: dict[int, str]
    ) -> None:
        """`add`, told which of the readable images have no regions and why, by position."""
        for item, reason in batch.refused:
            self.refuse(item, reason)
        for position, reason in refused.items():
            self.refuse(batch.items[position], reason)
        kept = [row for row in range(len(batch.items)) if row not in refused]
        tokens, pooled = features
        here = slice(len(self._items), len(self._items) + len(kept))
        some: Any = kept if refused else slice(None)
        if pooled is not None:
            self._pooled[here] = pooled[some]
        if self._dense is not None and tokens is not None:
            self._dense[here] = tokens[some]
        if self._ragged is not None and regions is not None and pooled is not None:
            for row in kept:
                own, whole = regions[row], pooled[row : row + 1]
                views = np.concatenate([own, whole]) if len(own) else whole
                self._ragged.append(regions_of(views, self.spec.level))
        self._items += [batch.items[row] for row in kept]
        self._sizes += [batch.sizes[row] for row in kept]
        self.seen += len(batch.items) + len(batch.refused)

    def rows(self) -> ImageRows:
        """The rows, once the part is full."""
        count = len(self._items)
        tokens = self._ragged if self._dense is None else self._dense[:count]
        keys, sources = [item.key for item in self._items], [item.source for item in self._items]
        return ImageRows(keys, sources, self._sizes, tokens, self._pooled[:count])


class FillingTexts(Filling):
    """A part of captions."""

    def __init__(self, part: PlannedPart, spec: FeatureSpec) -> None:
        super().__init__(part, spec)
        self._items: list[Item] = []
        self._columns = Columns()

    @property
    def truncated(self) -> int:
        """How many of the captions were longer than the context."""
        return sum(self._columns.truncated)

    def add(self, items: Sequence[Item], columns: Columns, regions: dict[str, Array] | None) -> None:
        """Append readable captions; `regions` are the pooled vectors of strings, among them those of all segments."""
        kept = range(len(items))
        if self.spec.rung == "regions" and regions is not None:
            kept = range(0)
            good = []
            for row, item in enumerate(items):
                try:
                    spans = text_spans(item)
                except ValueError as error:
                    self.refuse(item, str(error))
                    continue
                good.append(row)
                text = str(item.content)
                self._columns.tokens.append(np.stack([regions[text[start:end]] for start, end in spans]))
                self._columns.spans.append(spans)
            columns = Columns([], columns.pooled, [], [-1] * len(items), columns.truncated)
            self._take(items, columns, good)
        else:
            self._take(items, columns, kept)

    def _take(self, items: Sequence[Item], columns: Columns, rows: Sequence[int]) -> None:
        self._items += [items[row] for row in rows]
        for name, column in vars(columns).items():
            if column:
                getattr(self._columns, name).extend(column[row] for row in rows)

    def rows(self) -> TextRows:
        """The rows, once the part is full."""
        columns, spec = self._columns, self.spec
        empty = np.empty((len(self._items), spec.pooled_dim), STORED[spec.dtype])
        return TextRows(
            keys=[item.key for item in self._items],
            captions=[str(item.content) for item in self._items],
            sources=[item.source for item in self._items],
            tokens=columns.tokens if spec.keeps_tokens else None,
            pooled=np.stack(columns.pooled) if columns.pooled else empty,
            spans=columns.spans,
            pool_index=columns.pool_index,
            truncated=columns.truncated,
            segments=[item.segments for item in self._items],
        )
