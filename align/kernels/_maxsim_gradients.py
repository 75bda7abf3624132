"""Where the gradients of MaxSim go on a CPU: from the places of the maxima to sums of rows.

A maximum between text token n and patch p with gradient g adds g · patch to the token and g · token to the patch. One
side has its partners in a row (each token one patch per image); for the other side the entries are sorted by place
first: by radix, as places are bytes. The rows are then summed by `embedding_bag`, some images and a few columns at a
time: at D = 768 the patches of 64 images fall out of every cache, and a sum over them took three times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._maxsim_cpu import Array, Plan

ENTRIES = 2**18  # maxima at a time, as many as there are in the images of a part: some 6 MB of places and weights
COLUMNS = 64  # of a table at a time: 2,048 tokens are then 512 kB, the second-level cache of one core

Entries = tuple[Tensor, Tensor, Tensor]  # rows of a table, where each sum begins among them, weights


@dataclass(frozen=True, eq=False)
class Captions:
    """Captions in sorted order, those without tokens (they come first) left out.

    columns  (C,) which captions      sizes, starts  (C,) their tokens, and the first of them (int32)
    tokens   how many tokens
    """

    columns: Tensor
    sizes: Tensor
    starts: Tensor
    tokens: int

    @classmethod
    def of(cls, plan: Plan, lengths: Tensor) -> Captions:
        order = torch.from_numpy(plan.order)
        columns = order[lengths[order] > 0]
        sizes = lengths[columns]
        return cls(columns, sizes, (sizes.cumsum(0) - sizes).int(), int(sizes.sum()))


def of_tokens(
    captions: Captions, image_lengths: Tensor, grads: list[Tensor], places: list[Tensor], tables: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients of image (I, P, D) in its dtype and of words (N, D), in sorted order: `grads` (I, C) of the sums of
    each direction, `places` (I, N) and (C, I, P) of their maxima, empty for a direction that is not asked for."""
    image, words = tables
    count, width, features = image.shape
    d_image = torch.empty_like(image, memory_format=torch.contiguous_format)
    d_words = torch.zeros_like(words)
    kept = (image_lengths > 0).nonzero()[:, 0]
    if len(kept) < count:
        d_image.zero_()
    columns = [slice(at, min(at + COLUMNS, features)) for at in range(0, features, COLUMNS)]
    cut = [words[:, column].contiguous() for column in columns]
    per_image = max(places[0].numel(), places[1].numel()) // max(count, 1)
    for members in _parts(kept, per_image):
        sizes = image_lengths[members]
        whole = int(members[-1] - members[0]) + 1 == len(members)
        rows = slice(int(members[0]), int(members[-1]) + 1) if whole else members
        to_patches, to_words = [], []
        if places[0].numel():
            share = grads[0][members][:, captions.columns].T
            entries = _chosen_patches(captions, places[0][rows], share, width)
            to_patches.append(entries[0])
            to_words.append(entries[1])
        if places[1].numel():
            share = grads[1][members][:, captions.columns].T
            entries = _chosen_words(captions, places[1][-len(share) :, rows], share, sizes)
            to_patches.append(entries[0])
            to_words.append(entries[1])
        for column, table in zip(columns, cut, strict=True):
            found = bags(table, *to_patches[0])
            for more in to_patches[1:]:
                found += bags(table, *more)
            d_image[rows, :, column] = found.view(len(members), width, -1).to(image.dtype)
            patches = image[rows, :, column].to(words.dtype).flatten(0, 1).contiguous()
            for more in to_words:
                d_words[:, column] += bags(patches, *more)
    return d_image, d_words


def _chosen_patches(captions: Captions, places: Tensor, share: Tensor, width: int) -> tuple[Entries, Entries]:
    """Each token chose a patch of each of m images: `places` (m, N), `share` (C, m) the gradients. Entries of the
    patches (m · P sums of words) and of the words (N sums of patches)."""
    images, tokens = places.shape
    bases = torch.arange(0, images * width, width, dtype=torch.int32)
    shares = share.repeat_interleave(captions.sizes, 0)
    order = torch.from_numpy(np.argsort(places.numpy(), axis=1, kind="stable"))
    to_patches = order.int(), _starts(places + bases[:, None], images * width), shares.T.gather(1, order)
    cuts = torch.arange(0, images * tokens, images, dtype=torch.int32)
    to_words = places.T.contiguous() + bases, cuts, shares
    return _flat(to_patches), _flat(to_words)


def _chosen_words(captions: Captions, places: Tensor, share: Tensor, sizes: Tensor) -> tuple[Entries, Entries]:
    """Each real patch of m images chose a word of each caption: `places` (C, m, P), `share` (C, m), `sizes` (m,) real
    patches. Entries of the patches (m · P sums of words, without entries behind the real ones) and of the words."""
    count, _, width = places.shape
    real = (torch.arange(width) < sizes[:, None]).flatten()
    places = places.flatten(1)
    slots = None if bool(real.all()) else real.nonzero()[:, 0]
    if slots is not None:
        places = places[:, slots]
    ends = real.cumsum(0, dtype=torch.int32) * count
    by_patch = places.T.contiguous() + captions.starts
    to_patches = by_patch, ends - real.int() * count, share.T.repeat_interleave(sizes, 0)
    order = torch.from_numpy(np.argsort(places.numpy(), axis=1, kind="stable"))
    shares = share.repeat_interleave(sizes, 1).gather(1, order)
    starts = _starts(places + captions.starts[:, None], captions.tokens)
    to_words = (order if slots is None else slots[order]).int(), starts, shares
    return _flat(to_patches), _flat(to_words)


def _flat(entries: Entries) -> Entries:
    rows, starts, weights = entries
    return rows.reshape(-1), starts, weights.reshape(-1)


def bags(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """(sums, D): weighted sums of `rows` of a table, cut at `starts`."""
    if not len(rows):
        return table.new_zeros(len(starts), table.shape[1])
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _starts(slots: Tensor, count: int) -> Tensor:
    """(count,) where the entries of each slot begin, once they are sorted by slot."""
    counts: Array = np.bincount(slots.reshape(-1).numpy(), minlength=count)
    return torch.from_numpy(np.cumsum(counts) - counts).int()


def _parts(members: Tensor, entries: int) -> Iterator[Tensor]:
    """Images in parts of about equal size, of at most ENTRIES maxima (one image at least)."""
    if not entries or not len(members):
        return
    size = max(1, ENTRIES // entries)
    yield from members.tensor_split(-(-len(members) // size))
