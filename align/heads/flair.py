"""FLAIR's text-conditioned attention pooling over frozen patches (arXiv 2412.03561).

    v(i, c) = MHA(query = LN(t_c), keys = LN(x_i), values = LN(x_i)),  one zero key and value added to the patches'
    s(i, c) = cos(v(i, c), t_c)

As released (github.com/ExplainableML/flair, `PureAttentionPoolingBlock` and `get_logits`): a bias-free projection of
the patches, a LayerNorm each for queries, keys and values, `nn.MultiheadAttention(E, 8, add_zero_attn=True)`. An image
is pooled anew for every caption, negatives included: pooling it with its own caption to compare it with another would
be a shortcut. What differs: the towers are frozen, so the projection of the text, there the tower's, is one of the
pooled vector that starts as the identity; patch states are normalised without parameters first; K sub-captions and the
global loss are the data's and the objective's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batches import Batch
from ..kernels.pairs import memory_scores
from ..scorer import Alignment, Dims, Scorer, full, only_real, require, tokens_of, unit
from ._projection import Projection, require_pooled

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Config:
    """queries  "caption": the caption's pooled vector, as published; "tokens": every text token, and
             on a store of level `regions` every segment, pools the image for itself, the score is their mean (ours)
    heads    of the attention; the pooled width is a multiple of it
    """

    queries: Literal["caption", "tokens"] = "caption"
    heads: int = 8


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, S, E) → (B, heads, S, E / heads)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


class FLAIR(Scorer):
    """Keys and values are computed once per image; what a pair adds is one query, its mean and its output."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.settings, width = config, dims.pooled_dim
        self.image = Projection(dims.image_dim, width)
        self.text: nn.Module
        if config.queries == "caption":
            self.text = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.text.weight)
        else:
            self.text = Projection(dims.text_dim, width)
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def memory(self, image: Tensor, image_mask: Tensor) -> KeysValues:
        """(B, P, D) → keys and values (B, heads, P + 1, E / heads), the zero token last."""
        x = self.image(image)
        key = _split(self.key(self.key_norm(x)), self.settings.heads)
        value = _split(self.value(self.value_norm(x)), self.settings.heads)
        return F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))

    def pooled(self, kept: KeysValues, image_mask: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """x (1 or B, T, L, E) and mask (1 or B, T, L): T texts of L queries for each of B images; image_mask (B, P)
        → (B, T)."""
        flat = x.flatten(1, 2)
        query = _split(self.query(self.query_norm(flat)), self.settings.heads).expand(len(image_mask), -1, -1, -1)
        seen = F.pad(image_mask, (0, 1), value=True)[:, None, None]
        mixed = F.scaled_dot_product_attention(query, *kept, attn_mask=seen)
        found = unit(self.output(mixed.transpose(1, 2).flatten(2)))
        cosines = (found * unit(flat)).sum(-1).view(len(image_mask), *x.shape[1:3])
        return cosines.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)

    def queries(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(C, L, E) and which are real; L = 1 where the caption's pooled vector is the one query."""
        _, _, texts, text_mask = tokens_of(batch)
        if self.settings.queries == "caption":
            texts = batch.text_pooled[:, None]
            text_mask = torch.ones_like(texts[..., 0], dtype=torch.bool)
        return self.text(texts), text_mask

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        """The weights of the patches in what each query pools, the mean over heads; what is lacking to 1 went to the
        zero token."""
        images, image_mask, _, _ = tokens_of(batch)
        (texts, text_mask), (rows, columns) = self.queries(batch), pairs.unbind(1)
        keys, _ = self.memory(images, image_mask)
        query = _split(self.query(self.query_norm(texts)), self.settings.heads)
        seen = F.pad(image_mask, (0, 1), value=True)[rows][:, None, None]
        logits = query[columns] @ keys[rows].transpose(-2, -1) / query.shape[-1] ** 0.5
        weights = full(logits).masked_fill(~seen, -torch.inf).softmax(-1).mean(1)[..., :-1]
        whole = self.settings.queries == "caption"
        return Alignment(only_real(weights, image_mask[rows], text_mask[columns]), "weight", whole)

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        images, image_mask, _, _ = tokens_of(batch)
        texts, text_mask = self.queries(batch)
        return memory_scores(
            self.memory,
            self.pooled,
            images,
            texts,
            image_mask=image_mask,
            text_mask=text_mask,
            pairs=pairs,
        )


def build(config: Config, dims: Dims) -> FLAIR:
    """E D_I + 4 (E² + E) + 6 E parameters and the text's E² ("tokens": E D_T): 1,709,056 for CLIP ViT-B/32 (768, 512,
    E = 512), 1,050,624 of them the attention's. An image costs P E (D_I + 2 E) multiplications once, a caption 2 E²; a
    pair E (2 P + 2 + E) for each of its queries, 314,880 for 50 patches: two products with the patches and the output's
    E², which its norm needs. Raises `UsageError` if the pooled width is not a multiple of the heads, `InputError` if
    the store keeps no tokens or no pooled embeddings."""
    dims.require_tokens("flair")
    require_pooled(dims, "flair")
    require(
        config.heads >= 1 and dims.pooled_dim % config.heads == 0,
        f"the pooled width {dims.pooled_dim} is not a multiple of head.heads = {config.heads}",
        f"Set head.heads to a divisor of {dims.pooled_dim}.",
    )
    return FLAIR(config, dims)
