"""MaxSim of chosen pairs on a CPU: for each image one product with the tokens of the captions it is paired with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._maxsim_cpu import Array, index_dtype
from ._maxsim_gradients import bags


def _token_rows(text_lengths: Tensor, captions: Array) -> Array:
    """The rows of the packed tokens of `captions`, one caption after the other."""
    lengths: Array = text_lengths.numpy()
    starts = np.cumsum(lengths) - lengths
    wanted = lengths[captions]
    within = np.arange(int(wanted.sum())) - np.repeat(np.cumsum(wanted) - wanted, wanted)
    rows: Array = np.repeat(starts[captions], wanted) + within
    return rows


@torch.library.custom_op("compal::maxsim_pairs_cpu", mutates_args=())
def maxsim_pairs_cpu(  # noqa: PLR0913 - an operator takes tensors and numbers, no record
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    pairs: Tensor,
    t2i: bool,
    i2t: bool,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums (N,) of both directions of `pairs` (N, 2), and the places of the maxima: the patch of each token of each
    pair's caption, pair after pair, and (N, P) the token in the caption of each patch; `most` as in `maxsim_cpu`."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    numbered: Array = pairs.numpy()
    lengths: Array = text_lengths.numpy()
    sizes = lengths[numbered[:, 1]]
    starts = np.cumsum(sizes) - sizes
    patches = image.shape[1]
    to_text, to_image = torch.zeros(2, len(pairs), dtype=dtype).unbind()
    of_text = torch.zeros(int(sizes.sum()) if t2i else 0, dtype=index_dtype(patches))
    of_image = torch.zeros((len(pairs), patches) if i2t else (0, 0), dtype=index_dtype(most))
    for row in np.unique(numbered[:, 0]):
        members = np.flatnonzero(numbered[:, 0] == row)
        members = members[sizes[members] > 0]
        known = int(image_lengths[row])
        if not known or not len(members):
            continue
        words = text[torch.from_numpy(_token_rows(text_lengths, numbered[members, 1]))].to(dtype)
        tile = words @ image[row, :known].to(dtype).T
        at = 0
        best, places = tile.max(1)
        for member in members.tolist():
            stop = at + int(sizes[member])
            if t2i:
                to_text[member] = best[at:stop].sum()
                of_text[starts[member] : starts[member] + stop - at] = places[at:stop].to(of_text.dtype)
            if i2t:
                top, where = tile[at:stop].max(0)
                to_image[member] = top.sum()
                of_image[member, :known] = where.to(of_image.dtype)
            at = stop
    return to_text.clone(), to_image.clone(), of_text, of_image


@maxsim_pairs_cpu.register_fake
def _(  # noqa: PLR0913 - the operator's arguments
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    pairs: Tensor,
    t2i: bool,
    i2t: bool,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    count = pairs.shape[0]
    tokens = torch.library.get_ctx().new_dynamic_size() if t2i else 0
    return (
        image.new_empty(count, dtype=dtype),
        image.new_empty(count, dtype=dtype),
        image.new_empty(tokens, dtype=index_dtype(image.shape[1])),
        image.new_empty((count, image.shape[1]) if i2t else (0, 0), dtype=index_dtype(most)),
    )


@torch.library.custom_op("compal::maxsim_pairs_cpu_backward", mutates_args=())
def maxsim_pairs_cpu_backward(
    grads: list[Tensor],
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    pairs: Tensor,
    places: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradients of image and text: every maximum is an entry (text row, image row, weight)."""
    dtype = grads[0].dtype
    patches, words = image.to(dtype).flatten(0, 1), text.to(dtype)
    numbered: Array = pairs.numpy()
    lengths: Array = text_lengths.numpy()
    sizes, known = lengths[numbered[:, 1]], image_lengths.numpy()[numbered[:, 0]]
    first_words = (np.cumsum(lengths) - lengths)[numbered[:, 1]]
    width = image.shape[1]
    rows, columns, weights = [], [], []
    if places[0].numel():
        owner = np.repeat(np.arange(len(numbered)), sizes)
        live = known[owner] > 0
        rows.append(_token_rows(text_lengths, numbered[:, 1])[live])
        columns.append((numbered[owner, 0] * width + places[0].numpy())[live])
        weights.append(grads[0].numpy()[owner][live])
    if places[1].numel():
        pair, patch = np.nonzero((np.arange(width) < known[:, None]) & (sizes > 0)[:, None])
        rows.append(first_words[pair] + places[1].numpy()[pair, patch])
        columns.append(numbered[pair, 0] * width + patch)
        weights.append(grads[1].numpy()[pair])
    d_patches, d_words = torch.zeros_like(patches), torch.zeros_like(words)
    if rows:
        entries = np.concatenate(rows), np.concatenate(columns), np.concatenate(weights)
        _add(d_words, patches, *entries)
        _add(d_patches, words, entries[1], entries[0], entries[2])
    return d_patches.view_as(image).to(image.dtype), d_words.to(text.dtype)


def _add(out: Tensor, table: Tensor, to: Array, source: Array, weights: Array) -> None:
    """out[to] += weights · table[source]."""
    order = np.argsort(to, kind="stable")
    touched, starts = np.unique(to[order], return_index=True)
    out[torch.from_numpy(touched)] = bags(
        table, torch.from_numpy(source[order]), torch.from_numpy(starts), torch.from_numpy(weights[order])
    )


@maxsim_pairs_cpu_backward.register_fake
def _(
    grads: list[Tensor],
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    pairs: Tensor,
    places: list[Tensor],
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(image, memory_format=torch.contiguous_format), text.new_empty(text.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], output[2], output[3])


def _gradients(ctx: Any, grad_text: Tensor, grad_image: Tensor, *_: object) -> tuple[Any, ...]:
    image, image_lengths, text, text_lengths, pairs, of_text, of_image = ctx.saved_tensors
    d_image, d_text = maxsim_pairs_cpu_backward(
        [grad_text.contiguous(), grad_image.contiguous()],
        image,
        image_lengths,
        text,
        text_lengths,
        pairs,
        [of_text, of_image],
    )
    return d_image, None, d_text, *[None] * 5


maxsim_pairs_cpu.register_autograd(_gradients, setup_context=_save)
