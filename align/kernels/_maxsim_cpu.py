"""MaxSim on a CPU: one matrix product per tile, reductions while the tile is in cache, a byte per maximum kept.

Measured on two EPYC cores at D = 256, per similarity: product 2.5 ns, `amax` 0.13, `max` with its index 1.2
(innermost axis) or 1.7. NumPy's `argmax` takes 0.28 on the innermost axis; along another, comparing with the known
maximum and taking the largest of the weights L, L - 1, … where equal takes 0.27 after it. So the indices cost a
tenth of the product. Products of several images against several captions' tokens; one image a product wastes a
quarter of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

TILE = 16 * 2**20  # bytes of similarities at a time: some MB keep the product at its peak, more fall out of cache
ROWS = 4096  # the most text tokens of a tile
IMAGES = 8  # the most images of a tile
STRIDE = 16  # a tile's rows begin at multiples of it: MKL loses a third where they are no multiple of 32 bytes apart

Array = np.ndarray[Any, Any]


def best_sums(
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    directions: tuple[bool, bool],
    pairs: Tensor | None,
    most: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Sums over its tokens of each caption's best similarities, and over its patches of each image's: (I, C) each, or
    (N,) for pairs; None for a direction that is not asked for. No caption has more than `most` tokens."""
    t2i, i2t = directions
    keep = torch.is_grad_enabled() and (image.requires_grad or text.requires_grad)
    # The graph of torch.compile cannot look.
    most = _bound(most) if torch.compiler.is_compiling() else int(text_lengths.max()) if len(text_lengths) else 0
    if pairs is None:
        to_text, to_image, _, _ = maxsim_cpu(image, image_lengths, text, text_lengths, t2i, i2t, keep, most)
    else:
        from ._maxsim_pairs import maxsim_pairs_cpu

        given = image, image_lengths, text, text_lengths, pairs
        to_text, to_image, _, _ = maxsim_pairs_cpu(*given, t2i, i2t, most)
    return (to_text if t2i else None), (to_image if i2t else None)


@dataclass(frozen=True)
class Run:
    """Captions of one length that stand together in the sorted order: `count` of them, `length` tokens each, the
    first token at row `start`, the first caption at `first` of the order."""

    start: int
    count: int
    length: int
    first: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Captions sorted by length, cut into blocks of at most ROWS tokens; images grouped by how many tokens they have.

    order   (C,) captions in sorted order      rows    (N,) where their tokens stand, None = in order already
    blocks  runs of equal length, block by block
    images  (rows, length) groups, empty images left out
    """

    order: Array
    rows: Array | None
    blocks: list[list[Run]]
    images: list[tuple[Array, int]]

    @classmethod
    def of(cls, image_lengths: Tensor, text_lengths: Tensor) -> Plan:
        """From the lengths alone."""
        words, patches = text_lengths.numpy(), image_lengths.numpy()
        order = np.argsort(words, kind="stable")
        ordered = bool((order == np.arange(len(order))).all())
        starts = np.cumsum(words) - words
        rows = None
        if not ordered:
            runs = [np.arange(starts[caption], starts[caption] + words[caption]) for caption in order]
            rows = np.concatenate(runs) if runs else np.zeros(0, np.int64)
        images = [(np.flatnonzero(patches == length), int(length)) for length in np.unique(patches) if length]
        return cls(order, rows, list(_blocks(words[order])), images)


def _blocks(lengths: Array) -> Iterator[list[Run]]:
    """Runs of equal length, at most ROWS tokens a block (one caption at least)."""
    row, held = 0, 0
    block: list[Run] = []
    values, firsts, counts = np.unique(lengths, return_index=True, return_counts=True)
    for length, first, count in zip(values.tolist(), firsts.tolist(), counts.tolist(), strict=True):
        if not length:
            continue
        done = 0
        while done < count:
            taken = min(count - done, max(1, (ROWS - held) // length))
            if block and held + taken * length > ROWS:
                yield block
                block, held = [], 0
                continue
            block.append(Run(row, taken, length, first + done))
            row, done, held = row + taken * length, done + taken, held + taken * length
    if block:
        yield block


def index_dtype(count: int) -> torch.dtype:
    """The smallest integer that tells `count` places apart (255, as the weights of `_first_largest` start at 1)."""
    return torch.uint8 if count <= 255 else torch.int16 if count <= 32767 else torch.int32


def _bound(most: int) -> int:
    """A constant, no less than `most`, which may be a symbol that nobody knows a value of."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # a second, and only torch.compile comes here

    return next((bound for bound in (255, 32767) if guard_or_false(most <= bound)), 2**31 - 1)


@torch.library.custom_op("compal::maxsim_cpu", mutates_args=())
def maxsim_cpu(  # noqa: PLR0913 - an operator takes tensors and numbers, no record
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    t2i: bool,
    i2t: bool,
    keep: bool,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """image (I, P, D), real tokens first; text (N, D) packed → sums (I, C) of both directions and, with `keep`, the
    places of the maxima: (I, N) the patch of each text token, and (C, I, P) the token in the caption of each patch,
    both with the captions in sorted order. `most` bounds the captions' lengths and sets the width of the latter."""
    plan = Plan.of(image_lengths, text_lengths)
    out = _empty(image, text, text_lengths, (t2i, i2t), keep, most)
    to_text, to_image, of_text, of_image = (part.zero_() for part in out)
    dtype = to_text.dtype
    tokens = text if plan.rows is None else text[torch.from_numpy(plan.rows)]
    buffer = torch.empty(0, dtype=dtype)
    for block in plan.blocks:
        first, stop = block[0].start, block[-1].start + block[-1].count * block[-1].length
        words = tokens[first:stop].to(dtype)
        for members, length in plan.images:
            at_a_time = max(1, min(IMAGES, TILE // (length * len(words) * dtype.itemsize)))
            for begin in range(0, len(members), at_a_time):
                chosen = members[begin : begin + at_a_time]
                rows = slice(int(chosen[0]), int(chosen[-1]) + 1)
                whole = len(chosen) == rows.stop - rows.start
                part = image[rows, :length] if whole else image[torch.from_numpy(chosen), :length]
                columns = len(chosen) * length
                across = -(-columns // STRIDE) * STRIDE
                size = len(words) * across
                buffer = buffer if len(buffer) >= size else torch.empty(size, dtype=dtype)
                tile = buffer[:size].view(len(words), across)[:, :columns]
                torch.mm(words, part.to(dtype).flatten(0, 1).T, out=tile)
                found = _tile_maxima(tile.view(len(words), len(chosen), length), block, (t2i, i2t), keep)
                _write(found, (chosen, length), block, plan.order, (to_text, to_image, of_text, of_image))
    return to_text, to_image, of_text, of_image


Found = tuple[Tensor | None, Tensor | None, list[tuple[Tensor, Tensor | None]]]


def _tile_maxima(tile: Tensor, block: list[Run], directions: tuple[bool, bool], keep: bool) -> Found:
    """Of a tile (n, c, P): the best patch of each row (n, c) and its place, and per run the best row of each patch
    (count, c, P) and its place."""
    start = block[0].start
    places = _argmax(tile) if directions[0] and keep else None
    if not directions[0]:
        best = None
    elif places is None:
        best = tile.amax(2)
    else:
        best = tile.gather(2, places[..., None])[..., 0]
    runs: list[tuple[Tensor, Tensor | None]] = []
    for run in block if directions[1] else []:
        rows = tile[run.start - start : run.start - start + run.count * run.length]
        rows = rows.view(run.count, run.length, *tile.shape[1:])
        top = rows.amax(1)
        runs.append((top, _first_largest(rows, top) if keep else None))
    return best, places, runs


_pool: list[ThreadPoolExecutor] = []


def _argmax(tile: Tensor) -> Tensor:
    """The first place of the maximum along the last axis, by NumPy's vectorised one, on as many threads as torch
    uses."""
    values: Array = tile.numpy()
    threads = torch.get_num_threads()
    if threads == 1 or len(values) < 64 * threads:
        return torch.from_numpy(values.argmax(-1))
    if not _pool or _pool[0]._max_workers < threads:
        _pool[:] = [ThreadPoolExecutor(threads, "compal-argmax")]
    out = np.empty(values.shape[:2], np.int64)
    cuts = np.linspace(0, len(values), threads + 1).astype(int)
    jobs = [_pool[0].submit(values[a:b].argmax, -1, out[a:b]) for a, b in pairwise(cuts.tolist()) if a < b]
    for job in jobs:
        job.result()
    return torch.from_numpy(out)


def _first_largest(rows: Tensor, top: Tensor) -> Tensor:
    """The first place along axis 1 of (n, L, c, P) where `top` (n, c, P) stands."""
    length = rows.shape[1]
    kind = index_dtype(length)
    equal = np.equal(rows.numpy(), top.numpy()[:, None])
    weights = torch.arange(length, 0, -1, dtype=kind)[:, None, None]
    weighted = torch.from_numpy(equal).view(torch.uint8)
    weighted = weighted.mul_(weights) if kind == torch.uint8 else weighted.to(kind).mul_(weights)
    largest = weighted.amax(1)
    return (length - largest).clamp_(0, length - 1)  # a NaN equals nothing: its place is within bounds, no more


def _write(
    found: Found, images: tuple[Array, int], block: list[Run], order: Array, out: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    best, places, runs = found
    to_text, to_image, of_text, of_image = out
    members, length = torch.from_numpy(images[0]), images[1]
    start = block[0].start
    # The block's captions at once: a write by index costs 20 µs, and lengths that differ make runs of one caption.
    columns = torch.from_numpy(order[block[0].first : block[-1].first + block[-1].count])
    if best is not None:
        sums = []
        for run in block:
            rows = best[run.start - start : run.start - start + run.count * run.length]
            sums.append(rows.view(run.count, run.length, -1).sum(1))
        to_text[members[:, None], columns] = torch.cat(sums).T
    if runs:
        to_image[members[:, None], columns] = torch.cat([top.sum(2) for top, _ in runs]).T
    for run, (_, where) in zip(block, runs, strict=False):
        if where is not None:
            captions = torch.arange(run.first, run.first + run.count)
            of_image[captions[:, None], members, :length] = where.to(of_image.dtype)
    if places is not None:
        of_text[members, start : start + len(places)] = places.T.to(of_text.dtype)


def _empty(
    image: Tensor, text: Tensor, text_lengths: Tensor, directions: tuple[bool, bool], keep: bool, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (images, patches, _), captions, (t2i, i2t) = image.shape, text_lengths.shape[0], directions
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    return (
        image.new_empty(images, captions if t2i else 0, dtype=dtype),
        image.new_empty(images, captions if i2t else 0, dtype=dtype),
        image.new_empty((images, text.shape[0]) if keep and t2i else (0, 0), dtype=index_dtype(patches)),
        image.new_empty((captions, images, patches) if keep and i2t else (0, 0, 0), dtype=index_dtype(most)),
    )


@maxsim_cpu.register_fake
def _(  # noqa: PLR0913 - the operator's arguments
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    t2i: bool,
    i2t: bool,
    keep: bool,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(image, text, text_lengths, (t2i, i2t), keep, most)


@torch.library.custom_op("compal::maxsim_cpu_backward", mutates_args=())
def maxsim_cpu_backward(
    grads: list[Tensor],
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    places: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradients of image (I, P, D) and text (N, D): each maximum passes on its pair's gradient to the two tokens
    that made it. At D = 768 a sixth of the product for t2i and half of it for both directions, where there are a
    patch's maxima over the captions to pass on as well, six times as many."""
    from ._maxsim_gradients import Captions, of_tokens

    plan = Plan.of(image_lengths, text_lengths)
    rows = None if plan.rows is None else torch.from_numpy(plan.rows)
    words = (text if rows is None else text[rows]).to(grads[0].dtype)
    if len(words) and sum(part.numel() for part in places):
        d_image, d_words = of_tokens(Captions.of(plan, text_lengths), image_lengths, grads, places, (image, words))
    else:
        d_image, d_words = image.new_zeros(image.shape), torch.zeros_like(words)
    d_text = d_words if rows is None else torch.empty_like(d_words).index_copy_(0, rows, d_words)
    return d_image, d_text.to(text.dtype)


@maxsim_cpu_backward.register_fake
def _(
    grads: list[Tensor],
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    places: list[Tensor],
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(image, memory_format=torch.contiguous_format), text.new_empty(text.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], output[2], output[3])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, grad_text: Tensor, grad_image: Tensor, *_: object) -> tuple[Any, ...]:
    image, image_lengths, text, text_lengths, of_text, of_image = ctx.saved_tensors
    d_image, d_text = maxsim_cpu_backward(
        [grad_text.contiguous(), grad_image.contiguous()], image, image_lengths, text, text_lengths, [of_text, of_image]
    )
    return d_image, None, d_text, *[None] * 5


maxsim_cpu.register_autograd(_gradients, setup_context=_save)
