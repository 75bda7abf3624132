"""MaxSim on a GPU: the best partner of every token by the Triton kernels, then sums by caption and by image."""

from __future__ import annotations

import torch
from torch import Tensor

from ._maxsim_triton import token_max


def best_sums(
    image: Tensor,
    image_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    directions: tuple[bool, bool],
    pairs: Tensor | None,
    most: int,
) -> tuple[Tensor | None, Tensor | None]:
    """As `_maxsim_cpu.best_sums`. Pairs are taken from the whole block."""
    best, top = token_max(image, image_lengths, text, text_lengths, *directions, most)
    to_text = to_image = None
    if directions[0]:
        sums = torch.segment_reduce(best.T.contiguous(), "sum", lengths=text_lengths.to(best.device), axis=0)
        to_text = sums.T
    if directions[1]:
        to_image = top.sum(1)
    if pairs is None:
        return to_text, to_image
    rows, columns = pairs.unbind(1)
    return tuple(None if block is None else block[rows, columns] for block in (to_text, to_image))  # type: ignore[return-value]
