"""Where to cut each of open_clip's towers so that its own pooling can be recomputed from the tokens.

A tower gives `states` (the last layer's, behind the final norm where the pooling reads it) and `pool` or
`project` (what the tower itself does with them). `pool(states(x))` is the tower's `forward(x)`; `check` in
`dual_encoder.py` holds every loaded model to it, so a family that open_clip changes is refused, not cached
wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError

Shape = tuple[int, int]


class ImageTower(Protocol):
    """prefix: how many tokens come before the patch grid; image_size: (height, width) in pixels."""

    prefix: int
    image_size: Shape

    def states(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, P, D)."""

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, P, D) → (B, E)."""


class TextTower(Protocol):
    """size: rows of the embedding table; trims: whether columns of pure padding may be left out exactly."""

    width: int
    context_length: int
    size: int
    trims: bool

    def states(self, ids: Tensor) -> Tensor:
        """(B, L) ids → (B, L, D), or (B, L + 1, D) with an appended CLS."""

    def pooled_position(self, ids: Tensor) -> list[int]:
        """Which state of each row the tower pools; -1 if it pools several."""

    def pool(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        """B of (L, D) → (B, E)."""


def image_tower(visual: Any) -> ImageTower:
    """The adapter of an open_clip vision tower. Raises `InputError` for a kind that has none."""
    kind = type(visual).__name__
    if kind == "VisionTransformer":
        return NativeImages(visual)
    if kind == "ModifiedResNet":
        return ResNetImages(visual)
    if kind == "TimmModel":
        return TimmImages(visual)
    raise InputError(f"image towers of kind {kind} have no adapter", "Add one to pipeline/towers.py.")


def text_tower(model: Any) -> TextTower:
    """The adapter of the text tower of an open_clip model. Raises `InputError` for a kind that has none."""
    text = getattr(model, "text", model)
    if hasattr(text, "token_embedding"):
        return NativeTexts(text)
    if type(text).__name__ == "HFTextEncoder":
        return HubTexts(text)
    raise InputError(f"text towers of kind {type(text).__name__} have no adapter", "Add one to pipeline/towers.py.")


def grid_of(patches: int, image_size: Shape) -> Shape:
    """(rows, columns) of a row-major grid of `patches` with the aspect of the image."""
    height, width = image_size
    rows = round(math.sqrt(patches * height / width))
    if rows < 1 or patches % rows:
        raise InputError(f"{patches} patches do not fill a grid of the shape {height} x {width}")
    return rows, patches // rows


def _pair(size: Any) -> Shape:
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size))


class NativeImages:
    """open_clip's own ViT: CLIP, CLIPA, MetaCLIP, CoCa. One CLS token comes first, whatever is pooled."""

    prefix = 1

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.image_size = _pair(visual.image_size)
        if visual.attn_pool is not None and visual.attn_pool_contrastive is not None:
            raise InputError("attention pooling of the kind 'parallel' or 'cascade' has no adapter")
        # CoCa's attention pooling and CLIPA's average read the states before the final norm.
        self.normed = visual.attn_pool is None and not visual.final_ln_after_pool

    def states(self, pixels: Tensor) -> Tensor:
        states: Tensor = self.visual.transformer(self.visual._embeds(pixels))
        return self.visual.ln_post(states) if self.normed else states

    def pool(self, tokens: Tensor) -> Tensor:
        pooled = self._pooled(tokens)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def _pooled(self, tokens: Tensor) -> Tensor:
        visual = self.visual
        if visual.attn_pool is not None:
            attended: Tensor = visual._global_pool(visual.ln_post(visual.attn_pool(tokens)))[0]
            return attended
        pooled: Tensor = visual._global_pool(tokens)[0]
        return pooled if self.normed else visual.ln_post(pooled)


class ResNetImages:
    """CLIP's ModifiedResNet: the 7 × 7 map before its attention pooling (which adds a 50th, the mean)."""

    prefix = 0

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.image_size = _pair(visual.image_size)

    def states(self, pixels: Tensor) -> Tensor:
        visual = self.visual
        grid: Tensor = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
        return grid.flatten(2).transpose(1, 2)

    def pool(self, tokens: Tensor) -> Tensor:
        rows, columns = grid_of(tokens.shape[1], self.image_size)
        batch, _, width = tokens.shape
        pooled: Tensor = self.visual.attnpool(tokens.transpose(1, 2).reshape(batch, width, rows, columns))
        return pooled


class TimmImages:
    """timm trunks: SigLIP, PE-Core, EVA, MobileCLIP, ViTamin, ConvNeXt, Swin.

    States are those of `forward_features`, normed where `forward_head` reads them so; maps are flattened
    row by row.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.image_size = _pair(visual.image_size)
        self.prefix = int(getattr(visual.trunk, "num_prefix_tokens", 0))
        self._layout: str | None = None

    def states(self, pixels: Tensor) -> Tensor:
        trunk = self.visual.trunk
        states: Tensor = trunk.forward_features(pixels)
        if states.ndim == 3:
            self._layout = "NLC"
            return states
        # ConvNeXt and FastViT give channels first, Swin channels last.
        self._layout = "NCHW" if states.shape[1] == trunk.num_features else "NHWC"
        return states.flatten(2).transpose(1, 2) if self._layout == "NCHW" else states.flatten(1, 2)

    def pool(self, tokens: Tensor) -> Tensor:
        if self._layout is None:  # only a forward pass tells
            self.states(tokens.new_zeros(1, 3, *self.image_size))
        if self._layout != "NLC":
            batch, patches, width = tokens.shape
            tokens = tokens.reshape(batch, *grid_of(patches, self.image_size), width)
        if self._layout == "NCHW":
            tokens = tokens.permute(0, 3, 1, 2)
        pooled: Tensor = self.visual.head(self.visual.trunk.forward_head(tokens))
        return pooled


class NativeTexts:
    """open_clip's own text transformer, inside `CLIP` or as `TextTransformer`."""

    def __init__(self, text: Any) -> None:
        self.text = text
        self.pool_type = getattr(text, "pool_type", None) or text.text_pool_type
        self.eos = getattr(text, "eos_id", getattr(text, "text_eos_id", None))
        self.cls = getattr(text, "cls_emb", None) is not None
        self.size, self.width = map(int, text.token_embedding.weight.shape)
        self.context_length = int(text.positional_embedding.shape[0]) - self.cls
        # Behind a causal mask nothing before the end sees the padding. CoCa's CLS stands after the padding.
        self.trims = text.attn_mask is not None and not self.cls and self.pool_type in ("argmax", "eos", "first")
        if self.pool_type == "none" and not self.cls:
            raise InputError("the text tower pools nothing", "Use a model whose text_cfg has a pool_type.")

    def states(self, ids: Tensor) -> Tensor:
        text, length = self.text, ids.shape[1]
        if hasattr(text, "_embeds"):
            embedded, mask = text._embeds(ids)
        else:
            embedded, mask = text.token_embedding(ids) + text.positional_embedding[:length], text.attn_mask
        if mask is not None and mask.ndim == 2:
            mask = mask[:length, :length]
        states: Tensor = text.transformer(embedded, attn_mask=mask)
        # With an appended CLS the final norm is applied to it alone, after pooling.
        return states if self.cls else text.ln_final(states)

    def pooled_position(self, ids: Tensor) -> list[int]:
        rows, length = ids.shape
        if self.cls:
            return [length] * rows
        if self.pool_type in ("first", "last"):
            return [0 if self.pool_type == "first" else length - 1] * rows
        where = ids if self.pool_type == "argmax" else ids.eq(self.eos if self.eos is not None else -1).int()
        return [int(index) for index in where.argmax(dim=-1).tolist()]

    def pool(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        pooled = torch.stack([rows[index] for rows, index in zip(tokens, pool_index, strict=True)])
        if self.cls:
            pooled = self.text.ln_final(pooled)
        projection = self.text.text_projection
        if projection is None:
            return pooled
        linear = isinstance(projection, torch.nn.Linear)
        projected: Tensor = projection(pooled) if linear else pooled @ projection
        return projected


class HubTexts:
    """A Hugging Face text tower (`HFTextEncoder`: RoBERTa, XLM-R, mT5, NLLB)."""

    trims = False

    def __init__(self, text: Any) -> None:
        self.text = text
        embeddings = text.transformer.get_input_embeddings().weight
        self.size, self.width = map(int, embeddings.shape)
        self.context_length = int(text.context_length)
        self.pooler = type(text.pooler).__name__

    def states(self, ids: Tensor) -> Tensor:
        mask = (ids != self.text.config.pad_token_id).long()
        states: Tensor = self.text.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    def pooled_position(self, ids: Tensor) -> list[int]:
        return [0 if self.pooler.startswith("Cls") else -1] * len(ids)

    def pool(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        padded = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
        if self.pooler.startswith("Cls"):
            # The model's own pooler where open_clip asks for it and there is one (BERT's dense layer and tanh).
            wanted = self.pooler == "ClsPooler" and self.text.pooler.use_pooler_output
            own = getattr(self.text.transformer, "pooler", None) if wanted else None
            pooled = padded[:, 0] if own is None else own(padded)
        else:
            lengths = torch.tensor([len(rows) for rows in tokens], device=padded.device)
            mask = (torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]).long()
            pooled = self.text.pooler(_HiddenStates(padded), mask)
        projected: Tensor = self.text.proj(pooled)
        return projected


class _HiddenStates:
    """What open_clip's poolers read of a Hugging Face model's output."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state
