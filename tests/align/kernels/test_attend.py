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
        attend_tokens, (image.requires_grad_(), masks["image_mask"], flat, kappa, "softmax", 4, None, None, False)
    )


def test_nothing_but_the_inputs_is_kept():
    image, text, _ = tokens()
    image.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attend(image, text)
    assert max(kept) <= image.numel()


def test_refusals(monkeypatch):
    image, text, _ = tokens()
    with pytest.raises(UsageError, match="no weights 'hard'"):
        attend(image, text, weights="hard")
    with pytest.raises(UsageError, match="float32 and below"):
        attend(image, text, backend="triton")
    with pytest.raises(UsageError, match="no backend 'fast'"):
        attend(image, text, backend="fast")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="TRITON_INTERPRET=1 is not set"):
        attend(image.float(), text.float(), backend="triton")
    with pytest.raises(InputError, match="one width"):
        attend(image, text[..., :3])


# --- Triton, in the interpreter ------------------------------------------------------------------------


def long_tokens(dtype=torch.float32, patches=70, width=40, words=33):
    """Captions of up to 33 tokens: a tile of 64 holds several and cuts one, and patches fill one of 128 in part. The
    width fills its last step of depth only in part."""
    generator = torch.Generator().manual_seed(1)
    image = (torch.randn(4, patches, width, generator=generator) + 0.5).to(dtype)
    text = torch.randn(5, words, width, generator=generator).to(dtype)
    image_mask = torch.rand(4, patches, generator=generator) > 0.3
    image_mask[1], image_mask[2, 3:] = False, False  # nothing, and fewer patches than the best four
    text_mask = torch.arange(words) < torch.tensor([words, 1, 0, 20, 17])[:, None]
    return image, text, {"image_mask": image_mask, "text_mask": text_mask}


def through_triton(image, text, **options):
    """Ours in the interpreter and the plain form in float64."""
    pytest.importorskip("triton")
    found = gradients(attend, image, text, backend="triton", **options)
    return found, gradients(reference_attend, image.double(), text.double(), **options)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pairs", [None, torch.tensor([[0, 0], [3, 3], [1, 1], [3, 2], [0, 4], [0, 0], [2, 4]])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton(weights, masked, pairs, dtype):
    """Values by the kernel, gradients by the tiles. A half-precision product is exact in float32."""
    image, text, masks = long_tokens(dtype)
    options = {"weights": weights, "pairs": pairs, "kappa": 0.7, **(masks if masked else {})}
    found, wanted = through_triton(image, text, **options)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=2e-6)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-3  # rounded once, as results
    for single, right in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(single.double(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_triton_splits_the_weights(monkeypatch, weights):
    """One half-precision number a weight, as attention has it, is a hundred times further from the formula."""
    attend_triton = pytest.importorskip("compal.align.kernels._attend_triton")
    image, text, _ = long_tokens(torch.float16)
    found, wanted = through_triton(image, text, weights=weights)
    real = attend_triton.sizes
    monkeypatch.setattr(attend_triton, "sizes", lambda *given: (real(*given)[0] | {"SPLIT": False}, 4))
    single = attend(image, text, kappa=2.0, weights=weights, backend="triton")
    apart, apart_single = ((scores.double() - wanted[0]).abs().max() for scores in (found[0], single))
    assert apart < 2e-6
    assert apart_single > 10 * apart


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("pairs", [None, torch.tensor([[1, 0], [0, 2], [3, 4], [3, 4], [2, 3]])])
def test_triton_padding_changes_no_bit_and_nothing_real_scores_zero(weights, pairs):
    pytest.importorskip("triton")
    image, text, masks = long_tokens()
    options = {"weights": weights, "pairs": pairs, "backend": "triton", **masks}
    clean = attend(image, text, **options)
    assert clean.isfinite().all()
    for garbage in (torch.nan, torch.inf, 1e30):
        image[~masks["image_mask"]], text[~masks["text_mask"]] = garbage, garbage
        assert torch.equal(attend(image, text, **options), clean)
    if pairs is None:
        assert not clean[1].any()
        assert not clean[:, 2].any()
        assert clean[[0, 2, 3]][:, [0, 1, 3, 4]].all()
    else:
        assert (clean == 0).tolist() == [True, True, False, False, False]


def test_triton_scores_zero_where_v_or_the_token_is():
    pytest.importorskip("triton")
    image, text, _ = long_tokens(torch.float32)
    text[0, 0] = 0
    image[2] = 0
    image[3, 1::2] = -image[3, ::2]  # equal weights: v is zero but for its rounding
    scores = attend(image, text[:, :1], kappa=0.0, backend="triton")
    assert (scores == 0).tolist() == [[c == 0 or i >= 2 for c in range(5)] for i in range(4)]


def test_triton_takes_the_first_of_equals():
    """Similarities of whole numbers are exact, and many are equal; the fourth best is one of several."""
    image, text, _ = long_tokens(torch.float32)
    image, text = image.sign().add(torch.arange(70)[:, None] % 3), text.sign()
    found, wanted = through_triton(image, text, weights="topk", k=4)
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=2e-6)
    last = attend(image.flip(1), text, weights="topk", k=4, kappa=2.0)
    assert (last - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("weights", WEIGHTS)
def test_triton_takes_equal_similarities(weights):
    """All patches alike: weights are uniform, and the first k of them are as good as all."""
    pytest.importorskip("triton")
    image, text, _ = long_tokens(torch.float32)
    image = image[:, :1].expand(-1, 70, -1).sign()
    cosines = torch.einsum("id,cld->icl", *(torch.nn.functional.normalize(x, dim=-1) for x in (image[:, 0], text)))
    torch.testing.assert_close(attend(image, text, weights=weights, backend="triton"), cosines.mean(-1))


def test_triton_more_neighbours_than_patches():
    pytest.importorskip("triton")
    image, text, masks = long_tokens(torch.float32, patches=3)
    masks = {"text_mask": masks["text_mask"]}
    every = attend(image, text, weights="topk", k=9, backend="triton", **masks)
    torch.testing.assert_close(every, attend(image, text, backend="triton", **masks))


def test_triton_has_a_kappa_with_a_gradient():
    pytest.importorskip("triton")
    image, text, masks = long_tokens()
    found = []
    for backend in ("triton", "reference"):
        kappa = torch.tensor([1.3], requires_grad=True)
        attend(image, text, kappa=kappa, backend=backend, **masks).square().sum().backward()
        found.append(kappa.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 70, 5, 3), (3, 0, 5, 3), (3, 70, 0, 3), (3, 70, 5, 0)])
def test_triton_has_nothing_to_score(shape):
    pytest.importorskip("triton")
    images, patches, captions, words = shape
    found = attend(torch.ones(images, patches, 16), torch.ones(captions, words, 16), backend="triton")
    assert torch.equal(found, torch.zeros(images, captions))
    none = torch.zeros(0, 2, dtype=torch.int64)
    assert attend(torch.ones(3, 70, 16), torch.ones(5, 2, 16), pairs=none, backend="triton").shape == (0,)


def test_triton_takes_strided_tokens():
    pytest.importorskip("triton")
    image, text, _ = long_tokens()
    turned = image.transpose(1, 2).contiguous().transpose(1, 2), pack(text.transpose(0, 1))
    straight = attend(image, pack(text.transpose(0, 1).contiguous()), backend="triton")
    assert torch.equal(attend(*turned, backend="triton"), straight)


def test_triton_leaves_what_is_too_large_to_the_tiles():
    pytest.importorskip("triton")
    image, text, _ = long_tokens(patches=513, words=3)
    assert torch.equal(attend(image, text, backend="triton"), attend(image, text))
    mixed = attend(image[:, :9].half(), text, backend="triton")
    assert torch.equal(mixed, attend(image[:, :9].half(), text))


@pytest.mark.parametrize("patches", [257, 512])
def test_triton_takes_many_patches(patches):
    found, wanted = through_triton(*long_tokens(patches=patches, words=3)[:2])
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=2e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_triton_opcheck():
    pytest.importorskip("triton")
    image, text, masks = long_tokens(words=3)
    flat = text.flatten(0, 1).requires_grad_()
    kappa = torch.tensor(1.0, requires_grad=True)
    torch.library.opcheck(
        attend_tokens, (image.requires_grad_(), masks["image_mask"], flat, kappa, "topk", 4, None, None, True)
    )


@pytest.mark.parametrize(
    ("dtype", "patches", "shared", "expected"),
    [
        ("bfloat16", 196, 232448, (256, 64, 64, 64, 3, 2, 8)),
        ("float16", 196, 101376, (256, 32, 64, 64, 3, 2, 4)),
        ("bfloat16", 257, 166912, (512, 32, 64, 64, 2, 1, 8)),
        ("bfloat16", 49, 232448, (64, 64, 64, 64, 3, 2, 4)),
        ("float32", 196, 232448, (256, 32, 32, 32, 2, 2, 8)),
    ],
)
def test_triton_table(dtype, patches, shared, expected):
    attend_triton = pytest.importorskip("compal.align.kernels._attend_triton")
    constants, warps = attend_triton.sizes(getattr(torch, dtype), 768, patches, shared)
    names = ("PATCHES", "WORDS", "DEPTH", "FEATURES", "STAGES", "POOL_STAGES")
    assert (*(constants[name] for name in names), warps) == expected
