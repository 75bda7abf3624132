"""MaxSim's Triton kernels, in the interpreter, against the formula in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from compal.align.kernels import _maxsim_layout as layout
from compal.align.kernels import _maxsim_triton as kernels
from compal.align.kernels import _maxsim_triton_backward as gradients

SMALL = layout.Tiles(rows=16, columns=16, depth=16, num_warps=4, num_stages=2)


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 × 16: captions, images and features of a test take several of them."""

    def tiles(dtype, width, patches, shared=0):
        return dataclasses.replace(SMALL, tail=16 if patches > 16 and patches % 16 else 0)

    monkeypatch.setattr(kernels, "forward_tiles", tiles)
    monkeypatch.setattr(gradients, "backward_tiles", lambda *_: SMALL)


def tokens(seed=0, width=48, lengths=(5, 0, 17, 1), patches=20, real=(20, 0, 7), dtype=torch.float32):
    """Images (I, P, D) with NaN behind their patches, and packed text."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(len(real), patches, width, generator=generator).to(dtype)
    for row, length in enumerate(real):
        image[row, length:] = torch.nan
    text = torch.randn(sum(lengths), width, generator=generator).to(dtype)
    return image, torch.tensor(real), text, torch.tensor(lengths, dtype=torch.int64)


def naive(image: Tensor, image_lengths: Tensor, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The two results of `token_max`, by one loop over pairs."""
    to_text = text.new_zeros(len(image), len(text))
    to_image = text.new_zeros(len(image), image.shape[1], len(text_lengths))
    for i, patches in enumerate(image_lengths.tolist()):
        start = 0
        for c, words in enumerate(text_lengths.tolist()):
            if patches and words:
                similarity = text[start : start + words] @ image[i, :patches].T
                to_text[i, start : start + words] = similarity.max(1).values
                to_image[i, :patches, c] = similarity.max(0).values
            start += words
    return to_text, to_image


def both(inputs, t2i=True, i2t=True, needs=(True, True), seed=1):
    """Results and gradients of the kernels and of the formula: [(ours, exact), …]."""
    image, image_lengths, text, text_lengths = inputs
    results = []
    for function in (lambda *given: kernels.token_max(*given, t2i, i2t), naive):
        kind = torch.float64 if function is naive else image.dtype
        one = image.detach().to(kind, copy=True).requires_grad_(needs[0])
        other = text.detach().to(kind, copy=True).requires_grad_(needs[1])
        out = function(one, image_lengths, other, text_lengths)
        out = [part for part, wanted in zip(out, (t2i, i2t), strict=True) if wanted]
        generator = torch.Generator().manual_seed(seed)
        incoming = [torch.randn(part.shape, generator=generator).to(part) for part in out]
        sides = [side for side, wanted in zip((one, other), needs, strict=True) if wanted]
        if sides and any(part.requires_grad for part in out):
            torch.autograd.backward(out, incoming)
        elif function is naive:  # no pair has tokens on both sides
            one.grad, other.grad = (
                torch.zeros_like(side) if wanted else None for side, wanted in zip((one, other), needs, strict=True)
            )
        results.append([part.detach() for part in out] + [one.grad, other.grad])
    return list(zip(*results, strict=True))


def close(pairs, tolerance):
    for ours, exact in pairs:
        if exact is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("directions", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("width", [16, 40])
def test_small_tiles(small, directions, width):
    close(both(tokens(width=width), *directions), 2e-5)


def test_tiles_of_the_table():
    close(both(tokens()), 2e-5)


def test_half_precision():
    """A product of 16-bit numbers is exact in float32: the forward pass errs by its sums alone, and picks the same
    places; the gradients are rounded once as weights and once as results."""
    pairs = both(tokens(dtype=torch.float16))
    close(pairs[:2], 2e-5)
    close(pairs[2:], 4e-3)
    assert pairs[2][0].dtype == pairs[3][0].dtype == torch.float16


def test_small_gradients_in_half_precision():
    """Below float16's least number, 6e-8, as a large batch has them; the results here are large again."""
    image, image_lengths, text, text_lengths = tokens(dtype=torch.float16)
    text = text * 1000
    image.requires_grad_()
    out, _ = kernels.token_max(image, image_lengths, text, text_lengths, True, False)
    out.backward(torch.full_like(out, 1e-8))
    assert image.grad.abs().max() > 1e-6


@pytest.mark.parametrize("lengths", [(33, 2, 300), (0, 0), (), (16, 16)])
def test_long_and_absent_captions(small, lengths):
    """300 tokens lie in 19 tiles of 16 rows, and their places need two bytes."""
    close(both(tokens(lengths=lengths, width=16, patches=6, real=(6, 3))), 2e-5)


@pytest.mark.parametrize(("patches", "real"), [(300, (300, 257)), (4, (0, 0)), (1, (1, 1))])
def test_many_and_absent_patches(patches, real):
    close(both(tokens(width=16, patches=patches, real=real)), 2e-5)


def test_no_image():
    close(both(tokens(real=())), 0)


def test_negative_similarities():
    """No padding, worth 0, may win."""
    image, image_lengths, text, text_lengths = tokens()
    pairs = both((image.abs(), image_lengths, -text.abs(), text_lengths))
    assert (pairs[0][0][0] < 0).all()
    close(pairs, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_first_of_equals(small, dtype):
    """Patch 17 repeats 3 in another block, 5 in the same; token 16 of a caption repeats 0 in another segment. All the
    gradient goes to the first. Whole numbers: their products are exact, and equal wherever they stand in a tile."""
    image, image_lengths, text, text_lengths = tokens(dtype=dtype, real=(20, 20, 20), lengths=(20, 3))
    image, text = image.round(), text.round()
    image[:, 5] = image[:, 17] = image[:, 3]
    text[16] = text[8] = text[0]
    image[:, 3::7] *= 3
    image.requires_grad_()
    text.requires_grad_()
    to_text, to_image = kernels.token_max(image, image_lengths, text, text_lengths, True, True)
    (d_image,) = torch.autograd.grad(to_text.sum(), image, retain_graph=True)
    (d_text,) = torch.autograd.grad(to_image.sum(), text)
    assert d_image[:, 3].abs().sum() > 0
    assert not d_image[:, [5, 17]].any()
    assert d_text[0].abs().sum() > 0
    assert not d_text[[8, 16]].any()


def test_garbage_changes_no_bit():
    image, image_lengths, text, text_lengths = tokens()
    clean = image.nan_to_num(0)
    found = [both((values, image_lengths, text, text_lengths)) for values in (image, clean)]
    for (dirty, _), (ours, _) in zip(*found, strict=True):
        assert torch.equal(dirty, ours)
    assert not found[0][2][0][2, 7:].any()


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_gradients_where_wanted(needs, monkeypatch):
    launched = []
    for name in ("_for_image", "_for_text"):
        real = getattr(gradients, name)
        monkeypatch.setattr(gradients, name, lambda *given, f=real, n=name: launched.append(n) or f(*given))
    close(both(tokens(), needs=needs), 2e-5)
    assert launched == [name for name, wanted in zip(("_for_image", "_for_text"), needs, strict=True) if wanted]


def test_one_direction_used_of_two():
    image, image_lengths, text, text_lengths = tokens()
    text.requires_grad_()
    out = kernels.token_max(image, image_lengths, text, text_lengths, True, True)[1]
    (ours,) = torch.autograd.grad(out.sum(), text)
    exact = text.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(naive(image.double(), image_lengths, exact, text_lengths)[1].sum(), exact)
    close([(ours, expected)], 2e-5)


def test_images_in_several_launches(monkeypatch):
    whole = both(tokens())
    monkeypatch.setattr(kernels, "PARTIAL", 1)
    for (ours, _), (again, _) in zip(whole, both(tokens()), strict=True):
        assert torch.equal(ours, again)


def test_strided_inputs():
    image, image_lengths, text, text_lengths = tokens()
    turned = image.transpose(1, 2).contiguous().transpose(1, 2), image_lengths, text.T.contiguous().T, text_lengths
    for (ours, _), (again, _) in zip(both((image, image_lengths, text, text_lengths)), both(turned), strict=True):
        assert torch.equal(ours, again)


def test_what_is_kept():
    """A byte a maximum; places beyond 256 take two."""
    for lengths, patches, kinds in (((5, 3), 20, [torch.uint8] * 2), ((257, 0), 257, [torch.int16] * 2)):
        image, image_lengths, text, text_lengths = tokens(
            lengths=lengths, patches=patches, real=(patches,) * 2, width=16
        )
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda part, kept=kept: kept.append(part) or part, lambda x: x):
            kernels.token_max(image.requires_grad_(), image_lengths, text, text_lengths, True, True)
        shapes = {(2, sum(lengths)), (2, patches, 2)}
        assert [part.dtype for part in kept if tuple(part.shape) in shapes] == kinds
        assert not [part for part in kept if part.is_floating_point() and part.ndim != 3 and len(part) != len(text)]


def planned(inputs, t2i=True, i2t=True, exact=True):
    """The arguments of the operator."""
    image, image_lengths, text, text_lengths = inputs
    plan = layout.Plan.of(text_lengths, len(text), exact)
    return image, image_lengths, text, plan.slots, plan.captions, plan.first, t2i, i2t, 20


# opcheck itself looks at `.grad` of the operator's outputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("directions", [(True, True), (False, True)])
def test_operator(directions):
    image, image_lengths, text, text_lengths = tokens(real=(20, 11))
    image = image.nan_to_num(0).requires_grad_()  # a NaN is unequal to itself in opcheck
    torch.library.opcheck(
        kernels.token_max_triton, planned((image, image_lengths, text.requires_grad_(), text_lengths), *directions)
    )


def test_a_plan_with_room_for_the_worst():
    inputs = tokens()
    exact, roomy = (kernels.token_max_triton(*planned(inputs, exact=exact)) for exact in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(exact, roomy, strict=True))


def test_compiles_in_one_graph():
    image, image_lengths, text, text_lengths = tokens(real=(20, 11))
    text.requires_grad_()

    def score(image, text):
        to_text, to_image = kernels.token_max(image, image_lengths, text, text_lengths, True, True)
        return to_text.sum() + to_image.sum()

    expected = torch.autograd.grad(score(image, text), text)[0]
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(image, text), text)[0], expected)


def test_plan():
    plan = layout.Plan.of(torch.tensor([3, 0, 17]), 20)
    assert plan.first.tolist() == [0, 1, 1, 3]
    assert plan.captions.tolist() == [0, 2, 2] + [-1] * 5
    assert plan.slots[:16].tolist() == [0, 1, 2] + [-3] * 13
    assert plan.slots[16:48].tolist() == list(range(3, 20)) + [-20] * 15
    assert plan.slots[48:].tolist() == [-1] * 80


@pytest.mark.parametrize(
    ("dtype", "width", "patches", "shared", "expected"),
    [
        (torch.bfloat16, 256, 196, layout.SHARED, (128, 256, 64, 8, 3, 0)),
        (torch.bfloat16, 768, 576, layout.SHARED, (128, 256, 64, 8, 3, 64)),
        (torch.float16, 512, 257, layout.SHARED, (128, 256, 64, 8, 3, 16)),
        (torch.float16, 512, 50, layout.SHARED, (128, 64, 64, 4, 3, 0)),
        (torch.float16, 512, 196, 101376, (128, 256, 64, 8, 2, 0)),
        (torch.float32, 768, 196, layout.SHARED, (64, 64, 32, 4, 3, 16)),
        (torch.bfloat16, 24, 1, layout.SHARED, (128, 16, 32, 4, 3, 0)),
    ],
)
def test_table(dtype, width, patches, shared, expected):
    tiles = layout.forward_tiles(dtype, width, patches, shared)
    assert dataclasses.astuple(tiles) == expected
    assert tiles.num_stages * (tiles.rows + tiles.columns) * tiles.depth * dtype.itemsize <= shared


def test_table_of_gradients():
    assert layout.backward_tiles(torch.bfloat16, 768, False) == layout.Tiles(128, 128, 64, 8, 2)
    assert layout.backward_tiles(torch.bfloat16, 768, True) == layout.Tiles(64, 256, 32, 8, 3)
    assert layout.backward_tiles(torch.float32, 40, True) == layout.Tiles(64, 64, 32, 4, 2)
    for dtype in (torch.float32, torch.float16):
        for text in (False, True):
            tiles = layout.backward_tiles(dtype, 512, text)
            assert layout.ALIGN % tiles.rows == layout.ALIGN % tiles.depth == 0
    assert [layout.splits(*given) for given in ((64, 128), (64, 2), (1000, 9), (1, 99))] == [5, 2, 1, 8]


def test_index_dtypes():
    assert [layout.index_dtype(count) for count in (256, 257, 32768, 32769)] == [
        torch.uint8, torch.int16, torch.int16, torch.int32,
    ]  # fmt: skip
