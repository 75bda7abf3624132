"""CE-CLIP: InfoNCE, a choice among all hard negatives in text space, and a margin that grows (arXiv 2306.08832).

L = L_itc + 0.3 L_imc + 0.2 L_cmr (weights of the authors' script; their defaults are 0.2 and 0.2), s = 1 / temperature:

- L_itc  symmetric InfoNCE, images choosing among all captions and negatives
- L_imc  -log exp(s v·t) / (exp(s v·t) + Σ_{j,k} exp(s t·tn_jk)): the caption against every hard negative of the batch
- L_cmr  mean_{i,k} max(0, Th_k + s v·tn_k - s v·t); Th_k is the last step's mean margin of slot k, within [0, 10]

Released HEAD computes L_imc without the positive's column and takes the first negative for it, which draws every
caption to sample 0's first negative: `imc_form = "as_released"` does that, the default is the formula.
Ours: slots are the order in which a pair's negatives were drawn; the authors' four slots are kinds of negatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batches import Batch
from ..scorer import Views
from . import infonce
from ._terms import Choices, mean

VIEWS = True


@dataclass(frozen=True)
class Config(infonce.Config):
    """imc, cmr    weights beside InfoNCE
    most        the highest threshold of L_cmr, in logits
    slots       thresholds kept; later negatives of a pair share the last
    imc_form    "published" or "as_released"
    """

    temperature: float = 0.01
    imc: float = 0.3
    cmr: float = 0.2
    most: float = 10.0
    slots: int = 4
    imc_form: Literal["published", "as_released"] = "published"


def parameters(config: Config) -> dict[str, nn.Parameter]:
    """InfoNCE's, and the thresholds: not fitted, but a run's state, so that it resumes with them."""
    kept = nn.Parameter(torch.zeros(config.slots), requires_grad=False)
    return infonce.parameters(config) | {"thresholds": kept}


def loss(
    scores: Tensor,
    batch: Batch,
    config: Config,
    fitted: Mapping[str, Tensor] | None = None,
    *,
    views: Views,
) -> Tensor:
    """A scalar float32 from `scores` (I, C) and the head's text vectors. Moves `fitted["thresholds"]` to this step's
    margins. Entries outside `batch.scored` are ignored. Raises `UsageError` for a head without vectors."""
    _, text = views.vectors()
    fitted = dict(fitted or {})
    thresholds = fitted.pop("thresholds", torch.zeros(config.slots, device=scores.device))
    choices, scale = Choices.of(batch), infonce.scale_of(config, fitted)
    total = infonce.loss(scores, batch, config, fitted)
    own, others = (part * scale for part in choices.scores(scores))
    if config.imc:
        total = total + config.imc * _in_text_space(text, own, choices, scale, config, batch.positives)
    if config.cmr and choices.real.any():
        slot = torch.arange(others.shape[1], device=scores.device).clamp(max=config.slots - 1)
        hinge = F.relu(thresholds[slot] + others - own[:, None])
        total = total + config.cmr * mean(hinge[choices.real], scores.masked_fill(scores.isinf(), 0))
        _move(thresholds, (own[:, None] - others).detach(), choices.real, slot, config)
    return total


def _in_text_space(
    text: Tensor, own: Tensor, choices: Choices, scale: Tensor | float, config: Config, positives: Tensor
) -> Tensor:
    """L_imc, in the mean over the pairs that are scored. A negative of another pair that describes a pair's image, as a
    twin's negative does, is none of that pair's."""
    negatives = choices.negatives[choices.real]
    if not len(negatives):
        return (own * 0).sum()
    others = text[choices.columns] @ text[negatives].T * scale
    if config.imc_form == "as_released":
        return mean((others.logsumexp(1) - others[:, 0])[choices.pairs], own)
    others = others.masked_fill(positives[choices.rows][:, negatives], -torch.inf)
    return mean((torch.cat([own[:, None], others], 1).logsumexp(1) - own)[choices.pairs], own)


@torch.no_grad()
def _move(thresholds: Tensor, margins: Tensor, real: Tensor, slot: Tensor, config: Config) -> None:
    """Each slot's threshold becomes its mean margin (N, K), within its bounds; one without a negative stays."""
    slots, found = slot.expand_as(real)[real], margins[real].to(thresholds.dtype)
    sums = torch.zeros_like(thresholds).index_add(0, slots, found)
    counts = torch.zeros_like(thresholds).index_add(0, slots, torch.ones_like(found))
    thresholds.copy_(torch.where(counts > 0, (sums / counts.clamp(min=1)).clamp(0, config.most), thresholds))
