"""A word-level tokenizer: the small vocabulary of a small text tower."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .spans import NO_SPAN, Span, lowered_with_origin

PAD, START, UNKNOWN, FIRST_WORD = 0, 1, 2, 3
_PIECE = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")


class WordTokenizer:
    """Lower-cased words, numbers and single other characters to ids.

    Ids: 0 pad, 1 start, 2 unknown, then `words` in the given order, then end. The end has the highest id, so
    that a text tower which pools at the largest id (open_clip's `argmax`) pools there.
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        if context_length < 2:
            raise ValueError(f"a context of {context_length} has no room for the start and the end")
        self.words = tuple(words)
        self.context_length = context_length
        self.end = FIRST_WORD + len(self.words)
        self.vocab_size = self.end + 1
        self._ids = {word: FIRST_WORD + index for index, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ValueError("the words are not distinct")

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Captions → (B, context_length) int64: start, words, end, padding; cut to the context, end kept."""
        texts = [texts] if isinstance(texts, str) else texts
        length = context_length or self.context_length
        ids = torch.full((len(texts), length), PAD, dtype=torch.int64)
        for row, text in enumerate(texts):
            pieces = [self._ids.get(piece, UNKNOWN) for piece, _ in pieces_of(text)][: length - 2]
            ids[row, : len(pieces) + 2] = torch.tensor([START, *pieces, self.end])
        return ids

    def spans(self, text: str) -> list[Span]:
        """The (start, end) characters of each token that `__call__` keeps; (-1, -1) for start and end."""
        pieces = pieces_of(text)[: self.context_length - 2]
        return [NO_SPAN, *(span for _, span in pieces), NO_SPAN]

    def truncated(self, text: str) -> bool:
        """Whether the caption has more tokens than the context."""
        return len(pieces_of(text)) > self.context_length - 2

    def unknown(self, text: str) -> list[str]:
        """The pieces of a caption that are not in the vocabulary."""
        return [piece for piece, _ in pieces_of(text) if piece not in self._ids]


def pieces_of(text: str) -> list[tuple[str, Span]]:
    """The lower-cased pieces of a text and where they stand in it."""
    lowered, origin = lowered_with_origin(text)
    return [(found[0], (origin[found.start()], origin[found.end() - 1] + 1)) for found in _PIECE.finditer(lowered)]
