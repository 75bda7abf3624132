"""InfoNCE against a slow loop in float64, and against the textbook."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from blocks import batch_of

from compal.align.losses.infonce import Config, loss, parameters


def slow(scores, batch, config):
    """Every choice by itself."""
    logits = scores.double() / config.temperature
    taken = torch.ones_like(batch.positives) if batch.scored is None else batch.scored

    def direction(rows):
        means = []
        for row in rows:
            right = [float(x) for x, known, used in row if known and used]
            wrong = [float(x) for x, known, used in row if used and not known]
            if right and wrong:
                against = sum(math.exp(x) for x in wrong)
                means.append(sum(math.log(math.exp(x) + against) - x for x in right) / len(right))
        return sum(means) / len(means) if means else 0.0

    images = len(scores)
    every = [(logits[i], batch.positives[i], taken[i]) for i in range(images)]
    rows = [list(zip(*three, strict=True)) for three in every]
    block = (direction(rows) + direction([list(column) for column in zip(*rows, strict=True)])) / 2
    terms = []
    for i0, i1, c0, c1 in batch.groups.tolist():
        two = logits[[i0, i1]][:, [c0, c1]]
        for square in (two, two.T):
            terms += [float(-F.log_softmax(square[k], 0)[k]) for k in (0, 1)]
    quads = sum(terms) / len(terms) if terms else 0.0
    return config.block_weight * block + config.quad_weight * quads


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize(("block", "quad"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_it_equals_the_slow_loop(sparse, temperature, block, quad):
    made = torch.Generator().manual_seed(0)
    positives = torch.eye(6, 10, dtype=torch.bool)
    positives[0, 6] = positives[3, 6] = positives[3, 7] = True
    scored = positives | (torch.rand(6, 10, generator=made) < 0.5) if sparse else None
    if scored is not None:
        scored[:4, :4] = True
    batch = batch_of(positives, [(0, 1, 0, 1), (2, 3, 2, 3)], scored=scored)
    config = Config(temperature=temperature, block_weight=block, quad_weight=quad)
    scores = torch.randn(6, 10, generator=made)
    assert float(loss(scores, batch, config)) == pytest.approx(slow(scores, batch, config), rel=1e-5)


def test_one_positive_each_is_the_textbook():
    scores = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    batch, target = batch_of(torch.eye(5, 8, dtype=torch.bool)), torch.arange(5)
    expected = (F.cross_entropy(scores, target) + F.cross_entropy(scores[:, :5].T, target)) / 2
    torch.testing.assert_close(loss(scores, batch, Config(temperature=1.0)), expected)


def test_given_negatives_count_for_images_alone():
    """Three extra columns: a harder choice for every image, no choice of their own."""
    batch = batch_of(torch.eye(4, 7, dtype=torch.bool))
    scores = torch.zeros(4, 7)
    expected = (math.log(7) + math.log(4)) / 2
    assert float(loss(scores, batch, Config(temperature=1.0))) == pytest.approx(expected)


def test_scaling_scores_is_scaling_the_temperature():
    batch = batch_of(torch.eye(4, 6, dtype=torch.bool), [(0, 1, 0, 1)])
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    one = loss(7 * scores, batch, Config(temperature=0.7, quad_weight=1.0))
    torch.testing.assert_close(one, loss(scores, batch, Config(temperature=0.1, quad_weight=1.0)))


def test_temperature_is_fitted_within_its_bound():
    batch = batch_of(torch.eye(4, 6, dtype=torch.bool))
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    config = Config(temperature=0.5)
    fitted = parameters(config)
    value = loss(scores, batch, config, fitted)
    torch.testing.assert_close(value, loss(scores, batch, config))
    value.backward()
    assert fitted["log_scale"].grad != 0
    fitted["log_scale"].data.fill_(10.0)
    bounded = loss(scores, batch, Config(temperature=0.01))
    torch.testing.assert_close(loss(scores, batch, config, fitted), bounded)
    assert parameters(Config(learn_temperature=False)) == {}
