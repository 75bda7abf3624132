"""Images to pixels, off the critical path; what cannot be read gets a reason, not an exception.

As open_clip does, EXIF orientation is not applied and transparency is dropped: a model sees the pixels as
stored. 16-bit grey is scaled to 8 bits (a plain conversion would clip it to white).
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from ..stores.items import Item, content_key
from ..stores.spec import FeatureSpec
from . import listing
from .patience import Patience
from .regions import view_count, views

# Pillow's own limit of a quarter GiB of RGB; beyond it one file could take a worker's memory.
MAX_PIXELS = 89_478_485
# Resizing by the shorter side to 224 makes a 1 x 10,000 strip 1.5 GB; at this ratio it is 30 MB.
MAX_ASPECT = 200
# Of decoding threads, on top of the process's own. ViT-B/32 on 2 cores, share of the bare forward pass at 0, 10, 19:
# 0.81, 0.89, 0.93 in one calm round; medians of three rounds 0.87, 0.89, 1.12, noisy. At 19 they would starve beside
# other people's processes.
NICE = 10
# What says nothing of a file: it is the process that lacks descriptors, memory or rights.
_FILES = "Raise the limit of open files (ulimit -n), or lower --workers, then run again: complete parts are kept."
_MEMORY = "Close other programs or lower --workers, then run again: complete parts are kept."
_RIGHTS = "Give this user the right to read it, then run again: complete parts are kept."
NOT_THE_FILE = {
    errno.EMFILE: _FILES, errno.ENFILE: _FILES, errno.ENOMEM: _MEMORY, errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS,
}  # fmt: skip

Preprocess = Callable[[Image.Image], Tensor]


class Unreadable(Exception):
    """An item that goes to the quarantine; `str` is the reason."""


class Wanted(NamedTuple):
    """Images to decode together, and the specs of the levels that take crops of them."""

    items: Sequence[Item]
    cropped: Sequence[FeatureSpec] = ()


@dataclass(frozen=True)
class Crops:
    """The crops of one level.

    pixels   (V, C, H, W), those of all readable images one after the other
    counts   how many each readable image has
    refused  reasons by the position among the readable images, of those that cannot be cropped; they have none
    """

    pixels: Tensor
    counts: list[int]
    refused: dict[int, str]


@dataclass(frozen=True)
class DecodedBatch:
    """The readable images of a batch, in the batch's order, and why the others are not.

    pixels   (B, C, H, W), dtype as the preprocessing gives it: uint8, or float32 where that is normalised
    sizes    (width, height) of each readable image as stored, pixels
    refused  (item, reason) of the others
    crops    by level
    """

    items: list[Item]
    sizes: list[tuple[int, int]]
    pixels: Tensor
    refused: list[tuple[Item, str]]
    crops: dict[str, Crops] = field(default_factory=dict)


def open_image(item: Item) -> Image.Image:
    """An item's image as 8-bit RGB. Raises as `read_image` does."""
    return read_image(item)[0]


def read_image(item: Item, patience: Patience | None = None, side: int = 0) -> tuple[Image.Image, tuple[int, int]]:
    """An item's image as 8-bit RGB, and its (width, height) as stored.

    `side` > 0 lets a JPEG be decoded at a half, a quarter or an eighth of its scale, its short side at least so many
    pixels. Raises `Unreadable` with the reason, `InputError` for a bad renderer, a share that stays away, and where
    files, memory or rights are lacking, which says nothing of the image.
    """
    if callable(item.content):
        image = _rendered(item)
        return image, image.size
    read = getattr(item.content, "read_bytes", None) or getattr(item.content, "read", None)
    if read is None or not callable(read):
        raise Unreadable(f"not an image file or a renderer but {type(item.content).__name__}")
    path = item.content if isinstance(item.content, Path) else getattr(item.content, "path", None)
    try:
        data = (patience or Patience(0)).read(None if _was_unreadable(item, path) else path, read)
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except OSError as error:
        if error.errno in NOT_THE_FILE:
            raise InputError(
                f"cannot read {path or item.source}: {error.strerror}", NOT_THE_FILE[error.errno]
            ) from None
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(f"there is no memory to read {path or item.source}", _MEMORY) from None
    if content_key("image-file", data) != item.key:
        if path is not None:
            listing.forget(path)
        raise Unreadable("changed since it was listed; extract again")
    try:
        return _decoded(data, side)
    except MemoryError:
        raise InputError(f"there is no memory to decode {path or item.source}", _MEMORY) from None


def _was_unreadable(item: Item, path: Path | None) -> bool:
    """Whether the file could not be read when it was listed: then nobody waits for it to come back."""
    names = {item.source, str(path)}
    return any(item.key == content_key("image-unreadable", name.encode(errors="replace")) for name in names)


def _decoded(data: bytes, side: int) -> tuple[Image.Image, tuple[int, int]]:
    if not data:
        raise Unreadable("empty file")
    try:
        image = Image.open(io.BytesIO(data))
        size = image.size
        _check_size(*size)
        if side:
            _reduce(image, side)
        return _to_rgb(image), size
    except (Unreadable, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"too large: more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise Unreadable("not an image that Pillow can read") from None
    # Pillow's plugins raise almost anything for malformed bytes: struct.error, IndexError, SyntaxError, …
    except Exception as error:
        raise Unreadable(f"damaged image: {error or type(error).__name__}") from None


def _reduce(image: Image.Image, side: int) -> None:
    """Let libjpeg drop the high frequencies of a JPEG that resizing would drop: it decodes fewer pixels."""
    scale = side / min(image.size)
    if scale < 1:
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))  # type: ignore[arg-type]


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise Unreadable(f"empty image of {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise Unreadable(f"too large: {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Unreadable(f"too narrow: {width} x {height} pixels, more than {MAX_ASPECT} : 1")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Unreadable("floating-point pixels have no stated range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow opens 16-bit PGM as mode I, scaled to 65,535 like the others.
        values = np.clip(np.asarray(image).astype(np.int64) // 257, 0, 255)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        # By way of RGBA, as Pillow warns of palettes with transparency otherwise; the colours are the same.
        return image.convert("RGBA").convert("RGB")
    image.load()
    return image.convert("RGB")


def _rendered(item: Item) -> Image.Image:
    assert callable(item.content)
    try:
        pixels = item.content()
    except OSError as error:  # of a crop or a row of a table: it is cut from a file
        if error.errno in NOT_THE_FILE:
            raise InputError(f"cannot read {item.source}: {error.strerror}", NOT_THE_FILE[error.errno]) from None
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    shape, dtype = getattr(pixels, "shape", None), getattr(pixels, "dtype", None)
    if dtype != np.uint8 or shape is None or len(shape) != 3 or shape[2] != 3:
        what = f"{shape} {dtype}" if shape is not None else type(pixels).__name__
        raise InputError(f"the renderer of {item.source} made {what}", "It must make (H, W, 3) uint8.")
    _check_size(shape[1], shape[0])
    return Image.fromarray(pixels)


def read_caption(item: Item) -> str:
    """The caption of an item. Raises `Unreadable` with the reason."""
    if callable(getattr(item.content, "read", None)):  # of a caption that could not be had: reading it says why
        try:
            item.content.read()  # type: ignore[union-attr]
        except OSError as error:
            raise Unreadable(str(error)) from None
    if not isinstance(item.content, str):
        kind = "nothing" if item.content is None else type(item.content).__name__
        raise Unreadable(f"caption is not text but {kind}")
    if not item.content.strip():
        raise Unreadable("empty caption")
    try:
        item.content.encode()
    except UnicodeEncodeError:
        raise Unreadable("caption is not valid Unicode") from None
    return item.content


class Decoder:
    """Threads that decode and preprocess images ahead of the forward pass.

    Use it as a context manager. Workers write straight into the batch's tensor, so that no copy is left for
    the thread that feeds the model. Two batches are held ahead, or as many as give every worker an image.

    pinned    whether batches lie in page-locked memory, from which a GPU copies while it computes
    side      short side in pixels that a JPEG keeps at least, see `open_image`; 0 decodes it whole
    patience  how long a share may be gone
    """

    def __init__(
        self,
        preprocess: Preprocess,
        workers: int,
        pinned: bool = False,
        side: int = 0,
        patience: Patience | None = None,
    ) -> None:
        self._preprocess = preprocess
        self._workers = workers
        self._pinned = pinned
        self._side = side
        self._patience = (patience or Patience(0)).apart()
        self._quiet = warnings.catch_warnings()

    def __enter__(self) -> Decoder:
        # One torch thread per worker, or W workers on C cores become W x C threads. The first call fixes the
        # caller's own count, which the workers' must not change.
        torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._workers, "decode", begin_quietly)
        # Pillow only warns of images up to twice its limit; here every one beyond it is refused.
        self._quiet.__enter__()
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Every image becomes a tensor of one shape; asking once lets workers fill a shared batch.
        self._like = self._preprocess(Image.new("RGB", (64, 64)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patience.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._patience.open()
        self._quiet.__exit__(kind, error, trace)

    def decode(self, batches: Iterable[Wanted]) -> Iterator[DecodedBatch]:
        """Each batch, decoded, in order."""
        pending: deque[_Pending] = deque()
        images = 0
        for batch in batches:
            pending.append(self._submit(batch))
            images += len(batch.items)
            while len(pending) > 2 and images - len(pending[0].items) >= self._workers:
                images -= len(pending[0].items)
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _submit(self, batch: Wanted) -> _Pending:
        pixels = self._empty(len(batch.items))
        crops = {}
        for spec in batch.cropped:
            counts = [view_count(item, spec.level) - 1 for item in batch.items]
            crops[spec.level] = (torch.split(self._empty(sum(counts)), counts), spec)
        futures = [
            self._pool.submit(
                self._fill, item, pixels[row], {level: (one[row], spec) for level, (one, spec) in crops.items()}
            )
            for row, item in enumerate(batch.items)
        ]
        return _Pending(list(batch.items), pixels, {level: one for level, (one, _) in crops.items()}, futures)

    def _empty(self, count: int) -> Tensor:
        return torch.empty((count, *self._like.shape), dtype=self._like.dtype, pin_memory=self._pinned and count > 0)

    def _fill(self, item: Item, whole: Tensor, crops: dict[str, tuple[Tensor, FeatureSpec]]) -> _Filled:
        """Decode one item into its row of the batch, and its crops into theirs."""
        image, size = read_image(item, self._patience, 0 if crops else self._side)
        whole.copy_(self._preprocess(image))
        refused = {}
        for level, (rows, spec) in crops.items():
            try:
                for row, view in zip(rows, views(image, item, spec)[:-1], strict=True):
                    row.copy_(self._preprocess(view))
            except ValueError as error:
                refused[level] = str(error)
        return _Filled(size, refused)


def begin_quietly() -> None:
    """What a thread beside the forward pass does first: one torch thread, and a lower priority where both want a core.

    A decoder at full priority costs the forward pass more than the time it takes: the threads of one matrix product
    wait for the one that was held up.
    """
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class _Filled(NamedTuple):
    """The size of an image that was decoded, and the levels that it cannot be cropped for, with reasons."""

    size: tuple[int, int]
    refused: dict[str, str]


@dataclass(frozen=True)
class _Pending:
    """A batch that workers are filling; the crops of a level are a tensor for each image."""

    items: list[Item]
    pixels: Tensor
    crops: dict[str, tuple[Tensor, ...]]
    futures: list[Future[_Filled]]

    def result(self) -> DecodedBatch:
        """Wait for the workers and drop the rows of unreadable images."""
        filled: list[_Filled] = []
        rows: list[int] = []
        refused = []
        for row, (item, future) in enumerate(zip(self.items, self.futures, strict=True)):
            try:
                filled.append(future.result())
                rows.append(row)
            except Unreadable as error:
                refused.append((item, str(error)))
        return DecodedBatch(
            items=[self.items[row] for row in rows],
            sizes=[one.size for one in filled],
            pixels=self.pixels if not refused else self.pixels[rows],
            refused=refused,
            crops={level: self._cropped(level, rows, filled) for level in self.crops},
        )

    def _cropped(self, level: str, rows: list[int], filled: list[_Filled]) -> Crops:
        own = [self.crops[level][row] for row in rows]
        refused = {position: one.refused[level] for position, one in enumerate(filled) if level in one.refused}
        kept = [some[:0] if position in refused else some for position, some in enumerate(own)]
        return Crops(torch.cat(kept) if kept else self.pixels[:0], [len(some) for some in kept], refused)
