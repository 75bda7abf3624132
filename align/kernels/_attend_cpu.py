"""`attend` in tiles of a few images by some thousand tokens: the CPU path, and the backward on every device.

The score does not change when the weights are scaled, so the normaliser of a softmax or min-max has no gradient:
Σ_p a_p ∂score/∂a_p = 0, and the usual correction term of a softmax's backward falls away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .attend import NOISE

# Bytes of one tile of similarities: three of them live at once and should stay in the last cache.
TILE = 4 << 20
# One image a product costs 20 to 30 % (its operand is packed again for few rows); beyond 16 nothing is gained.
MOST_IMAGES, LEAST_IMAGES = 16, 4


class Images(NamedTuple):
    """values (c, P, D) with zeros for padding, in the dtype of the scores; taken (c, P) bool or None for all; gram
    (c, P, P) or None where building the pooled vector is cheaper; floor (c, 1): |v|² up to it is zero."""

    values: Tensor
    taken: Tensor | None
    gram: Tensor | None
    floor: Tensor


class Choice(NamedTuple):
    """The weights' rule: their name, k and kappa."""

    weights: str
    k: int
    kappa: Tensor


Place = tuple[slice, slice]
Work = Iterator[tuple[slice, list[tuple[Tensor | slice, Place]]]]


def plan(image: Tensor, tokens: int, counts: Tensor | None, tile: int = 0) -> Work:
    """Which images together, against which tokens, and where their scores go: all tokens in equal blocks, or for
    pairs (`counts` rows an image) one image at a time."""
    tile = tile or TILE
    images, patches = image.shape[:2]
    cell = max(patches, 1) * 4
    if counts is not None:
        start, most = 0, max(tile // cell, 1)
        for number, count in enumerate(counts.tolist()):
            spans = [slice(at, min(at + most, start + count)) for at in range(start, start + count, most)]
            yield slice(number, number + 1), [(span, (span, slice(0, 1))) for span in spans]
            start += count
        return
    together = min(max(tile // (cell * max(tokens, 1)), LEAST_IMAGES), MOST_IMAGES)
    block = max(tile // (cell * together), 1)
    for first in range(0, images, together):
        rows = slice(first, min(first + together, images))
        spans = [slice(at, min(at + block, tokens)) for at in range(0, tokens, block)]
        yield rows, [(span, (span, rows)) for span in spans]


def _images(image: Tensor, mask: Tensor | None, dtype: torch.dtype, tokens: int) -> Images:
    values, taken = image.to(dtype), None
    if mask is not None:
        values = values.masked_fill(~mask[..., None], 0)
        taken = mask | ~mask.any(1, keepdim=True)  # an image without patches: zeros, so that nothing is 0 / 0
    patches, width = values.shape[1:]
    gram = None
    if tokens * (width - patches) > patches * width:  # N P² + P² D < N P D
        gram = torch.bmm(values, values.transpose(1, 2))
        squares = gram.diagonal(dim1=1, dim2=2)
    else:
        squares = values.square().sum(-1)
    floor = NOISE * torch.finfo(dtype).eps * squares.amax(1, keepdim=True)
    return Images(values, taken, gram, floor)


def _similarity(tokens: Tensor, images: Images) -> Tensor:
    """(c, n, P), the patches of one image contiguous."""
    flat = torch.mm(tokens, images.values.flatten(0, 1).T)
    return flat.view(len(tokens), *images.values.shape[:2]).transpose(0, 1)


def _weights(similarity: Tensor, taken: Tensor | None, choice: Choice) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """a (c, n, P), contiguous. For "minmax" also ∂a/∂S without its normaliser (c, n, P) and where the minimum is
    (c, n, 1)."""
    if choice.weights == "minmax":
        return _minmax(similarity, taken)
    logits = torch.empty(similarity.shape, dtype=similarity.dtype, device=similarity.device)
    torch.mul(similarity, choice.kappa, out=logits)
    if choice.weights == "topk":
        logits.masked_fill_(~_best(similarity, taken, choice.k), -torch.inf)
    elif taken is not None:
        logits.masked_fill_(~taken[:, None], -torch.inf)
    return logits.softmax(-1), None, None


def _best(similarity: Tensor, taken: Tensor | None, k: int) -> Tensor:
    """The k patches most similar to each token, the first ones of equals."""
    k = min(k, similarity.shape[-1])
    if taken is not None:
        similarity = similarity.masked_fill(~taken[:, None], -torch.inf)
    last = similarity.topk(k, -1, sorted=True).values[..., -1:]
    best = similarity >= last
    if int(best.sum()) > k * (best.numel() // max(best.shape[-1], 1)):  # equals at the edge; or fewer than k are real
        above = similarity > last
        equal = best & ~above
        best = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    return best if taken is None else best & taken[:, None]


def _minmax(similarity: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    low = high = similarity
    count = torch.full((), similarity.shape[-1], dtype=similarity.dtype, device=similarity.device)
    if taken is not None:
        low = similarity.masked_fill(~taken[:, None], torch.inf)
        high = similarity.masked_fill(~taken[:, None], -torch.inf)
        count = taken.sum(-1)[:, None, None].to(similarity.dtype)
    lowest, where = low.min(-1, keepdim=True)
    spread = high.amax(-1, keepdim=True) - lowest
    varied = spread > 0
    a = ((similarity - lowest) / spread.where(varied, 1.0)).contiguous()
    kept = (a >= 1 / count) & varied
    if taken is not None:
        kept &= taken[:, None]
    a.masked_fill_(~kept, 0)
    total = a.sum(-1, keepdim=True).where(varied, 1.0)
    a /= total
    flat = torch.ones_like(a) if taken is None else taken[:, None].to(a.dtype).expand_as(a)
    a = torch.where(varied, a, flat / count)
    return a, kept / (total * spread.where(varied, 1.0)), where


def _cosine(a: Tensor, similarity: Tensor, images: Images, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """cos (c, n), |v|² (c, n), which of them count (c, n), and G a (c, n, P), or v (c, n, D) where there is no G."""
    dots = (a * similarity).sum(-1)
    if images.gram is not None:
        through = torch.bmm(a, images.gram)
        squares = (through * a).sum(-1)
    else:
        through = torch.bmm(a, images.values)
        squares = through.square().sum(-1)
    fine = (squares > images.floor) & (lengths > 0)
    squares = squares.where(fine, 1.0)
    cosine = dots.div_(squares.sqrt()).div_(lengths.where(lengths > 0, 1.0)).masked_fill_(~fine, 0)
    return cosine, squares, fine, through


@torch.library.custom_op("compal::attend_tokens", mutates_args=())
def attend_tokens(  # noqa: PLR0913 - an operator takes tensors and numbers, no record
    image: Tensor,
    image_mask: Tensor | None,
    tokens: Tensor,
    kappa: Tensor,
    weights: str,
    k: int,
    rows: Tensor | None,
    counts: Tensor | None,
    triton: bool,
) -> Tensor:
    """Token scores: tokens (N, D) → (N, I), or, where token `rows` (M,) are given image by image, (M, 1). The
    dtype is that of the scalar `kappa`."""
    scores = _empty(image, tokens, kappa, rows)
    if triton:
        from ._attend_triton import fill, fits

        if fits(image, tokens):
            fill(image, image_mask, tokens, kappa, weights, k, rows, counts, scores)
            return scores
    choice = Choice(weights, k, kappa)
    with torch.autocast(image.device.type, enabled=False):
        wide = tokens.to(kappa.dtype)
        for here, blocks in plan(image, len(tokens), counts):
            if not blocks:
                continue
            images = _load(image, image_mask, here, kappa.dtype, blocks)
            for pick, place in blocks:
                some = wide[pick] if rows is None else wide[rows[pick]]
                similarity = _similarity(some, images)
                a, _, _ = _weights(similarity, images.taken, choice)
                cosine = _cosine(a, similarity, images, some.norm(dim=-1))[0]
                scores[place] = cosine.T
    return scores


def _empty(image: Tensor, tokens: Tensor, kappa: Tensor, rows: Tensor | None) -> Tensor:
    shape = (tokens.shape[0], image.shape[0]) if rows is None else (rows.shape[0], 1)
    return torch.empty(shape, dtype=kappa.dtype, device=image.device)


def _load(
    image: Tensor, mask: Tensor | None, here: slice, dtype: torch.dtype, blocks: list[tuple[Tensor | slice, Place]]
) -> Images:
    count = sum(place[0].stop - place[0].start for _, place in blocks)
    return _images(image[here], None if mask is None else mask[here], dtype, count)


@attend_tokens.register_fake
def _(image, image_mask, tokens, kappa, weights, k, rows, counts, triton):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    return _empty(image, tokens, kappa, rows)


@torch.library.custom_op("compal::attend_tokens_backward", mutates_args=())
def attend_tokens_backward(  # noqa: PLR0913 - the arguments of the forward
    grad: Tensor,
    image: Tensor,
    image_mask: Tensor | None,
    tokens: Tensor,
    kappa: Tensor,
    weights: str,
    k: int,
    rows: Tensor | None,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of image, tokens and kappa; the weights are computed again, nothing was kept."""
    to_image = torch.zeros_like(image, memory_format=torch.contiguous_format)
    choice = Choice(weights, k, kappa)
    with torch.autocast(image.device.type, enabled=False):
        wide = tokens.to(kappa.dtype)
        to_tokens = torch.zeros_like(wide, memory_format=torch.contiguous_format)
        to_kappa = torch.zeros_like(kappa)
        for here, blocks in plan(image, len(tokens), counts):
            if not blocks:
                continue
            images = _load(image, image_mask, here, kappa.dtype, blocks)
            to_values = torch.zeros_like(images.values)
            for pick, place in blocks:
                index: Tensor | slice = pick if rows is None else rows[pick]
                some = wide[index]
                found = _tile_backward(grad[place].T, some, images, choice, to_values)
                to_kappa += found[1]
                if isinstance(index, slice):
                    to_tokens[index] += found[0]
                else:
                    to_tokens.index_add_(0, index, found[0])
            if image_mask is not None:
                to_values.masked_fill_(~image_mask[here][..., None], 0)
            to_image[here] = to_values.to(image.dtype)
    return to_image, to_tokens.to(tokens.dtype), to_kappa


def _tile_backward(
    grad: Tensor, tokens: Tensor, images: Images, choice: Choice, to_values: Tensor
) -> tuple[Tensor, Tensor]:
    """grad (c, n) → the gradients of tokens and kappa; that of the patches is added to `to_values`."""
    lengths = tokens.norm(dim=-1)
    similarity = _similarity(tokens, images)
    a, slope, where = _weights(similarity, images.taken, choice)
    cosine, squares, fine, through = _cosine(a, similarity, images, lengths)
    grad = grad.masked_fill(~fine, 0)
    safe = lengths.where(lengths > 0, 1.0)
    of_dots = (grad / (squares.sqrt() * safe))[..., None]
    of_squares = (-grad * cosine / squares)[..., None]  # twice ∂score/∂|v|²
    if images.gram is not None:
        scaled = a * of_squares
        to_values += torch.bmm(torch.bmm(a.transpose(1, 2), scaled), images.values)
        of_a = through.mul_(of_squares)
    else:
        through = through.mul_(of_squares)
        to_values += torch.bmm(a.transpose(1, 2), through)
        of_a = torch.bmm(through, images.values.transpose(1, 2))
    of_a.addcmul_(similarity, of_dots)
    to_kappa = torch.zeros_like(choice.kappa)
    of_s = a * of_dots
    if slope is None or where is None:
        of_a.mul_(a)
        to_kappa = (of_a * similarity).sum()
        of_s += of_a.mul_(choice.kappa)
    else:
        of_a.mul_(slope)
        of_s += of_a
        of_s.scatter_add_(-1, where, -of_a.sum(-1, keepdim=True))
    to_values += torch.matmul(of_s.transpose(1, 2), tokens)
    flat = of_s.transpose(0, 1).reshape(len(tokens), -1)
    to_tokens = torch.mm(flat, images.values.flatten(0, 1))
    return to_tokens - tokens * ((grad * cosine).sum(0) / safe.square())[:, None], to_kappa


@attend_tokens_backward.register_fake
def _(grad, image, image_mask, tokens, kappa, weights, k, rows, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    contiguous = torch.contiguous_format
    return torch.empty_like(image, memory_format=contiguous), tokens.new_empty(tokens.shape), torch.empty_like(kappa)


def save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """Only the inputs are kept."""
    image, image_mask, tokens, kappa, weights, k, rows, counts, _ = inputs
    ctx.save_for_backward(image, image_mask, tokens, kappa, rows, counts)
    ctx.weights, ctx.k = weights, k


def differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    """The gradients in the order of the forward's arguments."""
    image, image_mask, tokens, kappa, rows, counts = ctx.saved_tensors
    found = attend_tokens_backward(grad, image, image_mask, tokens, kappa, ctx.weights, ctx.k, rows, counts)
    return found[0], None, found[1], found[2], *[None] * 5


attend_tokens.register_autograd(differentiate, setup_context=save)
