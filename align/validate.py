"""The score a run is judged by while it trains: strict, so that a tie is a miss.

Swap groups where the pairs table has them: both images must prefer their caption and both captions their
image ("group", chance 16.7 %). Else each caption against its given negatives ("pairs"). Else each image
against the other captions of a fixed block of 64 ("recall").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .batches import Batch, FeatureTable
from .pairs import PairTable
from .scorer import Scorer

BLOCK = 64  # pairs scored at a time; for "recall" it is part of the definition

Metric = Literal["group", "pairs", "recall"]


class Validation:
    """A fixed sample of a pairs table, at most `limit` groups or pairs, the same at every measurement."""

    def __init__(self, table: PairTable, features: FeatureTable, limit: int) -> None:
        self.table, self.features = table, features
        negatives = np.flatnonzero(np.diff(table.negatives))
        self.metric: Metric = "group" if len(table.quads) else "pairs" if len(negatives) else "recall"
        whole = {"group": table.quads, "pairs": negatives, "recall": np.arange(len(table))}[self.metric]
        chosen = np.random.default_rng(0).permutation(len(whole))[:limit]
        self.sample = whole[np.sort(chosen)]

    @torch.no_grad()
    def measure(self, scorer: Scorer) -> dict[str, float]:
        """Percentages; the one named by `metric` decides. The scorer is in evaluation mode meanwhile."""
        training = scorer.training
        scorer.eval()
        try:
            hits = torch.cat([self._hits(scorer, pairs) for pairs in self._blocks()]).cpu().double()
        finally:
            scorer.train(training)
        shares = (100 * hits.mean(0)).tolist()
        names = ("group", "i2t", "t2i") if self.metric == "group" else (self.metric,)
        return dict(zip(names, shares, strict=True))

    def _blocks(self) -> Iterator[np.ndarray]:
        size = BLOCK // 2 if self.metric == "group" else BLOCK
        for start in range(0, len(self.sample), size):
            yield self.sample[start : start + size].reshape(-1)

    def _hits(self, scorer: Scorer, pairs: np.ndarray) -> Tensor:
        """(n, number of names) bool."""
        none = np.zeros(0, dtype=np.int64)
        if self.metric == "pairs":
            given = [self.table.negatives_of(int(pair)) for pair in pairs]
        else:
            given = [none] * len(pairs)
        draw = self.table.draw(pairs, given)
        batch = draw.batch(self.features)
        if self.metric == "group":
            return _groups(scorer, batch)
        if self.metric == "recall":
            return _recall(scorer.score(batch), batch.positives)
        rows = np.searchsorted(draw.images, self.table.images[pairs])
        own = np.searchsorted(draw.captions, self.table.captions[pairs])
        others = [np.searchsorted(draw.captions, negatives) for negatives in given]
        return _pairs(scorer, batch, rows, own, others)


def _groups(scorer: Scorer, batch: Batch) -> Tensor:
    i0, i1, c0, c1 = batch.groups.unbind(1)
    asked = [torch.stack(pair, dim=1) for pair in ((i0, c0), (i0, c1), (i1, c0), (i1, c1))]
    s00, s01, s10, s11 = scorer.score_pairs(batch, torch.cat(asked)).view(4, -1)
    i2t, t2i = (s00 > s01) & (s11 > s10), (s00 > s10) & (s11 > s01)
    return torch.stack([i2t & t2i, i2t, t2i], dim=1)


def _pairs(scorer: Scorer, batch: Batch, rows: np.ndarray, own: np.ndarray, others: list[np.ndarray]) -> Tensor:
    lengths = [1 + len(negatives) for negatives in others]
    columns = np.concatenate([part for pair in zip(own[:, None], others, strict=True) for part in pair])
    asked = torch.from_numpy(np.stack([np.repeat(rows, lengths), columns], axis=1)).to(batch.device)
    scores = torch.split(scorer.score_pairs(batch, asked), lengths)
    return torch.stack([part[:1] > part[1:].max() for part in scores])


def _recall(scores: Tensor, positives: Tensor) -> Tensor:
    right = scores.masked_fill(~positives, -torch.inf).amax(1)
    wrong = scores.masked_fill(positives, -torch.inf).amax(1)
    return (right > wrong)[:, None]
