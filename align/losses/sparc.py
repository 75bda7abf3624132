"""SPARC: InfoNCE of the pooled vectors, and within each pair tokens against the patches they gather (arXiv 2401.09865).

L = L_global + L_fine. For token t_l of a pair's caption and patch v_p of its image (eq. 2 to 5): s_lp = t_l·v_p,
min-max over p, zero below 1/P, normalised to a_lp; c_l = Σ_p a_lp v_p. L_fine is symmetric InfoNCE between {t_l} and
{c_l} within the pair, in the mean over tokens, then pairs. No image sees another image's tokens: the fine term costs
N·L·P and not I·C·L·P. There is no official code; both terms share one temperature here.
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
from ._terms import Choices, mean

VIEWS = True


@dataclass(frozen=True)
class Config(infonce.Config):
    """fine: weight of the term within pairs."""

    fine: float = 1.0


parameters = infonce.parameters


def loss(
    scores: Tensor,
    batch: Batch,
    config: Config,
    fitted: Mapping[str, Tensor] | None = None,
    *,
    views: Views,
) -> Tensor:
    """A scalar float32 from `scores` (I, C), patches and tokens. Raises `UsageError` for a head without them."""
    total = infonce.loss(scores, batch, config, fitted)
    if config.fine:
        total = total + config.fine * _within(views, Choices.of(batch), infonce.scale_of(config, fitted))
    return total


def _within(views: Views, choices: Choices, scale: Tensor | float) -> Tensor:
    patches, real, tokens, words = views.local()
    rows, columns = choices.rows[choices.pairs], choices.columns[choices.pairs]
    patches, real, tokens, words = unit(patches[rows]), real[rows], unit(tokens[columns]), words[columns]
    weights = minmax(torch.bmm(tokens, patches.transpose(1, 2)), real)
    weights = weights.masked_fill(weights < 1 / real.sum(1)[:, None, None], 0)
    own = gathered(weights, patches)
    logits = torch.bmm(unit(own), tokens.transpose(1, 2)) * scale
    right = logits.diagonal(dim1=1, dim2=2)
    gathers = logits.masked_fill(~words[:, None, :], -torch.inf).logsumexp(2)
    gathered_by = logits.masked_fill(~words[:, :, None], -torch.inf).logsumexp(1)
    ways = (gathers + gathered_by - 2 * right).masked_fill(~words, 0)
    return mean(ways.sum(1) / (2 * words.sum(1)), patches)
