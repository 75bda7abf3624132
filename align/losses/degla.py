"""DeGLA: InfoNCE with hard negatives, two choices among a pair's own negatives, and a teacher (arXiv 2504.16801).

L = L_base + 0.1 L_IGC + 0.1 L_TGC + 0.005 L_D (section 3, and `src/open_clip/loss.py` of the authors' repository):

- L_base  symmetric InfoNCE; images choose among all captions and all negatives of the batch, as the code does (the
          paper's formula names a sample's own negatives only)
- L_IGC   image-grounded: each image chooses between its caption and that pair's negatives
- L_TGC   text-grounded: each caption chooses between what the teacher makes of it and its negatives, at a fixed scale
- L_D     squared distances between the unit vectors of head and teacher: image, caption, negatives

The released code pairs the negatives of L_TGC wrongly (`repeat` for `repeat_interleave`): nearly every caption is
contrasted with negatives of other captions. `tgc_mask = "as_released"` does that; the default is the formula.
L_D is a sum over the batch and its weight was chosen at 256 pairs; other sizes are rescaled to that.
The teacher is `[ema]`; the authors' decay is 0.9996.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..batches import Batch
from ..scorer import Views
from . import infonce
from ._terms import Choices, pick

TEACHER = True
VIEWS = True


@dataclass(frozen=True)
class Config(infonce.Config):
    """igc, tgc        weights of the two grounded choices
    distill         weight of L_D
    distill_batch   pairs a batch for which `distill` is meant; 0 = L_D is the batch's sum, whatever its size
    tgc_scale       of the cosines in L_TGC, 1 / τ
    tgc_mask        "own": each caption against its own negatives. "as_released": those that the released mask picks
    """

    temperature: float = 0.01
    igc: float = 0.1
    tgc: float = 0.1
    distill: float = 0.005
    distill_batch: int = 256
    tgc_scale: float = 10.0
    tgc_mask: Literal["own", "as_released"] = "own"


parameters = infonce.parameters


def loss(
    scores: Tensor,
    batch: Batch,
    config: Config,
    fitted: Mapping[str, Tensor] | None = None,
    *,
    views: Views,
    teacher: Views,
) -> Tensor:
    """A scalar float32 from `scores` (I, C), the head's vectors and the teacher's. Pairs without a negative have no
    grounded choice; entries outside `batch.scored` are ignored. Raises `UsageError` for a head without vectors."""
    (image, text), (taught_image, taught_text) = views.vectors(), teacher.vectors()
    choices = Choices.of(batch)
    total = infonce.loss(scores, batch, config, fitted)
    if config.igc:
        own, others = choices.scores(scores)
        scale = infonce.scale_of(config, fitted)
        total = total + config.igc * pick(own * scale, others * scale, choices.real)
    if config.tgc:
        total = total + config.tgc * _text_grounded(text, taught_text, choices, config)
    if config.distill:
        images = (image - taught_image).square().sum(1)[choices.rows]
        texts = (text - taught_text).square().sum(1)
        apart = images + texts[choices.columns] + (texts[choices.negatives] * choices.real).sum(1)
        rescaled = config.distill_batch / max(1, len(apart)) if config.distill_batch else 1.0
        total = total + config.distill * rescaled * apart.sum()
    return total


def _text_grounded(text: Tensor, taught: Tensor, choices: Choices, config: Config) -> Tensor:
    """L_TGC of unit vectors (C, E)."""
    anchors = text[choices.columns]
    own = (anchors * taught[choices.columns]).sum(1)
    negatives, real = choices.negatives, choices.real
    if config.tgc_mask == "as_released":
        # Column m of the N·K negatives, sample-major, is sample m // K's; the mask of row i keeps m = i, i + N, ….
        count, width = negatives.shape
        kept = torch.arange(count, device=text.device)[:, None] + count * torch.arange(width, device=text.device)
        negatives, real = negatives.flatten()[kept], real.flatten()[kept]
    others = torch.einsum("ne,nke->nk", anchors, text[negatives])
    return pick(config.tgc_scale * own, config.tgc_scale * others, real)
