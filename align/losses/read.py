"""READ-CLIP: a frozen decoder must tell another caption from a caption's vector; paraphrases meet (arXiv 2510.16540).

L = L_con + 0.1 L_rec + 0.5 L_align (the paper, and github.com/JiH00nKw0n/READ-CLIP, config/train_read_clip.yaml):

- L_con    symmetric InfoNCE; images choose among the batch's captions and all rule negatives, as NegCLIP
- L_rec    mean over tokens of -log p(token | those before it, W √E t): a frozen decoder, given the unit vector t of a
           caption through a fitted linear map W, must generate another caption of the same image
- L_align  symmetric InfoNCE between captions and paraphrases, at the fitted scale of L_con

A paraphrase here is the caption that L_rec generates: another one of the same image, as the authors too draw theirs
from an image's captions and those that gpt-4o-mini wrote. Paraphrases given to the data set as captions take part so.
Captions of one image are no negatives of each other. Pairs whose image has no other caption have L_con alone.

The release differs: L_align goes from paraphrases to captions alone (`align_form = "as_released"`), what is generated
may be the caption itself, the decoder keeps its dropout, and W sees CLIP's text state before its last projection. That
one leaves a LayerNorm; √E gives a unit vector its length, since only vectors of the joint space are shown here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError, UsageError
from ..batches import Batch
from ..kernels.contrastive import infonce as pick
from ..pairs import PairTable
from ..scorer import Views, full
from . import infonce
from ._decoder import Decoder
from ._terms import mean

VIEWS = True


@dataclass(frozen=True)
class Config(infonce.Temperature):
    """rec, align   weights beside L_con; without the first no decoder is loaded
    decoder      of transformers, frozen: org/name[@REVISION] of the Hugging Face hub, or a folder. The decoder of an
                 encoder-decoder attends to the one state W √E t; a causal one has it in front. random[:SEED] is a tiny
                 one that has learnt nothing, for a try
    longest      tokens of a caption that are generated; those behind are cut off
    align_form   "symmetric" or "as_released"
    """

    temperature: float = 0.01
    rec: float = 0.1
    align: float = 0.5
    decoder: str = "google/t5-v1_1-large"
    longest: int = 77
    align_form: Literal["symmetric", "as_released"] = "symmetric"

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise UsageError(f"loss.longest = {self.longest} tokens", "Set it to 1 or more.")


parameters = infonce.parameters


def build(config: Config, width: int) -> Decoder | None:
    """The decoder for vectors (C, E = `width`); of it, W alone is fitted and saved. Raises what `Decoder` raises."""
    return Decoder(config.decoder, width, config.longest) if config.rec else None


def check(table: PairTable) -> None:
    """Raises `InputError` for pairs of which no image has a second caption: L_con alone would be learnt."""
    if not any(len(table.further_of(pair)) for pair in range(len(table))):
        raise InputError(
            f"no image of {table.path} has a second caption, from which this loss learns",
            "Fit on data that has: coco, or of shapes --set data.train=pretrain.",
        )


def loss(
    scores: Tensor,
    batch: Batch,
    config: Config,
    fitted: Mapping[str, Tensor] | None = None,
    *,
    views: Views,
    module: Decoder | None = None,
) -> Tensor:
    """A scalar float32 from `scores` (I, C), the head's text vectors and the captions' texts. Entries outside
    `batch.scored` are ignored. Raises `UsageError` for a head without vectors, or a batch without further captions."""
    scale = infonce.scale_of(config, fitted)
    if batch.pairs is None or batch.further is None:
        raise UsageError("this loss needs another caption of each pair's image", "Set data.further = 1.")
    total = _contrastive(scores, batch, batch.pairs, scale)
    _, text = views.vectors()
    drawn = batch.further >= 0
    owners = drawn.nonzero()[:, 0]
    if not len(owners):
        return total
    others = batch.further[drawn]
    if config.rec:
        assert module is not None
        assert batch.told is not None
        total = total + config.rec * module(text[batch.pairs[owners, 1]], batch.told(others.tolist()))
    if config.align:
        rows, captions = batch.pairs[drawn.any(1)].unbind(1)
        same = batch.positives[rows][:, others].T
        total = total + config.align * _aligned(text[others] @ text[captions].T, same, scale, config)
    return total


def _contrastive(scores: Tensor, batch: Batch, pairs: Tensor, scale: Tensor | float) -> Tensor:
    """L_con: columns that were drawn to be generated are none of it, unless they are a pair's caption too."""
    columns = pairs[:, 1]
    if batch.negatives is not None:
        columns = torch.cat([columns, batch.negatives[batch.negatives >= 0]])
    columns = torch.unique(columns)
    taken = None if batch.scored is None else batch.scored[:, columns]
    return pick(full(scores[:, columns]), batch.positives[:, columns], scale=scale, taken=taken)


def _aligned(cosines: Tensor, same: Tensor, scale: Tensor | float, config: Config) -> Tensor:
    """L_align of the cosines (M, N) of paraphrases and captions; `same` (M, N) bool: they describe one image."""
    if config.align_form == "symmetric":
        return pick(cosines, same, scale=scale)
    logits = cosines * scale
    choice = ~same.all(1)
    logits, same = logits[choice], same[choice]
    wrong = logits.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    costs = torch.nn.functional.softplus(wrong - logits).masked_fill(~same, 0)
    return mean(costs.sum(1) / same.sum(1), cosines)
