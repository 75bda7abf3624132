"""TFLocal: a small transformer scores an image and a caption from their frozen tokens (arXiv 2604.11496).

From the paper's abstract: a lightweight transformer over frozen patch and token embeddings learns to align
regions with segments, jointly for each pair. Its internals are not published. What is ours, all of it:

- the form "joint": [image ; text] through pre-norm encoder layers. Four layers of width 512, feed-forward
  2,048, over trainable projections of the last-layer states give 13.3 M parameters with CLIP ViT-B/32,
  the figure reported of the paper; eight heads, dropout 0.1;
- parameter-free normalisation of the incoming states, type embeddings, learned positions for patches and
  for the valid text tokens, which start as sines and cosines (of row and column for patches);
- the score: mean over all real tokens (or a learned CLS token), LayerNorm, one linear unit;
- the form "cross": text tokens are queries, image tokens are keys and values that are computed once per
  image and not per pair, so that an image costs its projections and a pair only its text tokens;
- `residual = "cosine"`: a learned multiple of the pooled cosine is added, so that the head starts from the
  backbone's own ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..kernels.pairs import RETAINED, TEXTS, memory_scores, pair_scores, tokens_at_a_time
from ..scorer import Alignment, Dims, Scorer, full, only_real, require, tokens_of
from . import cosine
from ._transformer import (
    CrossBlock,
    KeysValues,
    SelfBlock,
    TokenInput,
    mean_tokens,
)


@dataclass(frozen=True)
class Config:
    """interaction          "joint": image and text in one sequence; "cross": text attends to the image
    width, layers, heads, ffn  of the transformer; width is a multiple of heads
    dropout              on attention weights and on the branches
    pool                 "mean" over the real tokens, or a learned "cls" token in front of the text
    text_self_attention  of "cross": text tokens also attend to each other
    image_layers, text_layers  of "cross": encoder layers over the image's and over the caption's own tokens before
                         they meet, computed once per image and once per caption
    compare              of "cross": pass on the product of what a text token sees and what it says
    residual             "cosine" adds `residual_scale` (learned from this value on) times the pooled cosine
    """

    interaction: Literal["joint", "cross"] = "joint"
    width: int = 512
    layers: int = 4
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1
    pool: Literal["mean", "cls"] = "mean"
    text_self_attention: bool = True
    image_layers: int = 0
    text_layers: int = 0
    compare: bool = False
    residual: Literal["none", "cosine"] = "none"
    residual_scale: float = 10.0


class TFLocal(Scorer):
    """What both forms share: the inputs, and the way from the last states to a score."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.settings = config
        self.image_input = TokenInput(dims.image_dim, config.width, dims.image_tokens, dims.image_grid)
        self.text_input = TokenInput(dims.text_dim, config.width, dims.context_length)
        self.cls = nn.Parameter(torch.empty(config.width).normal_(std=0.02)) if config.pool == "cls" else None
        self.blocks = nn.ModuleList(self.block() for _ in range(config.layers))
        self.output = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 1))
        cosine_scale = torch.tensor(config.residual_scale) if config.residual == "cosine" else None
        self.cosine_scale = None if cosine_scale is None else nn.Parameter(cosine_scale)

    def block(self) -> nn.Module:
        """One layer: what to replace to try another."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """image (I, P, W), image_mask, text (C, L, W), text_mask; a CLS token is one of the L."""
        images, image_mask, texts, text_mask = tokens_of(batch)
        text = self.text_input(texts)
        if self.cls is not None:
            text = torch.cat([self.cls.to(text.dtype).expand(len(text), 1, -1), text], dim=1)
            text_mask = torch.cat([text_mask.new_ones(len(text), 1), text_mask], dim=1)
        return self.image_input(images), image_mask, text, text_mask

    def retained_bytes(self, tokens: int) -> int:
        """About what autograd keeps of `tokens` tokens going through all blocks."""
        config = self.settings
        return 4 * tokens * config.layers * (10 * config.width + 2 * config.ffn)

    def held_too_much(self, tokens: int) -> bool:
        """Whether to compute again what so many tokens leave behind."""
        return self.retained_bytes(tokens) > RETAINED

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        """(N,) of the pairs, or (I, C) of all, without the cosine."""
        raise NotImplementedError

    def score(self, batch: Batch) -> Tensor:
        scores = self.scores_of(batch, None).float()
        return scores if self.cosine_scale is None else scores + self.cosine_scale * cosine.Cosine().score(batch)

    def score_pairs(self, batch: Batch, pairs: Tensor) -> Tensor:
        scores = self.scores_of(batch, pairs).float()
        if self.cosine_scale is None:
            return scores
        return scores + self.cosine_scale * cosine.Cosine().score_pairs(batch, pairs)

    def layer_weights(self, image: Tensor, image_mask: Tensor, text: Tensor, text_mask: Tensor) -> Iterator[Tensor]:
        """(n, P, W), (n, P), (n, L, W), (n, L) → of every layer, (n, L, P): what text tokens take from image tokens."""
        raise NotImplementedError

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        """Attention from text to image tokens, the mean over layers."""
        image, image_mask, text, text_mask = self.inputs(batch)
        rows, columns = pairs.unbind(1)
        layers = self.layer_weights(image[rows], image_mask[rows], text[columns], text_mask[columns])
        values = only_real(full(torch.stack(list(layers)).mean(0)), image_mask[rows], text_mask[columns])
        return Alignment(values if self.cls is None else values[:, 1:], "weight")


class Joint(TFLocal):
    """[image ; text] through self-attention: every pair is a sequence of its own."""

    def block(self) -> nn.Module:
        config = self.settings
        return SelfBlock(config.width, config.heads, config.ffn, config.dropout)

    def joint(self, image: Tensor, image_mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """(n, P, W), (n, P), (n, T, W), (n, T) → (n,)."""
        x, mask = torch.cat([image, text], dim=1), torch.cat([image_mask, text_mask], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        pooled = mean_tokens(x, mask) if self.cls is None else x[:, image.shape[1]]
        scores: Tensor = self.output(pooled)[:, 0]
        return scores

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        image, image_mask, text, text_mask = self.inputs(batch)
        return pair_scores(
            self.joint,
            image,
            text,
            image_mask=image_mask,
            text_mask=text_mask,
            pairs=pairs,
            tokens=tokens_at_a_time(image.device),
            recompute=self.held_too_much,
        )

    def layer_weights(self, image: Tensor, image_mask: Tensor, text: Tensor, text_mask: Tensor) -> Iterator[Tensor]:
        x, mask = torch.cat([image, text], dim=1), torch.cat([image_mask, text_mask], dim=1)
        patches = image.shape[1]
        for block in cast("list[SelfBlock]", self.blocks):
            yield block.attention.weights(block.norms[0](x), mask)[:, patches:, :patches]
            x = block(x, mask)


class Cross(TFLocal):
    """Text tokens attend to image tokens, whose keys and values are computed once per image."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        layer = partial(SelfBlock, config.width, config.heads, config.ffn, config.dropout)
        self.image_blocks = nn.ModuleList(layer() for _ in range(config.image_layers))
        self.text_blocks = nn.ModuleList(layer() for _ in range(config.text_layers))

    def block(self) -> nn.Module:
        config = self.settings
        return CrossBlock(
            config.width, config.heads, config.ffn, config.dropout, config.text_self_attention, config.compare
        )

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image, image_mask, text, text_mask = super().inputs(batch)
        for block in self.image_blocks:
            image = block(image, image_mask)
        for block in self.text_blocks:
            text = block(text, text_mask)
        return image, image_mask, text, text_mask

    def memory(self, image: Tensor, image_mask: Tensor) -> list[KeysValues]:
        """Keys and values of (B, P, W) image tokens for every block."""
        return [block.keys_values(image) for block in self.blocks]  # type: ignore[operator]

    def query(self, memory: list[KeysValues], image_mask: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """x (1 or B, T, L, W) and mask (1 or B, T, L): T texts for each of B images; image_mask (B, P) → (B, T)."""
        for block, keys_values in zip(self.blocks, memory, strict=True):
            x = block(x, mask, keys_values, image_mask)
        pooled = mean_tokens(x, mask) if self.cls is None else x[:, :, 0]
        scores: Tensor = self.output(pooled)[..., 0]
        return scores

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        image, image_mask, text, text_mask = self.inputs(batch)
        return memory_scores(
            self.memory,
            self.query,
            image,
            text,
            image_mask=image_mask,
            text_mask=text_mask,
            pairs=pairs,
            tokens=tokens_at_a_time(image.device),
            texts=TEXTS,
            recompute=self.held_too_much,
        )

    def layer_weights(self, image: Tensor, image_mask: Tensor, text: Tensor, text_mask: Tensor) -> Iterator[Tensor]:
        x, mask = text[:, None], text_mask[:, None]
        for block, memory in zip(cast("list[CrossBlock]", self.blocks), self.memory(image, image_mask), strict=True):
            yield block.weights(x, mask, memory, image_mask)
            x = block(x, mask, memory, image_mask)


def build(config: Config, dims: Dims) -> TFLocal:
    """Raises `UsageError` for a width that is not a multiple of the heads, and for a CLS token that nothing
    would show the text to; `InputError` if the store keeps no tokens."""
    dims.require_tokens("tflocal")
    require(
        config.width % config.heads == 0,
        f"head.width = {config.width} is not a multiple of head.heads = {config.heads}",
        f"Set head.width to a multiple of {config.heads}.",
    )
    require(
        config.pool == "mean" or config.interaction == "joint" or config.text_self_attention or config.text_layers > 0,
        'head.pool = "cls" never sees the text without head.text_self_attention or head.text_layers',
        'Set head.pool = "mean", or head.text_self_attention = true.',
    )
    require(
        config.interaction == "cross" or not (config.image_layers or config.text_layers or config.compare),
        'head.image_layers, head.text_layers and head.compare belong to head.interaction = "cross"',
        'Set head.interaction = "cross", or leave them out.',
    )
    return (Joint if config.interaction == "joint" else Cross)(config, dims)
