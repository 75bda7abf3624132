"""Contrastive objectives over a score matrix, and over pooled vectors without one.

`infonce` (arXiv 2103.00020, with the extra captions of 2210.01936 and the reweighting of 2010.04592) and `sigmoid`
(SigLIP, arXiv 2303.15343) take scores (I, C); `contrastive` takes the vectors, makes their products a tile at a time
and makes them again in the backward pass, so that memory is O(tile² + (I + C) E). `gather` brings the vectors of all
ranks together.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError, UsageError
from ._contrastive_cpu import computed
from ._contrastive_ops import infonce_scores, infonce_vectors, sigmoid_scores, sigmoid_vectors
from ._dispatch import VARIABLE, choose

ENTRIES = 1 << 20  # of a score matrix in a block: a temporary of 4 MB
TILE = {"cpu": 1024, "cuda": 4096}  # temporaries of 4 and of 64 MB


def infonce(
    scores: Tensor,
    positives: Tensor,
    *,
    scale: Tensor | float = 1.0,
    taken: Tensor | None = None,
    beta: float = 0.0,
    rows: int | None = None,
) -> Tensor:
    """The mean of both directions: each image picks its captions among all columns, each caption its images among
    all rows. A choice counts if it has a positive and a negative; each of its positives competes with the negatives
    alone: -log(exp s⁺ / (exp s⁺ + Σ exp s⁻)), s = scale · score.

    scores (I, C) real; positives (I, C) bool; columns without a positive are negatives of the images and no more.
    scale   a number or a 0-d tensor, which gets its gradient
    taken   (I, C) bool: the entries that take part; the others may hold anything and get gradient 0
    beta    ≥ 0: negatives are weighted by exp(beta s⁻), mean 1 in each choice (Robinson et al., eq. 4 with τ⁺ = 0; the
            gradient goes through the weights, as there)
    rows    scores at a time, in rows; changes nothing but memory
    A 0-d float32 (float64 for float64). Kept for the backward pass: the arguments and eight numbers at most a row and
    a column. Raises `InputError` for shapes that do not fit, `UsageError` for a negative beta.
    """
    _check_scores(scores, positives, taken)
    _check_beta(beta)
    at_a_time = max(1, ENTRIES // max(1, scores.shape[1])) if rows is None else rows
    loss: Tensor = infonce_scores(scores, positives, taken, _number(scale, scores), float(beta), at_a_time)[0]
    return loss


def sigmoid(
    scores: Tensor,
    positives: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    taken: Tensor | None = None,
    weights: Tensor | None = None,
    rows: int | None = None,
) -> Tensor:
    """Each entry by itself, positive or not: the sum of -log σ(± (scale · score + bias)) over the entries that take
    part, divided by I (arXiv 2303.15343, algorithm 1). Several positives a row and extra columns are nothing special.

    weights  (I, C) real: of the entries' terms, without a gradient; None = all 1
    Everything else, and what is raised: as `infonce`. `bias` gets its gradient too.
    """
    _check_scores(scores, positives, taken)
    if weights is not None and weights.shape != scores.shape:
        raise InputError(f"weights {tuple(weights.shape)} for scores {tuple(scores.shape)}", "Give one an entry.")
    at_a_time = max(1, ENTRIES // max(1, scores.shape[1])) if rows is None else rows
    numbers = _number(scale, scores), _number(bias, scores)
    loss: Tensor = sigmoid_scores(scores, positives, taken, weights, *numbers, at_a_time)
    return loss


def contrastive(  # noqa: PLR0913 (an objective's options, all by keyword)
    image: Tensor,
    text: Tensor,
    image_labels: Tensor | None = None,
    text_labels: Tensor | None = None,
    *,
    loss: Literal["infonce", "sigmoid"] = "infonce",
    scale: Tensor | float,
    bias: Tensor | float = 0.0,
    negatives: Tensor | None = None,
    beta: float = 0.0,
    tile: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """`infonce` or `sigmoid` of image @ text.T, which never exists as a whole.

    image (I, E), text (C, E): one dtype, normalised by the caller if cosines are meant
    image_labels (I,), text_labels (C,)  int64: a caption describes an image if they are equal and not negative; -1 is
                a caption that describes none. Default: row i and column i belong together, which takes I = C.
    negatives   (M, E): further columns that describe none (NegCLIP's)
    beta, scale, bias  as in `infonce` and `sigmoid`; each tensor gets its gradient
    tile        rows and columns of a tile; changes nothing but memory and speed
    backend     "auto" | "cpu" (tiles in torch) | "triton" (the sums over negatives in one kernel; the backward pass
                is in torch tiles) | "reference" (the whole matrix)
    A 0-d float32 (float64 for float64). Raises `InputError` for shapes that do not fit, `UsageError` for a loss or a
    backend that is not there and for a beta where it has no meaning.
    """
    if loss not in ("infonce", "sigmoid") or (loss == "sigmoid" and beta):
        raise UsageError(f"no loss '{loss}' with beta = {beta}", "Choose infonce, or sigmoid without beta.")
    _check_beta(beta)
    text, labels = _columns(image, text, image_labels, text_labels, negatives)
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or image.dtype != text.dtype:
        raise InputError(
            f"images {tuple(image.shape)} of {image.dtype} and texts {tuple(text.shape)} of {text.dtype} do not"
            " multiply",
            "Give (I, E) and (C, E) of one dtype.",
        )
    numbers = _number(scale, image), _number(bias, image)
    if (os.environ.get(VARIABLE) if backend == "auto" else backend) == "reference":
        return reference_contrastive(image, text, *labels, loss=loss, scale=numbers[0], bias=numbers[1], beta=beta)
    # What `choose` falls back to beside a CPU is the whole matrix; tiles in torch run anywhere.
    fused = choose(backend, image) == "triton"
    at_a_time = tile or TILE.get(image.device.type, 1024)
    if loss == "infonce":
        result: Tensor = infonce_vectors(image, text, labels, numbers[0], float(beta), at_a_time, fused)[0]
    else:
        result = sigmoid_vectors(image, text, labels, *numbers, at_a_time, fused)
    return result


def _check_scores(scores: Tensor, positives: Tensor, taken: Tensor | None) -> None:
    for name, mask in (("positives", positives), ("taken", taken)):
        if mask is not None and (mask.shape != scores.shape or mask.dtype != torch.bool or scores.ndim != 2):
            raise InputError(
                f"{name} {tuple(mask.shape)} of {mask.dtype} for scores {tuple(scores.shape)}", "Give (I, C) bool."
            )


def _check_beta(beta: float) -> None:
    if beta < 0:
        raise UsageError(f"beta = {beta}", "Set it to 0 or more.")


def _number(value: Tensor | float, like: Tensor) -> Tensor:
    """A 0-d tensor beside `like`, in the dtype of its scores."""
    if isinstance(value, Tensor):
        return value.to(like.device, computed(like)).reshape(())
    return torch.tensor(float(value), dtype=computed(like), device=like.device)


def _columns(
    image: Tensor, text: Tensor, image_labels: Tensor | None, text_labels: Tensor | None, negatives: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """All columns, and the labels of rows and columns."""
    if (image_labels is None) != (text_labels is None) or (image_labels is None and len(image) != len(text)):
        raise InputError(
            f"{len(image)} images and {len(text)} texts, and not both kinds of labels",
            "Give image_labels and text_labels.",
        )
    labels = [
        torch.arange(len(side), device=image.device) if given is None else given.to(image.device, torch.int64)
        for side, given in ((image, image_labels), (text, text_labels))
    ]
    if labels[0].shape != image.shape[:1] or labels[1].shape != text.shape[:1]:
        raise InputError(
            f"labels {tuple(labels[0].shape)} and {tuple(labels[1].shape)} for {len(image)} images and"
            f" {len(text)} texts",
            "Give one a row.",
        )
    if negatives is not None:
        text = torch.cat([text, negatives])
        labels[1] = F.pad(labels[1], (0, len(negatives)), value=-1)
    return text, labels


# --- the specification ---------------------------------------------------------------------------------


def reference_infonce(
    scores: Tensor, positives: Tensor, *, scale: Tensor | float = 1.0, taken: Tensor | None = None, beta: float = 0.0
) -> Tensor:
    """`infonce` in full matrices: what every other path must equal."""
    used = torch.ones_like(positives) if taken is None else taken
    logits = scores.to(computed(scores)).masked_fill(~used, 0) * scale
    right, wrong = used & positives, used & ~positives
    return (_reference_choice(logits, right, wrong, beta) + _reference_choice(logits.T, right.T, wrong.T, beta)) / 2


def _reference_choice(logits: Tensor, positives: Tensor, negatives: Tensor, beta: float) -> Tensor:
    excluded = -1e30  # finite, so that a row without negatives has no NaN gradient
    against = (logits * (1 + beta)).masked_fill(~negatives, excluded).logsumexp(1, keepdim=True)
    if beta:
        mean = (logits * beta).masked_fill(~negatives, excluded).logsumexp(1, keepdim=True)
        against = against - mean + negatives.sum(1, keepdim=True).clamp(min=1).to(logits.dtype).log()
    counted = positives & negatives.any(1, keepdim=True)
    losses = F.softplus(against - logits).masked_fill(~counted, 0)
    per_row = losses.sum(1) / counted.sum(1).clamp(min=1)
    return per_row.sum() / counted.any(1).sum().clamp(min=1)


def reference_sigmoid(
    scores: Tensor,
    positives: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
    taken: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """`sigmoid` in full matrices."""
    used = torch.ones_like(positives) if taken is None else taken
    logits = scores.to(computed(scores)).masked_fill(~used, 0) * scale + bias
    terms = F.softplus(torch.where(positives, -logits, logits))
    terms = terms if weights is None else terms * weights.to(terms.dtype)
    return terms.masked_fill(~used, 0).sum() / max(1, len(scores))


def reference_contrastive(  # noqa: PLR0913 (the arguments of `contrastive`)
    image: Tensor,
    text: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    *,
    loss: Literal["infonce", "sigmoid"] = "infonce",
    scale: Tensor | float,
    bias: Tensor | float = 0.0,
    beta: float = 0.0,
) -> Tensor:
    """`contrastive` by the whole matrix."""
    scores = image.to(computed(image)) @ text.to(computed(text)).T
    positives = (image_labels[:, None] == text_labels) & (image_labels[:, None] >= 0)
    if loss == "infonce":
        return reference_infonce(scores, positives, scale=scale, beta=beta)
    return reference_sigmoid(scores, positives, scale=scale, bias=bias)


# --- over several ranks --------------------------------------------------------------------------------


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, group: Any) -> Tensor:
        context.group, context.own = group, len(tensor)
        sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(dist.get_world_size(group))]
        dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device), group=group)
        counts = [int(size) for size in sizes]
        context.start = sum(counts[: dist.get_rank(group)])
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=context.group)
        return total[context.start : context.start + context.own], None


def gather(tensor: Tensor, group: Any = None) -> Tensor:
    """The rows of all ranks, (n, …) → (N, …), in the order of ranks; n may differ, nothing else.
    The tensor itself where torch.distributed is not initialised.

    The rule: every rank gathers images, texts and labels and computes the same loss over all of them, undivided. The
    backward pass sums the gradients of all ranks, so that each holds W times its share of the gradient; DDP's
    mean over the W ranks then is exactly the gradient of a single process. Parameters used after gathering (a
    temperature) have the same whole gradient on each rank, whose mean it is. Labels must be unique over ranks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    return _gathered(tensor, group)


# Left out of torch.compile, without loading the compiler, as torch.utils.checkpoint is: traced, its wait for the other
# ranks was at times carried out on a tensor that nobody sends, and never ended.
@torch._disable_dynamo  # type: ignore[attr-defined]
def _gathered(tensor: Tensor, group: Any) -> Tensor:
    result: Tensor = _Gather.apply(tensor, group)  # type: ignore[no-untyped-call]
    return result
