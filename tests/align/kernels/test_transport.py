"""Softened optimal transport against its plain form, a linear program, and the exact assignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from compal.align.kernels import Packed, _transport_cpu, assign, pack, reference_transport, transport
from compal.align.kernels._transport_cpu import transport_scores
from compal.errors import InputError, UsageError

PAIRS = torch.tensor([[0, 0], [4, 3], [1, 1], [3, 2], [0, 5], [0, 0], [4, 1]])


def tokens(dtype=torch.float64, patches=7, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(5, patches, width, generator=generator, dtype=torch.float64).to(dtype)
    text = torch.randn(6, 5, width, generator=generator, dtype=torch.float64).to(dtype)
    image_mask = torch.rand(5, patches, generator=generator) > 0.3
    text_mask = torch.rand(6, 5, generator=generator) > 0.3
    text_mask[0] = True
    image_mask[1], text_mask[2] = False, False
    return image, text, {"image_mask": image_mask, "text_mask": text_mask}


def gradients(function, image, text, **options):
    inputs = [image.clone().requires_grad_(), text.clone().requires_grad_()]
    scores = function(*inputs, **options)
    (scores * torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)).sum().backward()
    return [scores.detach(), *(x.grad for x in inputs)]


def plan_of(similarity, **options):
    """The gradient of the score of one pair with similarities (P, L): its plan. The patches are unit vectors."""
    image = torch.eye(len(similarity), dtype=torch.float64)[None]
    text = similarity.T[None].contiguous()
    image.requires_grad_()
    score = transport(image, text, **options)
    score.sum().backward()
    # ∂score/∂V = A T, and A follows from it where the tokens are independent.
    return float(score.detach()), torch.linalg.lstsq(text[0].T, image.grad[0].T).solution.T


def program(similarity):
    """The exact transport of (P, L), by linear programming."""
    patches, words = similarity.shape
    sums = np.concatenate([np.kron(np.eye(patches), np.ones(words)), np.kron(np.ones(patches), np.eye(words))])
    masses = np.concatenate([np.full(patches, 1 / patches), np.full(words, 1 / words)])
    return -linprog(-similarity.numpy().ravel(), A_eq=sums, b_eq=masses).fun


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("masked", ["", "image_mask", "text_mask", "both"])
@pytest.mark.parametrize("epsilon", [0.5, 0.004])  # by scaling, and by logarithms: the spread is about 30
@pytest.mark.parametrize("iterations", [1, 6])
def test_equals_the_plain_form(reduce, masked, epsilon, iterations):
    image, text, masks = tokens()
    masks = masks if masked == "both" else {name: mask for name, mask in masks.items() if name == masked}
    options = {"reduce": reduce, "epsilon": epsilon, "iterations": iterations, **masks}
    ours, wanted = (gradients(function, image, text, **options) for function in (transport, reference_transport))
    for found, right in zip(ours, wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


def test_the_two_domains_agree(monkeypatch):
    image, text, masks = tokens()
    scaled = gradients(transport, image, text, epsilon=0.3, **masks)
    monkeypatch.setattr(_transport_cpu, "SAFE", -1.0)
    for found, right in zip(gradients(transport, image, text, epsilon=0.3, **masks), scaled, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("epsilon", [2.0, 0.7, 0.02])
def test_float32_is_close_to_the_limit_of_scaling(epsilon):
    image, text, masks = tokens()
    right = gradients(reference_transport, image, text, epsilon=epsilon, **masks)
    single = gradients(transport, image.float(), text.float(), epsilon=epsilon, **masks)
    assert single[0].dtype == torch.float32
    for found, wanted in zip(single, right, strict=True):
        assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_gradcheck_at_convergence():
    """There the plan is the exact gradient. At this epsilon not one bit changes after 100 rounds."""
    image, text, masks = tokens()
    function = lambda i, t: transport(i, t, epsilon=2.0, iterations=120, **masks)
    assert torch.autograd.gradcheck(function, (image.requires_grad_(), text.requires_grad_()))


@pytest.mark.parametrize("iterations", [3, 2000])
def test_the_gradient_is_a_plan(iterations):
    generator = torch.Generator().manual_seed(3)
    similarity = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    _, plan = plan_of(similarity, epsilon=0.2, iterations=iterations)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 1 / 4, dtype=torch.float64), rtol=1e-9, atol=0)
    rows = (plan.sum(1) * 7 - 1).abs().max()
    assert rows < 1e-9 if iterations == 2000 else rows > 1e-4


def test_the_score_is_the_value_of_the_plan_at_convergence():
    similarity = torch.randn(6, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    score, plan = plan_of(similarity, epsilon=0.3, iterations=3000)
    entropy = (plan * (plan * 24).log()).sum()
    assert score == pytest.approx(float((plan * similarity).sum() - 0.3 * entropy), rel=1e-9)


def test_rounds_lower_the_score_to_the_optimum():
    image, text, masks = tokens()
    scores = [transport(image, text, epsilon=0.5, iterations=n, **masks) for n in (1, 2, 4, 8, 16, 400)]
    for before, after in itertools.pairwise(scores):
        assert (after <= before + 1e-12).all()
    assert float((scores[0] - scores[-1]).max()) > 1e-3


@pytest.mark.parametrize("shape", [(6, 4), (3, 5), (5, 5)])
def test_small_epsilon_is_the_exact_transport(shape):
    similarity = torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    image, text = torch.eye(shape[0], dtype=torch.float64)[None], similarity.T[None]
    found, exact = float(transport(image, text, epsilon=1e-3, iterations=20000)), program(similarity)
    assert exact - 1e-3 * np.log(min(shape)) - 1e-9 <= found <= exact + 1e-9
    if shape[0] == shape[1]:  # an extreme plan of equal sides is a permutation (Birkhoff)
        assert found == pytest.approx(float(assign(image, text, torch.tensor([[0, 0]]))), abs=2e-3)


def test_large_epsilon_is_the_mean_similarity():
    image, text, _ = tokens()
    means = torch.einsum("id,cd->ic", image.mean(1), text.mean(1))
    torch.testing.assert_close(transport(image, text, epsilon=1e6), means, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("epsilon", [0.5, 0.004])
def test_pairs_and_tiles_change_nothing(monkeypatch, epsilon):
    image, text, masks = tokens()
    options = {"epsilon": epsilon, **masks}
    whole = gradients(transport, image, text, **options)
    some = gradients(transport, image, text, pairs=PAIRS, **options)
    taken = gradients(lambda i, t, **o: transport(i, t, **o)[PAIRS[:, 0], PAIRS[:, 1]], image, text, **options)
    monkeypatch.setattr(_transport_cpu, "TILE", 600)
    monkeypatch.setattr(_transport_cpu, "IMAGES", 2)
    small = gradients(transport, image, text, pairs=PAIRS, **options)
    for found, other, wanted in zip(some, small, taken, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other, wanted, rtol=1e-9, atol=1e-9)
    for found, wanted in zip(gradients(transport, image, text, **options), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("epsilon", [0.7, 0.02])
def test_padding_changes_nothing_and_nothing_real_scores_zero(pairs, epsilon):
    image, text, masks = tokens(torch.float32)
    options = {"pairs": pairs, "epsilon": epsilon, **masks}
    clean = gradients(transport, image, text, **options)
    assert all(part.isfinite().all() for part in clean)
    for garbage in (torch.nan, torch.inf, 1e30):
        image[~masks["image_mask"]], text[~masks["text_mask"]] = garbage, garbage
        for found, right in zip(gradients(transport, image, text, **options), clean, strict=True):
            assert torch.equal(found, right)
    if pairs is None:
        assert not clean[0][1].any()
        assert not clean[0][:, 2].any()
        assert clean[0][0].count_nonzero() == 5
    assert not clean[1][~masks["image_mask"]].any()
    assert not clean[2][~masks["text_mask"]].any()


def test_packed_is_padded():
    image, text, masks = tokens()
    packed = pack(text, masks["text_mask"])
    assert torch.equal(transport(image, packed, image_mask=masks["image_mask"]), transport(image, text, **masks))
    plain = reference_transport(image, packed, image_mask=masks["image_mask"])
    assert torch.equal(plain, reference_transport(image, text, **masks))


def test_nothing_to_score():
    image, text, _ = tokens()
    nothing = Packed(text[0, :0], torch.zeros(3, dtype=torch.int64))
    assert torch.equal(transport(image, nothing), image.new_zeros(5, 3))
    assert torch.equal(transport(image[:, :0], text), image.new_zeros(5, 6))
    assert transport(image[:0], text).shape == (0, 6)
    assert transport(image, text, pairs=PAIRS[:0]).shape == (0,)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-6])
def test_a_large_spread_stays_finite(epsilon):
    image, text, masks = tokens(torch.float32)
    for part in gradients(transport, image, text, epsilon=epsilon, **masks):
        assert part.isfinite().all()
    exact = program((image[0] @ text[0].T).double())
    assert float(transport(image[:1], text[:1], epsilon=epsilon)) >= exact - 1e-3


def test_scaling_is_finite_up_to_its_limit():
    """Patches and tokens as far apart as the limit allows, in the worst order."""
    spread = _transport_cpu.SAFE * 88.7 * 0.99
    similarity = torch.rand(196, 80, generator=torch.Generator().manual_seed(6)).mul(spread)
    similarity[:, 0], similarity[0] = 0.0, spread
    similarity[1:, 1:40] = 0.0
    similarity[100:, 40:] = spread
    image, text = torch.eye(196)[None], similarity.T[None].contiguous()
    assert _transport_cpu._exponents(text[:, :, None], 1.0)[1]
    found = gradients(transport, image, text, epsilon=1.0)
    wanted = gradients(reference_transport, image.double(), text.double(), epsilon=1.0)
    for single, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(single.double(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("epsilon", [0.7, 0.02])  # by scaling, and by logarithms
def test_triton(masked, pairs, epsilon):
    """In the interpreter. The width fills its last step of depth only in part."""
    pytest.importorskip("triton")
    image, text, masks = tokens(torch.float32, width=40)
    if masked:
        image[~masks["image_mask"]], text[~masks["text_mask"]] = torch.nan, torch.nan
    options = {"pairs": pairs, "epsilon": epsilon, "iterations": 5, **(masks if masked else {})}
    found = gradients(transport, image / 2, text, backend="triton", **options)
    wanted = gradients(reference_transport, (image / 2).double(), text.double(), **options)
    for single, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(single.double(), right, rtol=1e-4, atol=1e-4)


def test_triton_leaves_what_is_too_large_to_the_tiles():
    pytest.importorskip("triton")
    image, text, _ = tokens(torch.float32)
    image, text = image.repeat(1, 300, 1), text.repeat(1, 4, 1)
    assert torch.equal(transport(image, text, backend="triton"), transport(image, text))


def test_half_precision_is_scored_in_float32():
    image, text, masks = tokens()
    image, text = image.bfloat16(), text.bfloat16()
    found = gradients(transport, image, text, **masks)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == torch.bfloat16
    assert torch.equal(found[0], transport(image.float(), text.float(), **masks))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_opcheck(pairs):
    image, text, masks = tokens()
    packed = pack(text, masks["text_mask"])
    room = len(packed.tokens) if pairs is None else int(packed.lengths[pairs[:, 1]].sum())
    flat = packed.tokens.requires_grad_()
    inputs = (image.requires_grad_(), masks["image_mask"], flat, packed.lengths, pairs, room, 2.0, 50, True, False)
    torch.library.opcheck(transport_scores, inputs)


def test_the_inputs_and_one_number_per_image_and_token_are_kept():
    image, text, _ = tokens(patches=90)
    image.requires_grad_()
    kept = {}
    keep = lambda x: kept.update({x.data_ptr(): x.numel()}) or x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        transport(image, text)
    kept.pop(image.data_ptr())
    assert sum(kept.values()) <= text.numel() + 5 * 6 * 5 + 6  # tokens, potentials, lengths


REFUSED = [
    ({"epsilon": 0.0}, UsageError, "epsilon is 0"),
    ({"epsilon": float("nan")}, UsageError, "epsilon is nan"),
    ({"epsilon": torch.tensor(0.1)}, UsageError, "epsilon is"),
    ({"iterations": 0}, UsageError, "0 iterations"),
    ({"reduce": "max"}, UsageError, "no reduction 'max'"),
    ({"text": torch.zeros(6, 5, 3)}, InputError, "one width"),
    ({"image": torch.zeros(5, 12)}, InputError, "image tokens are"),
    ({"image_mask": torch.ones(5, 3, dtype=torch.bool)}, InputError, "a mask"),
    ({"text_mask": torch.ones(6, 3, dtype=torch.bool)}, InputError, "a mask"),
    ({"pairs": torch.tensor([[5, 0]])}, InputError, "pairs reach"),
    ({"pairs": torch.tensor([0, 1])}, InputError, "pairs are"),
]


@pytest.mark.parametrize(("change", "error", "says"), [*REFUSED, ({"backend": "gpu"}, UsageError, "no backend 'gpu'")])
def test_what_cannot_be(change, error, says):
    image, text, _ = tokens(torch.float32)
    with pytest.raises(error, match=says):
        transport(**{"image": image, "text": text, **change})


@pytest.mark.parametrize(("change", "error", "says"), REFUSED)
def test_the_plain_form_refuses_the_same(change, error, says):
    image, text, _ = tokens(torch.float32)
    with pytest.raises(error, match=says):
        reference_transport(**{"image": image, "text": text, **change})
