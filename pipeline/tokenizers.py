"""Captions to token ids, with the characters that each token came from.

One adapter per kind of tokenizer. Ids are always the tokenizer's own; lengths and spans are worked out
beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .spans import NO_SPAN, Span, align, join
from .words import WordTokenizer


class Tokenized(NamedTuple):
    """B captions as ids.

    ids        (B, context length) int64, padded on the right
    lengths    how many of them are valid: start, words and end, no padding
    spans      of each valid token, the (start, end) characters it came from; (-1, -1) for special tokens
    truncated  whether the caption has more tokens than the context
    """

    ids: Tensor
    lengths: list[int]
    spans: list[list[Span]]
    truncated: list[bool]


class CaptionTokenizer(Protocol):
    """A tokenizer that says where its tokens came from. `size` is one more than its highest id. Threads may share
    it."""

    size: int

    def __call__(self, captions: Sequence[str]) -> Tokenized: ...


class BytePairs:
    """CLIP's byte-pair tokenizer (`open_clip.SimpleTokenizer`)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = int(tokenizer.vocab_size)

    def __call__(self, captions: Sequence[str]) -> Tokenized:
        ids = self.tokenizer(list(captions))
        keep = ids.shape[1] - 2
        spans = [self._spans(caption) for caption in captions]
        framed = [[NO_SPAN, *found[:keep], NO_SPAN] for found in spans]
        return Tokenized(ids, [len(row) for row in framed], framed, [len(found) > keep for found in spans])

    def _spans(self, caption: str) -> list[Span]:
        """The span of each token of a caption, special tokens and truncation left aside."""
        cleaned = self.tokenizer.clean_fn(caption)
        places = align(caption, cleaned)
        spans = []
        for found in self.tokenizer.pat.finditer(cleaned):
            # A token is a run of bytes; a character of several bytes may be shared by several tokens.
            owner = [found.start() + index for index, letter in enumerate(found[0]) for _ in letter.encode()]
            start = 0
            for piece in self._pieces(found[0]):
                end = start + len(piece)
                spans.append(join(places, owner[start], owner[end - 1] + 1))
                start = end
        return spans

    def _pieces(self, word: str) -> list[str]:
        encoded = "".join(self.tokenizer.byte_encoder[byte] for byte in word.encode())
        return [piece.removesuffix("</w>") for piece in self.tokenizer.bpe(encoded).split(" ")]


class HubTokenizer:
    """A Hugging Face tokenizer as open_clip wraps it (`open_clip.tokenizer.HFTokenizer`)."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.tokenizer_mode:
            raise InputError(
                f"tokenizer mode '{tokenizer.tokenizer_mode}' is not supported",
                "Use a model whose tokenizer has no mode.",
            )
        self.tokenizer = tokenizer
        self.size = len(tokenizer.tokenizer)
        # Truncation is a state of the tokenizer's, which threads would set under each other.
        self._lock = Lock()

    def __call__(self, captions: Sequence[str]) -> Tokenized:
        with self._lock:
            return self._tokenized(captions)

    def _tokenized(self, captions: Sequence[str]) -> Tokenized:
        ids = self.tokenizer(list(captions))
        context = ids.shape[1]
        cleaned = [self.tokenizer.clean_fn(caption) for caption in captions]
        # Only tokenizers written in Rust report characters; the others leave every span unknown.
        fast = bool(getattr(self.tokenizer.tokenizer, "is_fast", False))
        whole = self.tokenizer.tokenizer(cleaned, truncation=False, padding=False, verbose=False)["input_ids"]
        cut = self.tokenizer.tokenizer(
            cleaned, truncation=True, max_length=context, padding=False, return_offsets_mapping=fast
        )
        lengths = [len(row) for row in cut["input_ids"]]
        offsets = cut["offset_mapping"] if fast else [[(0, 0)] * length for length in lengths]
        spans = [
            self._spans(caption, clean, row) for caption, clean, row in zip(captions, cleaned, offsets, strict=True)
        ]
        truncated = [len(row) > context for row in whole]
        return Tokenized(ids, lengths, spans, truncated)

    @staticmethod
    def _spans(caption: str, cleaned: str, offsets: Sequence[Span]) -> list[Span]:
        places = align(caption, cleaned)
        spans = []
        for start, end in offsets:
            # Sentence-piece tokens begin with the space before their word.
            while start < end and cleaned[start].isspace():
                start += 1
            spans.append(join(places, start, end))
        return spans


class Words:
    """The word-level tokenizer of a small text tower."""

    def __init__(self, tokenizer: WordTokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.vocab_size

    def __call__(self, captions: Sequence[str]) -> Tokenized:
        spans = [self.tokenizer.spans(caption) for caption in captions]
        truncated = [self.tokenizer.truncated(caption) for caption in captions]
        return Tokenized(self.tokenizer(captions), [len(row) for row in spans], spans, truncated)


def frame(ids: Tensor, lengths: Sequence[int] | None = None) -> Tokenized:
    """Ready-made ids (B, context) as `Tokenized`, without spans; `lengths` default to the full context."""
    lengths = list(lengths) if lengths is not None else [ids.shape[1]] * len(ids)
    spans = [[NO_SPAN] * length for length in lengths]
    return Tokenized(ids.to(torch.int64), lengths, spans, [False] * len(lengths))


def to_bytes(ids: Tensor) -> Tensor:
    """Ids (L,) on the CPU → (L, 4) uint8, little-endian."""
    return torch.from_numpy(ids.numpy().astype("<u4").view(np.uint8).reshape(-1, 4))


def from_bytes(rows: Tensor) -> Tensor:
    """The inverse of `to_bytes`: (L, 4) uint8 from any device → (L,) int64 on the CPU."""
    return torch.from_numpy(rows.cpu().contiguous().numpy().view("<u4").reshape(-1).astype(np.int64))
