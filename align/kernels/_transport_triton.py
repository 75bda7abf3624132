"""`transport` on a GPU: one program a pair multiplies its patches and tokens and runs all rounds in registers.

A pair of 196 × 32 similarities is 25 KB: it never leaves the program, which writes one score, and for the backward one
potential a token. The backward takes the tiles of `_transport_cpu`, by torch's operations.

Patches are the rows of the product, since a tensor core of Hopper takes 64 rows or more, and captions are shorter.
"""

# ruff: noqa: PLR0913 (a kernel takes pointers, not objects)

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._transport_cpu import SAFE, Places

MOST = (
    16384  # similarities a program can hold, 64 registers of each of 256 threads; twice as many spill on sm_80 and 90
)
LIMIT = SAFE * math.log(torch.finfo(torch.float32).max)


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(kernel, real_patch, real_word, pieces, words, iterations, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rounds with exp(S / epsilon): f, g and the g before the last round, over epsilon."""
    v = tl.where(real_word, tl.full([WORDS], 1.0, tl.float32), 0.0)
    before = v
    u = tl.sum(kernel, axis=1)
    for _ in range(iterations):
        before = v
        sums = tl.sum(kernel * v[None, :], axis=1)
        u = tl.where(real_patch, words / tl.where(real_patch, sums, 1.0), 0.0)
        sums = tl.sum(kernel * u[:, None], axis=0)
        v = tl.where(real_word, pieces / tl.where(real_word, sums, 1.0), 0.0)
    f = -tl.log(tl.where(real_patch, u, 1.0))
    return f, -tl.log(tl.where(real_word, v, 1.0)), -tl.log(tl.where(real_word, before, 1.0))


@triton.jit  # type: ignore[untyped-decorator]
def _logarithms(scaled, real_patch, real_word, pieces, words, iterations, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The same with logarithms, for any spread; -inf where there is padding."""
    g = tl.zeros([WORDS], tl.float32)
    before = g
    f = tl.max(scaled, axis=1)
    for _ in range(iterations):
        before = g
        top = tl.where(real_patch, tl.max(scaled - g[None, :], axis=1), 0.0)
        sums = tl.sum(tl.exp(scaled - g[None, :] - top[:, None]), axis=1)
        f = tl.where(real_patch, top + tl.log(tl.where(real_patch, sums, 1.0)) - tl.log(words), 0.0)
        top = tl.where(real_word, tl.max(scaled - f[:, None], axis=0), 0.0)
        sums = tl.sum(tl.exp(scaled - f[:, None] - top[None, :]), axis=0)
        g = tl.where(real_word, top + tl.log(tl.where(real_word, sums, 1.0)) - tl.log(pieces), 0.0)
    return f, g, before


@triton.jit(do_not_specialize=["columns", "iterations"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    image,
    image_mask,
    tokens,
    rows,
    first,
    owners,
    scores,
    potentials,
    patches,
    columns,
    epsilon,
    iterations,
    LIMIT: tl.constexpr,
    MASKED: tl.constexpr,
    MAPPED: tl.constexpr,
    OWNED: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCHES: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """scores (S, columns), potentials (M, columns): a place is a caption, a column an image (`OWNED`: the pair's)."""
    place, column = tl.program_id(0) // columns, tl.program_id(0) % columns
    number = tl.load(owners + place) if OWNED else column.to(tl.int64)
    start, end = tl.load(first + place), tl.load(first + place + 1)
    word, patch, depth = tl.arange(0, WORDS), tl.arange(0, PATCHES), tl.arange(0, DEPTH)
    real_word, real_patch = start + word < end, patch < patches
    if MASKED:
        real_patch = tl.load(image_mask + number * patches + patch, mask=real_patch, other=0) != 0
    token = start + word
    if MAPPED:
        token = tl.load(rows + token, mask=real_word, other=0)
    # Within an image 32 bits are enough, and half the registers of an address.
    lines = image + number * patches * WIDTH + (patch[:, None] * WIDTH + depth[None, :])
    lists = tokens + token[None, :] * WIDTH + depth[:, None]
    acc = tl.zeros([PATCHES, WORDS], tl.float32)
    for k in range(0, WIDTH, DEPTH):
        inside = k + depth < WIDTH
        one = tl.load(lines + k, mask=real_patch[:, None] & inside[None, :], other=0.0)
        other = tl.load(lists + k, mask=real_word[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(one, other, acc, input_precision="ieee")
    pieces = tl.sum(real_patch.to(tl.float32), axis=0)
    words = tl.sum(real_word.to(tl.float32), axis=0)
    if pieces * words > 0:
        real = real_patch[:, None] & real_word[None, :]
        scaled = tl.where(real, acc / epsilon, float("-inf"))
        high = tl.max(tl.max(scaled, axis=1), axis=0)
        low = tl.min(tl.min(tl.where(real, scaled, float("inf")), axis=1), axis=0)
        if high - low <= LIMIT:
            kernel = tl.exp(scaled - high)
            f, g, before = _scaled(kernel, real_patch, real_word, pieces, words, iterations, WORDS)
            f = tl.where(real_patch, f + high, 0.0)
        else:
            f, g, before = _logarithms(scaled, real_patch, real_word, pieces, words, iterations, WORDS)
        total = epsilon * (tl.sum(f, axis=0) / pieces + tl.sum(g, axis=0) / words)
        tl.store(scores + place.to(tl.int64) * columns + column, total)
        tl.store(potentials + (start + word) * columns + column, before, mask=real_word)


def fits(image: Tensor, tokens: Tensor, longest: int) -> bool:
    """Whether the largest pair fits a program; else all take the tiles."""
    same = image.dtype == tokens.dtype and image.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return same and _power(image.shape[1], 64) * _power(longest, 16) <= MOST


def fill(
    image: Tensor,
    image_mask: Tensor | None,
    tokens: Tensor,
    places: Places,
    epsilon: float,
    iterations: int,
    found: Tensor,
    potentials: Tensor,
) -> None:
    """Writes the scores (S, columns) and potentials (M, columns) of all places; both come as zeros."""
    image, tokens, device = image.contiguous(), tokens.contiguous(), image.device
    mask = None if image_mask is None else image_mask.contiguous().view(torch.uint8)
    ends = torch.tensor([0, *places.lengths]).cumsum(0).to(device)
    owners = None
    if places.counts is not None:
        owners = torch.arange(len(places.counts)).repeat_interleave(torch.tensor(places.counts)).to(device)
    if not found.numel() or not image.shape[1] or not len(tokens):
        return
    longest = max(places.lengths)
    constants, warps = _constants(image.dtype, image.shape[2], image.shape[1], longest)
    _forward[(found.numel(),)](
        image, image if mask is None else mask, tokens, ends if places.rows is None else places.rows, ends,
        ends if owners is None else owners, found, potentials, image.shape[1], found.shape[1], epsilon, iterations,
        **constants, MASKED=mask is not None, MAPPED=places.rows is not None, OWNED=owners is not None,
        num_warps=warps, num_stages=3,
    )  # fmt: skip


def _constants(dtype: torch.dtype, width: int, patches: int, longest: int) -> tuple[dict[str, Any], int]:
    rows, columns = _power(patches, 64), _power(longest, 16)
    depth = min(32 if dtype.itemsize == 4 else 64, _power(width, 16))
    sizes = {"LIMIT": LIMIT, "WIDTH": width, "PATCHES": rows, "WORDS": columns, "DEPTH": depth}
    return sizes, min(max(rows * columns // 2048, 4), 8)


def _power(count: int, least: int) -> int:
    return max(least, 1 << (max(count, 1) - 1).bit_length())


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """What a build can compile without a GPU: name, kernel, types of its arguments, constants, warps and stages."""
    signature = dict.fromkeys(("patches", "columns", "iterations"), "i32") | {
        "image": "*bf16", "image_mask": "*u8", "tokens": "*bf16", "rows": "*i64", "first": "*i64", "owners": "*i64",
        "scores": "*fp32", "potentials": "*fp32", "epsilon": "fp32",
    }  # fmt: skip
    made = []
    for width, longest, pairs in ((768, 32, False), (256, 64, True)):
        constants, warps = _constants(torch.bfloat16, width, 196, longest)
        flags = {"MASKED": pairs, "MAPPED": pairs, "OWNED": pairs}
        made.append((f"transport {width} × {longest}", _forward, signature, constants | flags, warps, 3))
    return made
