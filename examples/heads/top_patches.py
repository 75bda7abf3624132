"""Each word against the few patches that fit it best, beside the pooled cosine (an example; late interaction after
FILIP, arXiv 2111.07783)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compal.align.batches import Batch
from compal.align.heads.cosine import Cosine
from compal.align.scorer import Alignment, Dims, Scorer, cosines, require, tokens_of, unit


@dataclass(frozen=True)
class Config:
    """width  of the space in which patches and words meet
    patches  how many of the best patches a word takes the mean of
    """

    width: int = 64
    patches: int = 4


class TopPatches(Scorer):
    """cosine + gate · mean over words of the mean of their best patches. The gate starts at 0: before it is fitted the
    head is the cosine."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.best = config.patches
        self.image = nn.Linear(dims.image_dim, config.width, bias=False)
        self.text = nn.Linear(dims.text_dim, config.width, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))
        self.pooled = Cosine()

    def projected(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """patches (I, P, W) and words (C, L, W) of length 1, with their masks."""
        images, image_mask, texts, text_mask = tokens_of(batch)
        return unit(self.image(images)), image_mask, unit(self.text(texts)), text_mask

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        """(I, C), or (N,) of the pairs."""
        patches, image_mask, words, text_mask = self.projected(batch)
        if pairs is None:
            similar = torch.einsum("ipw,clw->iclp", patches, words)
            real, said = image_mask[:, None, None], text_mask[None]
            cosine = self.pooled.score(batch)
        else:
            rows, columns = pairs.unbind(1)
            similar = torch.einsum("npw,nlw->nlp", patches[rows], words[columns])
            real, said = image_mask[rows][:, None], text_mask[columns]
            cosine = self.pooled.score_pairs(batch, pairs)
        best = similar.masked_fill(~real, -torch.inf).topk(min(self.best, similar.shape[-1])).values
        there = best.isfinite()
        match = best.where(there, 0).sum(-1) / there.sum(-1).clamp(min=1)  # (…, L)
        return cosine + self.gate * (match * said).sum(-1) / said.sum(-1).clamp(min=1)

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        """The cosine of every word and patch: what the viewer draws."""
        return cosines(*self.projected(batch), pairs)


def build(config: Config, dims: Dims) -> TopPatches:
    """W (D_I + D_T) + 1 parameters. Raises `UsageError` for a width or a number of patches below 1, `InputError` if
    the store keeps no tokens."""
    dims.require_tokens("top_patches")
    require(min(config.width, config.patches) >= 1, "head.width and head.patches must be at least 1")
    return TopPatches(config, dims)
