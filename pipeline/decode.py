"""Images to pixels, off the critical path; what cannot be read gets a reason, not an exception.

As open_clip does, EXIF orientation is not applied and transparency is dropped: a model sees the pixels as
stored. 16-bit grey is scaled to 8 bits (a plain conversion would clip it to white).
"""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from ..stores.items import Item, content_key
from .regions import image_views

# Pillow's own limit of a quarter GiB of RGB; beyond it one file could take a worker's memory.
MAX_PIXELS = 89_478_485
# Resizing by the shorter side to 224 makes a 1 x 10,000 strip 1.5 GB; at this ratio it is 30 MB.
MAX_ASPECT = 200

Preprocess = Callable[[Image.Image], Tensor]


class Unreadable(Exception):
    """An item that goes to the quarantine; `str` is the reason."""


@dataclass(frozen=True)
class DecodedBatch:
    """The readable images of a batch, in the batch's order, and why the others are not.

    pixels   (V, C, H, W) float32, the views of all readable images one after the other
    views    how many rows of `pixels` each readable image has: 1, or boxes + 1 at level regions
    sizes    (width, height) of each readable image as stored, pixels
    refused  (item, reason) of the others
    """

    items: list[Item]
    sizes: list[tuple[int, int]]
    views: list[int]
    pixels: Tensor
    refused: list[tuple[Item, str]]


def open_image(item: Item) -> Image.Image:
    """An item's image as 8-bit RGB. Raises `Unreadable` with the reason, `InputError` for a bad renderer."""
    if callable(item.content):
        return _rendered(item)
    if not isinstance(item.content, Path):
        raise Unreadable(f"not an image file or a renderer but {type(item.content).__name__}")
    try:
        data = item.content.read_bytes()
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    if content_key("image-file", data) != item.key:
        raise Unreadable("changed since it was listed; extract again")
    return _decoded(data)


def _decoded(data: bytes) -> Image.Image:
    if not data:
        raise Unreadable("empty file")
    try:
        image = Image.open(io.BytesIO(data))
        _check_size(*image.size)
        return _to_rgb(image)
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"too large: more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise Unreadable("not an image that Pillow can read") from None
    # Pillow's plugins raise almost anything for malformed bytes: struct.error, IndexError, SyntaxError, …
    except Exception as error:
        raise Unreadable(f"damaged image: {error or type(error).__name__}") from None


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
    pixels = item.content()
    shape, dtype = getattr(pixels, "shape", None), getattr(pixels, "dtype", None)
    if dtype != np.uint8 or shape is None or len(shape) != 3 or shape[2] != 3:
        what = f"{shape} {dtype}" if shape is not None else type(pixels).__name__
        raise InputError(f"the renderer of {item.source} made {what}", "It must make (H, W, 3) uint8.")
    _check_size(shape[1], shape[0])
    return Image.fromarray(pixels)


def read_caption(item: Item) -> str:
    """The caption of an item. Raises `Unreadable` with the reason."""
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
    the thread that feeds the model. At most `ahead` batches (2 at least) are held.
    """

    def __init__(self, preprocess: Preprocess, workers: int, regions: bool = False, pinned: bool = False) -> None:
        self._preprocess = preprocess
        self._workers = workers
        self._regions = regions
        self._pinned = pinned
        self._ahead = max(2, workers)
        self._quiet = warnings.catch_warnings()

    def __enter__(self) -> Decoder:
        # One torch thread per worker, or W workers on C cores become W x C threads. The first call fixes the
        # caller's own count, which the workers' must not change.
        torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._workers, "decode", torch.set_num_threads, (1,))
        # Pillow only warns of images up to twice its limit; here every one beyond it is refused.
        self._quiet.__enter__()
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Every image becomes a tensor of one shape; asking once lets workers fill a shared batch.
        self._shape = tuple(self._preprocess(Image.new("RGB", (64, 64))).shape)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._quiet.__exit__(kind, error, trace)

    def decode(self, batches: Iterable[Sequence[Item]]) -> Iterator[DecodedBatch]:
        """Each batch, decoded, in order."""
        pending: deque[_Pending] = deque()
        for batch in batches:
            pending.append(self._submit(batch))
            if len(pending) > self._ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _submit(self, batch: Sequence[Item]) -> _Pending:
        views = [1 + len(item.boxes) if self._regions else 1 for item in batch]
        pixels = torch.empty((sum(views), *self._shape), pin_memory=self._pinned)
        slots = torch.split(pixels, views)
        futures = [self._pool.submit(self._fill, item, slot) for item, slot in zip(batch, slots, strict=True)]
        return _Pending(list(batch), views, pixels, futures)

    def _fill(self, item: Item, slot: Tensor) -> tuple[int, int]:
        """Decode one item into its rows of the batch; its size in pixels."""
        image = open_image(item)
        try:
            views = image_views(image, item.boxes) if self._regions else [image]
        except ValueError as error:
            raise Unreadable(str(error)) from None
        for row, view in enumerate(views):
            slot[row] = self._preprocess(view)
        return image.size


@dataclass(frozen=True)
class _Pending:
    """A batch that workers are filling."""

    items: list[Item]
    views: list[int]
    pixels: Tensor
    futures: list[Future[tuple[int, int]]]

    def result(self) -> DecodedBatch:
        """Wait for the workers and drop the rows of unreadable images."""
        items, sizes, views, refused = [], [], [], []
        for item, count, future in zip(self.items, self.views, self.futures, strict=True):
            try:
                sizes.append(future.result())
                items.append(item)
                views.append(count)
            except Unreadable as error:
                refused.append((item, str(error)))
        pixels = self.pixels
        if refused:
            bad = {item.key for item, _ in refused}
            good = [item.key not in bad for item in self.items]
            pixels = pixels[torch.repeat_interleave(torch.tensor(good), torch.tensor(self.views))]
        return DecodedBatch(items, sizes, views, pixels, refused)
