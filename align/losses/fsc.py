"""FSC-CLIP: InfoNCE, and focal choices among a pair's own negatives on global and local scores (arXiv 2410.05210).

L = L_clip + λ_g L_neg(S_g) + λ_l L_neg(S_l), with λ_g 0.5 and λ_l 0.2. L_neg is a (1 + K)-way choice with focal weight
(γ = 2) and label smoothing (β = 0.02). S_g = exp(cos(v, t)/τ); S_l = Σ_w exp(cos(v̂_w, t_w)/τ), v̂_w the patches
gathered by min-max attention, which is detached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batches import Batch
from ..scorer import Views, unit
from . import infonce
from ._local import gathered, minmax
from ._terms import Choices, focal

VIEWS = True


@dataclass(frozen=True)
class Config(infonce.Config):
    """global_weight, local_weight  λ_g and λ_l; a local weight needs a head that shows patches and tokens
    gamma, smoothing             of the focal choice
    """

    temperature: float = 0.01
    global_weight: float = 0.5
    local_weight: float = 0.2
    gamma: float = 2.0
    smoothing: float = 0.02


parameters = infonce.parameters


def loss(
    scores: Tensor,
    batch: Batch,
    config: Config,
    fitted: Mapping[str, Tensor] | None = None,
    *,
    views: Views,
) -> Tensor:
    """A scalar float32 from `scores` (I, C), patches and tokens. Entries outside `batch.scored` are ignored. Raises
    `UsageError` for a local weight where the head shows no tokens."""
    choices, scale = Choices.of(batch), infonce.scale_of(config, fitted)
    total = infonce.loss(scores, batch, config, fitted)
    if config.global_weight:
        own, others = choices.scores(scores)
        term = focal(own * scale, others * scale, choices.real, config.gamma, config.smoothing)
        total = total + config.global_weight * term
    if config.local_weight:
        own, others = _local(views, choices, scale)
        total = total + config.local_weight * focal(own, others, choices.real, config.gamma, config.smoothing)
    return total


def _local(views: Views, choices: Choices, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """log S_l of each pair (N,) and of its image with each of its negatives (N, K)."""
    columns = torch.cat([choices.columns[:, None], choices.negatives], 1)
    logits = torch.stack([_alike(views, choices.rows, column, scale) for column in columns.unbind(1)], 1)
    return logits[:, 0], logits[:, 1:]


def _alike(views: Views, rows: Tensor, columns: Tensor, scale: Tensor | float) -> Tensor:
    """log Σ_w exp(scale · cos(v̂_w, t_w)) of N pairs."""
    patches, real, tokens, words = views.local()
    patches, tokens = unit(patches[rows]), unit(tokens[columns])
    with torch.no_grad():
        weights = minmax(torch.bmm(tokens, patches.transpose(1, 2)), real[rows])
    cosines = (unit(gathered(weights, patches)) * tokens).sum(2) * scale
    return cosines.masked_fill(~words[columns], -torch.inf).logsumexp(1)
