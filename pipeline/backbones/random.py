"""random[:TOKENSxWIDTH]: features drawn from a generator that the content seeds: the chance row (49x64).

Equal content gives equal features on every machine and different content independent ones, so nothing can
be learnt about an image or a caption but whether it is the same. No model and no weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from ...stores.spec import FeatureSpec
from ..encoder import ImageFeatures, TextFeatures, at_level
from ..spans import NO_SPAN

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CONTEXT = 77


def spec(argument: str = "", level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """P tokens of width D an image, one token a word of a caption, pooled width D. Raises `InputError`."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", argument or "49x64", re.ASCII)
    if found is None:
        raise InputError(f"random takes TOKENSxWIDTH, not '{argument}'", "Example: random:49x64")
    tokens, width = int(found[1]), int(found[2])
    rows = max(side for side in range(1, int(tokens**0.5) + 1) if tokens % side == 0)
    full = FeatureSpec(
        backbone=f"random:{tokens}x{width}",
        weights="content-seeded",
        pooled_dim=width,
        image_shape=(tokens, width),
        image_grid=(rows, tokens // rows),
        text_dim=width,
        context_length=CONTEXT,
        preprocess={"pixels": "sha384 of size and RGB bytes"},
        tokenizer={"name": "compal.words", "context_length": str(CONTEXT)},
        extra={"generator": "MT19937 normal, seeded by sha256"},
    )
    return at_level(full, level, dtype, dense="its tokens are drawn, by no attention")


def load(spec: FeatureSpec, device: str = "cpu") -> RandomEncoder:
    """The encoder of a spec. Raises `InputError` for an argument that is not TOKENSxWIDTH."""
    return RandomEncoder(spec, device)


class RandomEncoder:
    """See `Encoder`. Images pool to the mean of their tokens, captions to the state of their end."""

    def __init__(self, spec: FeatureSpec, device: str = "cpu") -> None:
        tokens, width = spec.backbone.partition(":")[2].split("x")
        self.spec = spec
        self.device = device
        self._shape = (int(tokens), int(width))

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image → its sha384 as a (3, 4, 4) uint8 picture: content in, content out, nothing resized."""
        import torch

        digest = hashlib.sha384(repr(image.size).encode() + image.convert("RGB").tobytes()).digest()
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8).reshape(3, 4, 4)

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """(B, C, H, W) → features seeded by the bytes of each row as float32."""
        import torch

        rows = pixels.float().cpu().numpy()  # seeds are those of float32 pictures, as ever
        drawn = [_normal(b"image\0" + row.tobytes(), self._shape) for row in rows]
        tokens = torch.from_numpy(np.stack(drawn) if drawn else np.zeros((0, *self._shape), np.float32))
        tokens = tokens.to(self.device)
        return ImageFeatures(tokens if self.spec.level == "tokens" else None, self.pool_images(tokens))

    def encode_texts(self, captions: Sequence[str]) -> TextFeatures:
        """Captions → features seeded by the whole text, one token a word between a start and an end."""
        import torch

        from ..words import pieces_of

        pieces = [[span for _, span in pieces_of(caption)] for caption in captions]
        spans = [[NO_SPAN, *found[: CONTEXT - 2], NO_SPAN] for found in pieces]
        tokens = [
            torch.from_numpy(_normal(b"text\0" + caption.encode(), (len(row), self._shape[1]))).to(self.device)
            for caption, row in zip(captions, spans, strict=True)
        ]
        last = [len(row) - 1 for row in spans]
        truncated = [len(found) > CONTEXT - 2 for found in pieces]
        pooled = self.pool_texts(tokens, last)
        if self.spec.level != "tokens":
            return TextFeatures(None, pooled, [[] for _ in captions], [-1] * len(spans), truncated)
        return TextFeatures(tokens, pooled, spans, last, truncated)

    def pool_images(self, tokens: Tensor) -> Tensor:
        """(B, P, D) → (B, D): the mean."""
        return tokens.float().mean(dim=1)

    def pool_texts(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        """B of (L, D) → (B, D): the pooled token."""
        import torch

        rows = [states[index].float() for states, index in zip(tokens, pool_index, strict=True)]
        return torch.stack(rows) if rows else torch.zeros(0, self._shape[1], device=self.device)


def _normal(content: bytes, shape: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Standard normal float32. RandomState is the generator whose stream numpy promises never to change."""
    seed = np.frombuffer(hashlib.sha256(content).digest(), dtype="<u4")
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
