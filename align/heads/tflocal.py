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

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..scorer import Dims, Scorer, all_pairs, longest, require, tokens_of
from . import cosine
from ._transformer import (
    CrossBlock,
    KeysValues,
    SelfBlock,
    TokenInput,
    in_chunks,
    mean_tokens,
    tokens_at_a_time,
)

TEXTS = 128  # captions scored against a chunk of images at a time; the shared first queries cost 1/images


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

    def score(self, batch: Batch) -> Tensor:
        return self.score_pairs(batch, all_pairs(batch)).view(batch.shape)

    def finished(self, scores: Tensor, residual: Tensor) -> Tensor:
        """Scores in float32, with the multiple of the cosine where it is asked for."""
        scores = scores.float()
        return scores if self.cosine_scale is None else scores + self.cosine_scale * residual


class Joint(TFLocal):
    """[image ; text] through self-attention: every pair is a sequence of its own."""

    def block(self) -> nn.Module:
        config = self.settings
        return SelfBlock(config.width, config.heads, config.ffn, config.dropout)

    def score_pairs(self, batch: Batch, pairs: Tensor) -> Tensor:
        if not len(pairs):
            return torch.zeros(0, device=pairs.device)
        image, image_mask, text, text_mask = self.inputs(batch)

        def run(pairs: Tensor) -> Tensor:
            length = longest(text_mask[pairs[:, 1]])
            x = torch.cat([image[pairs[:, 0]], text[pairs[:, 1], :length]], dim=1)
            mask = torch.cat([image_mask[pairs[:, 0]], text_mask[pairs[:, 1], :length]], dim=1)
            for block in self.blocks:
                x = block(x, mask)
            pooled = mean_tokens(x, mask) if self.cls is None else x[:, image.shape[1]]
            scores: Tensor = self.output(pooled)[:, 0]
            return scores

        # Pairs of similar caption length go together, so that little of a chunk is padding.
        order = text_mask.sum(1)[pairs[:, 1]].argsort(stable=True)
        each = image.shape[1] + text.shape[1]
        chunks = torch.split(pairs[order], max(1, tokens_at_a_time(pairs.device) // each))
        scores = torch.cat(in_chunks(run, chunks, self.retained_bytes(each * len(pairs))))
        return self.finished(scores[order.argsort()], cosine.Cosine().score_pairs(batch, pairs))


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

    def run(self, x: Tensor, mask: Tensor, memories: list[KeysValues], image_mask: Tensor) -> Tensor:
        """x (1 or B, T, L, W) and mask (1 or B, T, L): T texts for each of B images, whose keys and values
        stand in `memories`, one pair per block; image_mask (B, P) → (B, T)."""
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, mask, memory, image_mask)
        pooled = mean_tokens(x, mask) if self.cls is None else x[:, :, 0]
        scores: Tensor = self.output(pooled)[..., 0]
        return scores

    def memories(self, image: Tensor) -> list[KeysValues]:
        """Keys and values of (I, P, W) image tokens for every block."""
        return [block.keys_values(image) for block in self.blocks]  # type: ignore[operator]

    def score(self, batch: Batch) -> Tensor:
        image, image_mask, text, text_mask = self.inputs(batch)
        tokens, length = tokens_at_a_time(image.device), text.shape[1]
        order = text_mask.sum(1).argsort(stable=True)
        captions = torch.split(order, max(1, min(TEXTS, tokens // length)))
        rows = []
        at_a_time = max(1, tokens // (min(TEXTS, len(text)) * length))
        for chosen in torch.split(torch.arange(len(image), device=image.device), at_a_time):
            tile = partial(self._tile, self.memories(image[chosen]), image_mask[chosen], text, text_mask)
            retained = self.retained_bytes(len(image) * len(text) * length)
            rows.append(torch.cat(in_chunks(tile, captions, retained), dim=1))
        return self.finished(torch.cat(rows)[:, order.argsort()], cosine.Cosine().score(batch))

    def _tile(
        self,
        memories: list[KeysValues],
        image_mask: Tensor,
        text: Tensor,
        text_mask: Tensor,
        captions: Tensor,
    ) -> Tensor:
        length = longest(text_mask[captions])
        x, mask = text[None, captions, :length], text_mask[None, captions, :length]
        return self.run(x, mask, memories, image_mask)

    def score_pairs(self, batch: Batch, pairs: Tensor) -> Tensor:
        if not len(pairs):
            return torch.zeros(0, device=pairs.device)
        image, image_mask, text, text_mask = self.inputs(batch)

        def run(pairs: Tensor) -> Tensor:
            rows, inverse = torch.unique(pairs[:, 0], return_inverse=True)
            memories = [(key[inverse], value[inverse]) for key, value in self.memories(image[rows])]
            length = longest(text_mask[pairs[:, 1]])
            x, mask = text[pairs[:, 1], None, :length], text_mask[pairs[:, 1], None, :length]
            return self.run(x, mask, memories, image_mask[pairs[:, 0]])[:, 0]

        # Pairs of one image go together; the gathered keys and values weigh as much as P tokens a pair.
        order = pairs[:, 0].argsort(stable=True)
        each = image.shape[1] + text.shape[1]
        chunks = torch.split(pairs[order], max(1, tokens_at_a_time(pairs.device) // each))
        scores = torch.cat(in_chunks(run, chunks, self.retained_bytes(each * len(pairs))))
        return self.finished(scores[order.argsort()], cosine.Cosine().score_pairs(batch, pairs))


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
