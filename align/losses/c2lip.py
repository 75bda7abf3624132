"""C2LIP: SigLIP, and the noun phrases of the captions against whole images and against patches (arXiv 2603.25722).

L = L_siglip + 1.0 L_npc + 0.01 L_xac (`src/open_clip/loss.py` 905-990 of github.com/SamsungLabs/concept_centric_clip),
each the sum over images i and columns j of -log σ(y_ij (s · cosine + b)), y = ±1, divided by the number of columns:

- L_siglip  <v_i, t_j>, captions; given negatives stay out, as the method constructs none
- L_npc     <v_i, c_j>, noun phrases, pooled by the same text tower
- L_xac     <w_ij, c_j>, w_ij = normalise(Σ_p a_ijp u_ip), a_ij = softmax_p(κ c_j·u_ip), u_ip the unit vectors of
            patches: every image is pooled again for every phrase. κ is 1 as published, which pools nearly uniformly

s and b are shared by the three. In the release an equal phrase of another image ("a man") is a negative:
`duplicates = "as_published"` does that. By default, ours, it is one column, positive for every image that has it, in
whichever of its captions. `attend` computes w_ij·c_j without building w for all images and phrases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import UsageError
from ..batches import Batch
from ..kernels.attend import attend
from ..kernels.contrastive import sigmoid
from ..scorer import Views, full, unit
from . import siglip

VIEWS = True


@dataclass(frozen=True)
class Config(siglip.Config):
    """npc_weight, xac_weight  of the two terms; the second needs a head that shows patches
    kappa        inverse temperature of the attention of a phrase to patches
    duplicates   "merge": equal phrases are one column. "as_published": each is a column of its own, positive for the
                 image alone whose caption it was taken from
    negatives    captions given as negatives are columns of L_siglip too
    """

    temperature: float = 0.01
    npc_weight: float = 1.0
    xac_weight: float = 0.01
    kappa: float = 1.0
    duplicates: Literal["merge", "as_published"] = "merge"
    negatives: bool = False

    def __post_init__(self) -> None:
        if self.kappa <= 0:
            raise UsageError(f"loss.kappa = {self.kappa} is no inverse temperature", "Set loss.kappa above 0.")


parameters = siglip.parameters


def loss(
    scores: Tensor,
    batch: Batch,
    config: Config,
    fitted: Mapping[str, Tensor] | None = None,
    *,
    views: Views,
) -> Tensor:
    """A scalar float32 from `scores` (I, C), patches and the captions' vectors. Entries outside `batch.scored` are
    ignored. Raises `UsageError` for a batch without noun phrases, and for a weight of L_xac where the head shows no
    patches."""
    if batch.phrases is None or batch.pairs is None:
        raise UsageError("this loss needs the noun phrases of each pair", "Set data.phrases = -1.")
    number = siglip.scale_and_bias(config, fitted)
    captions = _captions(batch, batch.pairs, config)
    total = _term(scores[:, captions], batch.positives[:, captions], _taken(batch, captions), number)
    columns, positives = _phrases(batch, batch.phrases, batch.pairs, config)
    if not len(columns):
        return total
    taken = _taken(batch, columns)
    if config.npc_weight:
        total = total + config.npc_weight * _term(scores[:, columns], positives, taken, number)
    if config.xac_weight:
        cosines = _attended(views, columns, config.kappa)
        total = total + config.xac_weight * _term(cosines, positives, taken, number)
    return total


def _captions(batch: Batch, pairs: Tensor, config: Config) -> Tensor:
    """The columns (K,) long of L_siglip, each once."""
    columns = pairs[:, 1]
    if config.negatives and batch.negatives is not None:
        columns = torch.cat([columns, batch.negatives[batch.negatives >= 0]])
    return _distinct(columns)[0]


def _phrases(batch: Batch, phrases: Tensor, pairs: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """The columns (K,) long of phrases, and for which images each of them is a yes, (I, K) bool."""
    there = phrases >= 0
    columns = phrases[there]
    if config.duplicates == "merge":
        columns, _ = _distinct(columns)
        return columns, batch.positives[:, columns]
    owners = pairs[:, :1].expand_as(phrases)[there]
    rows = torch.arange(len(batch.positives), device=batch.device)
    return columns, rows[:, None] == owners


def _attended(views: Views, columns: Tensor, kappa: float) -> Tensor:
    """(I, K) of w_ij·c_j; equal phrases are computed once."""
    patches, real = views.patchwise()
    distinct, places = _distinct(columns)
    text = views.vectors()[1][distinct]
    return attend(unit(patches), text[:, None], image_mask=real, kappa=kappa)[:, places]


def _distinct(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Each column once, and where those given stand among these."""
    found: tuple[Tensor, Tensor] = torch.unique(columns, return_inverse=True)
    return found


def _taken(batch: Batch, columns: Tensor) -> Tensor | None:
    return None if batch.scored is None else batch.scored[:, columns]


def _term(
    scores: Tensor, positives: Tensor, taken: Tensor | None, number: tuple[Tensor | float, Tensor | float]
) -> Tensor:
    """The sum over images and columns, divided by the number of columns."""
    scale, bias = number
    images, columns = scores.shape
    return sigmoid(full(scores), positives, scale=scale, bias=bias, taken=taken) * (images / columns)
