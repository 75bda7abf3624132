"""Soft assignment by loops, and between its two limits."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linprog

from compal.align.scorer import all_pairs, build_head
from compal.errors import InputError, UsageError

from .conftest import CLIP, REGIONS, assert_alone, features, normal, real


def similarities(batch, i, c):
    regions = [normal(x) for x in real(batch.images[i], batch.image_mask[i])]
    return [[float(x @ normal(y)) for y in real(batch.texts[c], batch.text_mask[c])] for x in regions]


def slow(batch, i, c, epsilon, iterations):
    """Rounds of the two potentials: f, then g, each the soft maximum over the other side; ⟨f, r⟩ + ⟨g, c⟩."""
    s = similarities(batch, i, c)
    rows, columns = len(s), len(s[0])
    g = [0.0] * columns
    for _ in range(iterations):
        f = [
            epsilon * math.log(sum(math.exp((s[p][k] - g[k]) / epsilon) for k in range(columns)) / columns)
            for p in range(rows)
        ]
        g = [
            epsilon * math.log(sum(math.exp((s[p][k] - f[p]) / epsilon) for p in range(rows)) / rows)
            for k in range(columns)
        ]
    return sum(f) / rows + sum(g) / columns


def exact(batch, i, c):
    """Optimal transport without the entropy, as a linear programme."""
    s = torch.tensor(similarities(batch, i, c), dtype=torch.float64)
    rows, columns = s.shape
    sums = torch.zeros(rows + columns, rows, columns, dtype=torch.float64)
    for p in range(rows):
        sums[p, p] = 1
    for k in range(columns):
        sums[rows + k, :, k] = 1
    masses = [1 / rows] * rows + [1 / columns] * columns
    return -linprog(-s.flatten().numpy(), A_eq=sums.flatten(1).numpy(), b_eq=masses).fun


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 1.0])
def test_it_is_the_slow_loop(epsilon):
    options = {"epsilon": epsilon, "iterations": 7}
    scorer, batch = build_head("sinkhorn", options, REGIONS), features(REGIONS, dtype=torch.float32)
    expected = torch.tensor([[slow(batch, i, c, epsilon, 7) for c in range(4)] for i in range(3)])
    torch.testing.assert_close(scorer.score(batch), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scorer.score_pairs(batch, all_pairs(batch)), expected.flatten(), rtol=1e-5, atol=1e-6)
    assert_alone(scorer, batch)


def test_it_lies_between_the_mean_and_the_exact_transport():
    batch = features(REGIONS, dtype=torch.float32)
    soft = build_head("sinkhorn", {"epsilon": 1000.0}, REGIONS).score(batch)
    hard = build_head("sinkhorn", {"epsilon": 0.01, "iterations": 2000}, REGIONS).score(batch)
    for i in range(3):
        for c in range(4):
            s = similarities(batch, i, c)
            mean = sum(map(sum, s)) / len(s) / len(s[0])
            assert float(soft[i, c]) == pytest.approx(mean, abs=2e-3)
            best, gap = exact(batch, i, c), 0.01 * math.log(min(len(s), len(s[0])))
            assert best - gap - 1e-4 <= float(hard[i, c]) <= best + 1e-4


def test_what_cannot_be_built():
    with pytest.raises(InputError, match=r"768 and 512 wide.*--level regions.*filip"):
        build_head("sinkhorn", {}, CLIP)
    with pytest.raises(UsageError, match=r"head\.epsilon = 0"):
        build_head("sinkhorn", {"epsilon": 0.0}, REGIONS)
    with pytest.raises(UsageError, match=r"head\.iterations = 0"):
        build_head("sinkhorn", {"iterations": 0}, REGIONS)
