"""Features joined by key: padded batches, held in memory or read from the store.

Shapes, here and in the heads: I images, C captions, P image tokens (patches, or regions of a `regions`
store), L text tokens (or text segments), D token width, E pooled width, N pairs, G swap groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..stores.dtypes import READ, pooled_dtype
from ..stores.spec import FeatureSpec

Needs = Literal["pooled", "tokens"]
Device = str | torch.device

READ_ROWS = 1024  # rows read at a time while a table is filled: 75 MB of CLIP ViT-B/32 patch states
SAMPLE = 256  # captions whose lengths stand for all when a table's size is estimated


class Features(Protocol):
    """The part of `stores.store.Store` that fitting and scoring read."""

    spec: FeatureSpec

    def keys(self, kind: Any, /) -> set[str]: ...
    def quarantined(self) -> Iterable[Any]: ...
    def table(self, kind: Any, /) -> Any: ...
    def image_tokens(self, keys: Sequence[str], /) -> np.ndarray: ...
    def image_regions(self, keys: Sequence[str], /) -> tuple[np.ndarray, np.ndarray]: ...
    def text_tokens(self, keys: Sequence[str], /) -> tuple[np.ndarray, np.ndarray]: ...
    def pooled(self, kind: Any, keys: Sequence[str], /) -> np.ndarray: ...


@dataclass(eq=False)
class Batch:
    """Images and captions to score against each other. Features are float32; masks are True on real tokens,
    which come first; no row is all padding. Token fields are None when only pooled embeddings were joined.

    images (I, P, D), image_mask (I, P), image_pooled (I, E)
    texts (C, L, D), text_mask (C, L), text_pooled (C, E)
    positives  (I, C) bool: the caption describes the image, as far as the pairs table knows
    groups     (G, 4) long: rows i0, i1 and columns c0, c1 of a swap group; c0 describes i0, c1 describes i1
    scored     (I, C) bool: the entries an objective may look at; None = all
    """

    images: Tensor | None
    image_mask: Tensor | None
    image_pooled: Tensor
    texts: Tensor | None
    text_mask: Tensor | None
    text_pooled: Tensor
    positives: Tensor
    groups: Tensor
    scored: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(I, C)."""
        return self.image_pooled.shape[0], self.text_pooled.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.image_pooled.device

    def to(self, device: Device) -> Batch:
        """The same batch on another device."""
        moved = {
            field.name: value.to(device) if isinstance(value, Tensor) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }
        return Batch(**moved)

    def select(self, images: Tensor, captions: Tensor) -> Batch:
        """The rows `images` and the columns `captions` (long), in that order. Groups are left out."""

        def take(value: Tensor | None, rows: Tensor) -> Tensor | None:
            return None if value is None else value[rows]

        scored = None if self.scored is None else self.scored[images][:, captions]
        return Batch(
            images=take(self.images, images),
            image_mask=take(self.image_mask, images),
            image_pooled=self.image_pooled[images],
            texts=take(self.texts, captions),
            text_mask=take(self.text_mask, captions),
            text_pooled=self.text_pooled[captions],
            positives=self.positives[images][:, captions],
            groups=self.groups[:0],
            scored=scored,
        )


def join(
    store: Features,
    image_keys: Sequence[str],
    caption_keys: Sequence[str],
    device: Device = "cpu",
    needs: Needs = "tokens",
) -> Batch:
    """The features of `image_keys` × `caption_keys`, in the order given, duplicates allowed.

    Nothing is known about who belongs to whom: `positives` is all False. With `needs="pooled"`, or from
    a store of level `pooled`, the token fields are None. Raises `MissingFeatures`.
    """
    rows, columns = np.arange(len(image_keys)), np.arange(len(caption_keys))
    table = FeatureTable.streaming(store, list(image_keys), list(caption_keys), device, needs)
    return table.batch(rows, columns)


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    """A stored array as a tensor of the stored dtype; numpy has no bfloat16, so its bits come as uint16."""
    if array.dtype == np.uint16 and dtype == "bfloat16":
        return torch.from_numpy(array).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


Reader = Callable[[list[str]], tuple[np.ndarray, np.ndarray | None]]


def _image_reader(store: Features, needs: Needs) -> Reader | None:
    if needs == "pooled" or not store.spec.keeps_tokens:
        return None
    if store.spec.ragged_images:
        return store.image_regions
    return lambda keys: (store.image_tokens(keys), None)


def _text_reader(store: Features, needs: Needs) -> Reader | None:
    return None if needs == "pooled" or not store.spec.keeps_tokens else store.text_tokens


def _pooled_reader(store: Features, kind: Literal["image", "text"]) -> Reader:
    return lambda keys: (store.pooled(kind, keys), None)


class Stored:
    """Rows read from the store each time they are asked for."""

    def __init__(self, reader: Reader, keys: list[str], dtype: str, device: Device) -> None:
        self.reader, self.keys, self.dtype, self.device = reader, keys, dtype, device

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(n, S, D) float32 and (n, S) bool; vectors give (n, E) and a mask that says nothing."""
        values, mask = self.reader([self.keys[row] for row in rows])
        known = np.ones(values.shape[:2], dtype=bool) if mask is None else mask
        tensor = _tensor(values, self.dtype).to(self.device)
        return tensor.float(), torch.from_numpy(np.ascontiguousarray(known)).to(self.device)


class Dense:
    """Rows of equal shape in memory, in the stored dtype."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def read(cls, reader: Reader, keys: list[str], dtype: str, device: Device) -> Dense:
        """All `keys`, `READ_ROWS` at a time into one allocation."""
        values = torch.empty(0)
        for start in range(0, len(keys), READ_ROWS):
            part = _tensor(reader(keys[start : start + READ_ROWS])[0], dtype)
            if start == 0:
                values = torch.empty((len(keys), *part.shape[1:]), dtype=part.dtype, device=device)
            values[start : start + len(part)] = part.to(device)
        return cls(values)

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `Stored.take`."""
        values = self.values[torch.from_numpy(rows).to(self.values.device)]
        return values.float(), torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


class Ragged:
    """Rows of unequal length in memory, laid end to end without padding, in the stored dtype."""

    def __init__(self, flat: Tensor, lengths: Tensor) -> None:
        self.flat, self.lengths = flat, lengths
        self.starts = lengths.cumsum(0) - lengths

    @classmethod
    def read(cls, reader: Reader, keys: list[str], dtype: str, device: Device) -> Ragged:
        """All `keys`, `READ_ROWS` at a time."""
        flat, lengths = [], []
        for start in range(0, len(keys), READ_ROWS):
            values, mask = reader(keys[start : start + READ_ROWS])
            known = np.ones(values.shape[:2], dtype=bool) if mask is None else mask
            flat.append(_tensor(values[known], dtype).to(device))
            lengths.append(torch.from_numpy(known.sum(axis=1)).to(device))
        return cls(torch.cat(flat), torch.cat(lengths))

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `Stored.take`, padded with zeros to the longest of `rows`."""
        index = torch.from_numpy(rows).to(self.flat.device)
        lengths = self.lengths[index]
        slots = torch.arange(int(lengths.max()) if len(rows) else 0, device=self.flat.device)
        mask = slots < lengths[:, None]
        where = torch.where(mask, self.starts[index][:, None] + slots, 0)
        return self.flat[where].float().masked_fill(~mask[..., None], 0), mask


Rows = Stored | Dense | Ragged


@dataclass(eq=False)
class FeatureTable:
    """The features of a fixed list of images and captions, addressed by row number."""

    image_pooled: Rows
    text_pooled: Rows
    images: Rows | None
    texts: Rows | None
    resident: bool

    @classmethod
    def streaming(
        cls, store: Features, images: list[str], captions: list[str], device: Device, needs: Needs
    ) -> FeatureTable:
        """Nothing is held: every batch reads the store."""

        def rows(reader: Reader, keys: list[str]) -> Stored:
            return Stored(reader, keys, store.spec.dtype, device)

        image, text = _image_reader(store, needs), _text_reader(store, needs)
        return cls(
            image_pooled=rows(_pooled_reader(store, "image"), images),
            text_pooled=rows(_pooled_reader(store, "text"), captions),
            images=rows(image, images) if image else None,
            texts=rows(text, captions) if text else None,
            resident=False,
        )

    @classmethod
    def loaded(
        cls, store: Features, images: list[str], captions: list[str], device: Device, needs: Needs
    ) -> FeatureTable:
        """Everything is read once and kept on `device` in the stored dtype, texts and regions unpadded."""
        dtype = store.spec.dtype
        image, text = _image_reader(store, needs), _text_reader(store, needs)
        kind = Ragged if store.spec.ragged_images else Dense
        return cls(
            image_pooled=Dense.read(_pooled_reader(store, "image"), images, dtype, device),
            text_pooled=Dense.read(_pooled_reader(store, "text"), captions, dtype, device),
            images=kind.read(image, images, dtype, device) if image else None,
            texts=Ragged.read(text, captions, dtype, device) if text else None,
            resident=True,
        )

    def batch(self, images: np.ndarray, captions: np.ndarray) -> Batch:
        """The batch of these rows (int64 arrays), with no positives and no groups."""
        device = self._device
        image = (None, None) if self.images is None else self.images.take(images)
        text = (None, None) if self.texts is None else self.texts.take(captions)
        return Batch(
            images=image[0],
            image_mask=image[1],
            image_pooled=self.image_pooled.take(images)[0],
            texts=text[0],
            text_mask=text[1],
            text_pooled=self.text_pooled.take(captions)[0],
            positives=torch.zeros((len(images), len(captions)), dtype=torch.bool, device=device),
            groups=torch.zeros((0, 4), dtype=torch.long, device=device),
        )

    @property
    def _device(self) -> Device:
        pooled = self.image_pooled
        return pooled.device if isinstance(pooled, Stored) else pooled.values.device  # type: ignore[union-attr]


def estimated_bytes(store: Features, images: list[str], captions: list[str], needs: Needs) -> int:
    """What `FeatureTable.loaded` would hold. Exact for dense rows; ragged ones by the mean of a sample."""
    size = READ[store.spec.dtype].itemsize
    total = (len(images) + len(captions)) * store.spec.pooled_dim * READ[pooled_dtype(store.spec.dtype)].itemsize
    image, text = _image_reader(store, needs), _text_reader(store, needs)
    for reader, keys in ((image, images), (text, captions)):
        if reader is None or not keys:
            continue
        if reader is image and not store.spec.ragged_images:
            total += len(keys) * store.spec.image_shape[0] * store.spec.image_shape[1] * size
            continue
        sample = keys[:: max(1, len(keys) // SAMPLE)][:SAMPLE]
        values, mask = reader(sample)
        tokens = len(sample) * values.shape[1] if mask is None else int(mask.sum())
        total += int(tokens * values.shape[2] * size * len(keys) / len(sample))
    return total


def open_table(
    store: Features,
    images: list[str],
    captions: list[str],
    device: Device,
    needs: Needs,
    budget_bytes: int,
) -> FeatureTable:
    """Loaded when it fits into `budget_bytes`, else streaming. Raises `MissingFeatures`."""
    fits = estimated_bytes(store, images, captions, needs) <= budget_bytes
    make = FeatureTable.loaded if fits else FeatureTable.streaming
    return make(store, images, captions, device, needs)
