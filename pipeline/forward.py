"""The forward pass: pixels and captions through a backbone, and its features on their way to the host.

One pass serves all levels that are asked for. A pass that finds no memory is repeated in halves. On a GPU features
travel behind the next pass: what `images` and `texts` return is waited for when its `result` is asked.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, UsageError
from ..stores.spec import FeatureSpec
from .encoder import Encoder, ImageFeatures, TextFeatures, load_encoder
from .regions import is_dense

Array = NDArray[Any]
T = TypeVar("T")
DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
# None: no autocast, the weights' own float32.
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Besides torch.OutOfMemoryError: what the CPU allocator, MPS, cuBLAS and cuDNN say.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")


class Forward:
    """A backbone on a device, at the levels and the precision of its specs.

    encoder     what computes the features
    specs       by level
    batch_size  the most images or texts of one pass; halved where there is no memory for it
    seconds     time spent so far in passes, transfers included
    notes       what the user should know of the passes, one line each
    """

    def __init__(self, encoder: Encoder, specs: Sequence[FeatureSpec], device: str, batch_size: int) -> None:
        self.precision = next((spec.precision for spec in specs if spec.rung != "pixels"), "float32")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UsageError(f"no precision '{self.precision}' for a forward pass", f"Known: {known}.")
        self.encoder, self.batch_size = encoder, batch_size
        self.specs = {spec.level: spec for spec in specs}
        self.device = torch.device(device)
        self.seconds = 0.0
        self.notes: list[str] = []
        self._others: dict[str, Encoder] = {}

    @property
    def provenance(self) -> dict[str, str | int]:
        """What was at work, for the record of a part; none of it is part of the store's identity."""
        return {"device": str(self.device), "batch_size": self.batch_size, "torch": torch.__version__}

    # --- images and texts ----------------------------------------------------------------------------

    def images(self, pixels: Tensor, levels: Sequence[str], names: Sequence[str]) -> Flight[Levels]:
        """Pixels (B, C, H, W) → by level the tokens (B, P, D), None where it keeps none, and pooled (B, E), stored
        dtype.

        `result` raises `InputError` naming the image whose features are not finite or overflow the stored dtype,
        `images` for features of another shape than the spec's, and where one image finds no memory.
        """
        computed = [level for level in levels if self.specs[level].rung != "pixels"]

        def run(here: slice) -> dict[str, Sent]:
            features = self._images_at(pixels[here].to(self.device, non_blocking=True), computed) if computed else {}
            return {level: self._sent(level, found, names[here]) for level, found in features.items()}

        halves = self._passes(len(pixels), run if computed else lambda _: {})

        def result() -> Levels:
            found = {level: _joined([half[level].result() for half in halves]) for level in computed}
            pictures = [level for level in levels if level not in found]
            return found | {level: (_pictures(pixels, self.specs[level]), None) for level in pictures}

        return Flight(self, result)

    def texts(self, captions: Any, levels: Sequence[str], names: Sequence[str]) -> Flight[dict[str, Columns]]:
        """Captions, or what the encoder's `tokenize` made of them → by level what is stored of each; raises as
        `images` does."""
        count = len(names)

        def run(here: slice) -> dict[str, tuple[TextFeatures, Sent]]:
            some = captions[here] if isinstance(captions, list) else taken(captions, range(*here.indices(count)))
            features = self._texts_at(some, levels)
            return {level: (found, self._sent_texts(level, found, names[here])) for level, found in features.items()}

        halves = self._passes(count, run)

        def result() -> dict[str, Columns]:
            found = {level: Columns() for level in levels}
            for half in halves:
                for level, (features, sent) in half.items():
                    found[level].add(features, *sent.result())
            return found

        return Flight(self, result)

    def _images_at(self, pixels: Tensor, levels: Sequence[str]) -> dict[str, ImageFeatures]:
        if hasattr(self.encoder, "images_at"):
            found: dict[str, ImageFeatures] = self.encoder.images_at(pixels, levels)
            return found
        own = {id(encoder): encoder for encoder in map(self._encoder, levels)}
        features = {key: encoder.encode_images(pixels) for key, encoder in own.items()}
        return {level: _cut(features[id(self._encoder(level))], self.specs[level]) for level in levels}

    def _texts_at(self, captions: Any, levels: Sequence[str]) -> dict[str, TextFeatures]:
        if hasattr(self.encoder, "texts_at"):
            if isinstance(captions, list):
                captions = self.encoder.tokenize(captions)  # type: ignore[attr-defined]
            found: dict[str, TextFeatures] = self.encoder.texts_at(captions, levels)
            return found
        own = {id(encoder): encoder for encoder in map(self._encoder, levels)}
        features = {key: encoder.encode_texts(captions) for key, encoder in own.items()}
        return {level: _cut(features[id(self._encoder(level))], self.specs[level]) for level in levels}

    def _encoder(self, level: str) -> Encoder:
        """The encoder that gives a level, of a backbone that gives one at a time: any of them knows the pooled."""
        rung = self.specs[level].rung
        if level == self.encoder.spec.level or rung in ("pooled", "regions"):
            return self.encoder
        if level not in self._others:
            self._others[level] = load_encoder(plain(self.specs[level]), str(self.device))
        return self._others[level]

    # --- passes and memory ---------------------------------------------------------------------------

    def _passes(self, count: int, run: Callable[[slice], T]) -> list[T]:
        """`run` on runs of at most `batch_size` of `count` rows; halved, and repeated, where memory is short."""
        started = time.perf_counter()
        results: list[T] = []
        start = 0
        try:
            while start < count:
                size = min(self.batch_size, count - start)
                done = self._attempt(run, slice(start, start + size))
                if done:
                    results += done
                    start += size
                else:
                    self._halve(size)
        finally:
            self.seconds += time.perf_counter() - started
        return results

    def _attempt(self, run: Callable[[slice], T], here: slice) -> list[T]:
        """[what `run` gives], or nothing where memory is short: the error, which holds on to it, is gone then."""
        try:
            with self.passing():
                return [run(here)]
        except Exception as error:
            if not out_of_memory(error):
                raise
            return []

    def _halve(self, size: int) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if size == 1:
            cure = "Choose another --device, a smaller backbone, or --precision bfloat16."
            raise InputError(f"{self.device} has no memory for a batch of 1", cure)
        self.batch_size = max(1, size // 2)
        self.notes = [f"{self.device} had no memory for a batch of {size}: the batch size is {self.batch_size} since"]

    @contextmanager
    def passing(self) -> Iterator[None]:
        """What every pass runs in: no gradients, and autocast where the spec's precision says so."""
        precision = PRECISIONS[self.precision]
        autocast = torch.autocast(self.device.type, dtype=precision, enabled=precision is not None)
        with torch.inference_mode(), autocast:
            yield

    # --- to the host ---------------------------------------------------------------------------------

    def _sent(self, level: str, features: ImageFeatures, names: Sequence[str]) -> Sent:
        spec = self.specs[level]
        tokens = None
        if is_dense(level) and features.tokens is not None:  # rounded behind the means over regions
            tokens = self._on_the_way(features.tokens, replace(spec, dtype="float32"), names)
        elif spec.keeps_tokens and not spec.ragged_images:
            tokens = self._on_the_way(_checked(features.tokens, spec, spec.image_shape), spec, names)
        return Sent(tokens, self.pooled(features.pooled, spec, names))

    def _sent_texts(self, level: str, features: TextFeatures, names: Sequence[str]) -> Sent:
        spec = self.specs[level]
        if not spec.keeps_tokens or spec.rung == "regions":
            return Sent(None, self.pooled(features.pooled, spec, names))
        lengths = [len(tokens) for tokens in features.tokens or ()]
        owners = [name for name, length in zip(names, lengths, strict=False) for _ in range(length)]
        # One transfer for the batch: a copy per caption costs more than the copies.
        flat = torch.cat(list(features.tokens)) if features.tokens else None
        states = self._on_the_way(_checked(flat, spec, (spec.text_dim,)), spec, owners)
        return Sent(states, self.pooled(features.pooled, spec, names), lengths)

    def pooled(self, pooled: Tensor | None, spec: FeatureSpec, names: Sequence[str]) -> OnTheWay | None:
        """Pooled vectors (N, E) on their way to the host, normalised if the spec says so; None where it keeps none."""
        if spec.pooled_dim == 0 or pooled is None:
            return None
        if spec.normalized:
            pooled = torch.nn.functional.normalize(pooled.float(), dim=-1)
        return self._on_the_way(pooled, spec, names)

    def _on_the_way(self, values: Tensor, spec: FeatureSpec, names: Sequence[str]) -> OnTheWay:
        """Cast where the features are, so that half the bytes travel, and start the copy."""
        if not values.is_floating_point():
            return OnTheWay(values, values.cpu(), None, spec, names, None)
        cast = values.to(DTYPES.get(spec.dtype, torch.float32))
        finite = torch.isfinite(cast).flatten(1).all(1)
        # numpy has no bfloat16; the store takes its bits.
        bits = cast.view(torch.uint16) if cast.dtype == torch.bfloat16 else cast
        # From a GPU into page-locked memory, behind what is computed next.
        host, flags = bits.to("cpu", non_blocking=True), finite.to("cpu", non_blocking=True)
        arrived = None
        if bits.device.type == "cuda":
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        return OnTheWay(values, host, flags, spec, names, arrived)


Levels = dict[str, tuple[Array | None, Array | None]]


@dataclass
class Flight(Generic[T]):
    """A pass whose features may still be on their way; `seconds` of waiting count as the pass's."""

    forward: Forward
    _result: Callable[[], T]

    def result(self) -> T:
        """The features, on the host."""
        started = time.perf_counter()
        try:
            return self._result()
        finally:
            self.forward.seconds += time.perf_counter() - started


@dataclass(frozen=True)
class OnTheWay:
    """Values of a pass that are being copied to the host.

    values   where they were computed, before the cast
    host     where they go; complete once `arrived`, at once where that is None
    finite   of each row, on its way too; None for whole numbers
    names    of the rows, for messages
    """

    values: Tensor
    host: Tensor
    finite: Tensor | None
    spec: FeatureSpec
    names: Sequence[str]
    arrived: Any

    def result(self) -> Array:
        """Refuses at once what the store would refuse at the end of the part."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if self.finite is not None and not self.finite.all():
            row = int(self.finite.logical_not().nonzero()[0])
            if torch.isfinite(self.values[row]).all():
                cure = "Store them with --dtype float32."
                raise InputError(f"the features of {self.names[row]} overflow {self.spec.dtype}", cure)
            cure = f"Check the weights of {self.spec.backbone}; at reduced precision try float32."
            raise InputError(f"the features of {self.names[row]} are NaN or infinite", cure)
        stored: Array = self.host.numpy()
        return stored


@dataclass(frozen=True)
class Sent:
    """Tokens and pooled vectors of one level on their way; `lengths` of each text's run of tokens."""

    tokens: OnTheWay | None
    pooled: OnTheWay | None
    lengths: list[int] | None = None

    def result(self) -> tuple[Any, Array | None]:
        """Tokens, of texts a list of (L, D), and pooled vectors."""
        pooled = self.pooled.result() if self.pooled else None
        tokens: Any = self.tokens.result() if self.tokens else None
        if self.lengths is not None:
            tokens = np.split(tokens, list(accumulate(self.lengths))[:-1])
        return tokens, pooled


@dataclass
class Columns:
    """What is stored of texts at one level, one entry each; empty where the level has none."""

    tokens: list[Array] = field(default_factory=list)
    pooled: list[Array] = field(default_factory=list)
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    pool_index: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)

    def add(self, features: TextFeatures, tokens: Sequence[Array] | None, pooled: Array | None) -> None:
        """Append a batch."""
        self.tokens += tokens if tokens is not None else ()
        self.pooled += list(pooled) if pooled is not None else ()
        self.spans += features.spans
        self.pool_index += features.pool_index
        self.truncated += features.truncated

    def joined(self, other: Columns) -> Columns:
        """These entries, then the other's."""
        return Columns(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def put_back(self, order: Sequence[int]) -> Columns:
        """Entry i moved to place order[i]."""
        places = sorted(range(len(order)), key=order.__getitem__)
        return Columns(*([column[i] for i in places] if column else [] for column in vars(self).values()))


def plain(spec: FeatureSpec) -> FeatureSpec:
    """A spec without what is no matter of the encoder's: how JPEGs are decoded."""
    return replace(spec, preprocess={key: value for key, value in spec.preprocess.items() if key != "jpeg"})


def taken(tokenized: Any, rows: Sequence[int]) -> Any:
    """Some rows of what an encoder's `tokenize` made: a named tuple of tensors and lists of one length."""
    index = torch.tensor(list(rows), dtype=torch.int64)
    return type(tokenized)(
        *(one[index] if isinstance(one, Tensor) else [one[row] for row in rows] for one in tokenized)
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether a pass failed for want of memory, of whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


def _cut(features: Any, spec: FeatureSpec) -> Any:
    """Features of a level with all tokens, where one without is asked for."""
    if spec.keeps_tokens and spec.rung != "regions":
        return features
    features = features._replace(tokens=None)
    if isinstance(features, TextFeatures):
        count = len(features.truncated)
        features = features._replace(spans=[[] for _ in range(count)], pool_index=[-1] * count)
    return features


def _checked(tokens: Tensor | None, spec: FeatureSpec, shape: Sequence[int]) -> Tensor:
    found = None if tokens is None else tuple(tokens.shape[1:])
    if tokens is None or found != tuple(shape):
        what = f"{spec.backbone} gives token states of {found}, its spec says {tuple(shape)}"
        raise InputError(what, "The backbone's spec() and load() must agree.")
    return tokens


def _joined(halves: Sequence[tuple[Array | None, Array | None]]) -> tuple[Array | None, Array | None]:
    """The tokens and pooled vectors of several passes."""
    if len(halves) == 1:
        return halves[0]
    tokens, pooled = ([one for one in column if one is not None] for column in zip(*halves, strict=True))
    return (np.concatenate(tokens) if tokens else None), (np.concatenate(pooled) if pooled else None)


def _pictures(pixels: Tensor, spec: FeatureSpec) -> Array:
    """(B, 3, H, W) uint8 → (B, H, 3·W): the pictures that the tower takes, row by row. No pass is needed."""
    pictures = pixels.permute(0, 2, 3, 1).flatten(2)
    if pixels.dtype != torch.uint8 or tuple(pictures.shape[1:]) != tuple(spec.image_shape):
        what = f"{spec.backbone} preprocesses to {pixels.dtype} {tuple(pixels.shape[1:])}, not to 8-bit pixels"
        raise InputError(what, "Its preprocess must give (3, H, W) uint8.")
    stored: Array = pictures.contiguous().numpy()
    return stored
