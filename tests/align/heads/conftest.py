"""Features in float64 with padding that would show, and what every head is held to beside the contract."""

from __future__ import annotations

import dataclasses
import math

import torch

from compal.align.batches import Batch
from compal.align.scorer import Dims, all_pairs, build_head

CLIP = Dims(image_dim=768, text_dim=512, pooled_dim=512, image_tokens=50, context_length=77)
TOKENS = Dims(image_dim=6, text_dim=5, pooled_dim=4, image_tokens=4, context_length=5)
REGIONS = Dims(image_dim=4, text_dim=4, pooled_dim=4)
EXACT = 1e-6  # of the largest value: float64 against float64


def features(dims, images=3, captions=4, seed=0, dtype=torch.float64):
    """Random features with NaN as padding: captions of 5, 1, 3, 2 … tokens, regions of 4, 1, 3 … (patches are always
    all there)."""
    made = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=made, dtype=torch.float64).to(dtype)

    def mask(lengths, count, most):
        return torch.arange(most) < torch.tensor((lengths * count)[:count])[:, None]

    words = mask([5, 1, 3, 2], captions, 5)
    patches = mask([4, 1, 3] if not dims.image_tokens else [4], images, 4)
    return Batch(
        images=normal(images, 4, dims.image_dim).masked_fill(~patches[..., None], math.nan),
        image_mask=patches,
        image_pooled=normal(images, dims.pooled_dim),
        texts=normal(captions, 5, dims.text_dim).masked_fill(~words[..., None], math.nan),
        text_mask=words,
        text_pooled=normal(captions, dims.pooled_dim),
        positives=torch.eye(images, captions, dtype=torch.bool),
        groups=torch.zeros(0, 4, dtype=torch.long),
    )


def double(name, dims, **options):
    """The head in float64, every parameter drawn anew: what starts as zero or as the identity must not hide a term."""
    scorer = build_head(name, options, dims).double().eval()
    made = torch.Generator().manual_seed(1)
    for parameter in scorer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=made, dtype=torch.float64) / 2
    return scorer


def parameters(scorer):
    return sum(parameter.numel() for parameter in scorer.parameters())


def normal(x):
    """A vector at length 1."""
    return x / x.square().sum().sqrt()


def layer_norm(x, weight=1.0, bias=0.0):
    """A vector at mean 0 and variance 1, then weight and bias."""
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias


def real(values, mask):
    """The rows that are no padding."""
    return [row for row, there in zip(values, mask, strict=True) if there]


def outcome(score, scorer, batch):
    """The scores, and the gradients of a weighting of them at inputs and parameters."""
    inputs = [batch.image_pooled, batch.text_pooled]
    if scorer.needs == "tokens":
        inputs += [batch.images, batch.texts]
    for tensor in inputs:
        tensor.requires_grad_()
        tensor.grad = None
    scorer.zero_grad()
    scores = score()
    weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (scores * weight).sum().backward()
    named = [(str(place), tensor) for place, tensor in enumerate(inputs)] + list(scorer.named_parameters())
    return {"scores": scores.detach()} | {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone() for name, tensor in named
    }


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float64
        error = (found[name] - value).abs().max() / value.abs().max().clamp(min=1e-12)
        assert error < EXACT, f"{name} is off by {error:.1e}"


def assert_is_the_formula(scorer, batch, slow):
    """`slow(scorer, batch, image, caption)` is the score of a pair, by loops: values and gradients of the block, and of
    pairs asked for singly."""
    rows, columns = batch.shape

    def block():
        return torch.stack([torch.stack([slow(scorer, batch, i, c) for c in range(columns)]) for i in range(rows)])

    expected = outcome(block, scorer, batch)
    assert expected["scores"].unique().numel() == rows * columns
    assert_equal(outcome(lambda: scorer.score(batch), scorer, batch), expected)
    pairs = all_pairs(batch)[torch.randperm(rows * columns, generator=torch.Generator().manual_seed(3))]
    pairs = torch.cat([pairs[: rows * columns // 2], pairs[:2]])

    def some():
        found = block()
        return found[pairs[:, 0], pairs[:, 1]]

    assert_equal(outcome(lambda: scorer.score_pairs(batch, pairs), scorer, batch), outcome(some, scorer, batch))


def assert_alone(scorer, batch):
    """A score is the same in any batch, whatever the padding holds and however much of it there is."""
    whole = scorer.score(batch)
    near = {"rtol": 1e-9, "atol": 1e-9} if whole.dtype == torch.float64 else {}
    assert whole.isfinite().all()
    wide = dataclasses.replace(
        batch,
        texts=torch.nn.functional.pad(batch.texts, (0, 0, 0, 2), value=math.inf),
        text_mask=torch.nn.functional.pad(batch.text_mask, (0, 2)),
    )
    torch.testing.assert_close(scorer.score(wide), whole, **near)
    for i in range(batch.shape[0]):
        for c in range(batch.shape[1]):
            one = batch.select(torch.tensor([i]), torch.tensor([c]))
            torch.testing.assert_close(scorer.score(one)[0, 0], whole[i, c], **near)


def assert_survives_autocast(name, options, tolerance=0.1):
    """Products in bfloat16 give float32 scores."""
    torch.manual_seed(0)
    batch = features(TOKENS, dtype=torch.float32)
    scorer = build_head(name, options, TOKENS).eval()
    with torch.autocast("cpu", torch.bfloat16):
        scores = scorer(batch)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, scorer(batch), rtol=tolerance, atol=tolerance)
