"""What several objectives are made of: each drawn pair against its own hard negatives, on scores or on vectors.

N pairs, K negatives each; where a pair has fewer, where an entry is not scored, and where the table says that the
"negative" describes the image after all, `real` is False and the value means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ..batches import Batch
from ..scorer import full


@dataclass(frozen=True, eq=False)
class Choices:
    """Which entries of a block (I, C) the choices of a batch's pairs are.

    rows, columns  (N,) long: image and caption of each pair       pairs  (N,) bool: the pair itself is scored
    negatives      (N, K) long columns, 0 where there is none      real   (N, K) bool
    """

    rows: Tensor
    columns: Tensor
    negatives: Tensor
    pairs: Tensor
    real: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Choices:
        """Raises `UsageError` for a batch that does not say which pairs were drawn."""
        if batch.pairs is None or batch.negatives is None:
            raise UsageError("this loss needs to know the hard negatives of each pair", "Fit from a pairs table.")
        rows, columns = batch.pairs.unbind(1)
        negatives = batch.negatives.clamp(min=0)
        real = (batch.negatives >= 0) & ~batch.positives[rows[:, None], negatives]
        pairs = torch.ones_like(rows, dtype=torch.bool)
        if batch.scored is not None:
            pairs = batch.scored[rows, columns]
            real = real & batch.scored[rows[:, None], negatives]
        return cls(rows, columns, negatives, pairs, real & pairs[:, None])

    def scores(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) and (N, K) float32 of a block (I, C), 0 where there is nothing."""
        own = full(block[self.rows, self.columns])
        others = full(block[self.rows[:, None], self.negatives])
        return own.masked_fill(~self.pairs, 0), others.masked_fill(~self.real, 0)


def pick(positive: Tensor, negatives: Tensor, real: Tensor) -> Tensor:
    """Mean over the pairs that have a negative of -log(exp p / (exp p + Σ_k exp n_k)), p (N,), n and real (N, K)
    logits; 0 with its gradient if no pair has one."""
    choice = real.any(1)
    logits = torch.cat([positive[:, None], negatives.masked_fill(~real, -torch.inf)], dim=1)[choice]
    return mean(logits.logsumexp(1) - logits[:, 0], positive)


def focal(positive: Tensor, negatives: Tensor, real: Tensor, gamma: float, smoothing: float) -> Tensor:
    """FSC-CLIP's (1 + K)-way choice (arXiv 2410.05210): -Σ_c q_c (1 - p_c)^gamma log p_c, p the softmax of the logits,
    q the one-hot target smoothed by `smoothing` over the candidates that are there. Mean over the pairs that have a
    negative."""
    choice = real.any(1)
    there = torch.cat([torch.ones_like(choice)[:, None], real], dim=1)[choice]
    logits = torch.cat([positive[:, None], negatives], dim=1)[choice].masked_fill(~there, -torch.inf)
    logs = logits.log_softmax(1).masked_fill(~there, 0)
    target = smoothing / there.sum(1, keepdim=True) * there.to(logs.dtype)
    target[:, 0] += 1 - smoothing
    # 1 - p from the other candidates: near p = 1 the difference would lose its digits, and its power its gradient.
    rest = -torch.expm1(logs)
    return mean((target * rest.clamp(min=0) ** gamma * -logs).sum(1), positive)


def mean(terms: Tensor, like: Tensor) -> Tensor:
    """The mean of terms (M,), or a zero that hangs on `like` if there are none."""
    return terms.mean() if len(terms) else (like * 0).sum()
