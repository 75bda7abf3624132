"""Captions to ids by a tokenizer of transformers, with the characters that each token came from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..hub import quietly
from .hub_files import read_json, tokenizer_hash
from .spans import NO_SPAN, Span, align, join
from .tokenizers import Tokenized

_CURE = "Save it again with transformers: tokenizer.save_pretrained(folder)."


def describe(folder: Path, family: str, context: int) -> dict[str, str]:
    """The strings of a tokenizer: a hash of its files, and what is done beside them.

    SigLIP and SigLIP 2 were trained on lower-cased captions (big_vision's `canonicalize` and `lower`). SigLIP's own
    tokenizer sees to that, Gemma's does not in every version of transformers. Raises `InputError` for padding on the
    left, as no model of these families was trained with it.
    """
    settings = read_json(folder / "tokenizer_config.json")
    if settings.get("padding_side", "right") != "right":
        cure = 'These models were trained with padding on the right: set "padding_side": "right" there.'
        raise InputError(f"{folder / 'tokenizer_config.json'} pads on the left", cure)
    kind = str(settings.get("tokenizer_class", ""))
    lower = family in ("siglip", "siglip2") and not kind.startswith("SiglipTokenizer")
    return {
        "name": "transformers",
        "files": tokenizer_hash(folder),
        "clean": "lower" if lower else "none",
        "context_length": str(context),
    }


def load(folder: Path, family: str, context: int) -> FolderTokenizer:
    """The tokenizer in a model's folder. Raises `InputError` if transformers cannot make it of the files, or makes one
    that does not end captions."""
    from transformers import AutoConfig, AutoTokenizer

    lower = describe(folder, family, context)["clean"] == "lower"
    try:
        with quietly():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the Rust library raises bare `Exception`s for files it cannot parse
        reason = str(error).strip().split("\n", 1)[0][:160] or type(error).__name__
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {reason}", _CURE) from None
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer in {folder} has no token to pad with", _CURE)
    if tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
        # All four families were trained so; a tokenizer's class may forget it between versions of transformers.
        raise InputError(f"the tokenizer in {folder} does not end captions with its end token", _CURE)
    return FolderTokenizer(tokenizer, context, lower)


class FolderTokenizer:
    """A tokenizer of transformers, padded on the right to the context: SigLIP reads the padding, CLIP never sees it.

    Calls wait for each other: a tokenizer in Rust keeps its truncation as state.
    """

    def __init__(self, tokenizer: Any, context: int, lower: bool = False) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.lower = lower
        self.size = len(tokenizer)
        self.pad = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self._lock = threading.Lock()

    def __call__(self, captions: Sequence[str]) -> Tokenized:
        """Captions → ids, padded to the context; those that are longer lose words, never the end token."""
        cleaned = [caption.lower() if self.lower else caption for caption in captions]
        # Only tokenizers written in Rust report characters.
        fast = bool(self.tokenizer.is_fast)
        with self._lock:
            whole = self._rows(cleaned, fast)
            truncated = [len(row) > self.context for row, _ in whole]
            cut = iter(self._rows([text for text, long in zip(cleaned, truncated, strict=True) if long], fast, True))
            rows = [next(cut) if long else row for row, long in zip(whole, truncated, strict=True)]
            if not fast:
                rows = [(row, self._offsets(text, len(row))) for (row, _), text in zip(rows, cleaned, strict=True)]
        ids = torch.full((len(rows), self.context), self.pad, dtype=torch.int64)
        for place, (row, _) in zip(ids, rows, strict=True):
            place[: len(row)] = torch.tensor(row)
        spans = [
            _spans(caption, text, offsets) for caption, text, (_, offsets) in zip(captions, cleaned, rows, strict=True)
        ]
        return Tokenized(ids, [len(row) for row, _ in rows], spans, truncated)

    def _rows(self, texts: list[str], fast: bool, cut: bool = False) -> list[tuple[list[int], list[Span]]]:
        if not texts:
            return []
        limit = {"truncation": True, "max_length": self.context} if cut else {"truncation": False}
        found = self.tokenizer(texts, padding=False, verbose=False, return_offsets_mapping=fast, **limit)
        rows = found["input_ids"]
        return list(zip(rows, found["offset_mapping"] if fast else [[] for _ in rows], strict=True))

    def _offsets(self, text: str, length: int) -> list[Span]:
        """SigLIP's sentence pieces: where each stands in `text`, whose punctuation the tokenizer drops."""
        pieces = [piece.replace("▁", " ") for piece in self.tokenizer.tokenize(text)]
        joined = "".join(pieces)
        cleaned = joined.lstrip()
        places = align(text, cleaned)
        ends = [max(end - (len(joined) - len(cleaned)), 0) for end in accumulate(map(len, pieces))]
        found = []
        for start, end in zip([0, *ends], ends, strict=False):
            while start < end and cleaned[start].isspace():
                start += 1
            found.append(join(places, start, end) if start < end else (0, 0))
        # The end token, and whatever this tokenizer adds besides, came from no characters.
        return (found[: length - 1] + [(0, 0)] * length)[:length]


def _spans(caption: str, text: str, offsets: Sequence[Span]) -> list[Span]:
    """Offsets into the cleaned `text` → the characters of the caption."""
    places = align(caption, text) if text != caption else [(index, index + 1) for index in range(len(text))]
    spans = []
    for start, end in offsets:
        while start < end and text[start].isspace():  # pieces begin with the space before their word
            start += 1
        spans.append(join(places, start, end) if start < end else NO_SPAN)
    return spans
