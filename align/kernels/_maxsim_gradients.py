"""Where the gradients of MaxSim go on a CPU: from the places of the maxima to sums of rows.

A maximum between text token n and patch p with gradient g adds g · patch to the token and g · token to the patch. One
side has its partners in a row (each token one patch per image); for the other side the entries are sorted by place
first: by radix, as places are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ._maxsim_cpu import ENTRIES, Array, Plan, bags

Tables = tuple[Tensor, Tensor]  # patches (I·P, D) and words (N, D), or their gradients


def of_words(plan: Plan, lengths: Tensor, grad: Tensor, places: Tensor, tables: Tables, out: Tables) -> None:
    """Each text token chose a patch: `grad` (I, C) of each caption's sum, `places` (I, N) in sorted order."""
    (patches, words), (d_patches, d_words) = tables, out
    images, tokens = places.shape
    width = len(patches) // images
    owners = _owners(plan, lengths)
    members = np.concatenate([rows for rows, _ in plan.images]) if plan.images else np.zeros(0, np.int64)
    if not len(members) or not tokens:
        return
    kept = torch.from_numpy(members)
    chosen, weights = places[kept], grad[kept][:, owners]
    bases = (kept * width)[:, None]
    for part in _slices(tokens, ENTRIES // len(members)):
        index = (chosen[:, part] + bases).T.contiguous()
        starts = torch.arange(0, index.numel(), len(members))
        d_words[part] += bags(patches, index.view(-1), starts, weights[:, part].T.reshape(-1))
    for part in _slices(len(members), ENTRIES // tokens):
        some = chosen[part]
        order = torch.from_numpy(np.argsort(some.numpy(), axis=1, kind="stable"))
        slots = (some + torch.arange(len(some))[:, None] * width).view(-1)
        summed = bags(words, order.view(-1), _starts(slots, len(some) * width), weights[part].gather(1, order).view(-1))
        d_patches.view(images, width, -1)[kept[part]] += summed.view(len(some), width, -1)


def of_patches(plan: Plan, lengths: Tensor, grad: Tensor, places: Tensor, tables: Tables, out: Tables) -> None:
    """Each patch chose a token of each caption: `grad` (I, C) of each image's sum, `places` (C, I, P) within the
    caption, captions in sorted order."""
    (patches, words), (d_patches, d_words) = tables, out
    width = places.shape[2]
    order = torch.from_numpy(plan.order)
    sizes = lengths[order]
    starts = sizes.cumsum(0) - sizes
    empty = int((sizes == 0).sum())  # they come first
    captions = len(order) - empty
    for rows, length in plan.images:
        members = torch.from_numpy(rows)
        weights = grad[members][:, order[empty:]]  # (m, captions)
        slots = (members * width)[:, None] + torch.arange(length)  # (m, length), rows of `patches`
        for part in _slices(len(members), ENTRIES // max(1, captions * length)):
            index = places[empty:, members[part], :length] + starts[empty:, None, None]
            shares = weights[part, None].expand(-1, length, -1).reshape(-1)
            index = index.permute(1, 2, 0).reshape(-1)
            cuts = torch.arange(0, len(index), captions) if captions else index
            if captions:
                d_patches[slots[part].reshape(-1)] += bags(words, index, cuts, shares)
        for part in _slices(captions, ENTRIES // (len(members) * length)):
            some = places[empty:][part, members, :length].reshape(part.stop - part.start, -1)
            sorting = torch.from_numpy(np.argsort(some.numpy(), axis=1, kind="stable"))
            first = int(starts[empty + part.start])
            last = int(starts[empty + part.stop - 1] + sizes[empty + part.stop - 1])
            taken = (some + (starts[empty:][part] - first)[:, None]).view(-1)
            shares = weights[:, part].T[:, :, None].expand(-1, -1, length).reshape(len(some), -1).gather(1, sorting)
            cuts = _starts(taken, last - first)
            d_words[first:last] += bags(patches, slots.view(-1)[sorting].view(-1), cuts, shares.view(-1))


def _owners(plan: Plan, lengths: Tensor) -> Tensor:
    """(N,) the caption of each token, in sorted order."""
    order = torch.from_numpy(plan.order)
    return order.repeat_interleave(lengths[order])


def _starts(slots: Tensor, count: int) -> Tensor:
    """(count,) where the entries of each slot begin, once they are sorted by slot."""
    counts: Array = np.bincount(slots.numpy(), minlength=count)
    return torch.from_numpy(np.cumsum(counts) - counts)


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, max(1, size)):
        yield slice(start, min(start + max(1, size), total))
