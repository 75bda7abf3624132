"""XAC: C2LIP's concept-conditioned pooling, with its map of the patches learnt from frozen states (arXiv 2603.25722).

    u_p = M(x_p), u_p ← u_p + MLP(LN(u_p)), u_p ← u_p / |u_p|      the map, once per image
    a_p = softmax_p(kappa <c, u_p>),  w = Σ_p a_p u_p,  s(i, c) = <w / |w|, c>      for every concept c, |c| = 1

Equations of the release (github.com/SamsungLabs/concept_centric_clip, src/open_clip/loss.py and model.py). There M and
the MLP are the value, projection and MLP of SigLIP's own attention pooling, fine-tuned with both towers. A store does
not hold weights, so here M is one linear map that starts at random, and the MLP's last layer at zero (ours, as is the
normalisation of the states without parameters). Concepts are noun phrases, each passed through the text tower: the
segments of a store of level `regions`. On a store of tokens the recipe takes the whole caption as one.

kappa = 1, the published value, leaves the attention nearly uniform: between two patches the weights differ by a factor
of e² = 7.4 at the very most. 10, 30 and 100 are worth a try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batches import Batch
from ..kernels.attend import attend
from ..scorer import Alignment, Dims, Scorer, full, only_real, require, tokens_of, unit
from ._projection import Projection, require_pooled


@dataclass(frozen=True)
class Config:
    """queries  "caption": the caption's pooled vector is the one concept; "tokens": every text token, and on a store of
             level `regions` every segment, is a concept after a linear map, and the score is their mean
    kappa    the inverse temperature of the attention
    ratio    width of the MLP's hidden layer over that of the pooled vectors
    """

    queries: Literal["caption", "tokens"] = "caption"
    kappa: float = 1.0
    ratio: float = 4.0


class PatchMap(nn.Module):
    """(…, D) states → (…, E) unit vectors: linear, then a residual MLP of the LayerNorm."""

    def __init__(self, dim: int, width: int, hidden: int) -> None:
        super().__init__()
        self.project = Projection(dim, width)
        self.norm = nn.LayerNorm(width)
        self.hidden, self.output = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        u = self.project(x)
        return unit(u + self.output(F.gelu(self.hidden(self.norm(u)))))


class XAC(Scorer):
    """The mean, over a caption's concepts, of the cosine between a concept and what it gathers from the image."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.settings, width = config, dims.pooled_dim
        self.image = PatchMap(dims.image_dim, width, round(config.ratio * width))
        self.text = Projection(dims.text_dim, width) if config.queries == "tokens" else None

    def concepts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(C, L, E) unit vectors and which are real; L = 1 where the caption is the one concept."""
        _, _, texts, text_mask = tokens_of(batch)
        found = unit(batch.text_pooled[:, None] if self.text is None else self.text(texts))
        return found, torch.ones_like(found[..., 0], dtype=torch.bool) if self.text is None else text_mask

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        """The weights of the patches in what each concept gathers."""
        images, image_mask, _, _ = tokens_of(batch)
        (concepts, real), (rows, columns) = self.concepts(batch), pairs.unbind(1)
        similar = self.settings.kappa * torch.einsum("nle,npe->nlp", concepts[columns], self.image(images)[rows])
        weights = full(similar).masked_fill(~image_mask[rows][:, None], -torch.inf).softmax(-1)
        return Alignment(only_real(weights, image_mask[rows], real[columns]), "weight", self.text is None)

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        images, image_mask, _, _ = tokens_of(batch)
        concepts, real = self.concepts(batch)
        return attend(
            self.image(images),
            concepts,
            image_mask=image_mask,
            text_mask=None if self.text is None else real,
            kappa=self.settings.kappa,
            pairs=pairs,
        )


def build(config: Config, dims: Dims) -> XAC:
    """E D_I + 2 r E² + (r + 3) E parameters ("tokens": E D_T more): 2,493,952 for CLIP ViT-B/32 (768, E = 512) and
    r = 4. An image costs P E (D_I + 2 r E + P) multiplications once; a pair P (E + P) a concept, 28,100 for 50 patches,
    as the kernel takes |w| from the patches' own products. Raises `UsageError` for a kappa or a ratio that is not
    positive, `InputError` if the store keeps no tokens or no pooled embeddings."""
    dims.require_tokens("xac")
    require_pooled(dims, "xac")
    require(config.kappa > 0, f"head.kappa = {config.kappa} is no inverse temperature", "Set head.kappa above 0.")
    require(
        round(config.ratio * dims.pooled_dim) >= 1,
        f"head.ratio = {config.ratio} leaves no hidden layer",
        "Set head.ratio above 0; SigLIP has 4.",
    )
    return XAC(config, dims)
