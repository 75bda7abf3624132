"""MaxSim on a GPU: both directions from one tile of similarities, which never leaves the registers.

A tile is 128 text tokens of several captions against the patches of one image. The patch of each token is a maximum
along its rows. The token of each patch is a maximum per segment of rows: every caption starts on a multiple of SEGMENT
rows and fills its last segment by repeating its last token, so no row is masked; a second, small kernel takes the best
of a caption's segments, however many tiles they lie in. Indices are exact: the lowest of equal maxima.

Numbers that change from batch to batch are not specialised on: a new count of tokens compiles nothing.
"""

# ruff: noqa: PLR0913, SIM102 (a kernel takes pointers, not objects; an `if` on a constant is decided while compiling)

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._maxsim_layout import SEGMENT, SHARED, Plan, Tiles, forward_tiles, index_dtype

PARTIAL = 256 * 2**20  # bytes of segment maxima at a time; images beyond them wait for the next launch


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of(slots, row, tokens, MAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The token of each row, as int64, and whether it stands there for itself."""
    if MAPPED:
        mark = tl.load(slots + row)
        real = mark >= 0
        token = tl.where(real, mark, -1 - mark)
    else:
        real = row < tokens
        token = tl.where(real, row, 0)
    return token.to(tl.int64), real


@triton.jit  # type: ignore[untyped-decorator]
def _similarities(  # type: ignore[no-untyped-def]
    text,
    image,
    token,
    patch,
    real,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    depth = tl.arange(0, DEPTH)
    text_rows = text + token[:, None] * WIDTH + depth[None, :]
    image_columns = image + patch[None, :] * WIDTH + depth[:, None]
    for k in range(0, WIDTH, DEPTH):
        if WIDTH % DEPTH == 0:
            one = tl.load(text_rows + k)
            other = tl.load(image_columns + k, mask=real[None, :], other=0.0)
        else:
            inside = k + depth < WIDTH
            one = tl.load(text_rows + k, mask=inside[None, :], other=0.0)
            other = tl.load(image_columns + k, mask=real[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(one, other, acc, input_precision="ieee")
    return acc


@triton.jit  # type: ignore[untyped-decorator]
def _block(  # type: ignore[no-untyped-def]
    text,
    image,
    partial,
    partial_index,
    token,
    segment,
    start,
    length,
    patches,
    best,
    best_index,
    T2I: tl.constexpr,
    I2T: tl.constexpr,
    SEGMENT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One block of patches: the running best patch of each row, and the segments' maxima written."""
    patch = start + tl.arange(0, COLUMNS)
    real = patch < length
    acc = _similarities(text, image, token, patch, real, WIDTH, ROWS, COLUMNS, DEPTH)
    if I2T:
        cube = tl.reshape(acc, [ROWS // SEGMENT, SEGMENT, COLUMNS])
        top = tl.max(cube, axis=1)
        place = tl.arange(0, SEGMENT)[None, :, None]
        # Two plain reductions: half the instructions of one that carries (value, index).
        index = tl.min(tl.where(cube == top[:, None, :], place, SEGMENT - 1), axis=1)
        target = segment[:, None] * patches + patch[None, :]
        tl.store(partial + target, top, mask=real[None, :])
        tl.store(partial_index + target, index.to(tl.uint8), mask=real[None, :])
    if T2I:
        acc = tl.where(real[None, :], acc, float("-inf"))
        top = tl.max(acc, axis=1)
        index = tl.min(tl.where(acc == top[:, None], patch[None, :], patches), axis=1)
        better = top > best  # not ≥: an earlier block keeps what is equal
        best_index = tl.where(better, index, best_index)
        best = tl.where(better, top, best)
    return best, best_index


@triton.jit(do_not_specialize=["tokens", "tiles"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    text,
    image,
    image_lengths,
    slots,
    t2i,
    t2i_index,
    partial,
    partial_index,
    tokens,
    patches,
    tiles,
    T2I: tl.constexpr,
    I2T: tl.constexpr,
    SEGMENT: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAIL: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Rows of a tile × all patches of an image. Programs that share an image follow each other."""
    number = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    length = tl.load(image_lengths + number).to(tl.int32)
    row = tile * ROWS + tl.arange(0, ROWS)
    token, real = _rows_of(slots, row, tokens, I2T)
    segment = tile * (ROWS // SEGMENT) + tl.arange(0, ROWS // SEGMENT)
    skipped = number.to(tl.int64) * patches
    image += skipped * WIDTH
    partial += skipped * (tiles * (ROWS // SEGMENT))
    partial_index += skipped * (tiles * (ROWS // SEGMENT))
    best = tl.full([ROWS], float("-inf"), tl.float32)
    best_index = tl.zeros([ROWS], tl.int32)
    for start in range(0, tl.minimum(length, WHOLE), COLUMNS):
        best, best_index = _block(
            text, image, partial, partial_index, token, segment, start, length, patches, best, best_index,
            T2I, I2T, SEGMENT, WIDTH, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
    if TAIL > 0:
        if length > WHOLE:
            best, best_index = _block(
                text, image, partial, partial_index, token, segment, WHOLE, length, patches, best, best_index,
                T2I, I2T, SEGMENT, WIDTH, ROWS, TAIL, DEPTH,
            )  # fmt: skip
    if T2I:
        target = number.to(tl.int64) * tokens + token
        tl.store(t2i + target, tl.where(length > 0, best, 0.0), mask=real)
        tl.store(t2i_index + target, best_index.to(t2i_index.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["segments"])  # type: ignore[untyped-decorator]
def _combine(  # type: ignore[no-untyped-def]
    partial,
    partial_index,
    image_lengths,
    slots,
    first,
    i2t,
    i2t_index,
    patches,
    captions,
    segments,
    SEGMENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The best segment of each caption, for COLUMNS patches and ROWS captions: (I, S, P) → (I, P, C)."""
    blocks = tl.cdiv(patches, COLUMNS)
    number = (tl.program_id(0) // blocks).to(tl.int64)
    patch = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    caption = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    known = caption < captions
    start = tl.load(first + caption, mask=known, other=0)
    count = tl.load(first + caption + 1, mask=known, other=0) - start
    real = patch < tl.load(image_lengths + number)
    best = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
    best_index = tl.zeros([ROWS, COLUMNS], tl.int32)
    for step in range(tl.max(count)):
        source = (number * segments + (start + step)[:, None]) * patches + patch[None, :]
        inside = (step < count)[:, None] & real[None, :]
        value = tl.load(partial + source, mask=inside, other=float("-inf"))
        index = tl.load(partial_index + source, mask=inside, other=0).to(tl.int32)
        better = value > best
        best = tl.where(better, value, best)
        best_index = tl.where(better, index + step * SEGMENT, best_index)
    # Behind the caption its last token is repeated. Equal rows of a product need not be equal to the last bit: where a
    # repetition wins by that, the place is that of the token.
    behind = (start + tl.maximum(count, 1) - 1)[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    marks = tl.load(slots + behind, mask=(known & (count > 0))[:, None], other=-1)
    last = (count - 1) * SEGMENT + tl.sum((marks >= 0).to(tl.int32), axis=1) - 1
    best_index = tl.minimum(best_index, tl.maximum(last, 0)[:, None])
    best = tl.where((count > 0)[:, None] & real[None, :], best, 0.0)
    target = (number * patches + patch)[None, :] * captions + caption[:, None]
    inside = known[:, None] & (patch < patches)[None, :]
    tl.store(i2t + target, best, mask=inside)
    tl.store(i2t_index + target, best_index.to(i2t_index.dtype.element_ty), mask=inside)


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory a block can have."""
    if device.type != "cuda":
        return SHARED
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block))


Found = tuple[Tensor, Tensor, Tensor, Tensor]


def _empty(image: Tensor, tokens: int, captions: int, directions: tuple[bool, bool], longest: int) -> Found:
    (images, patches, _), (t2i, i2t) = image.shape, directions
    one, other = (images, tokens) if t2i else (0,), (images, patches, captions) if i2t else (0,)
    return (
        image.new_empty(one, dtype=torch.float32),
        image.new_empty(other, dtype=torch.float32),
        image.new_empty(one, dtype=index_dtype(patches)),
        image.new_empty(other, dtype=index_dtype(longest)),
    )


@torch.library.custom_op("compal::token_max_triton", mutates_args=())
def token_max_triton(
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    slots: Tensor,
    captions: Tensor,
    first: Tensor,
    t2i: bool,
    i2t: bool,
    longest: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`token_max` for a `Plan`, with the places of the maxima: (I, N) the patch of each token, (I, P, C) the token in
    the caption of each patch. `longest` bounds the captions' lengths and sets the width of the latter."""
    image, text, image_lengths = image.contiguous(), text.contiguous(), image_lengths.contiguous()
    (images, patches, width), tokens, count = image.shape, len(text), len(first) - 1
    out = _empty(image, tokens, count, (t2i, i2t), longest)
    rows = len(slots) if i2t else tokens
    if not rows or not patches:
        for part in out:
            part.zero_()
        return out
    tiles = forward_tiles(image.dtype, width, patches, shared_memory(image.device))
    high = triton.cdiv(rows, tiles.rows)
    step = max(1, PARTIAL // (5 * len(captions) * patches)) if i2t else images
    size = (min(step, images), len(captions), patches) if i2t else (0,)
    partial, partial_index = image.new_empty(size, dtype=torch.float32), image.new_empty(size, dtype=torch.uint8)
    for begin in range(0, images, max(step, 1)):
        part, lengths = image[begin : begin + step], image_lengths[begin : begin + step]
        to_text, to_image, of_text, of_image = (each[begin : begin + step] for each in out)
        _forward[(high * len(part),)](
            text, part, lengths, slots, to_text, of_text, partial, partial_index, tokens, patches, high,
            **_constants(tiles, width, patches, (t2i, i2t)),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
        if i2t:
            _combine[(len(part) * triton.cdiv(patches, 32), triton.cdiv(count, 32))](
                partial, partial_index, lengths, slots, first, to_image, of_image, patches, count, len(captions),
                SEGMENT=SEGMENT, ROWS=32, COLUMNS=32,
            )  # fmt: skip
    return out


def _constants(tiles: Tiles, width: int, patches: int, directions: tuple[bool, bool]) -> dict[str, int | bool]:
    """The constexprs of `_forward`."""
    return {
        "T2I": directions[0],
        "I2T": directions[1],
        "SEGMENT": SEGMENT,
        "WIDTH": width,
        "WHOLE": patches - patches % tiles.columns if tiles.tail else patches,
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "TAIL": tiles.tail,
        "DEPTH": tiles.depth,
    }


@token_max_triton.register_fake
def _(
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    slots: Tensor,
    captions: Tensor,
    first: Tensor,
    t2i: bool,
    i2t: bool,
    longest: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(image, text.shape[0], first.shape[0] - 1, (t2i, i2t), longest)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Found) -> None:
    ctx.save_for_backward(*inputs[:6], output[2], output[3])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_t2i: Tensor | None, grad_i2t: Tensor | None, *_: object) -> tuple[Any, ...]:
    from ._maxsim_triton_backward import token_max_triton_backward

    image, image_lengths, text, slots, captions, first, t2i_index, i2t_index = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    given = [
        None if grad is None or not index.numel() else grad
        for grad, index in ((grad_t2i, t2i_index), (grad_i2t, i2t_index))
    ]
    d_image, d_text = token_max_triton_backward(
        *given, t2i_index, i2t_index, image, image_lengths, text, slots, captions, first, *wanted
    )
    return (d_image if wanted[0] else None, None, d_text if wanted[1] else None, *[None] * 6)


token_max_triton.register_autograd(_gradients, setup_context=_save)


def token_max(
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    t2i: bool,
    i2t: bool,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Best partners of all tokens, for every image and caption.

    image          (I, P, D), the real patches first; what stands behind `image_lengths` (I,) int64 is not read
    text           (N, D) packed tokens of the same float dtype; `text_lengths` (C,) int64 sums to N
    t2i, i2t       the directions wanted
    most           a bound of the captions' lengths, for torch.compile, whose graph cannot look; None = N

    Gives t2i (I, N) float32, for each text token its best patch's similarity, 0 in an empty image; and i2t (I, P, C)
    float32, for each patch its best token in each caption, 0 for an empty caption and behind `image_lengths`. Of a
    direction that is not wanted, an empty tensor (0,). Differentiable once; the gradient of equal maxima goes to the
    first. A NaN among the tokens is passed over by the maximum.

    i2t needs the captions' lengths on the host, for the layout of the tiles: lengths that lie on a GPU are waited for,
    once. t2i alone waits for nothing.
    """
    longest, tokens = 0, text.shape[0]
    if not i2t:
        nothing = torch.zeros(0, dtype=torch.int32, device=image.device)
        plan = Plan(nothing, nothing, torch.zeros(len(text_lengths) + 1, dtype=torch.int32, device=image.device))
    elif torch.compiler.is_compiling():
        longest, plan = tokens if most is None else most, Plan.of(text_lengths, tokens, exact=False)
    else:
        text_lengths = text_lengths.cpu()
        longest, plan = max(text_lengths.tolist(), default=0), Plan.of(text_lengths, tokens)
    where = [part.to(image.device, non_blocking=True) for part in (plan.slots, plan.captions, plan.first)]
    lengths = image_lengths.to(image.device)
    to_text, to_image, _, _ = token_max_triton(image, lengths, text, *where, t2i, i2t, longest)
    return to_text, to_image


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """What a build can compile without a GPU: name, kernel, types of its arguments, constants, warps and stages."""
    rows = []
    for width, directions in ((256, (True, True)), (768, (True, True)), (256, (True, False))):
        tiles = forward_tiles(torch.bfloat16, width, 196)
        constants = _constants(tiles, width, 196, directions)
        signature = dict.fromkeys(("tokens", "patches", "tiles"), "i32") | {
            "text": "*bf16", "image": "*bf16", "image_lengths": "*i64", "slots": "*i32", "t2i": "*fp32",
            "t2i_index": "*u8", "partial": "*fp32", "partial_index": "*u8",
        }  # fmt: skip
        name = f"forward {'both' if directions[1] else 't2i'} {width}"
        rows.append((name, _forward, signature, constants, tiles.num_warps, tiles.num_stages))
    signature = dict.fromkeys(("patches", "captions", "segments"), "i32") | {
        "partial": "*fp32", "partial_index": "*u8", "image_lengths": "*i64", "slots": "*i32", "first": "*i32",
        "i2t": "*fp32", "i2t_index": "*u8",
    }  # fmt: skip
    return [*rows, ("combine", _combine, signature, {"SEGMENT": SEGMENT, "ROWS": 32, "COLUMNS": 32}, 4, 3)]
