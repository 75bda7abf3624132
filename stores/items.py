"""Items: the images and captions that are extracted, keyed by content.

A key is 32 hex digits of a sha256 over a domain tag and the content, so it is equal on every machine and
in every run, and an image that three datasets share has one key. Stores are joined by key, never by order.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import InputError
from .files import TRANSIENT

Segment = tuple[int, int, str]
Box = tuple[float, float, float, float]
NAMING = ("object", "phrase")  # kinds of segments that name something


def content_key(domain: str, content: bytes) -> str:
    """32 hex digits of sha256(domain, NUL, content)."""
    return hashlib.sha256(domain.encode() + b"\0" + content).hexdigest()[:32]


class Readable(Protocol):
    """Where the bytes of an image file lie when that is not a file of its own: `FileSlice`, a row of a table."""

    def read(self) -> bytes:
        """All of them; each call begins anew and may come from any thread. Raises `OSError`."""


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes [offset, offset + size) of a file: an image inside a tar."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises `OSError` if there is no such file or it ends before the slice does."""
        with open(self.path, "rb") as file:
            # Asked first: a damaged index must not take memory for what the file cannot hold.
            held = os.fstat(file.fileno()).st_size
            if not 0 <= self.offset <= self.offset + self.size <= held:
                what = f"no bytes {self.offset:,} to {self.offset + self.size:,} in a file of {held:,}"
                raise OSError(errno.EINVAL, what, str(self.path))
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class Item:
    """One image or one caption, the unit of extraction.

    key       content key, see `content_key`
    kind      "image" or "text"
    source    where it comes from, for people and for messages (`coco/val2017/000000000724.jpg`)
    content   a caption (str), an image file (Path), its bytes elsewhere (`Readable`), or a function that renders
              the image as (H, W, 3) uint8
    segments  of a caption: (start, end, kind) character spans, kind "object", "attribute", "relation" or "phrase"
    boxes     of an image: (x0, y0, x1, y1) as fractions of its width and height
    """

    key: str
    kind: Literal["image", "text"]
    source: str
    content: str | Path | Readable | Callable[[], Any]
    segments: tuple[Segment, ...] = ()
    boxes: tuple[Box, ...] = ()

    @classmethod
    def image_file(cls, path: Path, source: str = "", boxes: tuple[Box, ...] = ()) -> Item:
        """An image keyed by its file's bytes. A file that cannot be read is keyed by its name, so that
        extraction can list it in the quarantine, and is tried again under its true key once it is there. Raises
        `InputError`, caused by the `OSError`, where a network share is gone: that says nothing about the file."""
        try:
            key = content_key("image-file", path.read_bytes())
        except OSError as error:
            if error.errno in TRANSIENT:
                cure = "Bring the share back, then run again."
                raise InputError(f"cannot read {path}: {error.strerror}", cure) from error
            key = content_key("image-unreadable", (source or str(path)).encode())
        return cls(key, "image", source or path.name, path, boxes=boxes)

    @classmethod
    def image_bytes(cls, data: bytes, content: Readable, source: str, boxes: tuple[Box, ...] = ()) -> Item:
        """An image whose file's bytes are `data`, which `content` reads again later: keyed as `image_file` keys, so
        equal files have equal keys wherever they lie."""
        return cls(content_key("image-file", data), "image", source, content, boxes=boxes)

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


def noun_phrases(caption: str, segments: Iterable[Segment]) -> list[str]:
    """What a caption's segments of kind "object" and "phrase" say, in order, each once: in small letters and with
    single spaces, so that "A man" at the head of one caption is "a man" inside another. They are captions as any."""
    spans = (caption[start:end] for start, end, kind in segments if kind in NAMING)
    return list(dict.fromkeys(text for span in spans if (text := " ".join(span.lower().split()))))


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
