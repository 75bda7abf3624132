"""Both towers above a store's cut, tuned whole; the score is the cosine of what they pool. Levels pixels and block:-K.

Fine-tuning (the control without negatives), NegCLIP, CE-CLIP, CLoVe, DeGLA, FSC-CLIP and C2LIP are objectives and data
over this head. What a run tunes becomes a backbone of its own (`--backbone run:ID`), extracted and evaluated as any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..batches import Batch
from ..scorer import Dims, Side, VectorScorer, cut, require, unit

TOWERS = True  # `build` is given the towers of the store's backbone


class Tuned(Protocol):
    """The towers above a cut: `pipeline.trainable.Towers`."""

    model: nn.Module

    def image_features(self, rows: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def text_features(self, rows: Tensor, mask: Tensor, /) -> tuple[Tensor, Tensor, Tensor]: ...
    def image_tokens(self, states: Tensor, /) -> Tensor: ...
    def text_tokens(self, states: Tensor, /) -> Tensor | None: ...
    def check_local(self) -> None: ...
    def freeze(self, side: str, /) -> None: ...
    def adapt(self, rank: int, alpha: float, /) -> None: ...
    def weights(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Config:
    """train  "both" towers, or one of them: the text tower alone is tuned by CLIC (arXiv 2505.24424)
    local  objectives are shown patches (CLS and registers left out) and tokens in the space of the pooled embeddings,
           which costs a pooling each
    lora   rank of additions that are trained in place of the weights, 0 = the weights themselves; needs peft
    lora_alpha  of their scale, lora_alpha / lora
    """

    train: Literal["both", "image", "text"] = "both"
    local: bool = False
    lora: int = 0
    lora_alpha: float = 8.0


class TunedTowers(VectorScorer):
    """s(i, c) = cos(f_I(i), f_T(c)) with gradients into both towers."""

    def __init__(self, config: Config, towers: Any) -> None:
        super().__init__()
        self.settings = config
        self.towers = towers
        if config.lora:
            towers.adapt(config.lora, config.lora_alpha)
        if config.train != "both":
            towers.freeze("image" if config.train == "text" else "text")
        if config.local:
            towers.check_local()

    def image_side(self, batch: Batch, local: bool) -> Side:
        """Unit vectors, whose products are the scores."""
        images, _ = cut(batch.images, batch.image_mask)
        states, vectors = self.towers.image_features(images)
        if not (local and self.settings.local):
            return Side(unit(vectors))
        patches = self.towers.image_tokens(states)
        return Side(unit(vectors), patches, patches.new_ones(patches.shape[:2], dtype=torch.bool))

    def text_side(self, batch: Batch, local: bool) -> Side:
        """Unit vectors, whose products are the scores."""
        states, mask, vectors = self.towers.text_features(*cut(batch.texts, batch.text_mask))
        tokens = self.towers.text_tokens(states) if local and self.settings.local else None
        return Side(unit(vectors)) if tokens is None else Side(unit(vectors), tokens, mask)


def build(config: Config, dims: Dims, towers: Tuned | None = None) -> TunedTowers:
    """All parameters above the cut: 151 M for CLIP ViT-B/32 from pixels. A pair costs E multiplications, an image and a
    caption a pass of their tower. Raises `InputError` without towers: a checkpoint of them is no head."""
    if towers is None:
        raise InputError(
            "head 'towers' is the backbone itself, tuned",
            "Fit it with --level pixels; evaluate the run as a backbone: --backbone run:ID --head cosine.",
        )
    require(config.lora >= 0, f"head.lora = {config.lora} is no rank", "Set it to 1 or more, or 0 for none.")
    return TunedTowers(config, towers)
