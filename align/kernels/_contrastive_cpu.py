"""The two objectives in tiles: one pass for the statistics, one over the positives, and all of it again backward.

Where the scores come from is a `Source`: a matrix that is there, read a few rows at a time, or pooled vectors whose
products are made for one tile and dropped. Plain torch: it runs on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tile:
    """A rectangle of unscaled scores; entries outside `taken` are 0."""

    rows: slice
    columns: slice
    scores: Tensor
    positives: Tensor
    taken: Tensor | None = None
    weights: Tensor | None = None

    def not_negative(self) -> Tensor:
        """bool: what an image must not be told from."""
        return self.positives if self.taken is None else self.positives | ~self.taken


@dataclass(frozen=True, eq=False)
class Pairs:
    """Some positives: (n,) row, column and unscaled score."""

    rows: Tensor
    columns: Tensor
    scores: Tensor


class Source(Protocol):
    """Scores (I, C) that need not exist. `counts` gives, for rows and for columns, how many entries are positive and
    how many negative."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def like(self) -> Tensor: ...
    def tiles(self) -> Iterator[Tile]: ...
    def pairs(self) -> Iterator[Pairs]: ...
    def counts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]: ...


def computed(tensor: Tensor) -> torch.dtype:
    """What scores are computed in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class Matrix:
    """A score matrix that is there, `rows` rows at a time."""

    def __init__(
        self, scores: Tensor, positives: Tensor, taken: Tensor | None, rows: int, weights: Tensor | None = None
    ) -> None:
        self.scores, self.positives, self.taken, self.weights = scores, positives, taken, weights
        self.shape = (scores.shape[0], scores.shape[1])
        self.like = torch.empty(0, dtype=computed(scores), device=scores.device)
        self.blocks = [slice(start, min(start + rows, len(scores))) for start in range(0, len(scores), rows)]

    def tiles(self) -> Iterator[Tile]:
        for rows in self.blocks:
            scores, positives, taken = self.scores[rows].to(self.like.dtype), self.positives[rows], None
            if self.taken is not None:
                taken = self.taken[rows]
                scores, positives = scores.masked_fill(~taken, 0), positives & taken
            weights = None if self.weights is None else self.weights[rows].to(self.like.dtype)
            yield Tile(rows, slice(0, self.shape[1]), scores, positives, taken, weights)

    def pairs(self) -> Iterator[Pairs]:
        for rows in self.blocks:
            known = self.positives[rows] if self.taken is None else self.positives[rows] & self.taken[rows]
            row, column = known.nonzero(as_tuple=True)
            row = row + rows.start
            yield Pairs(row, column, self.scores[row, column].to(self.like.dtype))

    def counts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        images, captions = self.shape
        known, used = self.like.new_zeros(images), self.like.new_full((images,), captions)
        known_columns, used_columns = self.like.new_zeros(captions), self.like.new_full((captions,), images)
        if self.taken is not None:
            used_columns = self.taken.sum(0).to(self.like.dtype)
        for rows in self.blocks:
            positives = self.positives[rows]
            if self.taken is not None:
                positives, used[rows] = positives & self.taken[rows], self.taken[rows].sum(1).to(self.like.dtype)
            known[rows] = positives.sum(1).to(self.like.dtype)
            known_columns += positives.sum(0)
        return (known, used - known), (known_columns, used_columns - known_columns)


def product(one: Tensor, other: Tensor) -> Tensor:
    """one @ other in float32 (float64): half precision is multiplied as it is on a GPU, which adds in float32, and
    as float32 on a CPU, whose half-precision products are 130 times slower."""
    if one.is_cuda and one.dtype == other.dtype and one.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(one, other, out_dtype=torch.float32)
    dtype = computed(one)
    return one.to(dtype) @ other.to(dtype)


class Vectors:
    """Products of pooled vectors, made one tile of `tile` × `tile` at a time. Positive: equal labels, none below 0."""

    def __init__(self, image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor, tile: int) -> None:
        self.image, self.text, self.tile = image, text, tile
        # Negative labels agree with nothing, not even with each other.
        self.image_labels, self.text_labels = image_labels, text_labels.masked_fill(text_labels < 0, -1)
        self.image_labels = image_labels.masked_fill(image_labels < 0, -2)
        self.shape = (len(image), len(text))
        self.like = torch.empty(0, dtype=computed(image), device=image.device)

    def tiles(self) -> Iterator[Tile]:
        for top in range(0, self.shape[0], self.tile):
            rows = slice(top, min(top + self.tile, self.shape[0]))
            for left in range(0, self.shape[1], self.tile):
                columns = slice(left, min(left + self.tile, self.shape[1]))
                scores = product(self.image[rows], self.text[columns].T)
                yield Tile(rows, columns, scores, self.image_labels[rows, None] == self.text_labels[columns])

    def _matches(self, labels: Tensor, ordered: Tensor) -> tuple[Tensor, Tensor]:
        """For each label the place of its first equal among `ordered`, and how many there are."""
        first = torch.searchsorted(ordered, labels)
        return first, torch.searchsorted(ordered, labels, right=True) - first

    def pairs(self) -> Iterator[Pairs]:
        """`tile` at a time: they are listed by counting, never held together, as one class may hold them all."""
        ordered, order = self.text_labels.sort(stable=True)
        first, count = self._matches(self.image_labels, ordered)
        ends = count.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        for start in range(0, total, self.tile):
            number = torch.arange(start, min(start + self.tile, total), device=ends.device)
            row = torch.searchsorted(ends, number, right=True)
            column = order[first[row] + number - (ends[row] - count[row])]
            left, right = self.image[row].to(self.like.dtype), self.text[column].to(self.like.dtype)
            yield Pairs(row, column, (left * right).sum(1))

    def counts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        rows = self._matches(self.image_labels, self.text_labels.sort()[0])[1].to(self.like.dtype)
        columns = self._matches(self.text_labels, self.image_labels.sort()[0])[1].to(self.like.dtype)
        return (rows, self.shape[1] - rows), (columns, self.shape[0] - columns)


class LogSumExp:
    """log Σ exp of (n, …) values that come in parts (arXiv 1805.02867, algorithm 3); -inf where none came."""

    def __init__(self, size: int, like: Tensor) -> None:
        self.top, self.total = like.new_full((size,), -torch.inf), like.new_zeros(size)

    def add(self, where: slice, values: Tensor, dim: int) -> None:
        """`values` (n, m), -inf for what does not take part; `dim` is the one that is summed."""
        top = torch.maximum(self.top[where], values.amax(dim))
        safe = top.masked_fill(top == -torch.inf, 0)
        new = (values - safe.unsqueeze(dim)).exp_().sum(dim)
        self.total[where] = self.total[where] * (self.top[where] - safe).exp() + new
        self.top[where] = top

    def value(self) -> Tensor:
        return self.top + self.total.log()


def sharpnesses(beta: float) -> tuple[float, ...]:
    """The multiples of the logits whose log Σ exp `infonce` needs."""
    return (1 + beta, beta) if beta else (1.0,)


def negatives_logsumexp(source: Source, scale: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(K, I) and (K, C): log Σ exp over the negatives of each row and of each column, for each sharpness."""
    several = sharpnesses(beta)
    rows, columns = ([LogSumExp(size, source.like) for _ in several] for size in source.shape)
    for tile in source.tiles():
        excluded = tile.not_negative()
        for k, sharpness in enumerate(several):
            logits = (tile.scores * (scale * sharpness)).masked_fill_(excluded, -torch.inf)
            rows[k].add(tile.rows, logits, 1)
            columns[k].add(tile.columns, logits, 0)
    return torch.stack([one.value() for one in rows]), torch.stack([one.value() for one in columns])


class Side:
    """What the backward pass must know of the rows, or of the columns: a view into one tensor (K + 3, n).

    sums     (K, n) log Σ exp over the negatives, one for each sharpness
    against  what a positive competes with
    weight   of each of its positives in the loss
    pull     the loss's derivative by `against`
    """

    def __init__(self, packed: Tensor) -> None:
        self.packed = packed
        self.sums, (self.against, self.weight, self.pull) = packed[:-3], packed[-3:]

    @classmethod
    def of(cls, sums: Tensor, positives: Tensor, negatives: Tensor) -> Side:
        """Each choice that has a positive and a negative counts the same, and in it each positive."""
        against = sums[0] if len(sums) == 1 else sums[0] - sums[1] + negatives.log()
        against = against.masked_fill(negatives == 0, -torch.inf)
        counted = (positives > 0) & (negatives > 0)
        weight = counted / (2 * positives.clamp(min=1) * counted.sum().clamp(min=1))
        return cls(torch.cat([sums, torch.stack([against, weight.to(sums.dtype), torch.zeros_like(against)])]))

    def times(self, factor: Tensor) -> Side:
        """The same, of a loss `factor` times as large."""
        return Side(torch.cat([self.packed[:-2], self.packed[-2:] * factor]))


def infonce_forward(
    source: Source, scale: Tensor, beta: float, sums: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and (K + 3, I) and (K + 3, C) for `infonce_gradient`; `sums` if they are known already."""
    both = negatives_logsumexp(source, scale, beta) if sums is None else sums
    rows, columns = (Side.of(one, *counts) for one, counts in zip(both, source.counts(), strict=True))
    loss = source.like.new_zeros(())
    for pairs in source.pairs():
        logits = pairs.scores * scale
        for side, index in ((rows, pairs.rows), (columns, pairs.columns)):
            margin, weight = side.against[index] - logits, side.weight[index]
            loss += (F.softplus(margin) * weight).sum()
            side.pull.index_add_(0, index, margin.sigmoid() * weight)
    return loss, rows.packed, columns.packed


def infonce_gradient(
    source: Source, scale: Tensor, beta: float, rows: Side, columns: Side
) -> Iterator[tuple[Tile | Pairs, Tensor]]:
    """The loss's derivative by the logits, piece by piece; tiles give 0 where a positive is."""
    for tile in source.tiles():
        by_row = _share(tile.scores, scale, beta, rows.sums[:, tile.rows, None]).mul_(rows.pull[tile.rows, None])
        by_column = _share(tile.scores, scale, beta, columns.sums[:, None, tile.columns])
        by_row += by_column.mul_(columns.pull[None, tile.columns])
        yield tile, by_row.masked_fill_(tile.not_negative(), 0)
    for pairs in source.pairs():
        slope = torch.zeros_like(pairs.scores)
        for side, index in ((rows, pairs.rows), (columns, pairs.columns)):
            slope -= (side.against[index] - pairs.scores * scale).sigmoid() * side.weight[index]
        yield pairs, slope


def _share(scores: Tensor, scale: Tensor, beta: float, sums: Tensor) -> Tensor:
    """The derivative of `against` by each negative's logit: a softmax, or the difference of two."""
    share = (scores * (scale * (1 + beta)) - sums[0]).exp_()
    if beta:
        share *= 1 + beta
        share -= beta * (scores * (scale * beta) - sums[1]).exp_()
    return share


def sigmoid_forward(source: Source, scale: Tensor, bias: Tensor) -> Tensor:
    """Σ softplus(∓ logit) over the entries that take part, by the number of rows."""
    total = torch.zeros((), dtype=torch.float64, device=source.like.device)
    for tile in source.tiles():
        logits = tile.scores * scale + bias
        terms = F.softplus(torch.where(tile.positives, -logits, logits))
        total += _kept(terms, tile).sum()
    return (total / max(source.shape[0], 1)).to(source.like.dtype)


def sigmoid_gradient(source: Source, scale: Tensor, bias: Tensor) -> Iterator[tuple[Tile, Tensor]]:
    """As `infonce_gradient`, of the sigmoid loss."""
    for tile in source.tiles():
        logits = tile.scores * scale + bias
        slope = torch.where(tile.positives, -(-logits).sigmoid(), logits.sigmoid())
        yield tile, _kept(slope, tile) / max(source.shape[0], 1)


def _kept(values: Tensor, tile: Tile) -> Tensor:
    values = values if tile.weights is None else values * tile.weights
    return values if tile.taken is None else values.masked_fill(~tile.taken, 0)
