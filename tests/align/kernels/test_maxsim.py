"""MaxSim against its formula in float64: values, gradients, padding, ties, memory, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from compal.align.kernels import _maxsim_cpu, _maxsim_gradients
from compal.align.kernels._maxsim_cpu import Plan, maxsim_cpu
from compal.align.kernels._maxsim_pairs import maxsim_pairs_cpu
from compal.align.kernels._tokens import Packed, pack, unpack
from compal.align.kernels.maxsim import maxsim, reference_maxsim
from compal.errors import InputError, UsageError

DIRECTIONS = ("t2i", "i2t", "both")


def tokens(seed=0, images=5, patches=7, captions=6, words=4, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(images, patches, width, generator=generator, dtype=torch.float64).to(dtype)
    text = torch.randn(captions, words, width, generator=generator, dtype=torch.float64).to(dtype)
    return image, text


def masks(seed=0, images=5, patches=7, captions=6, words=4):
    """Real tokens anywhere; one image and one caption have none."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(images, patches, generator=generator) > 0.4
    text = torch.rand(captions, words, generator=generator) > 0.4
    image[1] = False
    text[2] = False
    return image, text


def gradients(function, image, text):
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    scores = function(image, text)
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)
    (scores * weights).sum().backward()
    return scores.detach(), image.grad, text.grad


@pytest.mark.parametrize(
    ("direction", "reduce", "ragged"), list(itertools.product(DIRECTIONS, ("mean", "sum"), (False, True)))
)
def test_equals_the_formula_in_values_and_gradients(direction, reduce, ragged):
    image, text = tokens()
    image_mask, text_mask = masks() if ragged else (None, None)
    ours = gradients(
        lambda i, t: maxsim(
            i, t, image_mask=image_mask, text_mask=text_mask, direction=direction, reduce=reduce, backend="cpu"
        ),
        image,
        text,
    )
    wanted = gradients(lambda i, t: reference_maxsim(i, t, image_mask, text_mask, direction, reduce), image, text)
    for found, right in zip(ours, wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_float32_is_within_two_millionths(direction):
    image, text = tokens(images=9, patches=50, captions=12, words=20, width=64)
    right = reference_maxsim(image, text, direction=direction)
    found = maxsim(image.float(), text.float(), direction=direction)
    assert found.dtype == torch.float32
    assert ((found - right).abs() / right.abs()).max() <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_multiplied_in_float32(dtype):
    image, text = tokens(dtype=dtype)
    found = maxsim(image, text, direction="both")
    torch.testing.assert_close(found, maxsim(image.float(), text.float(), direction="both"), rtol=0, atol=0)
    assert found.dtype == torch.float32
    assert all(part.dtype == dtype for part in gradients(maxsim, image, text)[1:])


def test_autocast_has_no_say():
    image, text = tokens(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = maxsim(image, text, direction="both")
    assert torch.equal(found, maxsim(image, text, direction="both"))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("chosen", [None, torch.tensor([[0, 0], [4, 3], [4, 5], [1, 1], [2, 2], [0, 0]])])
def test_gradcheck(direction, chosen):
    image, text = tokens()
    image_mask, text_mask = masks()

    def score(image, text):
        return maxsim(
            image, text, image_mask=image_mask, text_mask=text_mask, direction=direction, pairs=chosen, backend="cpu"
        )

    assert torch.autograd.gradcheck(score, (image.requires_grad_(), text.requires_grad_()))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_padding_holds_changes_nothing(direction):
    image, text = tokens(dtype=torch.float32)
    image_mask, text_mask = masks()

    def score(image, text):
        return maxsim(image, text, image_mask=image_mask, text_mask=text_mask, direction=direction)

    clean = gradients(score, image, text)
    for garbage in (torch.nan, torch.inf, 1e30):
        image[~image_mask], text[~text_mask] = garbage, garbage
        for found, right in zip(gradients(score, image, text), clean, strict=True):
            assert torch.equal(found, right)
    assert not clean[1][~image_mask].any()
    assert not clean[2][~text_mask].any()


def test_masks_exclude_also_where_all_similarities_are_negative():
    image, text = -torch.ones(1, 3, 2), torch.ones(1, 2, 2)
    known = torch.tensor([[True, True, False]])
    assert maxsim(image, text, image_mask=known, direction="both").item() == -2


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nothing_real_scores_zero(direction):
    image, text = tokens()
    image_mask, text_mask = masks()
    found, d_image, d_text = gradients(
        lambda i, t: maxsim(i, t, image_mask=image_mask, text_mask=text_mask, direction=direction), image, text
    )
    assert not found[1].any()
    assert not found[:, 2].any()
    assert not d_image[1].any()
    assert not d_text[2].any()


@pytest.mark.parametrize(
    ("images", "captions", "patches", "words"), [(0, 3, 2, 2), (3, 0, 2, 2), (2, 2, 0, 2), (2, 2, 2, 0)]
)
def test_empty_batches(images, captions, patches, words):
    image, text = tokens(images=images, captions=captions, patches=patches, words=words)
    found, *grads = gradients(lambda i, t: maxsim(i, t, direction="both"), image, text)
    assert found.shape == (images, captions)
    assert not found.any()
    assert not any(grad.any() for grad in grads)


def test_of_equal_maxima_the_first_takes_the_gradient():
    image, text = torch.ones(1, 3, 2), torch.ones(1, 4, 2)
    _, d_image, d_text = gradients(lambda i, t: maxsim(i, t, direction="both", reduce="sum").neg(), image, text)
    # Four tokens took patch 0, three patches took token 0; each patch and token also pays for its own choice.
    assert d_image[0, :, 0].div(d_image[0, 1, 0]).tolist() == [5, 1, 1]
    assert d_text[0, :, 0].div(d_text[0, 1, 0]).tolist() == [4, 1, 1, 1]


def test_packed_is_padded():
    image, text = tokens()
    known = torch.arange(4) < torch.tensor([4, 1, 0, 3, 2, 4])[:, None]
    packed = pack(text, known)
    found = maxsim(image, packed, direction="both")
    torch.testing.assert_close(found, maxsim(image, text, text_mask=known, direction="both"), rtol=0, atol=0)
    values, mask = unpack(packed)
    assert torch.equal(mask, known)
    assert torch.equal(values[known], text[known])
    assert packed.owners().tolist() == [0] * 4 + [1] + [3] * 3 + [4] * 2 + [5] * 4


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pairs_are_places_of_the_block(direction):
    image, text = tokens()
    image_mask, text_mask = masks()
    pairs = torch.tensor([[0, 0], [4, 3], [1, 1], [0, 5], [3, 2], [0, 0]])
    options = {"image_mask": image_mask, "text_mask": text_mask, "direction": direction}
    some = gradients(lambda i, t: maxsim(i, t, pairs=pairs, **options), image, text)
    block = gradients(lambda i, t: maxsim(i, t, **options)[pairs[:, 0], pairs[:, 1]], image, text)
    for found, right in zip(some, block, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    assert maxsim(image, text, pairs=pairs[:0], **options).shape == (0,)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_size_of_a_tile_changes_nothing(monkeypatch, ragged):
    image, text = tokens(images=7, patches=9, captions=11, words=5)
    image_mask, text_mask = masks(images=7, patches=9, captions=11, words=5) if ragged else (None, None)

    def score(image, text):
        return maxsim(image, text, image_mask=image_mask, text_mask=text_mask, direction="both")

    whole = gradients(score, image, text)
    monkeypatch.setattr(_maxsim_cpu, "TILE", 9 * 5 * 8)
    monkeypatch.setattr(_maxsim_cpu, "ROWS", 7)
    monkeypatch.setattr(_maxsim_gradients, "ENTRIES", 13)
    for found, right in zip(gradients(score, image, text), whole, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_in_blocks_of_columns(monkeypatch, ragged):
    """Two whole blocks of columns and a rest, and images in parts with an empty one between them."""
    image, text = tokens(images=7, patches=9, captions=11, words=5, width=2 * _maxsim_gradients.COLUMNS + 3)
    image_mask, text_mask = masks(images=7, patches=9, captions=11, words=5) if ragged else (None, None)
    monkeypatch.setattr(_maxsim_gradients, "ENTRIES", 9 * 11 * 3)
    ours = gradients(
        lambda i, t: maxsim(i, t, image_mask=image_mask, text_mask=text_mask, direction="both"), image, text
    )
    wanted = gradients(lambda i, t: reference_maxsim(i, t, image_mask, text_mask, "both"), image, text)
    for found, right in zip(ours, wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


def test_blocks_hold_each_caption_once():
    lengths = torch.from_numpy(np.random.default_rng(0).integers(0, 90, 500))
    plan = Plan.of(torch.full((3,), 4), lengths)
    runs = [run for block in plan.blocks for run in block]
    assert sum(run.count for run in runs) == int((lengths > 0).sum())
    assert sum(run.count * run.length for run in runs) == int(lengths.sum())
    assert all(sum(run.count * run.length for run in block) <= _maxsim_cpu.ROWS for block in plan.blocks)


@pytest.mark.parametrize("patches", [255, 256, 300])
def test_more_places_than_a_byte_holds(patches):
    image, text = tokens(images=2, patches=patches, captions=2, words=300, width=3)
    ours = gradients(lambda i, t: maxsim(i, t, direction="both"), image, text)
    wanted = gradients(lambda i, t: reference_maxsim(i, t, direction="both"), image, text)
    for found, right in zip(ours, wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("direction", "bytes_each"), [("t2i", (5, 0)), ("i2t", (0, 7)), ("both", (5, 7))])
def test_a_byte_per_maximum_is_kept_for_the_gradients(direction, bytes_each):
    """I·N bytes for t2i and I·C·P for i2t, beside the tokens and the lengths."""
    image, text = (values.float().requires_grad_() for values in tokens(images=6, captions=8, patches=7, words=5))
    inputs = {image.data_ptr(), text.data_ptr()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in inputs and tensor.dtype != torch.int64:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maxsim(image, text, direction=direction).sum().backward()
    assert sum(kept.values()) == 6 * 8 * sum(bytes_each)


def test_without_gradients_no_places_are_kept():
    image, text = tokens()
    found = maxsim_cpu(image, torch.full((5,), 7), text.flatten(0, 1), torch.full((6,), 4), True, True, False, 4)
    assert found[2].numel() == found[3].numel() == 0


# opcheck itself looks at `.grad` of the operator's outputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck():
    image, text = (values.requires_grad_() for values in tokens())
    lengths = torch.full((5,), 7), torch.tensor([4, 4, 0, 8, 4, 4])
    flat = text.flatten(0, 1).detach().requires_grad_()
    torch.library.opcheck(maxsim_cpu, (image, lengths[0], flat, lengths[1], True, True, True, 8))
    pairs = torch.tensor([[0, 0], [3, 3]])
    torch.library.opcheck(maxsim_pairs_cpu, (image, lengths[0], flat, lengths[1], pairs, True, True, 8))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("words", "kind"), [(255, torch.uint8), (256, torch.int16), (300, torch.int16)])
def test_the_width_of_a_place_is_known_without_the_data(words, kind):
    """What torch.compile traces with says what the operators give, also for captions that a byte does not hold."""
    image, text = tokens(images=2, patches=3, captions=2, words=words, width=3)
    lengths = torch.full((2,), 3), torch.tensor([words, 5])
    flat = torch.cat([text[0], text[1, :5]]).requires_grad_()
    given = image.requires_grad_(), lengths[0], flat, lengths[1]
    pairs = torch.tensor([[0, 0], [1, 1]])
    for operator, options in ((maxsim_cpu, (True, True, True, words)), (maxsim_pairs_cpu, (pairs, True, True, words))):
        torch.library.opcheck(operator, (*given, *options))
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
            fake = operator(*given, *options)
        for told, real in zip(fake, operator(*given, *options), strict=True):
            assert told.dtype == real.dtype
        assert real.dtype == kind


@pytest.mark.parametrize("chosen", [None, torch.tensor([[0, 0], [1, 1], [1, 0]])])
@pytest.mark.parametrize("packed", [False, True])
def test_long_captions_compile(chosen, packed):
    image, text = tokens(images=2, patches=3, captions=2, words=300, width=3)
    mask = torch.arange(300) < torch.tensor([[300], [280]])

    def score(image, text):
        given = pack(text, mask) if packed else text
        return maxsim(image, given, text_mask=None if packed else mask, direction="both", pairs=chosen, reduce="sum")

    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    for found, right in zip(gradients(compiled, image, text), gradients(score, image, text), strict=True):
        assert torch.equal(found, right)


def test_padding_free_maxsim_compiles_whole():
    image, text = (values.float() for values in tokens())
    compiled = torch.compile(lambda i, t: maxsim(i, t, direction="both"), fullgraph=True, backend="aot_eager")
    ours = gradients(compiled, image, text)
    for found, right in zip(ours, gradients(lambda i, t: maxsim(i, t, direction="both"), image, text), strict=True):
        torch.testing.assert_close(found, right)


def test_what_does_not_fit_is_refused():
    image, text = tokens()
    with pytest.raises(InputError, match="one dtype and width"):
        maxsim(image, text[..., :5])
    with pytest.raises(InputError, match="one dtype and width"):
        maxsim(image, text.float())
    with pytest.raises(InputError, match="image_mask"):
        maxsim(image, text, image_mask=torch.ones(5, 6, dtype=torch.bool))
    with pytest.raises(InputError, match="pairs"):
        maxsim(image, text, pairs=torch.zeros(3, 2))
    with pytest.raises(InputError, match="no padding to mask"):
        maxsim(image, pack(text), text_mask=torch.ones(6, 4, dtype=torch.bool))
    with pytest.raises(UsageError, match="sideways"):
        maxsim(image, text, direction="sideways")
    with pytest.raises(UsageError, match="no backend 'fast'"):
        maxsim(image, text, backend="fast")
    with pytest.raises(UsageError, match="float32 and below"):
        maxsim(image, text, backend="triton")
    with pytest.raises(InputError, match="sum to 3"):
        Packed(torch.zeros(4, 2), torch.tensor([1, 2]))


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    image, text = tokens(dtype=torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UsageError, match="TRITON_INTERPRET=1 is not set"):
        maxsim(image, text, backend="triton")
    monkeypatch.setenv("COMPAL_KERNELS", "reference")
    torch.testing.assert_close(maxsim(image, text), reference_maxsim(image, text), rtol=0, atol=0)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("ragged", [False, True])
def test_triton_gives_the_same(direction, ragged):
    image, text = tokens(dtype=torch.float32, width=16)
    image_mask, text_mask = masks() if ragged else (None, None)

    def score(backend):
        return gradients(
            lambda i, t: maxsim(i, t, image_mask=image_mask, text_mask=text_mask, direction=direction, backend=backend),
            image,
            text,
        )

    for found, right in zip(score("triton"), score("cpu"), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


def test_triton_takes_pairs():
    image, text = tokens(dtype=torch.float32, width=16)
    pairs = torch.tensor([[0, 0], [4, 3], [0, 0]])
    found = maxsim(image, text, direction="both", pairs=pairs, backend="triton")
    torch.testing.assert_close(found, maxsim(image, text, direction="both", pairs=pairs), rtol=1e-5, atol=1e-6)
