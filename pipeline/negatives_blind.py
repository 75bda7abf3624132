"""How well negatives can be told from captions by their text alone: a linear model that sees no image.

A benchmark or a training set whose negatives read unlike captions can be solved blindly (SugarCrepe, Hsieh et al.,
arXiv:2306.14610, found it of ARO and CREPE), and a model then learns the shortcut. The judge here is a logistic
regression on hashed words, word pairs and letter trigrams: what it sees, any text tower sees.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .negatives._text import words_of

PAIRS = 4000  # captions with one negative each: 2 seconds
FEWEST = 40
BUCKETS = 1 << 16
STEPS, RATE, DECAY = 150, 0.1, 1e-3
RESAMPLES = 400

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Blindness:
    """Area under the ROC curve on held-out captions: 0.5 cannot be told apart, 1 always. `low` and `high` are a
    95 % interval (bootstrap over captions), `held_out` how many captions were judged."""

    auc: float
    low: float
    high: float
    held_out: int


def blindness(captions: Sequence[str], negatives: Sequence[str], seed: int = 0) -> Blindness | None:
    """Train on 60 % of the captions with one negative each, judge the rest. None for fewer than `FEWEST` pairs.

    `captions[i]` is the original of `negatives[i]`; a caption with several negatives counts once. Deterministic.
    """
    first: dict[str, list[str]] = {}
    for caption, negative in zip(captions, negatives, strict=True):
        first.setdefault(caption, []).append(negative)
    rng = random.Random(seed)
    pairs = [(caption, rng.choice(made)) for caption, made in first.items()]
    rng.shuffle(pairs)
    pairs = pairs[:PAIRS]
    if len(pairs) < FEWEST:
        return None
    split = len(pairs) * 6 // 10
    weights = _fitted(_features([text for pair in pairs[:split] for text in pair]))
    scores = _scores(_features([text for pair in pairs[split:] for text in pair]), weights)
    positive, negative_scores = scores[1::2], scores[0::2]
    count = len(pairs) - split
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
    low, high = np.quantile([auc(negative_scores, positive, draw) for draw in draws], [0.025, 0.975])
    whole = auc(negative_scores, positive, np.ones(count))
    return Blindness(whole, float(low), float(high), count)


def auc(negative: Floats, positive: Floats, weights: Any) -> float:
    """Share of pairs (one of each, weighted) in which the positive has the higher score; ties count half."""
    _, place = np.unique(np.concatenate([negative, positive]), return_inverse=True)
    size = int(place.max()) + 1
    below = np.bincount(place[: len(negative)], weights, size)
    above = np.bincount(place[len(negative) :], weights, size)
    wins = float(above @ (np.cumsum(below) - below / 2))
    return wins / float(below.sum() * above.sum())


@dataclass(frozen=True)
class _Features:
    """Bucket numbers of all texts one after another, their values, and of which text each is."""

    buckets: NDArray[np.int64]
    values: Floats
    rows: NDArray[np.int64]
    count: int


def _features(texts: Sequence[str]) -> _Features:
    buckets: list[int] = []
    lengths = []
    for text in texts:
        words = [word.text.casefold() for word in words_of(text)]
        framed = ["<", *words, ">"]
        grams = {*words, *(f"{one} {other}" for one, other in pairwise(framed))}
        spelt = f"<{text}>"
        grams |= {f"#{spelt[at : at + 3]}" for at in range(len(spelt) - 2)}
        found = {zlib.crc32(gram.encode("utf-8", "replace")) % BUCKETS for gram in grams}
        buckets += sorted(found)
        lengths.append(len(found))
    rows = np.repeat(np.arange(len(texts)), lengths)
    values = 1.0 / np.sqrt(np.repeat(lengths, lengths))
    return _Features(np.array(buckets, np.int64), values.astype(np.float64), rows, len(texts))


def _scores(features: _Features, weights: Floats) -> Floats:
    return np.asarray(
        np.bincount(features.rows, weights[features.buckets] * features.values, features.count), np.float64
    )


def _fitted(features: _Features) -> Floats:
    """Weights of a logistic regression by Adam on the whole set; odd texts are the negatives. No intercept: there
    are as many of one as of the other."""
    weights, mean, square = np.zeros(BUCKETS), np.zeros(BUCKETS), np.zeros(BUCKETS)
    truth = (np.arange(features.count) % 2).astype(np.float64)
    for step in range(1, STEPS + 1):
        guess = 1.0 / (1.0 + np.exp(-_scores(features, weights)))
        error = (guess - truth)[features.rows] * features.values
        gradient = np.bincount(features.buckets, error, BUCKETS) / features.count + DECAY * weights / features.count
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        weights -= RATE * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights
