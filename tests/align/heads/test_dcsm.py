"""DCSM's network by loops over the map, a place and a channel at a time."""

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

SMALL = {"width": 3, "channels": 2, "hidden": 8}


def convolved(part, maps):
    """A 3 × 3 convolution and ReLU of maps[channel][word][patch]; what lies outside of a map is zero."""
    words, patches = len(maps[0]), len(maps[0][0])
    result = []
    for out in range(len(part.bias)):
        rows = []
        for t in range(words):
            row = []
            for p in range(patches):
                total = part.bias[out]
                for k, one in enumerate(maps):
                    for dt in (-1, 0, 1):
                        for dp in (-1, 0, 1):
                            if 0 <= t + dt < words and 0 <= p + dp < patches:
                                total = total + part.weight[out, k, 1 + dt, 1 + dp] * one[t + dt][p + dp]
                row.append(total.clamp(min=0))
            rows.append(row)
        result.append(rows)
    return result


def slow(scorer, batch, i, c):
    patches = real(batch.images[i], batch.image_mask[i])
    words = real(batch.texts[c], batch.text_mask[c])[: scorer.settings.text_tokens]
    width = scorer.settings.width or len(patches[0])
    if scorer.image is not None:
        patches = [scorer.image.map.weight @ layer_norm(x) for x in patches]
        words = [scorer.text.map.weight @ layer_norm(x) for x in words]
    maps = [[[math.sqrt(width) * (normal(word) * normal(patch)).sum() for patch in patches] for word in words]]
    for part in scorer.convolutions:
        maps = convolved(part, maps)
    hidden = []
    for unit in range(scorer.settings.hidden):
        total = scorer.read.bias[unit]
        for k, one in enumerate(maps):
            if scorer.flat:
                weight = scorer.read.weight[unit].view(len(maps), *scorer.shape)[k]
                total = total + sum(weight[t, p] * x for t, row in enumerate(one) for p, x in enumerate(row))
            else:
                total = total + scorer.read.weight[unit, k] * sum(x for row in one for x in row) / len(one) / len(
                    one[0]
                )
        hidden.append(total.clamp(min=0))
    return sum(scorer.output.weight[0, unit] * x for unit, x in enumerate(hidden)) + scorer.output.bias[0]


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (TOKENS, {}),
        (TOKENS, {"text_tokens": 2}),
        (TOKENS, {"readout": "mean"}),
        (REGIONS, {}),
        (REGIONS, {"width": 0}),
    ],
    ids=["flat", "two-words", "mean", "regions", "regions-as-they-are"],
)
def test_it_is_the_formula(dims, options):
    scorer, batch = double("dcsm", dims, **{**SMALL, **options}), features(dims)
    assert_is_the_formula(scorer, batch, slow)
    assert_alone(scorer, batch)


def test_it_is_pytorchs_convolution_of_a_full_map():
    """Where nothing is padding: the released network, by its own layers."""
    scorer, batch = double("dcsm", TOKENS, **SMALL), features(TOKENS, captions=1)
    image = torch.nn.functional.normalize(scorer.image(batch.images), dim=-1)
    text = torch.nn.functional.normalize(scorer.text(batch.texts), dim=-1)
    x = math.sqrt(3) * torch.einsum("lte,ipe->iltp", text, image)
    for part in scorer.convolutions:
        x = part(x).relu()
    expected = scorer.output(scorer.read(x.flatten(1)).relu())
    torch.testing.assert_close(scorer.score(batch), expected, rtol=1e-9, atol=1e-9)


def test_words_behind_the_last_one_read_make_no_difference():
    scorer, batch = double("dcsm", TOKENS, **SMALL, text_tokens=2), features(TOKENS)
    before = scorer.score(batch)
    batch.texts[:, 2:] = batch.texts[:, 2:] + 1
    assert torch.equal(scorer.score(batch), before)


def test_dropout_is_of_training_alone():
    scorer, batch = double("dcsm", TOKENS, **SMALL, dropout=0.5), features(TOKENS)
    assert torch.equal(scorer.score(batch), scorer.score(batch))
    torch.manual_seed(0)
    assert not torch.equal(scorer.train().score(batch), scorer.score(batch))


def test_its_size_and_dtype():
    assert parameters(build_head("dcsm", {}, CLIP)) == 1_096_125
    assert_survives_autocast("dcsm", SMALL)


def test_what_cannot_be_built():
    with pytest.raises(InputError, match=r"6 and 5 wide here.*--level regions"):
        build_head("dcsm", {"width": 0}, TOKENS)
    with pytest.raises(InputError, match=r"fixed order.*--level tokens"):
        build_head("dcsm", {"readout": "flat"}, REGIONS)
    with pytest.raises(UsageError, match=r"published sizes are 4, 128 and 30"):
        build_head("dcsm", {"channels": 0}, TOKENS)
    with pytest.raises(InputError, match="reads tokens"):
        build_head("dcsm", {}, Dims(0, 0, 4))
