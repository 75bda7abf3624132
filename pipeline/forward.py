"""The forward pass: decoded batches and captions through a backbone, into the rows of a part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, UsageError
from ..stores.dtypes import STORED
from ..stores.items import Item
from ..stores.rows import ImageRows, Quarantined, TextRows
from ..stores.spec import FeatureSpec
from .decode import DecodedBatch, Unreadable, read_caption
from .encoder import Encoder, TextFeatures
from .plan import PlannedPart, batches
from .regions import text_spans

Array = NDArray[Any]
Tick = Callable[[int], None]
DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
# None: no autocast, the weights' own float32.
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Forward:
    """A backbone on a device at its spec's precision.

    encoder     what computes the features
    batch_size  the most images or texts of one pass
    seconds     time spent so far in forward passes, transfers included
    """

    def __init__(self, encoder: Encoder, spec: FeatureSpec, device: str, batch_size: int) -> None:
        if spec.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UsageError(f"no precision '{spec.precision}' for a forward pass", f"Known: {known}.")
        self.encoder, self.spec, self.batch_size = encoder, spec, batch_size
        self.device = torch.device(device)
        self.seconds = 0.0

    @property
    def provenance(self) -> dict[str, str | int]:
        """What was at work, for the record of a part; none of it is part of the store's identity."""
        return {"device": str(self.device), "batch_size": self.batch_size, "torch": torch.__version__}

    @contextmanager
    def _pass(self, count: int) -> Iterator[None]:
        started = time.perf_counter()
        precision = PRECISIONS[self.spec.precision]
        autocast = torch.autocast(self.device.type, dtype=precision, enabled=precision is not None)
        try:
            with torch.inference_mode(), autocast:
                yield
        except torch.OutOfMemoryError:
            cure = f"Choose a batch size below {self.batch_size}."
            raise InputError(f"{self.device} has no memory for a batch of {count}", cure) from None
        finally:
            self.seconds += time.perf_counter() - started

    def images(self, batch: DecodedBatch) -> tuple[Array | None, Array]:
        """The tokens (V, P, D), None where the level keeps none, and pooled (V, E) of V views, stored dtype.

        Raises `InputError` naming the image whose features are not finite or overflow the stored dtype, and
        for features of another shape than the spec's.
        """
        names = [_name(item) for item, views in zip(batch.items, batch.views, strict=True) for _ in range(views)]
        tokens, pooled = [], []
        start = 0
        for pixels in torch.split(batch.pixels, self.batch_size):
            here = names[start : start + len(pixels)]
            start += len(pixels)
            with self._pass(len(pixels)):
                features = self.encoder.encode_images(pixels.to(self.device, non_blocking=True))
                pooled.append(self._pooled(features.pooled, here))
                if self.spec.level == "tokens":
                    tokens.append(self._tokens(features.tokens, here, self.spec.image_shape))
        return (np.concatenate(tokens) if tokens else None), np.concatenate(pooled)

    def texts(self, captions: Sequence[str], names: Sequence[str]) -> tuple[TextFeatures, list[Array], Array]:
        """What the backbone says of C captions, their token states (L_i, D) where the level keeps them, and
        their pooled (C, E), stored dtype. Raises `InputError` as `images` does."""
        with self._pass(len(captions)):
            features = self.encoder.encode_texts(captions)
            pooled = self._pooled(features.pooled, names)
            if self.spec.level != "tokens" or not captions:
                return features, [], pooled
            lengths = [len(tokens) for tokens in features.tokens or ()]
            owners = [name for name, length in zip(names, lengths, strict=True) for _ in range(length)]
            # One transfer for the batch: a copy per caption costs more than the copies.
            flat = torch.cat(list(features.tokens)) if features.tokens else None
            states = self._tokens(flat, owners, (self.spec.text_dim,))
        return features, np.split(states, list(accumulate(lengths))[:-1]), pooled

    def _tokens(self, tokens: Tensor | None, names: Sequence[str], shape: Sequence[int]) -> Array:
        found = None if tokens is None else tuple(tokens.shape[1:])
        if tokens is None or found != tuple(shape):
            what = f"{self.spec.backbone} gives token states of {found}, its spec says {tuple(shape)}"
            raise InputError(what, "The backbone's spec() and load() must agree.")
        return self._stored(tokens, names)

    def _pooled(self, pooled: Tensor, names: Sequence[str]) -> Array:
        if self.spec.normalized:
            pooled = torch.nn.functional.normalize(pooled.float(), dim=-1)
        return self._stored(pooled, names)

    def _stored(self, values: Tensor, names: Sequence[str]) -> Array:
        """Cast where the features are, so that half the bytes travel; refuse at once what the store would
        refuse at the end of the part."""
        cast = values.to(DTYPES.get(self.spec.dtype, torch.float32))
        finite = torch.isfinite(cast).flatten(1).all(1)
        if not finite.all():
            row = int(finite.logical_not().nonzero()[0])
            if torch.isfinite(values[row]).all():
                cure = "Store them with --dtype float32."
                raise InputError(f"the features of {names[row]} overflow {self.spec.dtype}", cure)
            cure = f"Check the weights of {self.spec.backbone}; at reduced precision try float32."
            raise InputError(f"the features of {names[row]} are NaN or infinite", cure)
        # numpy has no bfloat16; the store takes its bits.
        bits = cast.view(torch.uint16) if cast.dtype == torch.bfloat16 else cast
        stored: Array = bits.cpu().numpy()
        return stored


def encode_images(
    part: PlannedPart, decoded: Iterable[DecodedBatch], forward: Forward, tick: Tick
) -> tuple[ImageRows, list[Quarantined]]:
    """The rows of a part of images, and its items that cannot be read; `tick` hears of each batch."""
    spec, size = forward.spec, len(part.items)
    dtype = STORED[spec.dtype]
    dense = np.empty((size, *spec.image_shape), dtype) if spec.level == "tokens" else None
    ragged: list[Array] | None = [] if spec.level == "regions" else None
    pooled = np.empty((size, spec.pooled_dim), dtype)
    keys: list[str] = []
    sources: list[str] = []
    sizes: list[tuple[int, int]] = []
    refused: list[Quarantined] = []
    for batch in decoded:
        refused += [Quarantined(item.key, "image", item.source, reason) for item, reason in batch.refused]
        if batch.items:
            here = slice(len(keys), len(keys) + len(batch.items))
            tokens, vectors = forward.images(batch)
            ends = list(accumulate(batch.views))
            pooled[here] = vectors[[end - 1 for end in ends]]
            if ragged is not None:
                # The last view is the whole image: a region only if it is the only one.
                ragged += [vectors[first : max(first + 1, last - 1)] for first, last in pairwise([0, *ends])]
            if dense is not None:
                dense[here] = tokens
            keys += [item.key for item in batch.items]
            sources += [item.source for item in batch.items]
            sizes += batch.sizes
        tick(len(batch.items) + len(batch.refused))
    kept = ragged if dense is None else dense[: len(keys)]
    return ImageRows(keys, sources, sizes, kept, pooled[: len(keys)]), refused


def encode_texts(part: PlannedPart, forward: Forward, tick: Tick) -> tuple[TextRows, list[Quarantined]]:
    """The rows of a part of captions, and its items that cannot be read; `tick` hears of each batch."""
    items, refused = _readable(part.items, forward.spec)
    if refused:
        tick(len(refused))
    encode = _encode_segments if forward.spec.level == "regions" else _encode_captions
    columns = encode(items, forward, tick)
    rows = TextRows(
        keys=[item.key for item in items],
        captions=[str(item.content) for item in items],
        sources=[item.source for item in items],
        tokens=None if forward.spec.level == "pooled" else columns.tokens,
        pooled=_stacked(columns.pooled, forward.spec),
        spans=columns.spans,
        pool_index=columns.pool_index,
        truncated=columns.truncated,
        segments=[item.segments for item in items],
    )
    return rows, refused


@dataclass
class _Columns:
    """What a backbone says of captions, one entry each."""

    tokens: list[Array] = field(default_factory=list)
    pooled: list[Array] = field(default_factory=list)
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    pool_index: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)


def _stacked(vectors: Sequence[Array], spec: FeatureSpec) -> Array:
    return np.stack(vectors) if vectors else np.empty((0, spec.pooled_dim), STORED[spec.dtype])


def _encode_captions(items: Sequence[Item], forward: Forward, tick: Tick) -> _Columns:
    columns = _Columns()
    for batch in batches(items, forward.batch_size):
        captions = [str(item.content) for item in batch]
        features, tokens, pooled = forward.texts(captions, [_name(item) for item in batch])
        columns.tokens += tokens
        columns.pooled += list(pooled)
        columns.spans += features.spans
        columns.pool_index += features.pool_index
        columns.truncated += features.truncated
        tick(len(batch))
    return columns


def _encode_segments(items: Sequence[Item], forward: Forward, tick: Tick) -> _Columns:
    """A caption's tokens are the pooled vectors of its segments. Equal strings of a part are encoded once:
    captions of one world share most of their segments."""
    names: dict[str, str] = {}
    for item in items:
        for text in (str(item.content), *_segment_texts(item)):
            names.setdefault(text, _name(item))
    vectors: dict[str, Array] = {}
    cut: dict[str, bool] = {}
    for batch in batches(list(names), forward.batch_size):
        features, _, pooled = forward.texts(batch, [names[text] for text in batch])
        vectors.update(zip(batch, pooled, strict=True))
        cut.update(zip(batch, features.truncated, strict=True))
    tick(len(items))
    captions = [str(item.content) for item in items]
    return _Columns(
        tokens=[np.stack([vectors[text] for text in _segment_texts(item)]) for item in items],
        pooled=[vectors[caption] for caption in captions],
        spans=[text_spans(item) for item in items],
        pool_index=[-1] * len(items),
        truncated=[cut[caption] for caption in captions],
    )


def _segment_texts(item: Item) -> list[str]:
    return [str(item.content)[start:end] for start, end in text_spans(item)]


def _readable(items: Sequence[Item], spec: FeatureSpec) -> tuple[list[Item], list[Quarantined]]:
    readable, refused = [], []
    for item in items:
        try:
            read_caption(item)
            if spec.level == "regions":
                text_spans(item)
            readable.append(item)
        except (Unreadable, ValueError) as error:
            refused.append(Quarantined(item.key, "text", item.source, str(error)))
    return readable, refused


def _name(item: Item) -> str:
    return f"{item.kind} {item.source} ({item.key})"
