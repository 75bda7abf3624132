"""DCSM: a small convolutional network reads the whole map of token × patch cosines (arXiv 2503.08723).

As released (github.com/Raphoo/DCSM_Ideal_CLIP, `CrossModalConvNetwork`): two 3 × 3 convolutions of 4 channels with ReLU
over the map of words and patches (the patches in one row), then the flattened map through a layer of 128 units to one.
What differs:

- every entry that padding has a part in is zero, before and after each convolution. The release gives the text
  encoder's padding to the network and standardises the map over the whole batch, so that a score depends on both;
  in place of that the cosines are multiplied by √width, which gives random ones a variance of 1;
- the release's maps are cosines in CLIP's joint space. A store holds the states before the tower's projections, so both
  sides get one of their own, fitted with the network (`width`; 0 takes the tokens as they are: regions and segments);
- the functional rows, random rows put in place of eleven words such as "left" and "not", need the words, which a
  store does not give to a head;
- regions and segments have no order to flatten: their map is averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ..batches import Batch
from ..kernels.pairs import pair_scores
from ..scorer import Alignment, Dims, Scorer, cosines, full, require, tokens_of, unit
from ._projection import Projection, require_one_space


@dataclass(frozen=True)
class Config:
    """width        of the space in which cosines are taken; 0 = no projection
    channels     of the convolutions
    hidden       units behind them
    text_tokens  of a caption that are read, the first ones; as published
    readout      "flat": a weight for every place of the map; "mean": the map averaged; "auto": flat where tokens have
                 an order, else the mean
    dropout      of whole channels, and of units
    """

    width: int = 256
    channels: int = 4
    hidden: int = 128
    text_tokens: int = 30
    readout: Literal["auto", "flat", "mean"] = "auto"
    dropout: float = 0.0


class DCSM(Scorer):
    """The score of a pair is what the network makes of its map."""

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__()
        self.settings = config
        self.image = Projection(dims.image_dim, config.width) if config.width else None
        self.text = Projection(dims.text_dim, config.width) if config.width else None
        self.scale = math.sqrt(config.width or dims.image_dim)
        channels = config.channels
        self.convolutions = nn.ModuleList(nn.Conv2d(count, channels, 3, padding=1) for count in (1, channels))
        self.flat = config.readout == "flat" or (config.readout == "auto" and ordered(dims))
        self.shape = (min(config.text_tokens, dims.context_length), dims.image_tokens) if self.flat else (1, 1)
        self.read = nn.Linear(channels * self.shape[0] * self.shape[1], config.hidden)
        self.output = nn.Linear(config.hidden, 1)
        self.channel_dropout, self.dropout = nn.Dropout2d(config.dropout), nn.Dropout(config.dropout)

    def joint(self, image: Tensor, image_mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """(n, P, W), (n, P), (n, T, W), (n, T) → (n,)."""
        real = (text_mask[:, :, None] & image_mask[:, None])[:, None]
        x = (self.scale * (text @ image.transpose(1, 2)))[:, None]
        for convolve in self.convolutions:
            x = self.channel_dropout(F.relu(convolve(x.masked_fill(~real, 0))))
        x = x.masked_fill(~real, 0)
        if self.flat:
            weight = self.read.weight.view(-1, self.settings.channels, *self.shape)
            read = torch.einsum("nctp,hctp->nh", x, weight[:, :, : x.shape[2], : x.shape[3]]) + self.read.bias
        else:
            read = self.read(x.sum((2, 3)) / real.sum((2, 3)))
        scores: Tensor = self.output(self.dropout(F.relu(read)))[:, 0]
        return scores

    def compared(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unit vectors (I, P, W) and (C, L, W) of the tokens that are read, and their masks."""
        images, image_mask, texts, text_mask = tokens_of(batch)
        words = self.settings.text_tokens
        texts, text_mask = texts[:, :words], text_mask[:, :words]
        if self.image is not None and self.text is not None:
            images, texts = self.image(images), self.text(texts)
        return unit(images), image_mask, unit(texts), text_mask

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        return cosines(*self.compared(batch), pairs)

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        images, image_mask, texts, text_mask = self.compared(batch)
        scores = pair_scores(
            self.joint,
            images,
            texts,
            image_mask=image_mask,
            text_mask=text_mask,
            pairs=pairs,
        )
        return full(scores)


def ordered(dims: Dims) -> bool:
    """Whether image and text tokens each have places of their own: not regions and segments."""
    return bool(dims.image_tokens and dims.context_length)


def build(config: Config, dims: Dims) -> DCSM:
    """With channels c, hidden units h and at most L words: W (D_I + D_T) parameters of the projections,
    9 c (1 + c) + 2 c of the convolutions, c L P h + 2 h + 1 behind them: 1,096,125 for CLIP ViT-B/32 (768, 512, P = 50,
    L = 30). A pair costs P L (W + 9 c (1 + c) + c h) multiplications, 568,800 for 12 words. Raises `UsageError` for
    sizes below 1, `InputError` if the store keeps no tokens, if they are to be compared without a projection and differ
    in width, or to be flattened and have no order."""
    dims.require_tokens("dcsm")
    if not config.width:
        require_one_space(dims, "dcsm without a projection", "Set head.width above 0, or extract with --level regions.")
    require(
        config.width >= 0 and min(config.channels, config.hidden, config.text_tokens) >= 1,
        "head.width is below 0, or head.channels, head.hidden or head.text_tokens below 1",
        "The published sizes are 4, 128 and 30.",
    )
    if config.readout == "flat" and not ordered(dims):
        raise InputError(
            'head.readout = "flat" needs tokens in a fixed order, and regions and segments have none',
            'Set head.readout = "mean", or extract with --level tokens.',
        )
    return DCSM(config, dims)
