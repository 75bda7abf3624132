"""Two-pass contrastive gradients: memory for a chunk of images, the objective over the whole block.

GradCache (arXiv 2101.06983) on the score block: pass 1 scores without autograd, the objective on that block as a
leaf gives dL/dscores, pass 2 scores each chunk again and goes back with its rows of that gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .batches import Batch


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
    count, captions = batch.shape
    columns = torch.arange(captions, device=batch.device)
    parts = [batch.select(rows, columns) for rows in torch.split(torch.arange(count, device=batch.device), chunk)]
    devices = [batch.device] if batch.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        block = torch.cat([score(part) for part in parts])
    leaf = block.requires_grad_()
    loss = objective(leaf)
    differentiate(loss)
    assert leaf.grad is not None
    for part, gradient in zip(parts, torch.split(leaf.grad, chunk), strict=True):
        score(part).backward(gradient)  # type: ignore[no-untyped-call]
    return loss.detach()
