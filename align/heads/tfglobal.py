"""TFGlobal: TFLocal's capacity over the two pooled embeddings alone, the control (arXiv 2604.11496).

The paper compares its head with extra capacity on the global embeddings. If this head, fitted on the same
pairs by the same schedule, does not learn what `tflocal` learns, then the tokens made the difference and
not the parameters. Its internals, as those of `tflocal`, are ours: image and caption are a sequence of two
tokens, through the same encoder layers (13.1 M parameters at E = 512), then mean, LayerNorm, one unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..kernels.pairs import pair_scores
from ..scorer import Dims, Scorer, require
from ._transformer import SelfBlock, TokenInput


@dataclass(frozen=True)
class Config:
    """width, layers, heads, ffn, dropout: as in `tflocal`, with the same defaults."""

    width: int = 512
    layers: int = 4
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1


class TFGlobal(Scorer):
    """[image ; caption], two tokens, through pre-norm encoder layers."""

    needs = "pooled"

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.settings = config
        self.image_input = TokenInput(dims.pooled_dim, config.width, positions=0)
        self.text_input = TokenInput(dims.pooled_dim, config.width, positions=0)
        self.blocks = nn.ModuleList(
            SelfBlock(config.width, config.heads, config.ffn, config.dropout) for _ in range(config.layers)
        )
        self.output = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 1))

    def joint(self, image: Tensor, image_mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """(n, 1, W) and (n, 1), twice → (n,)."""
        x, mask = torch.cat([image, text], dim=1), torch.cat([image_mask, text_mask], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        scores: Tensor = self.output(x.mean(1))[:, 0]
        return scores

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        image, text = self.image_input(batch.image_pooled), self.text_input(batch.text_pooled)
        return pair_scores(self.joint, image[:, None], text[:, None], pairs=pairs).float()


def build(config: Config, dims: Dims) -> TFGlobal:
    """Raises `UsageError` if the width is not a multiple of the heads."""
    require(
        config.width % config.heads == 0,
        f"head.width = {config.width} is not a multiple of head.heads = {config.heads}",
        f"Set head.width to a multiple of {config.heads}.",
    )
    return TFGlobal(config, dims)
