"""Gradients of MaxSim on a GPU, from the places of the maxima alone.

Each place is a 1 in a matrix of zeros; times the incoming gradient it is W (rows of tiles × patches), and the gradients
are Wᵀ·text and W·image. A tile of W is made in registers from bytes and goes straight into a product: no similarities
and no atomics, so equal inputs give equal bits. Two more products than the forward pass has, against the six
passes over all similarities of dense autograd.
"""

# ruff: noqa: PLR0913 (a kernel takes pointers and numbers, no objects)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._maxsim_layout import SEGMENT, Tiles, backward_tiles, splits
from ._maxsim_triton import _rows_of


@triton.jit  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    grad_t2i,
    t2i_index,
    grad_i2t,
    i2t_index,
    captions_of,
    first,
    token,
    real,
    slot,
    number,
    patch,
    valid,
    tokens,
    patches,
    captions,
    T2I: tl.constexpr,
    I2T: tl.constexpr,
    SEGMENT: tl.constexpr,
    SLOTS: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """W of some slots and patches of an image, (SLOTS, PATCHES) float32. `slot` is the first of them."""
    weights = tl.zeros([SLOTS, PATCHES], tl.float32)
    if T2I:
        at = number * tokens + token
        index = tl.load(t2i_index + at, mask=real, other=0).to(tl.int32)
        grad = tl.load(grad_t2i + at, mask=real, other=0.0)
        hit = (index[:, None] == patch[None, :]) & real[:, None] & valid[None, :]
        weights = tl.where(hit, grad[:, None], weights)
    if I2T:
        # A segment has one caption: its row of gradients is read once for SEGMENT rows.
        segment = slot // SEGMENT + tl.arange(0, SLOTS // SEGMENT)
        caption = tl.load(captions_of + segment)
        inside = (caption >= 0)[:, None] & valid[None, :]
        at = (number * patches + patch)[None, :] * captions + caption[:, None]
        begin = (segment - tl.load(first + caption, mask=caption >= 0, other=0)) * SEGMENT
        index = tl.load(i2t_index + at, mask=inside, other=0).to(tl.int32) - begin[:, None]
        grad = tl.load(grad_i2t + at, mask=inside, other=0.0)
        place = tl.arange(0, SEGMENT)[None, :, None]
        hit = (index[:, None, :] == place) & inside[:, None, :]
        weights += tl.reshape(tl.where(hit, grad[:, None, :], 0.0), [SLOTS, PATCHES])
    return weights


@triton.jit(do_not_specialize=["tokens", "rows"])  # type: ignore[untyped-decorator]
def _image_gradient(  # type: ignore[no-untyped-def]
    grad_t2i,
    t2i_index,
    grad_i2t,
    i2t_index,
    scale,
    text,
    image_lengths,
    slots,
    captions_of,
    first,
    out,
    tokens,
    patches,
    captions,
    rows,
    T2I: tl.constexpr,
    I2T: tl.constexpr,
    MAPPED: tl.constexpr,
    SEGMENT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Wᵀ · text, ROWS patches of an image × COLUMNS features; the sum runs over all slots."""
    blocks = tl.cdiv(patches, ROWS)
    number = (tl.program_id(0) // blocks).to(tl.int64)
    patch = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    length = tl.load(image_lengths + number).to(tl.int32)
    valid = patch < length
    factor = tl.load(scale)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    # Nothing but padding: no slot is visited.
    end = tl.where(tl.program_id(0) % blocks * ROWS < length, rows, 0)
    for slot in range(0, end, DEPTH):
        token, real = _rows_of(slots, slot + tl.arange(0, DEPTH), tokens, MAPPED)
        weights = _weights(
            grad_t2i, t2i_index, grad_i2t, i2t_index, captions_of, first, token, real, slot, number, patch, valid,
            tokens, patches, captions, T2I, I2T, SEGMENT, DEPTH, ROWS,
        )  # fmt: skip
        other = tl.load(text + token[:, None] * WIDTH + feature[None, :], mask=(feature < WIDTH)[None, :], other=0.0)
        one = tl.trans(weights / factor).to(text.dtype.element_ty)
        acc = tl.dot(one, other, acc, input_precision="ieee")
    target = (number * patches + patch)[:, None] * WIDTH + feature[None, :]
    inside = (patch < patches)[:, None] & (feature < WIDTH)[None, :]
    tl.store(out + target, (acc * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _text_gradient(  # type: ignore[no-untyped-def]
    grad_t2i,
    t2i_index,
    grad_i2t,
    i2t_index,
    scale,
    image,
    image_lengths,
    slots,
    captions_of,
    first,
    out,
    tokens,
    patches,
    captions,
    images,
    T2I: tl.constexpr,
    I2T: tl.constexpr,
    MAPPED: tl.constexpr,
    SEGMENT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """W · image, ROWS slots × COLUMNS features; the sum runs over the patches of one part of the images."""
    slot = tl.program_id(0) * ROWS
    token, real = _rows_of(slots, slot + tl.arange(0, ROWS), tokens, MAPPED)
    feature = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.load(scale)
    blocks = tl.cdiv(patches, DEPTH)
    share = tl.cdiv(images, tl.num_programs(2))
    begin = tl.program_id(2) * share
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(begin * blocks, tl.minimum(begin + share, images) * blocks):
        number = (step // blocks).to(tl.int64)
        patch = step % blocks * DEPTH + tl.arange(0, DEPTH)
        valid = patch < tl.load(image_lengths + number)
        weights = _weights(
            grad_t2i, t2i_index, grad_i2t, i2t_index, captions_of, first, token, real, slot, number, patch, valid,
            tokens, patches, captions, T2I, I2T, SEGMENT, ROWS, DEPTH,
        )  # fmt: skip
        source = (number * patches + patch)[:, None] * WIDTH + feature[None, :]
        other = tl.load(image + source, mask=valid[:, None] & (feature < WIDTH)[None, :], other=0.0)
        acc = tl.dot((weights / factor).to(image.dtype.element_ty), other, acc, input_precision="ieee")
    target = (tl.program_id(2).to(tl.int64) * tokens + token)[:, None] * WIDTH + feature[None, :]
    inside = real[:, None] & (feature < WIDTH)[None, :]
    tl.store(out + target, (acc * factor).to(out.dtype.element_ty), mask=inside)


def _scale(dtype: torch.dtype, grads: list[Tensor]) -> Tensor:
    """(1,) float32 that the weights are divided by before they are rounded. Gradients of scores, some 1e-8 in a large
    batch, are below what float16 holds (6e-8); the other dtypes have the range of float32."""
    if dtype != torch.float16 or not grads:
        return torch.ones(1, device=grads[0].device if grads else None)
    largest = torch.stack([grad.abs().amax() for grad in grads]).amax().reshape(1)
    return largest.clamp(min=torch.finfo(torch.float32).tiny)


@torch.library.custom_op("compal::token_max_triton_backward", mutates_args=())
def token_max_triton_backward(
    grad_t2i: Tensor | None,
    grad_i2t: Tensor | None,
    t2i_index: Tensor,
    i2t_index: Tensor,
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    slots: Tensor,
    captions: Tensor,
    first: Tensor,
    for_image: bool,
    for_text: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of image (I, P, D) and text (N, D) in their dtype, summed in float32; empty (0,) if not wanted."""
    grads = [grad.contiguous() for grad in (grad_t2i, grad_i2t) if grad is not None]
    if not grads:
        return _zeros(image, for_image), _zeros(text, for_text)
    image, text, image_lengths = image.contiguous(), text.contiguous(), image_lengths.contiguous()
    scale = _scale(image.dtype, grads)
    # Without a gradient of its own a direction is compiled away: its pointer is never followed.
    given = [scale if grad is None else grad.contiguous() for grad in (grad_t2i, grad_i2t)]
    sources = (given[0], t2i_index, given[1], i2t_index, scale)
    layout = (image_lengths, slots, captions, first)
    constants = {
        "T2I": grad_t2i is not None,
        "I2T": grad_i2t is not None,
        "MAPPED": len(slots) > 0,
        "SEGMENT": SEGMENT,
        "WIDTH": text.shape[1],
    }
    d_image = _for_image(sources, image, text, layout, constants) if for_image else _zeros(image, False)
    d_text = _for_text(sources, image, text, layout, constants) if for_text else _zeros(text, False)
    return d_image, d_text


def _zeros(like: Tensor, wanted: bool) -> Tensor:
    return like.new_zeros(like.shape if wanted else (0,))


def _sizes(tiles: Tiles) -> dict[str, int]:
    return {
        "ROWS": tiles.rows, "COLUMNS": tiles.columns, "DEPTH": tiles.depth,
        "num_warps": tiles.num_warps, "num_stages": tiles.num_stages,
    }  # fmt: skip


def _for_image(
    sources: tuple[Tensor, ...], image: Tensor, text: Tensor, layout: tuple[Tensor, ...], constants: dict[str, Any]
) -> Tensor:
    images, patches, width = image.shape
    tokens, captions, rows = len(text), len(layout[3]) - 1, len(layout[1]) or len(text)
    tiles = backward_tiles(image.dtype, width, False)
    out = torch.empty_like(image)
    if out.numel():
        _image_gradient[(images * triton.cdiv(patches, tiles.rows), triton.cdiv(width, tiles.columns))](
            *sources, text, *layout, out, tokens, patches, captions, rows, **constants, **_sizes(tiles)
        )
    return out


def _for_text(
    sources: tuple[Tensor, ...], image: Tensor, text: Tensor, layout: tuple[Tensor, ...], constants: dict[str, Any]
) -> Tensor:
    images, patches, width = image.shape
    tokens, captions, rows = len(text), len(layout[3]) - 1, len(layout[1]) or len(text)
    tiles = backward_tiles(text.dtype, width, True)
    if not text.numel() or not image.numel():
        return torch.zeros_like(text)
    grid = triton.cdiv(rows, tiles.rows), triton.cdiv(width, tiles.columns)
    parts = splits(grid[0] * grid[1], images)
    out = text.new_empty(parts, tokens, width, dtype=torch.float32 if parts > 1 else text.dtype)
    _text_gradient[(*grid, parts)](
        *sources, image, *layout, out, tokens, patches, captions, images, **constants, **_sizes(tiles)
    )
    return out.sum(0).to(text.dtype) if parts > 1 else out[0]


@token_max_triton_backward.register_fake
def _(
    grad_t2i: Tensor | None,
    grad_i2t: Tensor | None,
    t2i_index: Tensor,
    i2t_index: Tensor,
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    slots: Tensor,
    captions: Tensor,
    first: Tensor,
    for_image: bool,
    for_text: bool,
) -> tuple[Tensor, Tensor]:
    return (
        image.new_empty(image.shape if for_image else (0,)),
        text.new_empty(text.shape if for_text else (0,)),
    )


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """As `_maxsim_triton.ahead_of_time`."""
    rows = []
    types = {
        "grad_t2i": "*fp32", "t2i_index": "*u8", "grad_i2t": "*fp32", "i2t_index": "*u8", "scale": "*fp32",
        "text": "*bf16", "image": "*bf16", "image_lengths": "*i64", "slots": "*i32", "captions_of": "*i32",
        "first": "*i32", "out": "*fp32", "tokens": "i32", "patches": "i32", "captions": "i32", "rows": "i32",
        "images": "i32",
    }  # fmt: skip
    for kernel, of_text in ((_image_gradient, False), (_text_gradient, True)):
        for width in (256, 768):
            tiles = backward_tiles(torch.bfloat16, width, of_text)
            constants = {"T2I": True, "I2T": True, "MAPPED": True, "SEGMENT": SEGMENT, "WIDTH": width, **_sizes(tiles)}
            warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
            signature = {name: types[name] for name in kernel.arg_names if name in types}
            name = f"backward {'text' if of_text else 'image'} {width}"
            rows.append((name, kernel, signature, constants, warps, stages))
    return rows
