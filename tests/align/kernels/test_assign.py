"""The exact assignment against every permutation, and what surrounds it."""

from __future__ import annotations

import itertools

import pytest
import torch

from compal.align.kernels import assign, maxsim, pack
from compal.align.kernels.assign import matched
from compal.errors import InputError, UsageError

LENGTHS = torch.tensor([3, 1, 4, 0])
REAL = torch.tensor([4, 2, 0])


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 4, 6, generator=generator, dtype=dtype)
    text = torch.randn(4, 4, 6, generator=generator, dtype=dtype)
    masks = torch.arange(4) < REAL[:, None], torch.arange(4) < LENGTHS[:, None]
    return image, text, *masks


EVERY = torch.cartesian_prod(torch.arange(3), torch.arange(4))


def brute(similarity):
    """The best sum of (L, P), over all injective maps of the smaller side."""
    if similarity.shape[0] > similarity.shape[1]:
        similarity = similarity.T
    tokens, patches = similarity.shape
    choices = itertools.permutations(range(patches), tokens)
    return max((float(sum(similarity[t, p] for t, p in enumerate(one))) for one in choices), default=0.0)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_against_every_permutation(reduce):
    image, text, image_mask, text_mask = inputs()
    found = assign(image, text, EVERY, image_mask=image_mask, text_mask=text_mask, reduce=reduce)
    for score, (row, column) in zip(found, EVERY.tolist(), strict=True):
        patches, tokens = image[row, : REAL[row]], text[column, : LENGTHS[column]]
        matched = min(len(patches), len(tokens))
        expected = brute(tokens @ patches.T)
        assert float(score) == pytest.approx(expected / (matched if reduce == "mean" and matched else 1), rel=1e-12)


def test_gradients_go_through_what_is_matched():
    image, text, image_mask, text_mask = inputs()
    image.requires_grad_(), text.requires_grad_()

    def score(image, text):
        return assign(image, text, EVERY, image_mask=image_mask, text_mask=text_mask)

    assert torch.autograd.gradcheck(score, (image, text))
    score(image, text).sum().backward()
    assert (image.grad[~image_mask] == 0).all()
    assert (text.grad[~text_mask] == 0).all()


def test_padding_may_hold_anything():
    image, text, image_mask, text_mask = inputs(torch.float32)
    plain = assign(image, text, EVERY, image_mask=image_mask, text_mask=text_mask)
    spoilt = image.masked_fill(~image_mask[..., None], torch.nan), text.masked_fill(~text_mask[..., None], torch.inf)
    assert torch.equal(assign(*spoilt, EVERY, image_mask=image_mask, text_mask=text_mask), plain)
    assert torch.equal(assign(image, pack(text, text_mask), EVERY, image_mask=image_mask), plain)
    assert plain.dtype == torch.float32


def test_it_is_no_better_than_maxsim_and_equal_for_one_token():
    image, text, _, _ = inputs()
    exclusive = assign(image, text, EVERY)
    assert (exclusive <= maxsim(image, text, pairs=EVERY) + 1e-12).all()
    torch.testing.assert_close(assign(image, text[:, :1], EVERY), maxsim(image, text[:, :1], pairs=EVERY))


def test_half_precision_is_scored_in_float32():
    image, text, _, _ = inputs()
    image, text = image.bfloat16(), text.bfloat16()
    found = assign(image, text, EVERY)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, assign(image.float(), text.float(), EVERY))


def test_no_pairs():
    image, text, _, _ = inputs()
    assert assign(image, text, EVERY[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"reduce": "max"}, UsageError, "no reduction 'max'"),
        ({"pairs": torch.tensor([[3, 0]])}, InputError, "pairs reach"),
        ({"pairs": torch.tensor([0, 1])}, InputError, "pairs are"),
        ({"image": torch.zeros(3, 4, 5)}, InputError, "channels"),
        ({"image_mask": torch.ones(3, 3, dtype=torch.bool)}, InputError, "a mask"),
        ({"image": torch.full((3, 4, 6), torch.nan)}, InputError, "not finite"),
    ],
)
def test_what_cannot_be(change, error, says):
    image, text, _, _ = inputs(torch.float32)
    with pytest.raises(error, match=says):
        assign(**{"image": image, "text": text, "pairs": EVERY, **change})


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (0, 4)])
def test_opcheck(shape):
    torch.library.opcheck(matched, (torch.randn(shape, generator=torch.Generator().manual_seed(0)),))
