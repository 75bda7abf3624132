"""Items: the images and captions that are extracted, keyed by content.

A key is 32 hex digits of a sha256 over a domain tag and the content, so it is equal on every machine and
in every run, and an image that three datasets share has one key. Stores are joined by key, never by order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Segment = tuple[int, int, str]
Box = tuple[float, float, float, float]


def content_key(domain: str, content: bytes) -> str:
    """32 hex digits of sha256(domain, NUL, content)."""
    return hashlib.sha256(domain.encode() + b"\0" + content).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Item:
    """One image or one caption, the unit of extraction.

    key       content key, see `content_key`
    kind      "image" or "text"
    source    where it comes from, for people and for messages (`coco/val2017/000000000724.jpg`)
    content   a caption (str), an image file (Path), or a function that renders the image as (H, W, 3) uint8
    segments  of a caption: (start, end, kind) character spans, kind "object" or "relation"
    boxes     of an image: (x0, y0, x1, y1) as fractions of its width and height
    """

    key: str
    kind: Literal["image", "text"]
    source: str
    content: str | Path | Callable[[], Any]
    segments: tuple[Segment, ...] = ()
    boxes: tuple[Box, ...] = ()

    @classmethod
    def image_file(cls, path: Path, source: str = "", boxes: tuple[Box, ...] = ()) -> Item:
        """An image keyed by its file's bytes. A file that cannot be read is keyed by its name, so that
        extraction can list it in the quarantine, and is tried again under its true key once it is there."""
        try:
            key = content_key("image-file", path.read_bytes())
        except OSError:
            key = content_key("image-unreadable", (source or str(path)).encode())
        return cls(key, "image", source or path.name, path, boxes=boxes)

    @classmethod
    def rendered(cls, recipe: bytes, render: Callable[[], Any], source: str, boxes: tuple[Box, ...] = ()) -> Item:
        """A generated image keyed by the `recipe` that determines its pixels, so that planning renders nothing."""
        return cls(content_key("image-recipe", recipe), "image", source, render, boxes=boxes)

    @classmethod
    def caption(cls, text: str, source: str = "", segments: tuple[Segment, ...] = ()) -> Item:
        """A caption keyed by its exact text (white space and case included)."""
        return cls(caption_key(text), "text", source, text, segments=segments)


def caption_key(text: str) -> str:
    """The key of a caption."""
    return content_key("text", text.encode())


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and a caption that belong together, by key.

    negatives  keys of captions that do not describe the image (hard negatives)
    group      pairs of one swap quadruplet share a group; "" otherwise
    category   what the group swaps (colour, material, …); "" otherwise
    """

    image: str
    caption: str
    negatives: tuple[str, ...] = ()
    group: str = ""
    category: str = ""
