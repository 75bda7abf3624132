"""Two-pass contrastive gradients: memory for a chunk, the objective over the whole block (GradCache, arXiv 2101.06983).

Pass 1 computes without autograd, the objective on what came out as leaves gives their gradients, pass 2 computes each
chunk again and goes back with its rows of them. What is computed in chunks is a head's scores, which needs all captions
for every chunk of images, or, of a head of one vector a side, each side by itself: every image and every caption
twice, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Batch
from .scorer import Side

Encode = Callable[[Batch], Side]


def backward(
    score: Callable[[Batch], Tensor],
    batch: Batch,
    objective: Callable[[Tensor], Tensor],
    chunk: int,
    differentiate: Callable[[Tensor], object] = torch.autograd.backward,
) -> Tensor:
    """Add the gradients of `objective(score(batch))` to the parameters of both; the detached scalar loss.

    `score` gives (I, C) and treats images alone; it sees `chunk` images at a time. `objective` takes (I, C).
    With `Batch.rows`, I counts the images that are here. Random generators are replayed, so dropout is the same in both
    passes. `differentiate` goes back from the loss; a scale that it puts on it (`GradScaler`) reaches every gradient.
    """
    parts = [batch.select(rows, _all(batch, 1)) for rows in _chunks(batch, 0, chunk)]
    with _replayed(batch), torch.no_grad():
        block = torch.cat([score(part) for part in parts])
    leaf = block.requires_grad_()
    loss = objective(leaf)
    differentiate(loss)
    assert leaf.grad is not None
    for part, gradient in zip(parts, torch.split(leaf.grad, chunk), strict=True):
        score(part).backward(gradient)  # type: ignore[no-untyped-call]
    return loss.detach()


def backward_sides(
    encoders: tuple[Encode, Encode],
    batch: Batch,
    objective: Callable[[Side, Side], Tensor],
    chunk: int,
    differentiate: Callable[[Tensor], object] = torch.autograd.backward,
) -> Tensor:
    """`backward` where images and captions are encoded each by itself, `chunk` at a time. `objective` takes both sides
    whole. A side without a parameter to fit is not encoded again."""
    parts = tuple(_parts(batch, axis, chunk) for axis in (0, 1))
    with _replayed(batch), torch.no_grad():
        sides = [together([encode(part) for part in own]) for encode, own in zip(encoders, parts, strict=True)]
    leaves = [_leaf(side) for side in sides]
    loss = objective(*leaves)
    differentiate(loss)
    for encode, own, leaf in zip(encoders, parts, leaves, strict=True):
        for part, gradients in zip(own, _gradients(leaf, chunk), strict=True):
            side = encode(part)
            if not side.vectors.requires_grad:
                break
            outputs, grads = [side.vectors], [gradients[0]]
            if side.tokens is not None and gradients[1] is not None:
                outputs, grads = [*outputs, side.tokens], [*grads, gradients[1][:, : side.tokens.shape[1]]]
            torch.autograd.backward(outputs, grads)
    return loss.detach()


def encoded(encoders: tuple[Encode, Encode], batch: Batch, chunk: int) -> tuple[Side, Side]:
    """Both sides of a batch, `chunk` rows at a time (0 = all at once)."""
    count = chunk or max(batch.shape)
    image, text = (
        together([encode(part) for part in _parts(batch, axis, count)]) for axis, encode in enumerate(encoders)
    )
    return image, text


def together(sides: Sequence[Side]) -> Side:
    """The rows of several parts of a side, padded to the longest. Raises `IndexError` for none."""
    vectors = torch.cat([side.vectors for side in sides])
    if sides[0].tokens is None:
        return Side(vectors)
    longest = max(side.mask.shape[1] for side in sides if side.mask is not None)
    tokens, masks = [], []
    for side in sides:
        assert side.tokens is not None
        assert side.mask is not None
        more = longest - side.mask.shape[1]
        tokens.append(F.pad(side.tokens, (0, 0, 0, more)))
        masks.append(F.pad(side.mask, (0, more)))
    return Side(vectors, torch.cat(tokens), torch.cat(masks))


def _all(batch: Batch, axis: int) -> Tensor:
    return torch.arange(batch.shape[axis], device=batch.device)


def _chunks(batch: Batch, axis: int, chunk: int) -> Sequence[Tensor]:
    """Row numbers of one side, `chunk` at a time."""
    return torch.split(_all(batch, axis), chunk)


def _parts(batch: Batch, axis: int, chunk: int) -> list[Batch]:
    """Batches of the images alone (axis 0), or of the captions alone."""
    none = _all(batch, axis)[:0]
    chunks = _chunks(batch, axis, chunk)
    return [batch.select(some, none) if axis == 0 else batch.select(none, some) for some in chunks]


def _leaf(side: Side) -> Side:
    tokens = None if side.tokens is None else side.tokens.requires_grad_()
    return Side(side.vectors.requires_grad_(), tokens, side.mask)


def _gradients(leaf: Side, chunk: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The gradients of a leaf's rows, `chunk` at a time; what an objective does not look at has zeros, or none."""
    vectors = torch.zeros_like(leaf.vectors) if leaf.vectors.grad is None else leaf.vectors.grad
    tokens = None if leaf.tokens is None else leaf.tokens.grad
    for start in range(0, max(len(vectors), 1), chunk):
        here = slice(start, start + chunk)
        yield vectors[here], None if tokens is None else tokens[here]


def _replayed(batch: Batch) -> AbstractContextManager[None]:
    """Random generators go back to where they were, so that dropout is the same when it is done again."""
    return torch.random.fork_rng(devices=[batch.device] if batch.device.type == "cuda" else [])
