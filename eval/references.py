"""The rows beside every result: random, text-only and cosine. numpy only; functions of keys.

random      a number from a hash of (seed, image key, caption key): what chance looks like on these groups
text-only   our rule: the cosine of a caption's pooled embedding to the mean embedding of all the benchmark's
            captions, the image unseen. What it scores above chance is a regularity of the wording.
cosine      the global cosine of the pooled embeddings: what the frozen encoder does by itself
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnknownName
from ..stores.dtypes import to_float32

if TYPE_CHECKING:
    from ..stores.store import Store

Floats = NDArray[np.float32]
Pairs = NDArray[np.int64]
KeyScorer = Callable[[Sequence[str], Sequence[str], Pairs], Floats]
"""`(image keys, caption keys, pairs (N, 2) of positions in them) → scores (N,)`."""

NAMES = ("random", "text-only", "cosine")
READ_ROWS = 4096
TILE = 32768


def reference(name: str, store: Store, captions: Sequence[str], seed: int = 0) -> KeyScorer:
    """The reference `name` over `store`, for a benchmark of these caption keys. Raises `UnknownName`."""
    if name == "random":
        return random_scores(seed)
    if name == "text-only":
        return text_only(store, captions)
    if name == "cosine":
        return cosine(store)
    raise UnknownName.among("reference row", name, NAMES)


def _hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Random:
    """Uniform in [0, 1), determined by seed and keys, so equal on every machine and in every order."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, images: Sequence[str], captions: Sequence[str], pairs: Pairs) -> Floats:
        left, right = self._sides(images, captions)
        return _uniform(left[pairs[:, 0]] + right[pairs[:, 1]])

    def block(self, images: Sequence[str], captions: Sequence[str]) -> Floats:
        """All pairs (I, C), as asked one by one."""
        left, right = self._sides(images, captions)
        found = np.empty((len(left), len(right)), np.float32)
        for start in range(0, len(right), TILE):  # what fits a processor's cache
            for row, one in enumerate(left):
                found[row, start : start + TILE] = _uniform(one + right[start : start + TILE])
        return found

    def _sides(self, images: Sequence[str], captions: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        return _mix(_hashes([f"{self.seed}/{key}" for key in images])), _hashes(captions)


def _uniform(values: NDArray[np.uint64]) -> Floats:
    # 24 bits are what a float32 holds exactly: two scores tie once in 17 million pairs.
    kept = (_mix(values) >> np.uint64(40)).astype(np.uint32)
    return kept.astype(np.float32) * np.float32(2.0**-24)


def random_scores(seed: int = 0) -> Random:
    """Numbers from a hash of the seed and both keys."""
    return Random(seed)


def unit(values: Floats) -> Floats:
    """Rows (N, E) of length 1; a row of zeros stays."""
    found: Floats = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return found


def pooled_units(store: Store, kind: Any, keys: Sequence[str]) -> Floats:
    """Pooled embeddings (N, E), float32, of length 1."""
    return unit(to_float32(store.pooled(kind, list(keys))))


class Pooled:
    """The cosine of pooled vectors, `image` (keys → (N, E)) saying which stand on the left."""

    def __init__(self, store: Store, image: Callable[[Sequence[str]], Floats]) -> None:
        self.store, self.image = store, image

    def vectors(self, kind: str, keys: Sequence[str]) -> Floats:
        """Unit vectors (N, E) whose products are the scores."""
        return self.image(keys) if kind == "image" else pooled_units(self.store, "text", keys)

    def __call__(self, images: Sequence[str], captions: Sequence[str], pairs: Pairs) -> Floats:
        left, right = self.vectors("image", images), self.vectors("text", captions)
        # Summed row by row, not by a matrix product: there, equal rows at different places of a batch can
        # differ in the last bit, and a tie would look like a decision.
        found: Floats = (left[pairs[:, 0]] * right[pairs[:, 1]]).sum(axis=1)
        return found


def text_only(store: Store, captions: Sequence[str]) -> Pooled:
    """Cosine of a caption to the mean of the distinct `captions`; the image is not looked at."""
    distinct = sorted(set(captions))
    total = np.zeros(store.spec.pooled_dim, np.float64)
    for start in range(0, len(distinct), READ_ROWS):
        total += pooled_units(store, "text", distinct[start : start + READ_ROWS]).sum(axis=0, dtype=np.float64)
    mean = (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
    return Pooled(store, lambda keys: np.broadcast_to(mean, (len(keys), len(mean))))


def cosine(store: Store) -> Pooled:
    """Global cosine of pooled image and caption embeddings."""
    return Pooled(store, lambda keys: pooled_units(store, "image", keys))
