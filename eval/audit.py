"""What no head can tell apart: right and wrong candidates whose features are the same bits.

A caption longer than the encoder's context is cut, and two captions that differ behind the cut become one; a tokenizer
that drops case or punctuation does the same to others. A store does not keep token ids, and need not: equal ids give
equal features, so two captions of different words with bit-identical pooled features are the signature. Such items tie
under every head that reads the store, and are counted apart from ties that a head makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from .sources import Group

if TYPE_CHECKING:
    from ..stores.store import Store

EXAMPLES = 20
READ_ROWS = 4096
SMALL = ("pairs", "quads", "positives")
"""Metrics whose groups are small enough to be looked at one by one."""


def twins(groups: Sequence[Group], store: Store, metric: str) -> NDArray[np.bool_] | None:
    """(N,) bool: does a wrong candidate of the group look the same as a right one. None for matrices and for a store
    without pooled features."""
    if metric not in SMALL or not store.spec.pooled_dim:
        return None
    texts = _marks(store, "text", {key for group in groups for key in group.captions})
    images = _marks(store, "image", {key for group in groups for key in group.images if len(group.images) > 1})
    return np.array([_same(group, texts, images) for group in groups], bool)


def _same(group: Group, texts: dict[str, bytes], images: dict[str, bytes]) -> bool:
    if len(group.images) == 1:
        row = group.truth[0]  # type: ignore[index]  # groups of these metrics have dense truth
        right = {texts[key] for key, is_right in zip(group.captions, row, strict=True) if is_right}
        return any(texts[key] in right for key, is_right in zip(group.captions, row, strict=True) if not is_right)
    marks = [texts[key] for key in group.captions], [images[key] for key in group.images]
    return any(len(set(side)) < len(side) for side in marks)


def _marks(store: Store, kind: Any, keys: set[str]) -> dict[str, bytes]:
    """16 bytes by key, equal where the pooled features are the same bits."""
    listed, found = sorted(keys), {}
    for start in range(0, len(listed), READ_ROWS):
        some = listed[start : start + READ_ROWS]
        for key, row in zip(some, np.ascontiguousarray(store.pooled(kind, some)), strict=True):
            found[key] = xxhash.xxh3_128_digest(row.data)
    return found


def told(groups: Sequence[Group], found: NDArray[np.bool_] | None, store: Store) -> dict[str, Any]:
    """What to say of twins: `items` of them, `cut` those with a caption longer than the context, and the first
    `EXAMPLES` by id with their captions. {} where there is none."""
    if found is None or not found.any():
        return {}
    chosen = [groups[number] for number in np.flatnonzero(found).tolist()]
    wanted = {key for group in chosen for key in group.captions}
    table = store.table("text").select(["key", "caption", "truncated"])
    rows = {row["key"]: row for row in table.to_pylist() if row["key"] in wanted}
    cut = sum(any(rows[key]["truncated"] for key in group.captions) for group in chosen)
    examples = [
        {"id": group.id, "captions": [rows[key]["caption"] for key in group.captions]} for group in chosen[:EXAMPLES]
    ]
    return {"items": len(chosen), "cut": cut, "context": store.spec.context_length, "examples": examples}
