"""An open_clip model as an `Encoder`: tokens, pooled embeddings, and the pooling of cached tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, SpecMismatch
from ..stores.spec import FeatureSpec
from .encoder import ImageFeatures, TextFeatures
from .spans import NO_SPAN, Span
from .tokenizers import CaptionTokenizer, Tokenized, frame
from .towers import image_tower, text_tower

# A right cut is exact to 1e-5 on a CPU, less so in TF32; a wrong one is off by the embedding's own size.
TOLERANCE = 1e-3


class DualEncoder:
    """Features of an open_clip model at the level its spec asks for.

    The model holds float32 weights; the caller's autocast sets another precision. `tokenizer` may be None
    where only images and ready-made ids (`encode_token_ids`) are encoded.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        model: Any,
        tokenizer: CaptionTokenizer | None,
        transform: Callable[[Image.Image], Tensor],
        device: str = "cpu",
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.images = image_tower(model.visual)
        self.texts = text_tower(model)
        self.tokenizer = tokenizer
        self.transform = transform
        if tokenizer is not None and tokenizer.size > self.texts.size:
            raise InputError(
                f"the tokenizer has {tokenizer.size} tokens, {spec.backbone} embeds {self.texts.size}",
                "Use the model that these weights were trained as: its configuration names the tokenizer.",
            )

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image → (3, H, W) float32. Other modes than RGB are converted first."""
        return self.transform(image if image.mode == "RGB" else image.convert("RGB"))

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, H, W) float32 → features."""
        tokens = self.images.states(pixels.to(self.device))
        pooled = self.images.pool(tokens)
        return ImageFeatures(tokens if self.spec.level == "tokens" else None, pooled)

    def encode_texts(self, captions: Sequence[str]) -> TextFeatures:
        """Captions → features. Each caption's features are those it has alone in a batch."""
        if self.tokenizer is None:
            raise InputError(f"{self.spec.backbone} was loaded without its tokenizer")
        return self._encode(self.tokenizer(captions))

    def encode_token_ids(self, ids: Tensor, lengths: Sequence[int] | None = None) -> TextFeatures:
        """(B, context length) ids, of which the first `lengths` are valid (all by default) → features."""
        return self._encode(frame(ids, lengths))

    @torch.no_grad()
    def _encode(self, batch: Tokenized) -> TextFeatures:
        features = self._token_states(batch)
        if self.spec.level == "tokens":
            return features
        none: list[list[Span]] = [[] for _ in batch.lengths]
        return features._replace(tokens=None, spans=none, pool_index=[-1] * len(none))

    def _token_states(self, batch: Tokenized) -> TextFeatures:
        longest = max(batch.lengths, default=batch.ids.shape[1])
        ids = batch.ids[:, :longest] if self.texts.trims else batch.ids
        positions = self.texts.pooled_position(ids)
        states = self.texts.states(ids.to(self.device))
        tokens, spans, pool_index = [], [], []
        for row, length, span, position in zip(states, batch.lengths, batch.spans, positions, strict=True):
            beyond = position >= length  # a pad, or an appended CLS
            pooled_state = row[position : position + 1] if beyond else row[:0]
            tokens.append(torch.cat([row[:length], pooled_state]))
            spans.append([*span, NO_SPAN] if beyond else span)
            pool_index.append(length if beyond else position)
        empty = states.new_zeros(0, self.spec.pooled_dim)
        pooled = self.texts.pool(tokens, pool_index) if tokens else empty
        return TextFeatures(tokens, pooled, spans, pool_index, batch.truncated)

    @torch.no_grad()
    def pool_images(self, tokens: Tensor) -> Tensor:
        """Cached tokens (B, P, D) of any floating dtype → (B, E) float32."""
        return self.images.pool(tokens.to(self.device, torch.float32))

    @torch.no_grad()
    def pool_texts(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        """Cached tokens, B of (L, D) of any floating dtype → (B, E) float32."""
        return self.texts.pool([rows.to(self.device, torch.float32) for rows in tokens], pool_index)

    @torch.no_grad()
    def check(self) -> None:
        """Hold the adapters to the model's own `encode_image` and `encode_text` on one image and caption.

        Raises `SpecMismatch` if the shapes are not the spec's; `InputError` if the pooled embedding
        recomputed from the tokens is not the model's own: then this open_clip or timm computes a family
        otherwise than we know.
        """
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(1, 3, *self.images.image_size, generator=generator).to(self.device)
        tokens = self.images.states(pixels)
        self._compare("image", self.images.pool(tokens), self.model.encode_image(pixels, normalize=False))
        batch = self._probe(generator)
        texts = self._token_states(batch)
        own = self.model.encode_text(batch.ids.to(self.device), normalize=False)
        self._compare("text", texts.pooled, own)
        found = (tuple(tokens.shape[1:]), self.texts.width, own.shape[-1])
        stated = (tuple(self.spec.image_shape), self.spec.text_dim, self.spec.pooled_dim)
        if self.spec.level != "tokens":
            found, stated = (stated[0], stated[1], found[2]), stated
        if found != stated:
            raise SpecMismatch(f"{self.spec.backbone} gives features of shape {found}, its spec says {stated}")

    def _probe(self, generator: torch.Generator) -> Tokenized:
        if self.tokenizer is not None:
            return self.tokenizer(["a red cube left of a blue ball"])
        return frame(torch.randint(3, self.texts.size, (1, self.texts.context_length), generator=generator))

    def _compare(self, kind: str, ours: Tensor, own: Tensor) -> None:
        apart = float((ours - own).abs().max() / own.abs().max().clamp(min=1e-6))
        if not apart <= TOLERANCE:
            raise InputError(
                f"the {kind} tokens of {self.spec.backbone} do not give its own {kind} embedding "
                f"(relative error {apart:.2g})",
                "This version of open_clip or timm computes the tower otherwise: adapt pipeline/towers.py.",
            )
