"""Triton: the sums over the negatives of every row, or the sigmoid terms of every row, with no tile in memory.

One program walks over all columns for 64 rows, with its products in registers. Columns are the same call with the two
sides exchanged: the products twice, in exchange for O(I + C) memory and no atomics, so the result is deterministic.
"""

# ruff: noqa: PLR0913 (a kernel takes pointers and numbers, no objects)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32}


@triton.jit  # type: ignore[untyped-decorator]
def _reduce(  # type: ignore[no-untyped-def]
    image,
    text,
    image_labels,
    text_labels,
    scale,
    bias,
    sharpness,
    out,
    images,
    captions,
    width,
    SIGMOID: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_label = tl.load(image_labels + rows, mask=rows < images, other=-2)
    factor, shift = tl.load(scale), tl.load(bias)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    depth = tl.arange(0, DEPTH)
    for start in range(0, captions, COLUMNS):
        columns = start + tl.arange(0, COLUMNS).to(tl.int64)
        scores = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, width, DEPTH):
            inside = first + depth < width
            one = tl.load(
                image + rows[:, None] * width + first + depth[None, :],
                mask=(rows < images)[:, None] & inside[None, :],
                other=0.0,
            )
            other = tl.load(
                text + columns[None, :] * width + first + depth[:, None],
                mask=(columns < captions)[None, :] & inside[:, None],
                other=0.0,
            )
            scores = tl.dot(one, other, acc=scores, input_precision=PRECISION)
        column_label = tl.load(text_labels + columns, mask=columns < captions, other=-1)
        positive = row_label[:, None] == column_label[None, :]
        logits = scores * factor + shift
        if SIGMOID:
            logits = tl.where(positive, -logits, logits)
            terms = tl.maximum(logits, 0.0) + tl.log(1 + tl.exp(-tl.abs(logits)))
            total += tl.sum(tl.where((columns < captions)[None, :], terms, 0.0), axis=1)
        else:
            excluded = positive | (columns >= captions)[None, :]
            logits = tl.where(excluded, float("-inf"), logits * sharpness)
            higher = tl.maximum(top, tl.max(logits, axis=1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(top - safe) + tl.sum(tl.exp(logits - safe[:, None]), axis=1)
            top = higher
    result = total if SIGMOID else top + tl.log(total)
    tl.store(out + rows, result, mask=rows < images)


def _rows(
    sides: tuple[Tensor, Tensor, Tensor, Tensor], scale: Tensor, bias: Tensor, sharpness: float, sigmoid: bool
) -> Tensor:
    """(I,) float32, for images, texts, and the labels of both."""
    image, text, image_labels, text_labels = (side.contiguous() for side in sides)
    out = torch.empty(len(image), dtype=torch.float32, device=image.device)
    if not len(image):
        return out
    precision = "tf32" if image.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "ieee"
    _reduce[(triton.cdiv(len(image), BLOCK["ROWS"]),)](
        image,
        text,
        image_labels,
        text_labels,
        scale.float(),
        bias.float(),
        sharpness,
        out,
        len(image),
        len(text),
        image.shape[1],
        SIGMOID=sigmoid,
        PRECISION=precision,
        **BLOCK,
    )
    return out


def negatives_logsumexp(
    image: Tensor,
    text: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    scale: Tensor,
    sharpnesses: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """(K, I) and (K, C) float32, as `_contrastive_cpu.negatives_logsumexp`; labels below 0 already differ between
    the sides."""
    bias = torch.zeros_like(scale)
    there, back = (image, text, image_labels, text_labels), (text, image, text_labels, image_labels)
    rows, columns = (
        torch.stack([_rows(sides, scale, bias, sharpness, False) for sharpness in sharpnesses])
        for sides in (there, back)
    )
    return rows, columns


def sigmoid_rows(
    image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """(I,) float32: the sum of the sigmoid terms of each row."""
    return _rows((image, text, image_labels, text_labels), scale, bias, 1.0, True)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """What a build can compile without a GPU: name, kernel, types of its arguments, constants, warps and stages."""
    signature = dict.fromkeys(("images", "captions", "width"), "i32") | {
        "image": "*bf16", "text": "*bf16", "image_labels": "*i64", "text_labels": "*i64", "scale": "*fp32",
        "bias": "*fp32", "sharpness": "fp32", "out": "*fp32",
    }  # fmt: skip
    return [
        (f"contrastive {name}", _reduce, signature, {"SIGMOID": sigmoid, "PRECISION": "ieee", **BLOCK}, 4, 3)
        for name, sigmoid in (("infonce", False), ("sigmoid", True))
    ]
