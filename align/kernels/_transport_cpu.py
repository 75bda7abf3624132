"""`transport` in tiles of a few images by a few captions: the CPU path, and the backward on every device.

A tile is one product, then all rounds while it is in the cache. Captions are sorted by length, so that few slots of a
tile are padding, and the products see none of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Bytes of one tile of similarities; three of them live at once and should stay in the last cache.
TILE = 4 << 20
# Few images are a product with few columns; many leave too few captions in a tile to sort by length.
IMAGES = 4
# exp(S / epsilon) is used up to this share of the largest exponent of the type: scalings reach as far as the spread of
# S / epsilon, and the lengths of both sides must fit above it.
SAFE = 0.66


class Places(NamedTuple):
    """Captions, or those of pairs, in the order of the work: the longest first, pairs image by image.

    order    (S,) int64: the caption, or the pair, of each place
    lengths  the tokens of each place
    rows     (M,) int64 the token of each of their rows, or None where these are the tokens as they stand
    counts   the places of each image for pairs; None: every place meets every image
    """

    order: Tensor
    lengths: list[int]
    rows: Tensor | None
    counts: list[int] | None


class Tile(NamedTuple):
    """places and tokens: the slices of both; slots (k, L) int64 the token, from the first of the tile, in each slot,
    the last one repeated, and real (k, L) bool; both None where all captions have the same length; sizes (k,)."""

    places: slice
    tokens: slice
    slots: Tensor | None
    real: Tensor | None
    sizes: Tensor


class Images(NamedTuple):
    """values (c, P, D), with a real patch in place of padding; taken (c, P) bool or None for all; sizes (c,) real
    patches, at least 1; empty (c,) bool or None."""

    values: Tensor
    taken: Tensor | None
    sizes: Tensor
    empty: Tensor | None


def arrange(lengths: Tensor, pairs: Tensor | None, images: int, device: torch.device) -> Places:
    """The order of the work; lengths on a GPU are waited for."""
    lengths = lengths.cpu()
    starts, counts = lengths.cumsum(0) - lengths, None
    if pairs is None:
        order = lengths.argsort(descending=True, stable=True)
        each = lengths[order]
        if bool((each == lengths).all()):
            return Places(order.to(device), each.tolist(), None, None)
        captions = order
    else:
        pairs = pairs.cpu()
        order = lengths[pairs[:, 1]].argsort(descending=True, stable=True)
        order = order[pairs[order, 0].argsort(stable=True)]
        captions = pairs[order, 1]
        each, counts = lengths[captions], pairs[:, 0].bincount(minlength=images).tolist()
    begins = each.cumsum(0) - each
    rows = torch.arange(int(each.sum())) + (starts[captions] - begins).repeat_interleave(each)
    return Places(order.to(device), each.tolist(), rows.to(device), counts)


def plan(image: Tensor, places: Places, dtype: torch.dtype) -> Iterator[tuple[slice, slice, list[Tile]]]:
    """Images, the columns of the results they fill, and the tiles of places they meet."""
    images, patches = image.shape[:2]
    if not patches:
        return
    begins = [0, *itertools.accumulate(places.lengths)]
    cell = patches * dtype.itemsize
    if places.counts is None:
        tiles = list(_tiles(places.lengths, begins, 0, len(places.lengths), IMAGES * cell, image.device))
        for first in range(0, images, IMAGES):
            rows = slice(first, min(first + IMAGES, images))
            yield rows, rows, tiles
        return
    at = 0
    for number, count in enumerate(places.counts):
        tiles = list(_tiles(places.lengths, begins, at, at + count, cell, image.device))
        at += count
        if tiles:
            yield slice(number, number + 1), slice(0, 1), tiles


def _tiles(
    lengths: list[int], begins: list[int], first: int, last: int, cell: int, device: torch.device
) -> Iterator[Tile]:
    """Places from first to last, longest first, in tiles; a tile ends where captions are half as long as its first."""
    while first < last and lengths[first]:
        longest = lengths[first]
        end = min(first + max(TILE // (cell * longest), 1), last)
        while 2 * lengths[end - 1] < longest:
            end -= 1
        sizes = torch.tensor(lengths[first:end], device=device)
        slots = real = None
        if lengths[end - 1] < longest:
            column = torch.arange(longest, device=device)
            real = column < sizes[:, None]
            slots = (sizes.cumsum(0) - sizes)[:, None] + torch.minimum(column, sizes[:, None] - 1)
        yield Tile(slice(first, end), slice(begins[first], begins[end]), slots, real, sizes)
        first = end


def _images(image: Tensor, mask: Tensor | None, here: slice, dtype: torch.dtype) -> Images:
    values = image[here].to(dtype)
    if mask is None:
        sizes = torch.full((len(values),), values.shape[1], device=values.device)
        return Images(values, None, sizes, None)
    mask = mask[here]
    empty = ~mask.any(1)
    values = values.masked_fill(empty[:, None, None], 0)
    # A real patch, not zeros: similarities of padding then widen the spread of no pair.
    some = values.gather(1, mask.to(torch.uint8).argmax(1)[:, None, None].expand(-1, 1, values.shape[2]))
    taken = mask | empty[:, None]
    return Images(torch.where(taken[..., None], values, some), taken, taken.sum(1), empty)


def _similarity(tokens: Tensor, images: Images, tile: Tile) -> Tensor:
    """(k, L, c, P), contiguous."""
    flat = torch.mm(tokens, images.values.flatten(0, 1).T)
    if tile.slots is not None:
        flat = flat[tile.slots.flatten()]
    return flat.view(len(tile.sizes), -1, *images.values.shape[:2])


def _exponents(similarity: Tensor, epsilon: float) -> tuple[Tensor, bool]:
    """The largest similarity of each pair (k, 1, c, 1), and whether exp((S - it) / epsilon) can be iterated."""
    high = similarity.amax((1, 3), keepdim=True)
    spread = (high - similarity.amin((1, 3), keepdim=True)).amax()
    return high, float(spread) / epsilon <= SAFE * math.log(torch.finfo(similarity.dtype).max)


def _exclude(kernel: Tensor, images: Images, tile: Tile, by: float) -> None:
    """Writes `by` where a patch or a token of (k, L, c, P) is padding."""
    if images.taken is not None:
        kernel.masked_fill_(~images.taken, by)
    if tile.real is not None:
        kernel.masked_fill_(~tile.real[:, :, None, None], by)


def _by_scaling(
    similarity: Tensor, high: Tensor, images: Images, tile: Tile, epsilon: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """The scores (k, c) and the tokens' potentials over epsilon before the last round (k, L, c).

    With u = exp(-f / epsilon) and v = exp(-g / epsilon) a round is u = L' / (K v), v = P' / (Kᵀ u)."""
    k, length, c, patches = similarity.shape
    similarity.sub_(high).div_(epsilon).exp_()
    _exclude(similarity, images, tile, 0.0)
    # Copies in both orders: a row times a matrix reads it along its rows, 8 times faster than a matrix times a column.
    by_token = similarity.transpose(1, 2).reshape(k * c, length, patches)
    by_patch = by_token.transpose(1, 2).contiguous()
    words = tile.sizes[:, None].expand(k, c).reshape(-1, 1, 1).to(similarity.dtype)
    pieces = images.sizes[None].expand(k, c).reshape(-1, 1, 1).to(similarity.dtype)
    no_patch = None if images.taken is None else ~images.taken.expand(k, c, patches).reshape(-1, 1, patches)
    no_token = None if tile.real is None else ~tile.real[:, None].expand(k, c, length).reshape(-1, 1, length)
    v = similarity.new_ones(k * c, 1, length)
    if no_token is not None:
        v.masked_fill_(no_token, 0)
    for _ in range(iterations):
        before = v
        u = torch.bmm(v, by_token)
        if no_patch is not None:
            u.masked_fill_(no_patch, torch.inf)
        u = torch.div(words, u, out=u)
        v = torch.bmm(u, by_patch)
        if no_token is not None:
            v.masked_fill_(no_token, torch.inf)
        v = torch.div(pieces, v, out=v)
    f, g, kept = u.log(), v.log(), before.log().neg_()
    if no_patch is not None:
        f.masked_fill_(no_patch, 0)
    if no_token is not None:
        g.masked_fill_(no_token, 0)
    scores = (f.sum(-1) / pieces[..., 0] + g.sum(-1) / words[..., 0]).view(k, c)
    return high[:, 0, :, 0] - epsilon * scores, kept.view(k, c, length).transpose(1, 2)


def _by_logarithms(
    similarity: Tensor, images: Images, tile: Tile, epsilon: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """As `_by_scaling`, for any spread."""
    k, length, c, _ = similarity.shape
    scaled = similarity.div_(epsilon)
    _exclude(scaled, images, tile, -torch.inf)
    g = scaled.new_zeros(k, length, c, 1)
    for _ in range(iterations):
        before = g
        f = _patch_potentials(scaled, g, images, tile)
        g = (scaled - f).logsumexp(3, keepdim=True) - images.sizes[:, None].to(scaled.dtype).log()
        if tile.real is not None:
            g.masked_fill_(~tile.real[:, :, None, None], 0)
    of_f = f.sum((1, 3)) / images.sizes
    of_g = g.sum((1, 3)) / tile.sizes[:, None]
    return epsilon * (of_f + of_g), before[..., 0]


def _patch_potentials(scaled: Tensor, g: Tensor, images: Images, tile: Tile) -> Tensor:
    """f (k, 1, c, P) over epsilon."""
    f = (scaled - g).logsumexp(1, keepdim=True) - tile.sizes.to(scaled.dtype).log()[:, None, None, None]
    return f if images.taken is None else f.masked_fill_(~images.taken, 0)


def _plan(similarity: Tensor, g: Tensor, images: Images, tile: Tile, epsilon: float) -> Tensor:
    """Similarities (k, L, c, P) and potentials g (k, L, c, 1) before the last round → its plan, times L'."""
    high, safe = _exponents(similarity, epsilon)
    if not safe:
        scaled = similarity.div_(epsilon)
        _exclude(scaled, images, tile, -torch.inf)
        scaled = scaled.sub_(_patch_potentials(scaled, g, images, tile))
        if tile.real is not None:
            scaled.masked_fill_(~tile.real[:, :, None, None], 0)
        found = scaled.softmax(3)
    else:
        found = similarity.sub_(high).div_(epsilon).exp_()
        _exclude(found, images, tile, 0.0)
        sums = (found * g.neg().exp_()).sum(1, keepdim=True)
        if images.taken is not None:
            sums.masked_fill_(~images.taken, torch.inf)
        found.div_(sums)
        totals = found.sum(3, keepdim=True)
        if tile.real is not None:
            totals.masked_fill_(~tile.real[:, :, None, None], torch.inf)
        found.div_(totals)
    return found


@torch.library.custom_op("compal::transport_scores", mutates_args=())
def transport_scores(  # noqa: PLR0913 - an operator takes tensors and numbers, no record
    image: Tensor,
    image_mask: Tensor | None,
    tokens: Tensor,
    lengths: Tensor,
    pairs: Tensor | None,
    room: int,
    epsilon: float,
    iterations: int,
    double: bool,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    """Scores (I, C), or (N,) for pairs, and for the backward the tokens' potentials over epsilon before the last round,
    in the order of `arrange`: (room, I), or (room, 1) for pairs. `room` counts the tokens, or those of all pairs."""
    scores, potentials = (part.zero_() for part in _empty(image, lengths, pairs, room, double))
    places = arrange(lengths, pairs, len(image), image.device)
    found = scores.new_zeros(len(places.order), potentials.shape[1])
    if triton:
        from ._transport_triton import fill, fits

        triton = fits(image, tokens, max(places.lengths, default=0))
    if triton:
        fill(image, image_mask, tokens, places, epsilon, iterations, found, potentials)
    else:
        _fill(image, image_mask, tokens, places, epsilon, iterations, found, potentials)
    if pairs is None:
        scores[:, places.order] = found.T
    else:
        scores[places.order] = found[:, 0]
    return scores, potentials


def _fill(  # noqa: PLR0913 - the operator's arguments, and its two results
    image: Tensor,
    image_mask: Tensor | None,
    tokens: Tensor,
    places: Places,
    epsilon: float,
    iterations: int,
    found: Tensor,
    potentials: Tensor,
) -> None:
    """Writes the scores (S, columns) and potentials (M, columns) of all places, tile by tile; both come as zeros."""
    with torch.autocast(image.device.type, enabled=False):
        wide = tokens.to(found.dtype)
        for here, columns, tiles in plan(image, places, found.dtype):
            images = _images(image, image_mask, here, found.dtype)
            for tile in tiles:
                similarity = _similarity(_rows(wide, places, tile), images, tile)
                high, safe = _exponents(similarity, epsilon)
                if safe:
                    value, kept = _by_scaling(similarity, high, images, tile, epsilon, iterations)
                else:
                    value, kept = _by_logarithms(similarity, images, tile, epsilon, iterations)
                found[tile.places, columns] = value if images.empty is None else value.masked_fill(images.empty, 0)
                potentials[tile.tokens, columns] = kept.flatten(0, 1) if tile.real is None else kept[tile.real]


def _rows(wide: Tensor, places: Places, tile: Tile) -> Tensor:
    return wide[tile.tokens] if places.rows is None else wide[places.rows[tile.tokens]]


def _empty(image: Tensor, lengths: Tensor, pairs: Tensor | None, room: int, double: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if double else torch.float32
    shape = (len(image), len(lengths)) if pairs is None else (len(pairs),)
    columns = len(image) if pairs is None else 1
    return image.new_empty(shape, dtype=dtype), image.new_empty((room, columns), dtype=dtype)


@transport_scores.register_fake
def _(image, image_mask, tokens, lengths, pairs, room, epsilon, iterations, double, triton):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    return _empty(image, lengths, pairs, room, double)


@torch.library.custom_op("compal::transport_backward", mutates_args=())
def transport_backward(  # noqa: PLR0913 - the arguments of the forward
    grad: Tensor,
    potentials: Tensor,
    image: Tensor,
    image_mask: Tensor | None,
    tokens: Tensor,
    lengths: Tensor,
    pairs: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of image and tokens: two products with the plan, which the potentials give again."""
    dtype = potentials.dtype
    to_image = torch.zeros_like(image, memory_format=torch.contiguous_format)
    places = arrange(lengths, pairs, len(image), image.device)
    grad = grad.T[places.order] if pairs is None else grad[places.order, None]
    with torch.autocast(image.device.type, enabled=False):
        wide = tokens.to(dtype)
        to_tokens = torch.zeros_like(wide, memory_format=torch.contiguous_format)
        for here, columns, tiles in plan(image, places, dtype):
            images = _images(image, image_mask, here, dtype)
            to_values = torch.zeros_like(images.values)
            for tile in tiles:
                some = _rows(wide, places, tile)
                flow = _flow(grad[tile.places, columns], potentials[tile.tokens, columns], some, images, tile, epsilon)
                to_values.view(-1, some.shape[1]).addmm_(flow.T, some)
                found = torch.mm(flow, images.values.flatten(0, 1))
                if places.rows is None:
                    to_tokens[tile.tokens] += found
                else:
                    to_tokens.index_add_(0, places.rows[tile.tokens], found)
            if image_mask is not None:
                to_values.masked_fill_(~image_mask[here][..., None], 0)
            to_image[here] = to_values.to(image.dtype)
    return to_image, to_tokens.to(tokens.dtype)


def _flow(grad: Tensor, kept: Tensor, tokens: Tensor, images: Images, tile: Tile, epsilon: float) -> Tensor:
    """grad (k, c) and potentials (t, c) → the gradient of the similarities of the tile's real tokens (t, c P)."""
    similarity = _similarity(tokens, images, tile)
    k, length, c, _ = similarity.shape
    if tile.slots is not None:
        kept = kept[tile.slots.flatten()]
    found = _plan(similarity, kept.reshape(k, length, c, 1), images, tile, epsilon)
    grad = grad / tile.sizes[:, None]
    if images.empty is not None:
        grad = grad.masked_fill(images.empty, 0)
    found.mul_(grad[:, None, :, None])
    flat = found.view(k * length, -1)
    return flat if tile.real is None else flat[tile.real.flatten()]


@transport_backward.register_fake
def _(grad, potentials, image, image_mask, tokens, lengths, pairs, epsilon):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    return torch.empty_like(image, memory_format=torch.contiguous_format), tokens.new_empty(tokens.shape)


def save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    """The inputs and one number per image and token."""
    image, image_mask, tokens, lengths, pairs, _, epsilon, _, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], image, image_mask, tokens, lengths, pairs)
    ctx.epsilon = epsilon


def differentiate(ctx, grad, _):  # type: ignore[no-untyped-def]
    """The gradients in the order of the forward's arguments."""
    found = transport_backward(grad, *ctx.saved_tensors, ctx.epsilon)
    return found[0], None, found[1], *[None] * 7


transport_scores.register_autograd(differentiate, setup_context=save)
