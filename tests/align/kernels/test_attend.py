"""Text-conditioned pooling against its plain form: values, gradients, padding, tiles."""

from __future__ import annotations

import pytest
import torch

from compal.align.kernels import _attend_cpu, pack
from compal.align.kernels._attend_cpu import attend_tokens
from compal.align.kernels.attend import attend, reference_attend, segment_queries
from compal.errors import InputError, UsageError

WEIGHTS = ("softmax", "minmax", "topk")


def tokens(dtype=torch.float64, patches=7, width=12):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5, patches, width, generator=generator, dtype=torch.float64).to(dtype)
    text = torch.randn(6, 4, width, generator=generator, dtype=torch.float64).to(dtype)
    image_mask = torch.rand(5, patches, generator=generator) > 0.3
    text_mask = torch.rand(6, 4, generator=generator) > 0.3
    image_mask[1], text_mask[2] = False, False
    return image, text, {"image_mask": image_mask, "text_mask": text_mask}


def gradients(function, image, text, kappa=2.0, **options):
    inputs = [image.clone().requires_grad_(), text.clone().requires_grad_()]
    inputs.append(torch.tensor(kappa, dtype=torch.float64, requires_grad=True))
    scores = function(inputs[0], inputs[1], kappa=inputs[2], **options)
    (scores * torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)).sum().backward()
    return [scores.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs)]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [3, 40])  # with and without the Gram trick
def test_equals_the_plain_form(weights, reduce, masked, width):
    image, text, masks = tokens(width=width)
    options = {"weights": weights, "reduce": reduce, "k": 3, **(masks if masked else {})}
    ours, wanted = gradients(attend, image, text, **options), gradients(reference_attend, image, text, **options)
    for found, right in zip(ours, wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradcheck(weights):
    image, text, masks = tokens()
    kappa = torch.tensor(1.5, dtype=torch.float64, requires_grad=weights != "minmax")
    inputs = image.requires_grad_(), text.requires_grad_(), kappa
    function = lambda i, t, k: attend(i, t, kappa=k, weights=weights, k=3, **masks)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_float32_is_close_and_tiles_and_pairs_change_nothing(monkeypatch, weights):
    image, text, masks = tokens()
    right = attend(image, text, kappa=2.0, weights=weights, **masks)
    single = attend(image.float(), text.float(), kappa=2.0, weights=weights, **masks)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), right, rtol=1e-5, atol=2e-6)
    pairs = torch.tensor([[0, 0], [4, 3], [1, 1], [3, 2], [0, 5], [0, 0]])
    some = gradients(attend, image, text, weights=weights, pairs=pairs, **masks)
    taken = gradients(
        lambda i, t, **o: attend(i, t, **o)[pairs[:, 0], pairs[:, 1]], image, text, weights=weights, **masks
    )
    monkeypatch.setattr(_attend_cpu, "TILE", 100)
    small = gradients(attend, image, text, weights=weights, pairs=pairs, **masks)
    for found, other, wanted in zip(some, small, taken, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_padding_changes_nothing_and_nothing_real_scores_zero(weights):
    image, text, masks = tokens(torch.float32)
    clean = gradients(attend, image, text, weights=weights, **masks)
    for garbage in (torch.nan, torch.inf, 1e30):
        image[~masks["image_mask"]], text[~masks["text_mask"]] = garbage, garbage
        for found, right in zip(gradients(attend, image, text, weights=weights, **masks), clean, strict=True):
            assert torch.equal(found, right)
    assert not clean[0][1].any()
    assert not clean[0][:, 2].any()
    assert not clean[1][~masks["image_mask"]].any()


def test_packed_is_padded_and_zero_tokens_are_no_nan():
    image, text, masks = tokens()
    text[0, 0] = 0
    packed = attend(image, pack(text, masks["text_mask"]), image_mask=masks["image_mask"])
    assert torch.equal(packed, attend(image, text, **masks))
    assert all(part.isfinite().all() for part in gradients(attend, image, text))


def test_segments_are_mean_tokens():
    text = torch.arange(12.0).view(1, 4, 3)
    queries, known = segment_queries(text, torch.tensor([[0, 0, -1, 1]]))
    assert queries.tolist() == [[[1.5, 2.5, 3.5], [9.0, 10.0, 11.0]]]
    assert known.tolist() == [[True, True]]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck():
    image, text, masks = tokens()
    flat = text.flatten(0, 1).requires_grad_()
    kappa = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(
        attend_tokens, (image.requires_grad_(), masks["image_mask"], flat, kappa, "softmax", 4, None, None)
    )


def test_nothing_but_the_inputs_is_kept():
    image, text, _ = tokens()
    image.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attend(image, text)
    assert max(kept) <= image.numel()


def test_refusals():
    image, text, _ = tokens()
    with pytest.raises(UsageError, match="no weights 'hard'"):
        attend(image, text, weights="hard")
    with pytest.raises(UsageError, match="no backend 'triton'"):
        attend(image, text, backend="triton")
    with pytest.raises(InputError, match="one width"):
        attend(image, text[..., :3])
