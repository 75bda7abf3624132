"""Heads against slow loops, and the numbers that are promised of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from compal.align.batches import Batch, join
from compal.align.heads import _transformer, tflocal
from compal.align.kernels import _maxsim_cpu
from compal.align.scorer import Dims, all_pairs, build_head
from compal.errors import InputError, UsageError

from .conftest import image_keys, text_keys

CLIP = Dims(image_dim=768, text_dim=512, pooled_dim=512, image_tokens=50, context_length=77)
SMALL = {"width": 16, "layers": 2, "heads": 2, "ffn": 24, "dropout": 0.0}


@pytest.fixture
def batch(store):
    return join(store, image_keys(6), text_keys(9))


def build(store, name, **options):
    torch.manual_seed(0)
    return build_head(name, options, Dims.of(store.spec)).eval()


def parameters(scorer):
    return sum(parameter.numel() for parameter in scorer.parameters())


# --- training-free -------------------------------------------------------------------------------------


def slow_maxsim(batch, direction):
    """One pair and one token at a time, over the real tokens alone."""
    scores = torch.zeros(batch.shape)
    for i in range(batch.shape[0]):
        for c in range(batch.shape[1]):
            image = F.normalize(batch.images[i][batch.image_mask[i]], dim=-1)
            text = F.normalize(batch.texts[c][batch.text_mask[c]], dim=-1)
            t2i = sum(max(float(token @ patch) for patch in image) for token in text) / len(text)
            i2t = sum(max(float(token @ patch) for token in text) for patch in image) / len(image)
            scores[i, c] = {"t2i": t2i, "i2t": i2t, "both": (t2i + i2t) / 2}[direction]
    return scores


@pytest.mark.parametrize("tile", [1, 200, _maxsim_cpu.TILE])
@pytest.mark.parametrize("direction", ["t2i", "i2t", "both"])
@pytest.mark.parametrize("level", ["tokens", "regions"])
def test_maxsim_equals_the_slow_loop(stores, monkeypatch, level, direction, tile):
    monkeypatch.setattr(_maxsim_cpu, "TILE", tile)
    store = stores[level]
    batch = join(store, image_keys(6), text_keys(9))
    scorer = build(store, "maxsim", direction=direction)
    expected = slow_maxsim(batch, direction)
    torch.testing.assert_close(scorer.score(batch), expected)
    torch.testing.assert_close(scorer.score_pairs(batch, all_pairs(batch)), expected.flatten())


def test_maxsim_without_tokens_is_zero(stores):
    batch = join(stores["regions"], image_keys(4), text_keys(4))
    batch.text_mask[1], batch.image_mask[2] = False, False
    scores = build(stores["regions"], "maxsim", direction="both").score(batch)
    assert (scores[:, 1] == 0).all()
    assert (scores[2] == 0).all()
    assert (scores[0, [0, 2, 3]] != 0).all()


def test_maxsim_needs_one_space():
    with pytest.raises(InputError, match=r"768 and 512 wide.*--level regions.*tflocal"):
        build_head("maxsim", {}, CLIP)


def test_cosine_is_the_cosine(store, batch):
    expected = F.cosine_similarity(batch.image_pooled[:, None], batch.text_pooled[None], dim=-1)
    torch.testing.assert_close(build(store, "cosine").score(batch), expected)


# --- linear --------------------------------------------------------------------------------------------


def test_linear_starts_as_the_cosine(store, batch):
    torch.testing.assert_close(build(store, "linear").score(batch), build(store, "cosine").score(batch))


def test_linear_is_a_bilinear_form(store, batch):
    scorer = build(store, "linear")
    torch.nn.init.normal_(scorer.map.weight)
    images, captions = F.normalize(batch.image_pooled), F.normalize(batch.text_pooled)
    expected = torch.stack([torch.stack([i @ scorer.map.weight @ c for c in captions]) for i in images])
    torch.testing.assert_close(scorer.score(batch), expected)
    assert parameters(build_head("linear", {}, CLIP)) == 512 * 512


# --- transformers --------------------------------------------------------------------------------------


def test_tflocal_has_the_published_size():
    """13.3 M at CLIP ViT-B/32 (tflocal.md §2.3), and the control the same but for its inputs."""
    assert 13.2e6 < parameters(build_head("tflocal", {}, CLIP)) < 13.4e6
    assert 13.0e6 < parameters(build_head("tfglobal", {}, CLIP)) < 13.4e6
    encoder = torch.nn.TransformerEncoderLayer(512, 8, 2048, norm_first=True)
    assert parameters(_transformer.SelfBlock(512, 8, 2048, 0.0)) == parameters(encoder)


def test_a_block_is_pytorchs_encoder_layer():
    torch.manual_seed(0)
    encoder = torch.nn.TransformerEncoderLayer
    theirs = encoder(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    ours = _transformer.SelfBlock(16, 4, 32, 0.0).eval()
    names = {
        "norms.0": "norm1",
        "norms.1": "norm2",
        "attention.inputs.": "self_attn.in_proj_",
        "attention.output": "self_attn.out_proj",
        "feed_forward.0": "linear1",
        "feed_forward.3": "linear2",
    }
    state = theirs.state_dict()
    for mine in ours.state_dict():
        prefix = next(prefix for prefix in names if mine.startswith(prefix))
        ours.get_parameter(mine).data.copy_(state[mine.replace(prefix, names[prefix])])
    x, mask = torch.randn(3, 7, 16), torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    torch.testing.assert_close(ours(x, mask)[mask], theirs(x, src_key_padding_mask=~mask)[mask])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interaction": "cross", "pool": "cls"},
        {"interaction": "cross", "image_layers": 1, "text_layers": 1, "compare": True},
    ],
    ids=["joint", "cross-cls", "cross-compare"],
)
def test_chunks_change_nothing(store, batch, monkeypatch, options):
    """Scores and gradients, for chunks that do not divide the work, held or computed again."""
    scorer = build(store, "tflocal", **SMALL, **options)
    pairs = all_pairs(batch)[torch.randperm(54, generator=torch.Generator().manual_seed(0))][:37]

    def outcome():
        scorer.zero_grad()
        block, some = scorer.score(batch), scorer.score_pairs(batch, pairs)
        (block.square().sum() + some.square().sum()).backward()
        return [block.detach(), some.detach(), *(parameter.grad.clone() for parameter in scorer.parameters())]

    expected = outcome()
    monkeypatch.setattr(tflocal, "tokens_at_a_time", lambda device: 40)
    monkeypatch.setattr(tflocal, "TEXTS", 4)
    chunked = outcome()
    monkeypatch.setattr(tflocal.TFLocal, "retained_bytes", lambda self, tokens: 2**40)
    recomputed = outcome()
    for one, two, three in zip(expected, chunked, recomputed, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(three, two, rtol=1e-4, atol=1e-5)


def test_recomputed_chunks_have_the_same_dropout(store, batch, monkeypatch):
    options = {**SMALL, "dropout": 0.5}

    def gradients(retained):
        monkeypatch.setattr(tflocal.TFLocal, "retained_bytes", lambda self, tokens: retained)
        scorer = build(store, "tflocal", **options).train()
        torch.manual_seed(1)
        scorer.score(batch).square().sum().backward()
        return [parameter.grad for parameter in scorer.parameters()]

    for one, two in zip(gradients(0), gradients(2**40), strict=True):
        torch.testing.assert_close(one, two)


def test_keys_and_values_are_computed_once_per_image(store, batch, monkeypatch):
    """Of the form "cross": over all tiles and captions, every block projects every image token once."""
    scorer = build(store, "tflocal", **SMALL, interaction="cross")
    monkeypatch.setattr(tflocal, "tokens_at_a_time", lambda device: 60)
    monkeypatch.setattr(tflocal, "TEXTS", 4)
    seen = []
    for block in scorer.blocks:
        block.cross.memory.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    scorer.score(batch)
    assert sum(rows * tokens for rows, tokens, _ in seen) == 2 * 6 * 5


def test_residual_adds_a_multiple_of_the_cosine(store, batch):
    plain = build(store, "tflocal", **SMALL)
    scorer = build(store, "tflocal", **SMALL, residual="cosine", residual_scale=3.0)
    scorer.load_state_dict(plain.state_dict(), strict=False)
    expected = plain.score(batch) + 3 * build(store, "cosine").score(batch)
    torch.testing.assert_close(scorer.score(batch), expected)
    assert scorer.cosine_scale.requires_grad


def test_positions_matter_to_tflocal(store, batch):
    """Token order is read (learned positions), in patches and in words."""
    scorer = build(store, "tflocal", **SMALL)
    before = scorer.score(batch)
    batch.images = batch.images.flip(1)
    assert (scorer.score(batch) - before).abs().max() > 1e-4


def test_impossible_options_are_refused(store):
    with pytest.raises(UsageError, match=r"head\.width = 10 is not a multiple of head\.heads = 4"):
        build(store, "tflocal", width=10, heads=4)
    with pytest.raises(UsageError, match="never sees the text"):
        build(store, "tflocal", interaction="cross", text_self_attention=False, pool="cls")
    with pytest.raises(UsageError, match=r"belong to head\.interaction"):
        build(store, "tflocal", compare=True)


def test_bfloat16_products_give_float32_scores(store, batch):
    for name, options in (("tflocal", SMALL), ("tflocal", {**SMALL, "interaction": "cross"}), ("linear", {})):
        scorer = build(store, name, **options)
        with torch.autocast("cpu", torch.bfloat16):
            scores = scorer(batch)
        assert scores.dtype == torch.float32
        tolerance = 1e-6 if name == "linear" else 0.1
        torch.testing.assert_close(scores, scorer(batch), rtol=tolerance, atol=tolerance)


def test_pooled_batches_are_refused_by_token_heads(store):
    batch: Batch = join(store, image_keys(2), text_keys(2), needs="pooled")
    with pytest.raises(InputError, match="pooled embeddings only"):
        build(store, "tflocal", **SMALL).score(batch)
