"""Sizes of the tiles of MaxSim's Triton kernels, from shapes alone, and where the captions' tokens stand in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHARED = 232448  # bytes of shared memory a block of an H100 or H200 can have; an A100 has 166912, an RTX 4090 101376
# Rows of a segment. 16 are the rows of one warp in a tensor-core tile, and their maximum stays in its registers; with
# 32 it goes through shared memory, and the kernel spills 26 registers on sm_90.
SEGMENT = 16
ALIGN = 128  # slots are padded to it: every tile height divides it
FILL = 264  # programs that keep a large GPU busy: two on each of 132 processors
SPLITS = 8  # the most partial sums of the text's gradient, N · D float32 each


@dataclass(frozen=True)
class Tiles:
    """rows × columns of a product, `depth` of its sum at a time; `tail` columns for the rest of a row of columns."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    tail: int = 0


def forward_tiles(dtype: torch.dtype, width: int, patches: int, shared: int = SHARED) -> Tiles:
    """Tiles of the forward kernel, from shapes and the shared memory of a block: no kernel is timed to choose them.

    16 bits: 128 tokens read once for up to 256 patches, 77 FLOP a byte at P = 196, against 55 with two blocks of 128
    that read them twice. float32: products without tensor cores, since these would round to 10 bits.
    """
    single = dtype.itemsize == 4
    rows = 64 if single else 128
    columns = min(64 if single else 256, _power(patches))
    rest = patches % columns if patches > columns else 0
    depth = min(32 if single else 64, _power(width))
    warps = 8 if columns >= 128 else 4
    stages = max(2, min(3, shared // ((rows + columns) * depth * dtype.itemsize)))
    return Tiles(rows, columns, depth, warps, stages, _power(rest) if rest else 0)


def _power(count: int) -> int:
    """The smallest power of two ≥ count and ≥ 16, the least a product takes."""
    return max(16, 1 << (max(count, 1) - 1).bit_length())


def index_dtype(count: int) -> torch.dtype:
    """The smallest integer for `count` places."""
    return torch.uint8 if count <= 256 else torch.int16 if count <= 32768 else torch.int32


def backward_tiles(dtype: torch.dtype, width: int, text: bool) -> Tiles:
    """Tiles of the gradient of the image (patches × features) or the text (slots × features)."""
    if dtype.itemsize == 4:
        return Tiles(64, min(64, _power(width)), 32, 4, 2)
    if text:
        return Tiles(64, min(256, _power(width)), 32, 8, 3)  # a depth of 64 spills on sm_80
    return Tiles(128, min(128, _power(width)), 64, 8, 2)


def splits(programs: int, images: int) -> int:
    """Parts the images are cut into for the text's gradient, so that the GPU is full. From shapes alone: the order of
    summation, and with it the bits, is the same on every machine."""
    return max(1, min(SPLITS, images, -(-FILL // max(programs, 1))))


@dataclass(frozen=True, eq=False)
class Plan:
    """Where the tokens of the captions stand in the rows of the tiles.

    slots     (S,) int32: the token of each row; -1 - token for a repetition and behind the last caption
    captions  (S / SEGMENT,) int32: the caption of each segment, -1 behind the last
    first     (C + 1,) int32: the first segment of each caption, and the end
    """

    slots: Tensor
    captions: Tensor
    first: Tensor

    @classmethod
    def of(cls, lengths: Tensor, tokens: int, exact: bool = True) -> Plan:
        """On the device of `lengths`. With `exact` the last segment's number is read, for which a GPU is waited; else
        there is room for the worst case."""
        counts = (lengths + SEGMENT - 1) // SEGMENT
        ends = counts.cumsum(0)
        segments = (tokens + (SEGMENT - 1) * len(lengths)) // SEGMENT
        if exact and len(ends):
            segments = int(ends[-1])
        segments = -(-segments // (ALIGN // SEGMENT)) * (ALIGN // SEGMENT)
        first = torch.cat([ends.new_zeros(1), ends])
        number = torch.arange(segments, device=lengths.device)
        owner = torch.searchsorted(ends, number, right=True)
        inside = owner < len(lengths)
        captions = owner.masked_fill(~inside, -1)
        at = captions.clamp(min=0)
        offset = (number - first[at])[:, None] * SEGMENT + torch.arange(SEGMENT, device=lengths.device)
        length = lengths[at][:, None] if len(lengths) else torch.ones_like(offset)
        starts = (lengths.cumsum(0) - lengths)[at][:, None] if len(lengths) else torch.zeros_like(offset)
        token = starts + torch.minimum(offset, length - 1)
        slots = torch.where(inside[:, None] & (offset < length), token, -1 - token)
        slots = torch.where(inside[:, None], slots, -1).flatten()
        return cls(slots.int(), captions.int(), first.int())
