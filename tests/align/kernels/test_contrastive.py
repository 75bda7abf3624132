"""The contrastive objectives against full matrices in float64, what they keep, and what ranks agree on."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from compal.align.kernels._contrastive_ops import infonce_scores, infonce_vectors, sigmoid_scores, sigmoid_vectors
from compal.align.kernels.contrastive import (
    contrastive,
    gather,
    infonce,
    reference_contrastive,
    reference_infonce,
    reference_sigmoid,
    sigmoid,
)
from compal.errors import InputError, UsageError

IMAGE_LABELS = torch.tensor([3, 0, 0, 7, -1, 5])  # two images of one class, one of none, one without a caption
TEXT_LABELS = torch.tensor([0, 3, 3, 7, 0, -1, 9, -1])
POSITIVES = (IMAGE_LABELS[:, None] == TEXT_LABELS) & (IMAGE_LABELS[:, None] >= 0)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def number(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def some_taken():
    taken = torch.rand(6, 8, generator=torch.Generator().manual_seed(3)) < 0.6
    taken[1] = POSITIVES[1]  # a row without a negative
    taken[:, 6] = False  # a column without anything
    return taken


def same(function, reference, *inputs):
    """Values, and the gradients of all inputs."""
    found, expected = function(*inputs), reference(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, two in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)  # softplus is linear above 20: 2e-9


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("rows", [1, 4, None])
@pytest.mark.parametrize("taken", [None, some_taken()], ids=["all", "some"])
def test_scores_equal_the_reference(taken, rows, beta):
    scores, scale, bias = normal(6, 8).requires_grad_(), number(3.0), number(-1.0)
    weights = normal(6, 8, seed=9).abs()
    same(
        lambda s, k: infonce(s, POSITIVES, scale=k, taken=taken, beta=beta, rows=rows),
        lambda s, k: reference_infonce(s, POSITIVES, scale=k, taken=taken, beta=beta),
        scores, scale,
    )  # fmt: skip
    same(
        lambda s, k, b: sigmoid(s, POSITIVES, scale=k, bias=b, taken=taken, weights=weights, rows=rows),
        lambda s, k, b: reference_sigmoid(s, POSITIVES, scale=k, bias=b, taken=taken, weights=weights),
        scores, scale, bias,
    )  # fmt: skip


def test_the_textbook():
    """One caption each: cross-entropy in both directions; the sigmoid loss as its paper writes it."""
    scores, target = normal(5, 5), torch.arange(5)
    eye = torch.eye(5, dtype=torch.bool)
    expected = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    torch.testing.assert_close(infonce(scores, eye), expected)
    signs = 2 * torch.eye(5) - 1
    expected = -F.logsigmoid(signs * (10 * scores - 2)).sum() / 5
    torch.testing.assert_close(sigmoid(scores, eye, scale=10.0, bias=-2.0), expected)


def test_hard_negatives_are_weighted_as_in_the_paper():
    """Robinson et al., eq. 4, from the definition: exponentials times weights of mean 1."""
    scores, beta = normal(1, 5), 0.7
    positives = torch.tensor([[True, False, False, False, False]])
    right, wrong = scores[0, 0].exp(), scores[0, 1:].exp()
    weights = wrong**beta / (wrong**beta).mean()
    row = -(right / (right + (weights * wrong).sum())).log()
    torch.testing.assert_close(infonce(scores, positives, beta=beta), row / 2)  # no caption has a choice


@pytest.mark.parametrize("tile", [1, 3, 64])
@pytest.mark.parametrize(("loss", "beta"), [("infonce", 0.0), ("infonce", 1.5), ("sigmoid", 0.0)])
def test_vectors_equal_the_reference(loss, beta, tile):
    image, text, extra = (normal(n, 4, seed=n).requires_grad_() for n in (6, 8, 3))
    scale, bias = number(2.0), number(-1.0)
    inputs = (image, text, extra, scale, *([bias] if loss == "sigmoid" else []))
    labels = F.pad(TEXT_LABELS, (0, 3), value=-1)
    same(
        lambda i, t, e, k, b=0.0: contrastive(
            i, t, IMAGE_LABELS, TEXT_LABELS, negatives=e, loss=loss, scale=k, bias=b, beta=beta, tile=tile
        ),
        lambda i, t, e, k, b=0.0: reference_contrastive(
            i, torch.cat([t, e]), IMAGE_LABELS, labels, loss=loss, scale=k, bias=b, beta=beta
        ),
        *inputs,
    )


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_vectors_equal_their_scores(loss):
    image, text = normal(6, 4), normal(6, 4, seed=1)
    eye = torch.eye(6, dtype=torch.bool)
    found = contrastive(image, text, loss=loss, scale=5.0, bias=-3.0, tile=4)
    by_scores = (
        infonce(image @ text.T, eye, scale=5.0)
        if loss == "infonce"
        else sigmoid(image @ text.T, eye, scale=5.0, bias=-3.0)
    )
    torch.testing.assert_close(found, by_scores)


def test_gradients_are_those_of_differences():
    scores, scale, bias = normal(6, 8).requires_grad_(), number(1.5), number(-0.5)
    image, text = normal(6, 3, seed=1).requires_grad_(), normal(8, 3, seed=2).requires_grad_()
    labels = (IMAGE_LABELS, TEXT_LABELS)
    checks = [
        (lambda s, k: infonce(s, POSITIVES, scale=k, beta=0.5, rows=4), (scores, scale)),
        (lambda s, k, b: sigmoid(s, POSITIVES, scale=k, bias=b, rows=4), (scores, scale, bias)),
        (lambda i, t, k: contrastive(i, t, *labels, scale=k, beta=0.5, tile=4), (image, text, scale)),
        (
            lambda i, t, k, b: contrastive(i, t, *labels, loss="sigmoid", scale=k, bias=b, tile=4),
            (image, text, scale, bias),
        ),
    ]
    for function, inputs in checks:
        assert torch.autograd.gradcheck(function, inputs)


# opcheck itself looks at `.grad` of the operator's outputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_operators_are_well_formed():
    scores, one = normal(6, 8).requires_grad_(), number(1.0)
    image, text = normal(6, 3).requires_grad_(), normal(8, 3).requires_grad_()
    labels = [IMAGE_LABELS, TEXT_LABELS]
    torch.library.opcheck(infonce_scores, (scores, POSITIVES, None, one, 0.5, 4))
    torch.library.opcheck(sigmoid_scores, (scores, POSITIVES, some_taken(), None, one, one, 4))
    torch.library.opcheck(infonce_vectors, (image, text, labels, one, 0.0, 4, False))
    torch.library.opcheck(sigmoid_vectors, (image, text, labels, one, one, 4, False))


def test_what_does_not_take_part_may_hold_anything():
    taken = some_taken()
    plain = normal(6, 8)
    for garbage in (torch.nan, torch.inf, -torch.inf):
        dirty = plain.masked_fill(~taken, garbage).requires_grad_()
        scale, bias = number(2.0), number(0.5)
        total = infonce(dirty, POSITIVES, scale=scale, taken=taken) + sigmoid(
            dirty, POSITIVES, scale=scale, bias=bias, taken=taken
        )
        total.backward()
        clean = infonce(plain, POSITIVES, scale=2.0, taken=taken) + sigmoid(
            plain, POSITIVES, scale=2.0, bias=0.5, taken=taken
        )
        assert total == clean
        assert (dirty.grad[~taken] == 0).all()
        assert dirty.grad.isfinite().all()
        assert scale.grad.isfinite()
        assert bias.grad.isfinite()


@pytest.mark.parametrize("function", ["infonce", "sigmoid"])
def test_nothing_to_choose_from_is_zero_or_finite(function):
    image = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = contrastive(image, image.detach(), loss=function, scale=100.0)
    value.backward()
    assert value == 0 if function == "infonce" else value.isfinite()
    assert image.grad.isfinite().all()
    assert contrastive(torch.zeros(0, 4), torch.zeros(0, 4), loss=function, scale=1.0) == 0


def test_large_logits_stay_finite():
    scores = (1e3 * normal(6, 8)).float().requires_grad_()
    for value in (infonce(scores, POSITIVES, scale=100.0, beta=1.0), sigmoid(scores, POSITIVES, scale=100.0, bias=0)):
        assert value.dtype == torch.float32
        assert torch.autograd.grad(value, scores)[0].isfinite().all()


def kept(function):
    """Bytes that autograd holds, each storage once."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(seen.values())


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_vectors_keep_nothing_of_the_size_of_the_matrix(loss):
    """I = C = n, E = 4: 32 bytes of vectors, 16 of labels and at most 32 of sums a row; the matrix would be 4 n²."""
    for n in (64, 512):
        image, text = (normal(n, 4, dtype=torch.float32).requires_grad_() for _ in range(2))
        scale = torch.tensor(2.0, requires_grad=True)
        held = kept(
            lambda image=image, text=text, scale=scale: contrastive(image, text, loss=loss, scale=scale, tile=32)
        )
        assert 32 * n <= held <= 80 * n + 64


def test_scores_keep_only_themselves():
    scores, scale = normal(200, 200, dtype=torch.float32).requires_grad_(), torch.tensor(1.0, requires_grad=True)
    positives = torch.eye(200, dtype=torch.bool)
    assert kept(lambda: infonce(scores, positives, scale=scale)) <= 200 * 200 * 5 + 2 * 200 * 16 + 64


def test_half_precision_is_added_in_float32():
    image, text = (F.normalize(normal(40, 32, seed=s)).bfloat16().requires_grad_() for s in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive(image, text, scale=100.0, tile=16)
    torch.testing.assert_close(found, contrastive(image.float(), text.float(), scale=100.0))
    found.backward()
    assert image.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("loss", "beta"), [("infonce", 0.0), ("infonce", 0.5), ("sigmoid", 0.0)])
def test_triton_equals_the_tiles(loss, beta, dtype):
    """More than one block of rows, of columns and of depth, none of them full."""
    pytest.importorskip("triton")
    image, text = (F.normalize(normal(n, 40, seed=n)).to(dtype).requires_grad_() for n in (70, 67))
    labels = torch.arange(70) // 2 - 2, torch.arange(67) - 2
    options = {"loss": loss, "scale": 10.0, "bias": -3.0, "beta": beta}
    found = contrastive(image, text, *labels, **options, backend="triton")
    expected = contrastive(image, text, *labels, **options, backend="cpu")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, two in zip(
        torch.autograd.grad(found, (image, text)), torch.autograd.grad(expected, (image, text)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="not both kinds of labels"):
        contrastive(normal(2, 3), normal(3, 3), scale=1.0)
    with pytest.raises(InputError, match="do not multiply"):
        contrastive(normal(2, 3), normal(2, 4), scale=1.0)
    with pytest.raises(InputError, match="Give one a row"):
        contrastive(normal(2, 3), normal(2, 3), torch.arange(3), torch.arange(2), scale=1.0)
    with pytest.raises(InputError, match=r"Give \(I, C\) bool"):
        infonce(normal(2, 3), torch.ones(2, 3))
    with pytest.raises(UsageError, match="no loss"):
        contrastive(normal(2, 3), normal(2, 3), loss="sigmoid", beta=1.0, scale=1.0)
    with pytest.raises(UsageError, match="beta"):
        infonce(normal(2, 3), torch.ones(2, 3, dtype=torch.bool), beta=-1.0)
    with pytest.raises(UsageError, match="float32 and below"):
        contrastive(normal(2, 3), normal(2, 3), scale=1.0, backend="triton")
    assert contrastive(normal(2, 3), normal(2, 3), scale=1.0, backend="reference").ndim == 0


# --- ranks ---------------------------------------------------------------------------------------------


def encoded(weight, rows):
    return F.normalize(normal(7, 5)[rows] @ weight), F.normalize(normal(7, 5, seed=1)[rows] @ weight)


def single():
    weight, scale = normal(5, 4, seed=2).requires_grad_(), number(4.0)
    value = contrastive(*encoded(weight, slice(None)), scale=scale, tile=3)
    return value, *torch.autograd.grad(value, (weight, scale))


def rank(number_of_rank, rendezvous, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number_of_rank, world_size=2)
    weight, scale = normal(5, 4, seed=2).requires_grad_(), number(4.0)
    rows = slice(0, 4) if number_of_rank == 0 else slice(4, 7)  # not as many each
    image, text = (gather(side) for side in encoded(weight, rows))
    labels = gather(torch.arange(7)[rows])
    value = contrastive(image, text, labels, labels, scale=scale, tile=3)
    value.backward()
    for gradient in (weight.grad, scale.grad):  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= 2
    torch.save({"found": [value.detach(), weight.grad, scale.grad]}, f"{results}/{number_of_rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_gradient_of_one_process(tmp_path):
    mp.spawn(rank, args=(tmp_path / "rendezvous", tmp_path), nprocs=2)
    expected = single()
    for one in range(2):
        found = torch.load(tmp_path / f"{one}.pt", weights_only=True)["found"]
        for here, there in zip(found, expected, strict=True):
            torch.testing.assert_close(here, there.detach(), rtol=0, atol=1e-6)


def test_without_ranks_gathering_is_nothing():
    tensor = normal(2, 3)
    assert gather(tensor) is tensor
