"""95 % intervals: the percentile bootstrap over images.

Items that share an image share its luck, so whole clusters of them are resampled; an interval over items is
too narrow wherever a photograph has several captions. That is why there is one method for every metric and no
Wilson interval beside it: Wilson takes items as independent. Where every item is a hit, or none is,
resampling has nothing to vary and would claim certainty; there the exact binomial bound over the clusters
stands (0 of 500 → [0, 0.74]).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

RESAMPLES = 2000
CONFIDENCE = 0.95
# Drawn cluster numbers held at once: 4 million int64 are 32 MB.
DRAWS = 1 << 22
# Bytes of draws that stay for the next row of a table: 2,000 of 67,000 clusters.
KEPT = 1 << 27

Floats = NDArray[np.float64]


def clusters(images: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Cluster number (N,) of items, given the image keys of each: what shared images link is one cluster. Numbered in
    order of appearance."""
    from scipy import sparse

    codes: dict[str, int] = {}
    keys = np.array([codes.setdefault(key, len(codes)) for one in images for key in one], np.int64)
    items = np.repeat(np.arange(len(images)), [len(one) for one in images])
    links = sparse.csr_array((np.ones(len(keys), bool), (items, keys + len(images))), [len(images) + len(codes)] * 2)
    found = sparse.csgraph.connected_components(links, directed=False)[1][: len(images)]
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    return np.asarray(first.argsort().argsort()[number], np.int64)


_kept: dict[tuple[int, int, int], list[NDArray[np.uint8]]] = {}


def forget() -> None:
    """Let go of the draws that stayed."""
    _kept.clear()


def _times(groups: int, seed: int, resamples: int) -> Iterator[Floats]:
    """How often each of `groups` clusters was drawn, blocks (b, G) of `resamples` rows in all.

    The rows of one table ask for the same draws, and drawing is what costs: those of up to `KEPT` bytes stay, as uint8.
    """
    asked = (groups, seed, resamples)
    if asked in _kept:
        yield from (block.astype(np.float64) for block in _kept[asked])
        return
    blocks: list[NDArray[np.uint8]] = []
    for block in _drawn(groups, seed, resamples):
        if groups * resamples <= KEPT and int(block.max(initial=0)) < 256:
            blocks.append(block.astype(np.uint8))
        yield block.astype(np.float64)
    if sum(map(len, blocks)) == resamples:
        while _kept and groups * resamples + sum(one * times for one, _, times in _kept) > KEPT:
            _kept.pop(next(iter(_kept)), None)
        _kept[asked] = blocks


def _drawn(groups: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS // max(groups, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = rng.integers(0, groups, (rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * groups).reshape(rows, groups)


def bootstrap(sums: Any, counts: Any, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Resampled means (B, K) of K quantities from per-cluster `sums` (G, K) and `counts` (G, K).

    Clusters are drawn with replacement, G at a time, the same draws for all K. NaN where a draw has no item.
    """
    totals = np.concatenate([np.asarray(sums, np.float64), np.asarray(counts, np.float64)], axis=1)
    groups, columns = totals.shape
    drawn = np.concatenate([times @ totals for times in _times(groups, seed, resamples)])
    half = columns // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = drawn[:, :half] / drawn[:, half:]
    return means


def bootstrap_classes(cluster: Any, labels: Any, credit: Any, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Resampled means over classes (B,) of each class's mean credit; `cluster`, `labels`, `credit` are (N,), clusters
    and labels numbered from 0. A class without an item in a draw is left out of that draw's mean."""
    from scipy import sparse

    groups, classes = int(np.max(cluster)) + 1, int(np.max(labels)) + 1
    shape = (groups, classes)
    # An item in a thousand cells: dense, 50,000 images of ImageNet would be 800 MB.
    sums, counts = (sparse.csr_array((values, (cluster, labels)), shape) for values in (credit, np.ones(len(credit))))
    drawn = []
    for times in _times(groups, seed, resamples):
        have = times @ counts
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.where(have > 0, (times @ sums) / have, 0.0)
        drawn.append(means.sum(axis=1) / (have > 0).sum(axis=1))
    return np.concatenate(drawn)


def bounds(
    replicates: Any, value: float | None, groups: int, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """The percentile interval in percent of resampled means (B,), fractions whose estimate is `value`.

    None if the estimate is undefined or fewer than two clusters were resampled. At 0 and 1: the exact
    binomial bound.
    """
    if value is None or groups < 2:
        return None
    tail = (1.0 - confidence) / 2.0
    blind = 1.0 - tail ** (1.0 / groups)
    if value == 0.0:
        return 0.0, 100.0 * blind
    if value == 1.0:
        return 100.0 * (1.0 - blind), 100.0
    defined = np.asarray(replicates, np.float64)
    defined = defined[~np.isnan(defined)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return 100.0 * float(low), 100.0 * float(high)


def interval(hits: Any, cluster: Any = None, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """95 % interval in percent of the mean of `hits` (N,) bool; `cluster` (N,), each item its own if None.

    None if there are no items or only one cluster. Raises `InputError` if the lengths differ.
    """
    values = np.asarray(hits, np.float64)
    labels = np.arange(len(values)) if cluster is None else np.asarray(cluster)
    if values.shape != labels.shape or values.ndim != 1:
        raise InputError(f"hits {values.shape} and clusters {labels.shape} must be one axis of equal length")
    if not len(values):
        return None
    _, index = np.unique(labels, return_inverse=True)
    sums, counts = np.bincount(index, values)[:, None], np.bincount(index)[:, None]
    return bounds(bootstrap(sums, counts, seed, resamples)[:, 0], float(values.mean()), len(counts))
