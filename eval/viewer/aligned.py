"""Alignments of items from cached features: tokens × patches of every pair of an item, a byte a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CompalError
from ...stores.store import Store

if TYPE_CHECKING:
    from ..results import ResultRow

AT_ONCE = 16  # items


@dataclass(frozen=True)
class Maps:
    """The maps of an item's pairs, row-major: for image i and caption c one (tokens, patches) block of bytes.

    low, high  of each pair's values: 0 and 255 stand for them
    rows       tokens of each pair's block; 1 where the caption is read as a whole
    """

    kind: str
    whole: bool
    rows: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    data: bytes


@dataclass(frozen=True, eq=False)
class Aligner:
    """A fitted or training-free head over its store. grid: (rows, columns) of its patches, which come last."""

    label: str
    scorer: Any
    store: Store
    grid: tuple[int, int]

    @classmethod
    def open(cls, row: ResultRow) -> Aligner | None:
        """The head of a saved row; None where its weights or its store are not here, or it compares no tokens."""
        path = Path((row.meta.get("store") or {}).get("path", ""))
        if row.role != "scorer" or not (path / "spec.json").is_file():
            return None
        try:
            store = Store.open(path)
            head = opened(row, store) if len(store.spec.image_grid) == 2 and store.spec.keeps_tokens else None
        except (CompalError, OSError):
            return None
        if head is None:
            return None
        grid = (int(store.spec.image_grid[0]), int(store.spec.image_grid[1]))
        return cls(row.label, head, store, grid) if grid[0] * grid[1] else None

    def shows(self, images: Sequence[str], captions: Sequence[str]) -> bool:
        """Whether it has an alignment of these."""
        return next(iter(self.maps([(images, captions)])), None) is not None

    def maps(self, items: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Iterator[Maps | None]:
        """Of each item (image keys, caption keys) its maps; None for a head that has none, and for features that are
        not in the store."""
        import torch

        have = {kind: self.store.keys(kind) for kind in ("image", "text")}
        for start in range(0, len(items), AT_ONCE):
            some = list(items[start : start + AT_ONCE])
            there = [set(images) <= have["image"] and set(captions) <= have["text"] for images, captions in some]
            with torch.inference_mode():
                found = iter(self._maps([item for item, here in zip(some, there, strict=True) if here]))
            yield from (next(found) if here else None for here in there)

    def _maps(self, items: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Maps | None]:
        import torch

        from ...align.batches import join

        if not items:
            return []
        images = {key: number for number, key in enumerate(dict.fromkeys(key for one, _ in items for key in one))}
        captions = {key: number for number, key in enumerate(dict.fromkeys(key for _, one in items for key in one))}
        pairs = [(images[image], captions[text]) for one, other in items for image in one for text in other]
        batch = join(self.store, list(images), list(captions), needs="tokens")
        found = self.scorer.alignment(batch, torch.tensor(pairs))
        if found is None:
            return [None] * len(items)
        assert batch.text_mask is not None
        lengths = [1] * len(pairs) if found.whole else batch.text_mask.sum(1)[[one for _, one in pairs]].tolist()
        values = found.values[:, :, -self.grid[0] * self.grid[1] :].numpy()
        made: list[Maps | None] = []
        at = 0
        for one, other in items:
            count = len(one) * len(other)
            blocks = [values[number, : lengths[number]] for number in range(at, at + count)]
            made.append(_packed(found.kind, found.whole, blocks))
            at += count
        return made


def opened(row: ResultRow, store: Store) -> Any:
    """The head of a saved row over its store, at rest: from its checkpoint, or as it is without one; None for a head
    whose weights are not here. Raises what opening them raises."""
    from ...align.checkpoint import load_scorer
    from ...align.scorer import Dims, build_head

    scorer = row.meta.get("scorer") or {}
    checkpoint = Path(scorer.get("checkpoint", ""))
    if checkpoint.is_file():
        return load_scorer(checkpoint, store.spec).eval()
    # The name of a head by its class: the file that it stands in.
    name = str(scorer.get("class", "")).rpartition(".")[0].rpartition(".")[2] or "cosine"
    head = build_head(name, scorer.get("config", {}), Dims.of(store.spec))
    return None if head.trainable else head.eval()


def _packed(kind: str, whole: bool, blocks: Sequence[NDArray[Any]]) -> Maps:
    low, high = [float(block.min()) for block in blocks], [float(block.max()) for block in blocks]
    scaled = [
        np.rint((block - least) * (255 / max(most - least, 1e-12))).astype(np.uint8)
        for block, least, most in zip(blocks, low, high, strict=True)
    ]
    return Maps(kind, whole, tuple(len(block) for block in blocks), tuple(low), tuple(high),
                b"".join(block.tobytes() for block in scaled))  # fmt: skip
