"""FILIP's two scores by loops over patches and words."""

from __future__ import annotations

import pytest
import torch

from compal.align.scorer import build_head
from compal.errors import UsageError

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


def slow(scorer, batch, i, c):
    """Eq. 3 to 5 of the paper: s_I over the patches, s_T over the words."""
    patches = [normal(scorer.image.map.weight @ layer_norm(x)) for x in real(batch.images[i], batch.image_mask[i])]
    words = [normal(scorer.text.map.weight @ layer_norm(x)) for x in real(batch.texts[c], batch.text_mask[c])]
    s_i = sum(torch.stack([(patch * word).sum() for word in words]).max() for patch in patches) / len(patches)
    s_t = sum(torch.stack([(patch * word).sum() for patch in patches]).max() for word in words) / len(words)
    return {"i2t": s_i, "t2i": s_t, "both": (s_i + s_t) / 2}[scorer.settings.direction]


@pytest.mark.parametrize("dims", [TOKENS, REGIONS], ids=["tokens", "regions"])
@pytest.mark.parametrize("direction", ["i2t", "t2i", "both"])
def test_it_is_the_formula(direction, dims):
    scorer, batch = double("filip", dims, direction=direction, width=3), features(dims)
    assert_is_the_formula(scorer, batch, slow)
    assert_alone(scorer, batch)


def test_its_size_and_dtype():
    assert parameters(build_head("filip", {}, CLIP)) == 327_680
    assert_survives_autocast("filip", {"width": 8})
    with pytest.raises(UsageError, match=r"head\.width = 0"):
        build_head("filip", {"width": 0}, TOKENS)
