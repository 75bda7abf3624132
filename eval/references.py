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

if TYPE_CHECKING:
    from ..stores.store import Store

Floats = NDArray[np.float32]
Pairs = NDArray[np.int64]
KeyScorer = Callable[[Sequence[str], Sequence[str], Pairs], Floats]
"""`(image keys, caption keys, pairs (N, 2) of positions in them) → scores (N,)`."""

NAMES = ("random", "text-only", "cosine")
READ_ROWS = 4096


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


def random_scores(seed: int = 0) -> KeyScorer:
    """Uniform in [0, 1), determined by seed and keys, so equal on every machine and in every order."""

    def score(images: Sequence[str], captions: Sequence[str], pairs: Pairs) -> Floats:
        left = _mix(_hashes([f"{seed}/{key}" for key in images]))
        mixed = _mix(left[pairs[:, 0]] + _hashes(captions)[pairs[:, 1]])
        # 24 bits are what a float32 holds exactly: two scores tie once in 17 million pairs.
        return ((mixed >> np.uint64(40)).astype(np.float64) / 2.0**24).astype(np.float32)

    return score


def _unit(store: Store, kind: Any, keys: Sequence[str]) -> Floats:
    """Pooled embeddings (N, E), float32, of length 1. numpy has no bfloat16: its bits come as uint16."""
    stored = store.pooled(kind, list(keys))
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    values = stored.astype(np.float32)
    unit: Floats = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return unit


def text_only(store: Store, captions: Sequence[str]) -> KeyScorer:
    """Cosine of a caption to the mean of the distinct `captions`; the image is not looked at."""
    distinct = sorted(set(captions))
    total = np.zeros(store.spec.pooled_dim, np.float64)
    for start in range(0, len(distinct), READ_ROWS):
        total += _unit(store, "text", distinct[start : start + READ_ROWS]).sum(axis=0, dtype=np.float64)
    mean = (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)

    def score(images: Sequence[str], captions: Sequence[str], pairs: Pairs) -> Floats:
        # Summed row by row, not by a matrix product: there, equal rows at different places of a batch can
        # differ in the last bit, and a tie would look like a decision.
        found: Floats = (_unit(store, "text", captions) * mean).sum(axis=1)[pairs[:, 1]]
        return found

    return score


def cosine(store: Store) -> KeyScorer:
    """Global cosine of pooled image and caption embeddings."""

    def score(images: Sequence[str], captions: Sequence[str], pairs: Pairs) -> Floats:
        left, right = _unit(store, "image", images), _unit(store, "text", captions)
        found: Floats = (left[pairs[:, 0]] * right[pairs[:, 1]]).sum(axis=1)
        return found

    return score
