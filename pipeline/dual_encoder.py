"""An open_clip model as an `Encoder`: features of any level, and the pooling of cached ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, SpecMismatch
from ..stores.spec import FeatureSpec
from .dense import DensePool, reads
from .encoder import ImageFeatures, TextFeatures, block_of, rung_of
from .forward import DTYPES
from .preprocess import from_rows, scaling, to_rows
from .regions import is_dense
from .spans import NO_SPAN, Span
from .tokenizers import CaptionTokenizer, Tokenized, frame, from_bytes, to_bytes
from .towers import grid_of, image_tower, text_tower

# A right cut is exact to 1e-5 on a CPU, less so in TF32; a wrong one is off by the embedding's own size.
TOLERANCE = 1e-3


class DualEncoder:
    """Features of an open_clip model at the level its spec asks for, or at several of one pass.

    The model holds float32 weights; the caller's autocast sets another precision of the towers, never of pooling
    and projection. `tokenizer` may be None where only images and ready-made ids (`encode_token_ids`) are encoded.
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
        self.scaled = scaling(spec.preprocess, self.device)
        self._dense: DensePool | None = None
        if tokenizer is not None and tokenizer.size > self.texts.size:
            raise InputError(
                f"the tokenizer has {tokenizer.size} tokens, {spec.backbone} embeds {self.texts.size}",
                "Use the model that these weights were trained as: its configuration names the tokenizer.",
            )

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image → (3, H, W) uint8. Other modes than RGB are converted first."""
        return self.transform(image if image.mode == "RGB" else image.convert("RGB"))

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, H, W), uint8 or normalised floats → features."""
        return self.images_at(pixels, [self.spec.level])[self.spec.level]

    @torch.no_grad()
    def images_at(self, pixels: Tensor, levels: Collection[str]) -> dict[str, ImageFeatures]:
        """(B, 3, H, W), uint8 or normalised floats → features by level, from one pass of the tower. The level
        "pixels" takes uint8 alone, and no pass."""
        pixels = pixels.to(self.device)
        found = {}
        if "pixels" in levels:
            if pixels.dtype != torch.uint8:
                raise InputError(f"the level pixels keeps uint8 pictures, not {pixels.dtype}")
            found["pixels"] = ImageFeatures(to_rows(pixels), None)
        others = [level for level in levels if level != "pixels"]
        if others:
            dense = any(map(is_dense, others))
            depths = {0, *map(block_of, others), *([block_of(reads(self.images))] if dense else [])}
            states = self.images.at(self.scaled(pixels), depths)
            pooled = self._pool_images(states[0])
            maps = self._dense_maps(states) if dense else None
            for level in others:
                keeps = rung_of(level) in ("tokens", "block")
                kept = states[block_of(level)] if keeps else maps if is_dense(level) else None
                found[level] = ImageFeatures(kept, pooled)
        return found

    def _dense_maps(self, states: dict[int, Tensor]) -> Tensor:
        """The patches in the joint space, of states rounded to the stored dtype: those of a store give the same."""
        own = states[block_of(reads(self.images))]
        if self._dense is None:
            count, width, prefix = *own.shape[1:], self.images.prefix
            grid = grid_of(count - prefix, self.images.image_size)
            spec = replace(self.spec, image_shape=(count, width), image_prefix=prefix, image_grid=grid)
            self._dense = DensePool.of(self, spec)
        return self._dense.maps(own.to(DTYPES.get(self.spec.dtype, torch.float32)))

    def tokenize(self, captions: Sequence[str]) -> Tokenized:
        """Captions → ids, on the CPU; threads may share it."""
        if self.tokenizer is None:
            raise InputError(f"{self.spec.backbone} was loaded without its tokenizer")
        return self.tokenizer(captions)

    def encode_texts(self, captions: Sequence[str]) -> TextFeatures:
        """Captions → features. Each caption's features are those it has alone in a batch."""
        return self.texts_at(self.tokenize(captions), [self.spec.level])[self.spec.level]

    def encode_token_ids(self, ids: Tensor, lengths: Sequence[int] | None = None) -> TextFeatures:
        """(B, context length) ids, of which the first `lengths` are valid (all by default) → features."""
        return self.texts_at(frame(ids, lengths), [self.spec.level])[self.spec.level]

    @torch.no_grad()
    def texts_at(self, tokenized: Tokenized, levels: Collection[str]) -> dict[str, TextFeatures]:
        """Ids → features by level, from one pass of the tower; the level "pixels" takes none."""
        longest = max(tokenized.lengths, default=tokenized.ids.shape[1])
        ids = tokenized.ids[:, :longest] if self.texts.trims else tokenized.ids
        positions = self.texts.pooled_position(ids)
        found = {"pixels": self._kept_ids(tokenized, positions)} if "pixels" in levels else {}
        others = [level for level in levels if level != "pixels"]
        if not others:
            return found
        depths = {0, *map(block_of, others)}
        # Some towers cannot reshape a batch of none.
        states = self.texts.at(ids.to(self.device), depths) if positions else dict.fromkeys(depths, self._empty())
        last = self.valid(states[0], tokenized, positions)
        pooled = self._pool_texts(last.tokens, last.pool_index) if last.tokens else self._empty()
        none: list[list[Span]] = [[] for _ in positions]
        for level in others:
            if rung_of(level) == "tokens":
                found[level] = last._replace(pooled=pooled)
            elif rung_of(level) == "block":
                rows = list(states[block_of(level)])
                found[level] = self._kept(rows, tokenized, positions)._replace(pooled=pooled)
            else:
                found[level] = TextFeatures(None, pooled, none, [-1] * len(none), tokenized.truncated)
        return found

    def _empty(self) -> Tensor:
        return torch.zeros(0, self.spec.pooled_dim, device=self.device)

    @staticmethod
    def valid(states: Tensor, batch: Tokenized, positions: Sequence[int]) -> TextFeatures:
        """The states of valid tokens, and of the pooled position behind them."""
        tokens, spans, pool_index = [], [], []
        for row, length, span, position in zip(states, batch.lengths, batch.spans, positions, strict=True):
            beyond = position >= length  # a pad, or an appended CLS
            tokens.append(torch.cat([row[:length], row[position : position + 1]]) if beyond else row[:length])
            spans.append([*span, NO_SPAN] if beyond else span)
            pool_index.append(length if beyond else position)
        return TextFeatures(tokens, None, spans, pool_index, batch.truncated)

    def _kept(self, rows: Sequence[Tensor], batch: Tokenized, positions: Sequence[int]) -> TextFeatures:
        """Of each row what the rest of the tower needs: all of it if it attends to padding, else the valid tokens
        and what stands before the pooled position."""
        tokens, spans = [], []
        for row, length, span, position in zip(rows, batch.lengths, batch.spans, positions, strict=True):
            kept = row if self.texts.attends else row[: max(length, position + 1)]
            tokens.append(kept)
            spans.append([*span, *[NO_SPAN] * (len(kept) - length)])
        pool_index = [at if at < len(row) else -1 for at, row in zip(positions, tokens, strict=True)]
        return TextFeatures(tokens, None, spans, pool_index, batch.truncated)

    def _kept_ids(self, batch: Tokenized, positions: Sequence[int]) -> TextFeatures:
        kept = self._kept(list(batch.ids), batch, positions)
        return kept._replace(tokens=[to_bytes(row) for row in kept.tokens or ()])

    def pool_images(self, tokens: Tensor) -> Tensor:
        """Cached tokens of the spec's level (B, P, D) → (B, E) float32: of the last states through the tower's
        pooling, of others through the rest of the tower first."""
        return self.pool_images_of(self.spec.level, tokens)

    @torch.no_grad()
    def pool_images_of(self, level: str, tokens: Tensor) -> Tensor:
        """`pool_images` of another level's tokens."""
        if level == "pixels":
            return self._pool_images(self.images.states(self.scaled(from_rows(tokens.to(self.device)))))
        tokens, k = tokens.to(self.device, torch.float32), block_of(level)
        return self._pool_images(self.images.leave(tokens, k) if k else tokens)

    def pool_texts(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        """Cached tokens of the spec's level, B of (L, D) → (B, E) float32, as `pool_images`."""
        return self.pool_texts_of(self.spec.level, tokens, pool_index)

    @torch.no_grad()
    def pool_texts_of(self, level: str, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        """`pool_texts` of another level's tokens."""
        if not tokens:
            return self._empty()
        if level == "pixels":
            batch = self._framed([from_bytes(rows) for rows in tokens])
            pooled = self.texts_at(batch, ["pooled"])["pooled"].pooled
            assert pooled is not None
            return pooled
        rows, k = [rows.to(self.device, torch.float32) for rows in tokens], block_of(level)
        return self._pool_texts(self.texts.leave(rows, k) if k else rows, pool_index)

    def _framed(self, rows: Sequence[Tensor]) -> Tokenized:
        """Cached ids, padded to the context again. Rows of towers that attend to padding hold theirs."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), self.texts.context_length if self.texts.attends else longest), self.texts.pad)
        for row, cached in zip(ids, rows, strict=True):
            row[: len(cached)] = cached
        return frame(ids, [len(cached) for cached in rows])

    def optimise(self, compile: bool = False, channels_last: bool = False) -> None:  # noqa: A002 - the option's name
        """See `optimise.optimise`."""
        from .optimise import optimise

        optimise(self, compile, channels_last)

    def _precise(self) -> AbstractContextManager[None]:
        """Pooling and projection are float32 under any autocast: they cost nothing, and scores hang on them."""
        return torch.autocast(self.device.type, enabled=False)

    def _pool_images(self, states: Tensor) -> Tensor:
        with self._precise():
            return self.images.pool(states.float())

    def _pool_texts(self, rows: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        with self._precise():
            return self.texts.pool([row.float() for row in rows], pool_index)

    @torch.no_grad()
    def check(self) -> None:
        """Hold the adapters to the model's own `encode_image` and `encode_text` on one image and caption.

        Raises `SpecMismatch` if the shapes are not the spec's; `InputError` if the pooled embedding recomputed
        from the tokens of the spec's level is not the model's own: then this open_clip or timm computes a family
        otherwise than we know.
        """
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (1, 3, *self.images.image_size), generator=generator, dtype=torch.uint8)
        batch = self._probe(generator)
        levels = {"tokens", self.spec.level}
        images, texts = self.images_at(pixels, levels), self.texts_at(batch, levels)
        own_image = self.model.encode_image(self.scaled(pixels.to(self.device)), normalize=False)
        own_text = self.model.encode_text(batch.ids.to(self.device), normalize=False)
        for level in levels:
            image, text = images[level].tokens, texts[level].tokens
            if image is None or text is None:
                continue
            self._compare("image", level, self.pool_images_of(level, image), own_image)
            self._compare("text", level, self.pool_texts_of(level, text, texts[level].pool_index), own_text)
        self._check_shapes(images[self.spec.level], texts[self.spec.level], own_text.shape[-1])

    def _check_shapes(self, images: ImageFeatures, texts: TextFeatures, width: int) -> None:
        spec = self.spec
        found = {"pooled": [0 if spec.rung == "pixels" else width]}
        stated = {"pooled": [spec.pooled_dim]}
        if images.tokens is not None and texts.tokens is not None:
            found |= {"image": list(images.tokens.shape[1:]), "text": list(texts.tokens[0].shape[1:])}
            stated |= {"image": list(spec.image_shape), "text": [spec.text_dim]}
        if found != stated:
            raise SpecMismatch(f"{spec.backbone} gives features of shape {found}, its spec says {stated}")

    def _probe(self, generator: torch.Generator) -> Tokenized:
        if self.tokenizer is not None:
            return self.tokenizer(["a red cube left of a blue ball"])
        ids = torch.randint(3, self.texts.size, (1, self.texts.context_length), generator=generator)
        ids[:, -2:] = self.texts.pad  # RoBERTa's positions start at 2
        return frame(ids, [ids.shape[1] - 2])

    def _compare(self, kind: str, level: str, ours: Tensor, own: Tensor) -> None:
        apart = float((ours - own).abs().max() / own.abs().max().clamp(min=1e-6))
        if not apart <= TOLERANCE:
            raise InputError(
                f"the {kind} {level} of {self.spec.backbone} do not give its own {kind} embedding "
                f"(relative error {apart:.2g})",
                "This version of open_clip or timm computes the tower otherwise: adapt pipeline/towers.py.",
            )
