"""MaxSim late interaction: each token takes its best partner, then the mean; no training (arXiv 2111.07783).

FILIP's token-wise similarity on L2-normalised tokens. On a store of level `regions` the image tokens are
crops and the text tokens are segments, each embedded by its own tower: every segment takes its best
region, then the mean, which is the paper's structure-guided inference (arXiv 2506.09691, 2604.11496).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError
from ..batches import Batch
from ..scorer import Dims, Scorer, tokens_of, unit

# Similarities held at a time, in elements: 64 MB of float32 fits the memory of a small machine beside
# the features, and is large enough for the matrix product to run at full speed.
TILE = 16 * 2**20


@dataclass(frozen=True)
class Config:
    """direction  "t2i": the mean over text tokens of the best image token; "i2t": the other way; "both":
    the mean of the two
    """

    direction: Literal["t2i", "i2t", "both"] = "t2i"


class MaxSim(Scorer):
    """Mean of maxima over the real tokens; a side without any gives the score 0."""

    trainable = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.direction = config.direction

    def score(self, batch: Batch) -> Tensor:
        images, image_mask, texts, text_mask = tokens_of(batch)
        images, texts = unit(images), unit(texts)
        each = max(1, images.shape[1] * texts.shape[1])
        captions = max(1, min(len(texts), TILE // each))
        tile = max(1, TILE // (each * captions))
        columns = []
        for text, known in _split(texts, text_mask, captions):
            rows = [
                self._reduce(torch.einsum("ipd,cld->icpl", part, text), mask[:, None], known[None])
                for part, mask in _split(images, image_mask, tile)
            ]
            columns.append(torch.cat(rows))
        return torch.cat(columns, dim=1)

    def score_pairs(self, batch: Batch, pairs: Tensor) -> Tensor:
        images, image_mask, texts, text_mask = tokens_of(batch)
        images, texts = unit(images), unit(texts)
        # The gathered copies of both sides count too, hence the D's.
        each = (images.shape[1] + texts.shape[1]) * images.shape[2] + images.shape[1] * texts.shape[1]
        scores = [
            self._reduce(
                torch.einsum("npd,nld->npl", images[part[:, 0]], texts[part[:, 1]]),
                image_mask[part[:, 0]],
                text_mask[part[:, 1]],
            )
            for part in torch.split(pairs, max(1, TILE // max(1, each)))
        ]
        return torch.cat(scores) if scores else images.new_zeros(0)

    def _reduce(self, similarity: Tensor, image_mask: Tensor, text_mask: Tensor) -> Tensor:
        """(…, P, L) → (…); masks broadcast to (…, P) and (…, L)."""
        similarity = similarity.float()
        t2i = _mean(_best(similarity, image_mask[..., None], -2), text_mask)
        if self.direction == "t2i":
            return t2i
        i2t = _mean(_best(similarity, text_mask[..., None, :], -1), image_mask)
        return i2t if self.direction == "i2t" else (t2i + i2t) / 2


def _split(values: Tensor, mask: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(values, size), torch.split(mask, size), strict=True))


def _best(similarity: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Maximum over the real tokens along `dim`. Excluded by -inf and never by 0, which would beat every
    negative similarity; where nothing is real, 0."""
    best = similarity.masked_fill(~mask, -torch.inf).amax(dim)
    return best.masked_fill(best == -torch.inf, 0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of the last axis."""
    return values.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def build(config: Config, dims: Dims) -> MaxSim:
    """Raises `InputError` if image and text tokens have different widths, so that no product is defined."""
    dims.require_tokens("maxsim")
    if dims.image_dim != dims.text_dim:
        raise InputError(
            f"maxsim compares image tokens with text tokens: {dims.image_dim} and {dims.text_dim} wide here",
            "Extract with --level regions, where both are pooled embeddings, or fit a head that projects"
            " them: tflocal.",
        )
    return MaxSim(config)
