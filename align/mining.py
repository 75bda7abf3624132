"""Hard negatives: the nearest captions of an image that are not its own, mined with faiss and renewed as a head learns.

Neighbours as negatives are NegCLIP's (arXiv 2210.01936); mining them again with the model being fitted is ANCE's
(arXiv 2007.00808), leaving out the very nearest, which may be positives that nobody labelled, RocketQA's concern
(arXiv 2010.08191). Vectors are the pooled ones of the store, or those of a head that offers

    embed(batch) -> (image (I, E), text (C, E)) float32, whose inner product ranks as the head's score does.

How a run uses it (`fit` does), with `sampler` the run's `Sampler`:

    miner = Miner(table, features, config.data.mined, config.seed)    # raises InputError without faiss
    miner.restore(extra)                                              # resuming: what `state()` gave
    while step < steps:
        miner.refresh(step, scorer)                                   # mines if `step` is due, else does nothing
        sampler.candidates = miner.candidates
        end = min(steps, miner.next_refresh(step, scorer) or steps)   # no batch of `end` or later may be drawn before
        ...                                                           # steps `step` to `end` - 1; checkpoint: `state()`
        step = end

A checkpoint written after step s holds the candidates of step s - 1 and earlier: the run that resumes at s, if s is
due, mines with the same weights as the undisturbed one and gets the same candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, UsageError
from .batches import Batch, FeatureTable
from .neighbours import MARGIN, Kind, Neighbours, import_faiss, ranked
from .pairs import PairTable
from .scorer import Scorer, unit

ROWS = 4096  # vectors embedded at a time: 8 MB of width 512
FOUND = 1 << 22  # most neighbours of a block of queries held at a time: 50 MB of scores and rows
PRODUCTS = 1 << 25  # most numbers gathered to rank neighbours again: 256 MB in float64


@dataclass(frozen=True)
class MinedConfig:
    """Mined negatives.

    k      candidates kept per image, 0 = off
    draw   of which a step draws so many for every pair, at random by its seed
    skip   leave out the nearest so many: they may be positives that nobody labelled
    every  steps between refreshes with the head being fitted, 0 = mined once; a head without `embed` (all whose
           cost is per pair) has nothing to refresh with: its candidates are the store's, mined once
    index  "flat" is exact; "ivf" reads 32 of about 4 √C lists; "hnsw" walks a graph, which one thread builds
    """

    k: int = 0
    draw: int = 1
    skip: int = 0
    every: int = 0
    index: Kind = "flat"

    def __post_init__(self) -> None:
        if min(self.k, self.skip, self.every) < 0 or self.draw < 1:
            raise UsageError("data.mined: k, skip and every are at least 0 and draw at least 1")
        if 0 < self.k < self.draw:
            raise UsageError(
                f"data.mined.draw = {self.draw} of only k = {self.k} candidates",
                f"Set data.mined.k to {self.draw} or more.",
            )


def mine(
    image_vectors: np.ndarray, caption_vectors: np.ndarray, table: PairTable, config: MinedConfig, seed: int
) -> np.ndarray:
    """(I, k) int32: for each image of `table` the rows of the captions with the largest inner product that are not
    its own in any row of the table, nearest first, after leaving out `skip` of them; -1 where there are no more.

    image_vectors (I, E) and caption_vectors (C, E), float, by the rows of the table. Ranked in float64, ties by row.
    Exact for "flat"; equal arguments give equal candidates for every index on a CPU. An (I, C) block is never made.
    Raises `InputError` without faiss or for vectors that are not finite, `UsageError` for shapes that do not fit.
    """
    images = np.ascontiguousarray(image_vectors, dtype=np.float32)
    captions = np.ascontiguousarray(caption_vectors, dtype=np.float32)
    wanted = ((len(table.image_keys),), (len(table.caption_keys),))
    if (images.shape[:1], captions.shape[:1]) != wanted or images.shape[1:] != captions.shape[1:]:
        raise UsageError(
            f"vectors {images.shape} and {captions.shape} do not fit {len(table.image_keys):,} images and"
            f" {len(table.caption_keys):,} captions"
        )
    if not (np.isfinite(images).all() and np.isfinite(captions).all()):
        raise InputError("vectors to mine with are not finite", "compal verify finds damaged features.")
    owned = _Owned(table)
    candidates = np.full((len(images), config.k), -1, dtype=np.int32)
    if not config.k:
        return candidates
    most = min(len(captions), config.k + config.skip + int(owned.counts.max()) + MARGIN)
    search = Neighbours(captions, config.index, seed, most)
    for rows, neighbours in _blocks(owned.counts, config, captions.shape):
        found = ranked(images[rows], captions, search(images[rows], neighbours))
        for row, near in zip(rows, found, strict=True):
            near = near[(near >= 0) & ~np.isin(near, owned.of(row))]
            chosen = near[config.skip : config.skip + config.k]
            candidates[row, : len(chosen)] = chosen
    return candidates


class _Owned:
    """The captions of each image, in all rows of a table."""

    def __init__(self, table: PairTable) -> None:
        order = np.argsort(table.images, kind="stable")
        self.starts = np.searchsorted(table.images[order], np.arange(len(table.image_keys) + 1))
        self.captions = table.captions[order]
        self.counts = np.diff(self.starts)

    def of(self, image: int) -> np.ndarray:
        return self.captions[self.starts[image] : self.starts[image + 1]]


def _blocks(counts: np.ndarray, config: MinedConfig, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of images and how many neighbours to look at, images with many captions of their own apart, so that
    they do not widen the search of all others."""
    total, width = shape
    order = np.argsort(counts, kind="stable")
    start = 0
    while start < len(order):
        rows = order[start : start + ROWS]
        while True:
            neighbours = min(total, config.k + config.skip + int(counts[rows[-1]]) + MARGIN)
            most = max(1, min(FOUND // neighbours, PRODUCTS // (neighbours * width)))
            if len(rows) <= most:
                break
            rows = rows[:most]
        yield rows, neighbours
        start += len(rows)


class Miner:
    """The candidates of a run, (I, k) int32 rows of captions, and when to mine them again.

    `features` are those of `table`, row by row. `candidates` is all -1 before the first `refresh`. Raises
    `InputError` without faiss.
    """

    def __init__(self, table: PairTable, features: FeatureTable, config: MinedConfig, seed: int) -> None:
        if config.k:
            import_faiss()
        self.table, self.features, self.config, self.seed = table, features, config, seed
        self.candidates = np.full((len(table.image_keys), config.k), -1, dtype=np.int32)
        self.mined_at = -1  # the step of the last refresh

    def next_refresh(self, step: int, scorer: Scorer) -> int | None:
        """The first step after `step` at which `refresh` mines again, None = never."""
        if not self.config.k or not self.config.every or not hasattr(scorer, "embed"):
            return None
        return (step // self.config.every + 1) * self.config.every

    def refresh(self, step: int, scorer: Scorer) -> bool:
        """Mine if nothing was mined yet, or if `step`, counted from 0, is a multiple of `every` and the scorer
        offers `embed`. Whether it did. Draws no random numbers and leaves the scorer's mode as it was."""
        again = bool(self.config.every) and hasattr(scorer, "embed") and step % self.config.every == 0
        if not self.config.k or not (self.mined_at < 0 or (again and self.mined_at < step)):
            return False
        images, captions = self.vectors(scorer)
        self.candidates = mine(images, captions, self.table, self.config, self.seed)
        self.mined_at = step
        return True

    @torch.no_grad()
    def vectors(self, scorer: Scorer) -> tuple[np.ndarray, np.ndarray]:
        """image (I, E) and caption (C, E) float32: the scorer's, or the store's pooled ones of length 1."""
        embed: Callable[[Batch], tuple[Tensor, Tensor]] | None = getattr(scorer, "embed", None)
        images, captions = np.arange(len(self.table.image_keys)), np.arange(len(self.table.caption_keys))
        if embed is None:
            return _gathered(images, self._pooled("image")), _gathered(captions, self._pooled("text"))
        training, one = scorer.training, np.zeros(1, dtype=np.int64)
        scorer.eval()
        try:
            return (
                _gathered(images, lambda rows: embed(self.features.batch(rows, one))[0]),
                _gathered(captions, lambda rows: embed(self.features.batch(one, rows))[1]),
            )
        finally:
            scorer.train(training)

    def _pooled(self, kind: Literal["image", "text"]) -> Callable[[np.ndarray], Tensor]:
        rows = self.features.image_pooled if kind == "image" else self.features.text_pooled
        return lambda chosen: unit(rows.take(chosen, self.features.device)[0])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: 4 · I · k bytes and a step."""
        return {"candidates": torch.from_numpy(self.candidates.copy()), "mined_at": torch.tensor(self.mined_at)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave. Raises `InputError` if it is not of this table and this `k`."""
        candidates = state["candidates"].cpu().numpy()
        if candidates.shape != self.candidates.shape or candidates.max(initial=-1) >= len(self.table.caption_keys):
            raise InputError(
                f"mined candidates {candidates.shape} do not fit {len(self.table.image_keys):,} images with"
                f" data.mined.k = {self.config.k}",
                "Start a new run.",
            )
        self.candidates, self.mined_at = candidates, int(state["mined_at"])


def _gathered(rows: np.ndarray, vectors: Callable[[np.ndarray], Tensor]) -> np.ndarray:
    """`vectors` of all rows, `ROWS` at a time."""
    parts = [vectors(rows[start : start + ROWS]).float().cpu().numpy() for start in range(0, len(rows), ROWS)]
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)
