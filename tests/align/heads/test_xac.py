"""XAC by loops over patches; its two limits in kappa."""

from __future__ import annotations

import math

import pytest
import torch

from compal.align.scorer import Dims, build_head
from compal.errors import InputError, UsageError

from .conftest import (
    CLIP,
    REGIONS,
    TOKENS,
    assert_alone,
    assert_is_the_formula,
    assert_survives_autocast,
    double,
    features,
    layer_norm,
    normal,
    parameters,
    real,
)


def mapped(part, x):
    u = part.project.map.weight @ layer_norm(x)
    hidden = part.hidden.weight @ layer_norm(u, part.norm.weight, part.norm.bias) + part.hidden.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return normal(u + part.output.weight @ hidden + part.output.bias)


def concepts(scorer, batch, c):
    if scorer.settings.queries == "caption":
        return [normal(batch.text_pooled[c])]
    return [normal(scorer.text.map.weight @ layer_norm(x)) for x in real(batch.texts[c], batch.text_mask[c])]


def slow(scorer, batch, i, c):
    patches = [mapped(scorer.image, x) for x in real(batch.images[i], batch.image_mask[i])]
    found = []
    for concept in concepts(scorer, batch, c):
        weights = [(scorer.settings.kappa * (concept * u).sum()).exp() for u in patches]
        gathered = sum(weight * u for weight, u in zip(weights, patches, strict=True)) / sum(weights)
        found.append((normal(gathered) * concept).sum())
    return sum(found) / len(found)


@pytest.mark.parametrize("kappa", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("dims", [TOKENS, REGIONS], ids=["tokens", "regions"])
@pytest.mark.parametrize("queries", ["caption", "tokens"])
def test_it_is_the_formula(queries, dims, kappa):
    scorer, batch = double("xac", dims, queries=queries, kappa=kappa, ratio=1.5), features(dims)
    assert_is_the_formula(scorer, batch, slow)
    assert_alone(scorer, batch)


@torch.no_grad()
def test_sharp_attention_takes_the_best_patch_and_flat_attention_the_mean():
    batch = features(TOKENS)
    patches = [[mapped(double("xac", TOKENS).image, x) for x in image] for image in batch.images]
    texts = [normal(text) for text in batch.text_pooled]
    best = [[max(float(u @ text) for u in image) for text in texts] for image in patches]
    mean = [[float(normal(sum(image)) @ text) for text in texts] for image in patches]
    for kappa, expected, near in ((1e6, best, 1e-9), (1e-9, mean, 1e-8)):
        scores = double("xac", TOKENS, queries="caption", kappa=kappa).score(batch)
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=near, atol=near)


def test_its_size_and_dtype():
    assert parameters(build_head("xac", {"queries": "caption"}, CLIP)) == 2_493_952
    assert parameters(build_head("xac", {"queries": "tokens"}, CLIP)) == 2_493_952 + 512 * 512
    assert_survives_autocast("xac", {"queries": "caption"})
    assert_survives_autocast("xac", {})


def test_what_cannot_be_built():
    with pytest.raises(UsageError, match=r"head\.kappa = 0"):
        build_head("xac", {"kappa": 0.0}, TOKENS)
    with pytest.raises(UsageError, match=r"head\.ratio = 0"):
        build_head("xac", {"ratio": 0.0}, TOKENS)
    with pytest.raises(InputError, match="this store keeps none"):
        build_head("xac", {}, Dims(6, 5, 0, 4, 5))
