"""The residual MLP against its formula by loops; where it starts; what negatives are mined with."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from compal.align.scorer import Dims, build_head
from compal.errors import InputError, UsageError

from .conftest import (
    CLIP,
    TOKENS,
    assert_is_the_formula,
    assert_survives_autocast,
    double,
    features,
    normal,
    parameters,
)


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def mapped(part, vector):
    x = normal(vector)
    hidden = []
    for unit in range(len(part.hidden.bias)):
        total = part.hidden.bias[unit]
        for e in range(len(x)):
            total = total + part.hidden.weight[unit, e] * math.sqrt(len(x)) * x[e]
        hidden.append(gelu(total))
    added = []
    for e in range(len(x)):
        total = part.output.bias[e]
        for unit, value in enumerate(hidden):
            total = total + part.output.weight[e, unit] * value
        added.append(x[e] + total)
    return normal(torch.stack(added))


def slow(scorer, batch, i, c):
    image = normal(batch.image_pooled[i]) if scorer.image is None else mapped(scorer.image, batch.image_pooled[i])
    return (image * mapped(scorer.text, batch.text_pooled[c])).sum()


@pytest.mark.parametrize("sides", ["both", "text"])
def test_it_is_the_formula(sides):
    assert_is_the_formula(double("mlp", TOKENS, sides=sides, width=7), features(TOKENS), slow)


@pytest.mark.parametrize("sides", ["both", "text"])
def test_it_starts_as_the_cosine(sides):
    torch.manual_seed(0)
    batch = features(TOKENS, dtype=torch.float32)
    scorer = build_head("mlp", {"sides": sides, "width": 9}, TOKENS)
    torch.testing.assert_close(scorer.score(batch), build_head("cosine", {}, TOKENS).score(batch))


def test_embeddings_are_what_is_scored():
    """So negatives are mined with what is being fitted; and of one side alone, images stay where they were."""
    batch = features(TOKENS)
    for sides in ("both", "text"):
        scorer = double("mlp", TOKENS, sides=sides, width=7)
        images, texts = scorer.embed(batch)
        torch.testing.assert_close(images @ texts.T, scorer.score(batch))
        torch.testing.assert_close(texts.norm(dim=1), torch.ones(4, dtype=torch.float64))
        assert torch.equal(images, F.normalize(batch.image_pooled, dim=1)) == (sides == "text")


def test_its_size():
    assert parameters(build_head("mlp", {}, CLIP)) == 4_199_424
    assert parameters(build_head("mlp", {"sides": "text"}, CLIP)) == 2_099_712


def test_autocast_leaves_it_alone():
    assert_survives_autocast("mlp", {"width": 9}, tolerance=1e-6)


def test_what_cannot_be_built():
    with pytest.raises(UsageError, match=r"head\.width = 0"):
        build_head("mlp", {"width": 0}, TOKENS)
    with pytest.raises(InputError, match="reads pooled embeddings, and this store keeps none"):
        build_head("mlp", {}, Dims(6, 5, 0))
