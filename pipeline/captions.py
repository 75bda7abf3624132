"""Captions on their way to the tower: read, tokenized and put in order in a thread ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..stores.items import Item
from .decode import Unreadable, read_caption
from .regions import text_spans


@dataclass(frozen=True)
class Captions:
    """A stretch of captions that are ready for the tower.

    tokens   what the encoder's `tokenize` made of the readable ones; None where it has none
    order    their positions by length, so that a batch holds equal lengths; as they are where that is unknown
    refused  the others, with reasons
    """

    items: list[Item]
    tokens: Any
    order: list[int]
    refused: list[tuple[Item, str]]


def captions_of(items: Sequence[Item], tokenize: Callable[[list[str]], Any] | None, cut: bool) -> Captions:
    """The readable ones of `items`, tokenized if the encoder can, and why the others are not.

    `cut` where all levels need the segments: a caption with an impossible one is of no use then."""
    good, refused = [], []
    for item in items:
        try:
            read_caption(item)
            if cut:
                text_spans(item)
            good.append(item)
        except (Unreadable, ValueError) as error:
            refused.append((item, str(error)))
    tokens = tokenize([str(item.content) for item in good]) if tokenize and good else None
    order = list(range(len(good)))
    if tokens is not None:
        order.sort(key=lambda row: tokens.lengths[row])
    return Captions(good, tokens, order, refused)


def segment_texts(item: Item) -> list[str]:
    """The strings of a caption's segments; none where one of them is impossible."""
    try:
        return [str(item.content)[start:end] for start, end in text_spans(item)]
    except ValueError:
        return []
