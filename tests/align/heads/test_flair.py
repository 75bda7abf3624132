"""FLAIR's pooling by loops over heads and patches, and by PyTorch's own attention module."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from compal.align.kernels import pairs as kernel
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


def linear(part, x):
    return part.weight @ x + part.bias


def normed(part, x):
    return layer_norm(x, part.weight, part.bias)


def attended(scorer, patches, text):
    """The image of `patches` (E,) as the query `text` (E,) sees it."""
    heads = scorer.settings.heads
    query = linear(scorer.query, normed(scorer.query_norm, text)).view(heads, -1)
    keys = [linear(scorer.key, normed(scorer.key_norm, x)).view(heads, -1) for x in patches]
    values = [linear(scorer.value, normed(scorer.value_norm, x)).view(heads, -1) for x in patches]
    found = []
    for head in range(heads):
        nothing = torch.zeros_like(query[head])
        logits = [(query[head] * key[head]).sum() / math.sqrt(len(query[head])) for key in keys]
        weights = [logit.exp() for logit in logits] + [torch.ones(())]  # the zero key has the logit 0
        mixed = [weight * value[head] for weight, value in zip(weights, values, strict=False)]
        found.append((sum(mixed) + nothing) / sum(weights))
    return linear(scorer.output, torch.cat(found))


def slow(scorer, batch, i, c):
    patches = [scorer.image.map.weight @ layer_norm(x) for x in real(batch.images[i], batch.image_mask[i])]
    if scorer.settings.queries == "caption":
        texts = [scorer.text.weight @ batch.text_pooled[c]]
    else:
        texts = [scorer.text.map.weight @ layer_norm(x) for x in real(batch.texts[c], batch.text_mask[c])]
    return sum((normal(attended(scorer, patches, t)) * normal(t)).sum() for t in texts) / len(texts)


@pytest.mark.parametrize("dims", [TOKENS, REGIONS], ids=["tokens", "regions"])
@pytest.mark.parametrize("queries", ["caption", "tokens"])
def test_it_is_the_formula(queries, dims):
    """Each pair has a pooling of its own: in no row or column is anything shared."""
    scorer, batch = double("flair", dims, queries=queries, heads=2), features(dims)
    assert_is_the_formula(scorer, batch, slow)
    assert_alone(scorer, batch)


def test_it_is_the_released_module():
    """`nn.MultiheadAttention(add_zero_attn=True)` behind three LayerNorms, as in `PureAttentionPoolingBlock`."""
    scorer, batch = double("flair", TOKENS, queries="caption", heads=2), features(TOKENS)
    theirs = torch.nn.MultiheadAttention(4, 2, add_zero_attn=True, batch_first=True).double().eval()
    inputs = (scorer.query, scorer.key, scorer.value)
    theirs.in_proj_weight.data = torch.cat([part.weight for part in inputs])
    theirs.in_proj_bias.data = torch.cat([part.bias for part in inputs])
    theirs.out_proj.load_state_dict(scorer.output.state_dict())
    images = F.layer_norm(batch.images, (6,)) @ scorer.image.map.weight.T
    texts = batch.text_pooled @ scorer.text.weight.T
    queries = scorer.query_norm(texts).expand(3, -1, -1)
    pooled = theirs(queries, scorer.key_norm(images), scorer.value_norm(images), need_weights=False)[0]
    expected = F.cosine_similarity(pooled, texts[None], dim=-1)
    torch.testing.assert_close(scorer.score(batch), expected, rtol=1e-9, atol=1e-9)


def test_keys_and_values_are_computed_once_per_image(monkeypatch):
    monkeypatch.setattr(kernel, "tokens_at_a_time", lambda device: 8)
    scorer, batch = double("flair", TOKENS, heads=2), features(TOKENS, images=5, captions=7)
    seen = []
    scorer.key.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    scorer.score(batch)
    assert sum(rows * tokens for rows, tokens, _ in seen) == 5 * 4


def test_it_starts_from_the_towers_text():
    scorer = build_head("flair", {"queries": "caption"}, CLIP)
    assert torch.equal(scorer.text.weight, torch.eye(512))


def test_its_size_and_dtype():
    assert parameters(build_head("flair", {"queries": "caption"}, CLIP)) == 1_709_056
    assert parameters(build_head("flair", {"queries": "tokens"}, CLIP)) == 1_709_056  # text states are 512 wide too
    assert_survives_autocast("flair", {"queries": "caption", "heads": 2})
    assert_survives_autocast("flair", {"heads": 2})


def test_what_cannot_be_built():
    with pytest.raises(UsageError, match=r"pooled width 4 is not a multiple of head\.heads = 8"):
        build_head("flair", {}, TOKENS)
    with pytest.raises(InputError, match="this store keeps none"):
        build_head("flair", {}, Dims(6, 5, 0, 4, 5))
