"""Chosen or all pairs of images and captions through a joint transformer, a chunk at a time.

`pair_scores` is for a module that reads image and caption as one sequence; `memory_scores` for one whose captions look
at what was computed once per image (cross-attention). Both work for any module: pairs of similar length go together,
a chunk is as large as a budget of tokens allows, and where autograd would hold too much, chunks are computed again in
the backward pass with the same random numbers (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...errors import InputError

Joint = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Memory = Callable[[Tensor, Tensor], Any]
Query = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
Recompute = bool | Literal["auto"] | Callable[[int], bool]

RETAINED = 2 * 2**30  # bytes that autograd may hold before chunks are computed again
TEXTS = 128  # captions against a chunk of images at a time; what the images share costs 1 / images


def tokens_at_a_time(device: torch.device) -> int:
    """Tokens per chunk: on a CPU 16,384 × 512 × 4 B = 32 MB an activation; on a GPU sixteen times that."""
    return 16_384 if device.type == "cpu" else 262_144


def pair_scores(  # noqa: PLR0913 (the two sides and the options, all by keyword)
    joint: Joint,
    image: Tensor,
    text: Tensor,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    pairs: Tensor | None = None,
    tokens: int | None = None,
    recompute: Recompute = "auto",
) -> Tensor:
    """`joint(image (n, P, D), mask (n, P), text (n, T, D'), mask (n, T)) -> (n,)` of every pair, in chunks.

    image (I, P, D), text (C, L, D'); masks bool, True on real tokens, None = all real. Captions are cut behind
    the last real token of a chunk (T ≤ L); `joint` must not let padding, which it sees as zeros, change a score.
    pairs      (N, 2) int64: image row, caption column; None = all
    tokens     of a chunk, P + T a pair; None = 16,384 on a CPU and 262,144 on a GPU
    recompute  True or False; "auto" = if the chunks together would hold more than 2 GiB by the measure of the first;
               or a function that says it for the number of tokens in all chunks
    (N,), or (I, C) without `pairs`, in the dtype that `joint` gives (float32 if there is no pair at all). A pair whose
    image or caption has no real token scores 0 with gradient 0. Raises `InputError` for shapes that do not fit.
    """
    image, image_mask = _clean("image", image, image_mask)
    text, text_mask = _clean("text", text, text_mask)
    shape = (len(image), len(text))
    chosen = _all_pairs(shape, image.device) if pairs is None else _checked(pairs)
    lengths = _ends(text_mask)

    def run(some: Tensor) -> Tensor:
        rows, columns = some.unbind(1)
        length = int(lengths[columns].max())
        return joint(image[rows], image_mask[rows], text[columns, :length], text_mask[columns, :length])

    real = (image_mask.any(1)[chosen[:, 0]] & text_mask.any(1)[chosen[:, 1]]).nonzero()[:, 0]
    # Pairs of similar caption length go together, so that little of a chunk is padding.
    order = real[lengths[chosen[real, 1]].argsort(stable=True)]
    each = (lengths[chosen[order, 1]] + image.shape[1]).tolist()
    sizes = _sizes(each, tokens or tokens_at_a_time(image.device))
    scores = in_chunks(run, torch.split(chosen[order], sizes), sum(each), recompute)
    result = _put(scores, order, len(chosen), image)
    return result.view(shape) if pairs is None else result


def memory_scores(  # noqa: PLR0913 (the two sides and the options, all by keyword)
    memory: Memory,
    query: Query,
    image: Tensor,
    text: Tensor,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    pairs: Tensor | None = None,
    tokens: int | None = None,
    texts: int = TEXTS,
    recompute: Recompute = "auto",
) -> Tensor:
    """`query(memory(image (B, P, D), mask), mask (B, P), text (1 or B, T, L, D'), mask (1 or B, T, L)) -> (B, T)` of
    every pair, in tiles of B images with T captions each: what `memory` gives is made once for the images of a tile
    and never copied for a pair. Without `pairs` all images have the same captions, with a first axis of 1.

    texts   captions in a tile at most, without `pairs`
    With `pairs` those of one image stand together, and images of similarly many, padded to the most of the tile.
    Everything else: as `pair_scores`.
    """
    image, image_mask = _clean("image", image, image_mask)
    text, text_mask = _clean("text", text, text_mask)
    budget = tokens or tokens_at_a_time(image.device)
    lengths = _ends(text_mask)
    if pairs is not None:
        sides = image, image_mask, text, text_mask
        return _grouped(memory, query, sides, _checked(pairs), budget, recompute)
    order = lengths.argsort(stable=True)
    length = max(1, int(lengths.max())) if len(text) else 1

    def tile(kept: Any, mask: Tensor, captions: Tensor) -> Tensor:
        end = max(1, int(lengths[captions].max()))
        return query(kept, mask, text[None, captions, :end], text_mask[None, captions, :end])

    captions = torch.split(order, max(1, min(texts, budget // length)))
    at_a_time = max(1, budget // max(1, min(texts, len(text)) * length))
    total, rows = len(image) * len(text) * length, []
    several = torch.split(torch.arange(len(image), device=image.device), at_a_time)
    for some in several if len(text) and len(image) else ():
        run = partial(tile, memory(image[some], image_mask[some]), image_mask[some])
        rows.append(torch.cat(in_chunks(run, captions, total, recompute, len(several)), dim=1))
    if not rows:
        return torch.zeros(len(image), len(text), device=image.device)
    block = torch.cat(rows)[:, order.argsort()]
    return block.masked_fill(~(image_mask.any(1)[:, None] & text_mask.any(1)), 0)


def _grouped(
    memory: Memory,
    query: Query,
    sides: tuple[Tensor, Tensor, Tensor, Tensor],
    pairs: Tensor,
    budget: int,
    recompute: Recompute,
) -> Tensor:
    """(N,): tiles of images, each with its own captions."""
    image, image_mask, text, text_mask = sides
    lengths = _ends(text_mask)

    def run(tile: Tensor) -> Tensor:
        """(B, 1 + T): an image row and the numbers of its pairs, -1 behind them → the scores of the pairs."""
        rows, numbers = tile[:, 0], tile[:, 1:]
        used = numbers >= 0
        columns = pairs[:, 1][torch.where(used, numbers, numbers[:, :1])]  # an image's first caption fills its row
        end = int(lengths[columns].max())
        kept = memory(image[rows], image_mask[rows])
        return query(kept, image_mask[rows], text[columns, :end], text_mask[columns, :end])[used]

    real = (image_mask.any(1)[pairs[:, 0]] & text_mask.any(1)[pairs[:, 1]]).nonzero()[:, 0]
    tiles, total = _tiles(pairs[real, 0].tolist(), real.tolist(), (image.shape[1], max(1, text.shape[1])), budget)
    moved = [torch.tensor(tile, device=pairs.device) for tile in tiles]
    scores = in_chunks(run, moved, total, recompute)
    order = torch.cat([tile[:, 1:][tile[:, 1:] >= 0] for tile in moved]) if moved else real
    return _put(scores, order, len(pairs), image)


def _tiles(
    rows: list[int], numbers: list[int], each: tuple[int, int], budget: int
) -> tuple[list[list[list[int]]], int]:
    """Tiles of [row, pair, pair, …], filled with -1 to one length, and the tokens of all; `each` is of an image and of
    a caption. An image with more captions than the budget holds comes several times."""
    of_row: dict[int, list[int]] = {}
    for row, number in zip(rows, numbers, strict=True):
        of_row.setdefault(row, []).append(number)
    most = max(1, (budget - each[0]) // each[1])
    runs = [[row, *found[k : k + most]] for row, found in of_row.items() for k in range(0, len(found), most)]
    runs.sort(key=len, reverse=True)
    tiles: list[list[list[int]]] = []
    total = 0
    for run in runs:
        width = len(tiles[-1][0]) if tiles else 0
        cost = each[0] + (width - 1) * each[1]
        # Half of a row may be padding at most.
        if not tiles or (len(tiles[-1]) + 1) * cost > budget or 2 * (len(run) - 1) < width - 1:
            tiles.append([])
            width = len(run)
        tiles[-1].append(run + [-1] * (width - len(run)))
        total += each[0] + (width - 1) * each[1]
    return tiles, total


def in_chunks(
    function: Callable[[Tensor], Tensor],
    chunks: Iterable[Tensor],
    tokens: int,
    recompute: Recompute = "auto",
    times: int = 1,
) -> list[Tensor]:
    """`function` of each chunk, `tokens` in all; with `recompute` each is computed again in the backward pass instead
    of being held: a third more work, bounded memory. "auto" holds the first and goes by what that takes, `times` over
    where so many calls like this one are held together."""
    waiting, results = list(chunks), []
    if not torch.is_grad_enabled() or recompute is False:
        return [function(chunk) for chunk in waiting]
    if recompute == "auto":
        if len(waiting) * times < 2:
            return [function(chunk) for chunk in waiting]
        first = waiting.pop(0)
        meter = _Meter()
        with meter:
            results.append(function(first))
        again = meter.bytes * (1 + len(waiting)) * times > RETAINED
    else:
        again = recompute if isinstance(recompute, bool) else recompute(tokens)
    for chunk in waiting:
        results.append(checkpoint(function, chunk, use_reentrant=False) if again else function(chunk))
    return results


class _Meter(torch.autograd.graph.saved_tensors_hooks):
    """Counts what autograd saves, each storage once and parameters not at all."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        super().__init__(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would be a cycle with its own graph

    @property
    def bytes(self) -> int:
        return sum(self.seen.values())


def _clean(name: str, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zeros where nothing is real, so that not even NaN reaches a sum or a gradient."""
    if mask is None:
        return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    if mask.shape != values.shape[:2] or mask.dtype != torch.bool:
        raise InputError(
            f"{name}_mask {tuple(mask.shape)} of {mask.dtype} for {name} {tuple(values.shape)}",
            "Give one bool a token.",
        )
    return values.masked_fill(~mask[..., None], 0), mask


def _checked(pairs: Tensor) -> Tensor:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
        raise InputError(
            f"pairs {tuple(pairs.shape)} of {pairs.dtype}", "Give (N, 2) int64: image row, caption column."
        )
    return pairs


def _ends(mask: Tensor) -> Tensor:
    """(C,): one behind the last real token."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * places).amax(1) if mask.shape[1] else places.new_zeros(len(mask))


def _all_pairs(shape: tuple[int, int], device: torch.device) -> Tensor:
    rows = torch.arange(shape[0], device=device).repeat_interleave(shape[1])
    return torch.stack([rows, torch.arange(shape[1], device=device).repeat(shape[0])], dim=1)


def _sizes(each: list[int], budget: int) -> list[int]:
    """How many of the pairs, in ascending order of tokens, go into each chunk, at the last one's size."""
    sizes, count = [], 0
    for cost in each:
        if count and (count + 1) * cost > budget:
            sizes.append(count)
            count = 0
        count += 1
    return [*sizes, count] if count else sizes


def _put(scores: Sequence[Tensor], order: Tensor, count: int, like: Tensor) -> Tensor:
    """(count,): the scores of the pairs `order`, 0 for the others."""
    if not len(order):
        return torch.zeros(count, device=like.device)
    found = torch.cat(list(scores))
    return found.new_zeros(count).index_put((order,), found)
