"""Features joined by key: padded batches, held in memory or read from the store.

Shapes, here and in the heads: I images, C captions, P image tokens (patches, or regions of a `regions`
store), L text tokens (or text segments), D token width, E pooled width, N pairs, G swap groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..stores.dtypes import READ, pooled_dtype
from ..stores.spec import FeatureSpec
from .tables import Dense, Ragged, Reader, Rows, Staging, Stored

Needs = Literal["pooled", "tokens"]
Residency = Literal["auto", "disk", "ram", "gpu"]
Device = str | torch.device

GPU_SHARE = 0.8  # of the free memory of a CUDA device that features may take; the rest is for head and activations
SAMPLE = 256  # captions whose lengths stand for all when a table's size is estimated


class Features(Protocol):
    """The part of `stores.store.Store` that fitting and scoring read."""

    spec: FeatureSpec
    path: Path

    def keys(self, kind: Any, /) -> set[str]: ...
    def quarantined(self) -> Iterable[Any]: ...
    def table(self, kind: Any, /) -> Any: ...
    def parts_of(self, kind: Any, keys: Sequence[str], /) -> np.ndarray: ...
    def image_buffer(self, count: int, /) -> np.ndarray: ...
    def image_tokens(self, keys: Sequence[str], out: Any = None, /) -> np.ndarray: ...
    def image_regions(self, keys: Sequence[str], out: Any = None, /) -> tuple[np.ndarray, np.ndarray]: ...
    def text_tokens(self, keys: Sequence[str], out: Any = None, /) -> tuple[np.ndarray, np.ndarray]: ...
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
    pairs      (N, 2) long: row and column of each pair that was drawn; None = nobody says which those were
    negatives  (N, K) long: columns of the captions drawn as hard negatives of each of `pairs`, -1 = no more
    phrases    (N, M) long: columns of the noun phrases drawn of each pair's caption, -1 = no more; a phrase is positive
               for every image that has it. None = none are drawn
    further    (N, M) long: columns of the other captions drawn of each pair's image, -1 = no more. None = none drawn
    told       columns → their captions as texts, read when first asked for; None = nobody knows them
    rows       None: all I images are here. A slice: this process holds the image features of these rows only, and
               those of all captions; `positives`, `groups` and `scored` are of the whole batch
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
    pairs: Tensor | None = None
    negatives: Tensor | None = None
    rows: slice | None = None
    phrases: Tensor | None = None
    further: Tensor | None = None
    told: Callable[[Sequence[int]], list[str]] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(I, C) of the features that are here: with `rows`, I counts those."""
        return self.image_pooled.shape[0], self.text_pooled.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.image_pooled.device

    def to(self, device: Device) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device) if isinstance(value, Tensor) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }
        return Batch(**moved)

    def select(self, images: Tensor, captions: Tensor) -> Batch:
        """The rows `images` of those that are here and the columns `captions` (long), in that order. Groups and
        pairs are left out, and what is selected is a batch of its own (`rows` None)."""

        def take(value: Tensor | None, rows: Tensor) -> Tensor | None:
            return None if value is None else value[rows]

        here = self.rows or slice(None)
        scored = None if self.scored is None else self.scored[here][images][:, captions]
        return Batch(
            images=take(self.images, images),
            image_mask=take(self.image_mask, images),
            image_pooled=self.image_pooled[images],
            texts=take(self.texts, captions),
            text_mask=take(self.text_mask, captions),
            text_pooled=self.text_pooled[captions],
            positives=self.positives[here][images][:, captions],
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


def _image_reader(store: Features, needs: Needs) -> Reader | None:
    if needs == "pooled" or not store.spec.keeps_tokens:
        return None
    if store.spec.ragged_images:  # without a bound on the regions of an image there is no buffer for all batches
        return lambda keys, _: store.image_regions(keys)

    def read(keys: list[str], staging: Staging | None) -> tuple[np.ndarray, None]:
        out = None if staging is None else staging.rows("images", len(keys), store.image_buffer)
        return store.image_tokens(keys, out), None

    return read


def _text_reader(store: Features, needs: Needs) -> Reader | None:
    if needs == "pooled" or not store.spec.keeps_tokens:
        return None
    longest, dtype = store.spec.context_length, READ[store.spec.dtype]

    def read(keys: list[str], staging: Staging | None) -> tuple[np.ndarray, np.ndarray]:
        if staging is None or not longest:
            return store.text_tokens(keys)
        return store.text_tokens(keys, staging.values("texts", (len(keys) * longest * store.spec.text_dim,), dtype))

    return read


def _pooled_reader(store: Features, kind: Literal["image", "text"]) -> Reader:
    if not store.spec.pooled_dim:  # level pixels: nothing has been pooled yet
        return lambda keys, _: (np.zeros((len(keys), 0), dtype=np.float32), None)
    return lambda keys, _: (store.pooled(kind, keys), None)


@dataclass(eq=False)
class FeatureTable:
    """The features of a fixed list of images and captions, addressed by row number.

    resident  where they stay: "disk", read at every batch; "ram", in host memory; "gpu", on the device
    device    where batches are made
    """

    image_pooled: Rows
    text_pooled: Rows
    images: Rows | None
    texts: Rows | None
    resident: Literal["disk", "ram", "gpu"]
    device: torch.device

    @classmethod
    def streaming(
        cls, store: Features, images: list[str], captions: list[str], device: Device, needs: Needs
    ) -> FeatureTable:
        """Nothing is held: every batch reads the store."""

        def rows(reader: Reader, keys: list[str]) -> Stored:
            return Stored(reader, keys, store.spec.dtype)

        image, text = _image_reader(store, needs), _text_reader(store, needs)
        return cls(
            image_pooled=rows(_pooled_reader(store, "image"), images),
            text_pooled=rows(_pooled_reader(store, "text"), captions),
            images=rows(image, images) if image else None,
            texts=rows(text, captions) if text else None,
            resident="disk",
            device=torch.device(device),
        )

    @classmethod
    def loaded(
        cls,
        store: Features,
        images: list[str],
        captions: list[str],
        device: Device,
        needs: Needs,
        held: Literal["device", "host"] = "device",
    ) -> FeatureTable:
        """Everything is read once and held in the stored dtype, texts and regions unpadded: on `device`, or in host
        memory, from which batches are copied there."""
        dtype, device = store.spec.dtype, torch.device(device)
        where = device if held == "device" else torch.device("cpu")
        image, text = _image_reader(store, needs), _text_reader(store, needs)
        kind = Ragged if store.spec.ragged_images else Dense
        return cls(
            image_pooled=Dense.read(_pooled_reader(store, "image"), images, dtype, where),
            text_pooled=Dense.read(_pooled_reader(store, "text"), captions, dtype, where),
            images=kind.read(image, images, dtype, where) if image else None,
            texts=Ragged.read(text, captions, dtype, where) if text else None,
            resident="ram" if where.type == "cpu" else "gpu",
            device=device,
        )

    def batch(
        self,
        images: np.ndarray,
        captions: np.ndarray,
        device: Device | None = None,
        staging: Staging | None = None,
    ) -> Batch:
        """The batch of these rows (int64 arrays), with no positives and no groups. It lies in memory of its own, also
        where reads land in `staging` first; while copies out of pinned `staging` are under way, leave that alone."""
        device = self.device if device is None else torch.device(device)
        image = (None, None) if self.images is None else self.images.take(images, device, staging)
        text = (None, None) if self.texts is None else self.texts.take(captions, device, staging)
        return Batch(
            images=image[0],
            image_mask=image[1],
            image_pooled=self.image_pooled.take(images, device, staging)[0],
            texts=text[0],
            text_mask=text[1],
            text_pooled=self.text_pooled.take(captions, device, staging)[0],
            positives=torch.zeros((len(images), len(captions)), dtype=torch.bool, device=device),
            groups=torch.zeros((0, 4), dtype=torch.long, device=device),
        )


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
        values, mask = reader(sample, None)
        tokens = len(sample) * values.shape[1] if mask is None else int(mask.sum())
        total += int(tokens * values.shape[2] * size * len(keys) / len(sample))
    return total


def open_table(
    store: Features,
    images: list[str],
    captions: list[str],
    device: Device,
    needs: Needs,
    residency: Residency,
    budget_bytes: int,
) -> FeatureTable:
    """The features of `images` and `captions`, kept where `residency` says. "auto": on a CUDA device if they fit into
    `GPU_SHARE` of its free memory, else in memory if they fit into `budget_bytes`, else nowhere. Raises
    `MissingFeatures`, `UsageError` for "gpu" on a CPU."""
    device = torch.device(device)
    if residency == "gpu" and device.type == "cpu":
        raise UsageError('data.resident = "gpu" on device cpu', 'Choose "ram", "disk" or "auto", or --device cuda.')
    if residency == "auto":
        size = estimated_bytes(store, images, captions, needs)
        residency = "ram" if size <= budget_bytes else "disk"
        if device.type == "cuda" and size <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            residency = "gpu"
    if residency == "disk":
        return FeatureTable.streaming(store, images, captions, device, needs)
    held: Literal["device", "host"] = "device" if residency == "gpu" else "host"
    return FeatureTable.loaded(store, images, captions, device, needs, held)
