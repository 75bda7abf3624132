"""The tiled objectives as operators of torch: what is saved between the passes is small, and known by its shape."""

# ruff: noqa: PLR0913 (an operator takes tensors and numbers, no objects)

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ._contrastive_cpu import (
    Matrix,
    Pairs,
    Side,
    Tile,
    Vectors,
    computed,
    infonce_forward,
    infonce_gradient,
    product,
    sharpnesses,
    sigmoid_forward,
    sigmoid_gradient,
)


def _exact(tensor: Tensor) -> torch.autocast:
    """Without autocast: a logit of 100 in bfloat16 is off by 0.4."""
    return torch.autocast(tensor.device.type, enabled=False)


# --- over a score matrix -------------------------------------------------------------------------------


@torch.library.custom_op("compal::contrastive_infonce_scores", mutates_args=())
def infonce_scores(
    scores: Tensor, positives: Tensor, taken: Tensor | None, scale: Tensor, beta: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    with _exact(scores):
        return infonce_forward(Matrix(scores, positives, taken, rows), scale, beta)


@infonce_scores.register_fake
def _(
    scores: Tensor, positives: Tensor, taken: Tensor | None, scale: Tensor, beta: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _infonce_shapes(scores, scores.shape[0], scores.shape[1], beta)


def _infonce_shapes(like: Tensor, images: int, captions: int, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    kept = len(sharpnesses(beta)) + 3
    new = like.new_empty((), dtype=computed(like)).new_empty
    return new(()), new((kept, images)), new((kept, captions))


@torch.library.custom_op("compal::contrastive_infonce_scores_backward", mutates_args=())
def infonce_scores_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    taken: Tensor | None,
    scale: Tensor,
    sides: list[Tensor],
    beta: float,
    rows: int,
) -> tuple[Tensor, Tensor]:
    with _exact(scores):
        source = Matrix(scores, positives, taken, rows)
        by_row, by_column = (Side(side).times(grad) for side in sides)
        return _to_scores(scores, scale, infonce_gradient(source, scale, beta, by_row, by_column))


@infonce_scores_backward.register_fake
def _(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    taken: Tensor | None,
    scale: Tensor,
    sides: list[Tensor],
    beta: float,
    rows: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores, memory_format=torch.contiguous_format), torch.empty_like(scale)


def _to_scores(scores: Tensor, scale: Tensor, pieces: Iterable[tuple[Tile | Pairs, Tensor]]) -> tuple[Tensor, Tensor]:
    """The gradients of scores and scale from those of the logits."""
    by_scores, by_scale = torch.zeros_like(scores, memory_format=torch.contiguous_format), torch.zeros_like(scale)
    for piece, slope in pieces:
        by_scale += (slope * piece.scores).sum()
        by_scores[piece.rows, piece.columns] = (slope * scale).to(scores.dtype)
    return by_scores, by_scale


def _save_infonce_scores(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, positives, taken, scale, ctx.beta, ctx.rows = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(scores, positives, taken, scale, *output[1:])


def _infonce_scores_grad(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    scores, positives, taken, scale, *sides = ctx.saved_tensors
    by_scores, by_scale = infonce_scores_backward(grad, scores, positives, taken, scale, sides, ctx.beta, ctx.rows)
    return by_scores, None, None, by_scale, None, None


infonce_scores.register_autograd(_infonce_scores_grad, setup_context=_save_infonce_scores)


@torch.library.custom_op("compal::contrastive_sigmoid_scores", mutates_args=())
def sigmoid_scores(
    scores: Tensor,
    positives: Tensor,
    taken: Tensor | None,
    weights: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    rows: int,
) -> Tensor:
    with _exact(scores):
        return sigmoid_forward(Matrix(scores, positives, taken, rows, weights), scale, bias)


@sigmoid_scores.register_fake
def _(
    scores: Tensor,
    positives: Tensor,
    taken: Tensor | None,
    weights: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    rows: int,
) -> Tensor:
    return scores.new_empty((), dtype=computed(scores))


@torch.library.custom_op("compal::contrastive_sigmoid_scores_backward", mutates_args=())
def sigmoid_scores_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    taken: Tensor | None,
    weights: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    with _exact(scores):
        by_bias = torch.zeros_like(bias)

        def pieces() -> Iterable[tuple[Tile, Tensor]]:
            for tile, slope in sigmoid_gradient(Matrix(scores, positives, taken, rows, weights), scale, bias):
                by_bias.add_(slope.sum() * grad)
                yield tile, slope * grad

        return *_to_scores(scores, scale, pieces()), by_bias


@sigmoid_scores_backward.register_fake
def _(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    taken: Tensor | None,
    weights: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    like = torch.empty_like(scores, memory_format=torch.contiguous_format)
    return like, torch.empty_like(scale), torch.empty_like(bias)


def _save_sigmoid_scores(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.rows = inputs[-1]


def _sigmoid_scores_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    by_scores, by_scale, by_bias = sigmoid_scores_backward(grad, *ctx.saved_tensors, ctx.rows)
    return by_scores, None, None, None, by_scale, by_bias, None


sigmoid_scores.register_autograd(_sigmoid_scores_grad, setup_context=_save_sigmoid_scores)


# --- over pooled vectors -------------------------------------------------------------------------------


@torch.library.custom_op("compal::contrastive_infonce_vectors", mutates_args=())
def infonce_vectors(
    image: Tensor, text: Tensor, labels: list[Tensor], scale: Tensor, beta: float, tile: int, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with _exact(image):
        source = Vectors(image, text, labels[0], labels[1], tile)
        if not fused:
            return infonce_forward(source, scale, beta)
        from ._contrastive_triton import negatives_logsumexp

        sums = negatives_logsumexp(image, text, source.image_labels, source.text_labels, scale, sharpnesses(beta))
        return infonce_forward(source, scale, beta, sums)


@infonce_vectors.register_fake
def _(
    image: Tensor, text: Tensor, labels: list[Tensor], scale: Tensor, beta: float, tile: int, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _infonce_shapes(image, image.shape[0], text.shape[0], beta)


@torch.library.custom_op("compal::contrastive_infonce_vectors_backward", mutates_args=())
def infonce_vectors_backward(
    grad: Tensor,
    image: Tensor,
    text: Tensor,
    labels: list[Tensor],
    scale: Tensor,
    sides: list[Tensor],
    beta: float,
    tile: int,
) -> tuple[Tensor, Tensor, Tensor]:
    with _exact(image):
        source = Vectors(image, text, labels[0], labels[1], tile)
        rows, columns = (Side(side).times(grad) for side in sides)
        return _to_vectors(image, text, scale, infonce_gradient(source, scale, beta, rows, columns))


@infonce_vectors_backward.register_fake
def _(
    grad: Tensor,
    image: Tensor,
    text: Tensor,
    labels: list[Tensor],
    scale: Tensor,
    sides: list[Tensor],
    beta: float,
    tile: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(image), _like(text), torch.empty_like(scale)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _to_vectors(
    image: Tensor, text: Tensor, scale: Tensor, pieces: Iterable[tuple[Tile | Pairs, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of both sides and of the scale from those of the logits."""
    dtype = computed(image)
    by_image, by_text = (torch.zeros(side.shape, dtype=dtype, device=side.device) for side in (image, text))
    for piece, slope in pieces:
        rows, columns = image[piece.rows], text[piece.columns]
        if isinstance(piece, Pairs):
            by_image.index_add_(0, piece.rows, slope[:, None] * columns.to(dtype))
            by_text.index_add_(0, piece.columns, slope[:, None] * rows.to(dtype))
            continue
        if rows.dtype == torch.bfloat16:  # float16 would lose slopes of 1 / (I C)
            slope = slope.to(rows.dtype) if rows.is_cuda else slope
        by_image[piece.rows] += product(slope, columns)
        by_text[piece.columns] += product(slope.T, rows)
    # Σ slope · score, without another pass: the score is the product of the vectors.
    by_scale = (image.to(dtype) * by_image).sum()
    return (by_image * scale).to(image.dtype), (by_text * scale).to(text.dtype), by_scale.to(scale.dtype)


def _save_infonce_vectors(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    image, text, labels, scale, ctx.beta, ctx.tile, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(image, text, scale, *labels, *output[1:])


def _infonce_vectors_grad(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Any, ...]:
    image, text, scale, *others = ctx.saved_tensors
    labels, sides = others[:2], others[2:]
    by_image, by_text, by_scale = infonce_vectors_backward(grad, image, text, labels, scale, sides, ctx.beta, ctx.tile)
    return by_image, by_text, [None, None], by_scale, None, None, None


infonce_vectors.register_autograd(_infonce_vectors_grad, setup_context=_save_infonce_vectors)


@torch.library.custom_op("compal::contrastive_sigmoid_vectors", mutates_args=())
def sigmoid_vectors(
    image: Tensor, text: Tensor, labels: list[Tensor], scale: Tensor, bias: Tensor, tile: int, fused: bool
) -> Tensor:
    with _exact(image):
        source = Vectors(image, text, labels[0], labels[1], tile)
        if not fused:
            return sigmoid_forward(source, scale, bias)
        from ._contrastive_triton import sigmoid_rows

        rows = sigmoid_rows(image, text, source.image_labels, source.text_labels, scale, bias)
        return (rows.double().sum() / max(len(image), 1)).to(source.like.dtype)


@sigmoid_vectors.register_fake
def _(image: Tensor, text: Tensor, labels: list[Tensor], scale: Tensor, bias: Tensor, tile: int, fused: bool) -> Tensor:
    return image.new_empty((), dtype=computed(image))


@torch.library.custom_op("compal::contrastive_sigmoid_vectors_backward", mutates_args=())
def sigmoid_vectors_backward(
    grad: Tensor, image: Tensor, text: Tensor, labels: list[Tensor], scale: Tensor, bias: Tensor, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with _exact(image):
        by_bias = torch.zeros_like(bias)

        def pieces() -> Iterable[tuple[Tile, Tensor]]:
            for piece, slope in sigmoid_gradient(Vectors(image, text, labels[0], labels[1], tile), scale, bias):
                by_bias.add_(slope.sum() * grad)
                yield piece, slope * grad

        return *_to_vectors(image, text, scale, pieces()), by_bias


@sigmoid_vectors_backward.register_fake
def _(
    grad: Tensor, image: Tensor, text: Tensor, labels: list[Tensor], scale: Tensor, bias: Tensor, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _like(image), _like(text), torch.empty_like(scale), torch.empty_like(bias)


def _save_sigmoid_vectors(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, text, labels, scale, bias, ctx.tile, _ = inputs
    ctx.save_for_backward(image, text, scale, bias, *labels)


def _sigmoid_vectors_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    image, text, scale, bias, *labels = ctx.saved_tensors
    by_image, by_text, by_scale, by_bias = sigmoid_vectors_backward(grad, image, text, labels, scale, bias, ctx.tile)
    return by_image, by_text, [None, None], by_scale, by_bias, None, None


sigmoid_vectors.register_autograd(_sigmoid_vectors_grad, setup_context=_save_sigmoid_vectors)
