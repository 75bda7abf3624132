"""Where to cut the towers of transformers' dual encoders: CLIP, MetaCLIP 2, SigLIP, SigLIP 2. See `towers.py`.

The states are those that open_clip's towers give: of images and texts the last layer's behind the final norm.
transformers itself gives CLIP's image states before that norm and applies it to the pooled one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .towers import Blocks, Shape


class HubModel(torch.nn.Module):
    """A dual encoder of transformers with the face of open_clip's: `visual`, `text`, `encode_image`, `encode_text`.

    family  the configuration's `model_type`
    pad     the id that the tokenizer pads with
    grid    rows and columns of patches, for SigLIP 2 NaFlex; 0 for towers of one image size
    """

    def __init__(self, model: Any, family: str, pad: int = 0, grid: int = 0) -> None:
        super().__init__()
        self.model = model
        projected = family in ("clip", "metaclip_2")
        self.visual = TransformersImages(model, projected, grid)
        self.text = TransformersTexts(model, projected, pad)
        # Configurations from before transformers 4.31 say 2, which is wrong; CLIP then pools the highest id.
        self.text.highest = family == "clip" and self.text.eos == 2

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, H, W) float32 → (B, E): the model's own `get_image_features`."""
        pooled: Tensor = self.model.get_image_features(**self.visual.inputs(pixels)).pooler_output
        return torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled

    def encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        """(B, context length) → (B, E): the model's own `get_text_features`, without an attention mask."""
        pooled: Tensor = self.model.get_text_features(input_ids=ids).pooler_output
        return torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled


class TransformersImages(Blocks):
    """The image tower. One CLS token comes first in CLIP's, none in SigLIP's.

    NaFlex is given one square grid that every picture fills: no patch is padding, and no mask is needed.
    """

    def __init__(self, model: Any, projected: bool, grid: int = 0) -> None:
        super().__init__(model.vision_model.encoder.layers)
        self.tower = model.vision_model
        self.projection = model.visual_projection if projected else None
        self.prefix = int(projected)
        self.grid = grid
        self.patch = int(model.config.vision_config.patch_size)
        side = grid * self.patch or int(model.config.vision_config.image_size)
        self.image_size: Shape = (side, side)

    def inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the model's own `get_image_features` takes for (B, 3, H, W)."""
        if not self.grid:
            return {"pixel_values": pixels}
        return {
            "pixel_values": patches_of(pixels, self.patch),
            "pixel_attention_mask": torch.ones(len(pixels), self.grid**2, dtype=torch.int32, device=pixels.device),
            "spatial_shapes": torch.full((len(pixels), 2), self.grid, dtype=torch.int64, device=pixels.device),
        }

    def embed(self, inputs: Tensor) -> tuple[Tensor, None]:
        given = self.inputs(inputs)
        given.pop("pixel_attention_mask", None)
        states = self.tower.embeddings(**given)
        return (states if self.projection is None else self.tower.pre_layrnorm(states)), None

    def block(self, index: int, states: Tensor, context: Any) -> Tensor:
        through: Tensor = self.modules[index](states, None)
        return through

    def finish(self, states: Tensor) -> Tensor:
        normed: Tensor = self.tower.post_layernorm(states)
        return normed

    def leave(self, states: Tensor, k: int) -> Tensor:
        return self.through(states, k, None)

    def pool(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.tower.head(tokens) if self.projection is None else self.projection(tokens[:, 0])
        return pooled


class TransformersTexts(Blocks):
    """The text tower: CLIP's behind a causal mask and pooled at the end token; SigLIP's over the whole context,
    padding included, and pooled at its last position.

    highest  whether the highest id is pooled, not the first end token
    """

    def __init__(self, model: Any, causal: bool, pad: int) -> None:
        super().__init__(model.text_model.encoder.layers)
        self.tower = model.text_model
        self.projection = model.text_projection if causal else self.tower.head
        self.causal = self.trims = causal
        self.attends = not causal
        self.pad = pad
        self.eos = model.config.text_config.eos_token_id
        self.highest = False
        self.size, self.width = map(int, self.tower.embeddings.token_embedding.weight.shape)
        self.context_length = int(self.tower.embeddings.position_embedding.weight.shape[0])

    def embed(self, inputs: Tensor) -> tuple[Tensor, None]:
        return self.tower.embeddings(input_ids=inputs), None

    def block(self, index: int, states: Tensor, context: Any) -> Tensor:
        # No mask tensor: torch's own attention, which the model is built with, masks by `is_causal`.
        through: Tensor = self.modules[index](states, None, is_causal=self.causal)
        return through

    def finish(self, states: Tensor) -> Tensor:
        normed: Tensor = self.tower.final_layer_norm(states)
        return normed

    def leave(self, tokens: Sequence[Tensor], k: int) -> list[Tensor]:
        last = self.through(pad_sequence(list(tokens), batch_first=True), k, None)
        return [row[: len(rows)] for row, rows in zip(last, tokens, strict=True)]

    def pooled_position(self, ids: Tensor) -> list[int]:
        if not self.causal:
            return [ids.shape[1] - 1] * len(ids)
        # Without an end token the first position, as in the model itself.
        where = ids if self.highest else ids.eq(self.eos).int()
        return [int(index) for index in where.argmax(dim=-1).tolist()]

    def pool(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        pooled = torch.stack([rows[index] for rows, index in zip(tokens, pool_index, strict=True)])
        projected: Tensor = self.projection(pooled)
        return projected


def patches_of(pixels: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) → (B, rows · columns, patch² · C), as transformers' `Siglip2ImageProcessor` cuts them."""
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // patch) * (width // patch), -1)
