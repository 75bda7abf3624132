"""Crisscrossed Captions within a side: captions among captions, images among images, and agreement with ratings.

The benchmark `cxc` scores images with captions, by any head. What is here compares captions with captions and images
with images too, so it is of the encoder alone: cosines of the pooled embeddings in a store. After Parekh et al., EACL
2021 (arXiv 2004.15020), sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingFeatures
from ..stores.items import caption_key
from .benchmarks import _retrieval, cxc
from .metrics import percent
from .references import pooled_units
from .sources import KS, Sources

if TYPE_CHECKING:
    from ..stores.store import Store

Floats = NDArray[np.float32]
Rated = list[tuple[str, str, float]]
# Queries whose scores are held at once: 512 × 25,000 floats are 50 MB.
BLOCK = 512


def judge(store: Store, sources: Sources, draws: int = 1000, seed: int = 0) -> dict[str, float | int | None]:
    """What CxC asks beside `cxc`, of a store that has the features of that benchmark.

    t2t_r@k, i2i_r@k   strict recall at 1, 5 and 10 in percent over `t2t_n` captions and `i2i_n` images that have a
                       right answer: another caption of the photograph, or what is rated with it at 3 or more
    sits, sts, sis     100 × the mean of Spearman's correlation with the ratings over `draws` samples of half the
                       queries with one rated partner each; `…_std` its standard deviation, `…_n` the pairs rated
    Undefined (nothing rated, all scores equal) is None. Raises `InputError` for files that lack or break and
    `MissingFeatures` for a store that lacks some.
    """
    told, images = _retrieval.kept(cxc.LAYOUT, sources)
    root, split = sources.folder("cxc", str(cxc.INFO["files"])), sources.split or "test"
    captions = [(number, text) for one in told for text, number in one.captions]
    place = {
        "text": {number: row for row, (number, _) in enumerate(captions)},
        "image": {one.image: row for row, one in enumerate(told)},
    }
    unit = {
        "text": _unit(store, "text", [caption_key(text) for _, text in captions]),
        "image": _unit(store, "image", [images.item(one.image).key for one in told]),
    }
    owner = np.repeat(np.arange(len(told)), [len(one.captions) for one in told])
    texts = np.unique([text for _, text in captions], return_inverse=True)[1]
    found: dict[str, float | int | None] = {}
    for kind, left, right, way in (
        ("sits", "text", "image", None),
        ("sts", "text", "text", "t2t"),
        ("sis", "image", "image", "i2i"),
    ):
        rated = _placed(cxc.ratings(root, kind, split), place[left], place[right])
        scores = (unit[left][rated[0]] * unit[right][rated[1]]).sum(axis=1)
        found |= _agreement(kind, rated[0], scores, rated[2], draws, seed)
        if way:
            near = rated[2] >= cxc.POSITIVE
            # Captions of one photograph, or of one wording, belong together; an image has itself alone.
            alike = (owner, texts) if left == "text" else ()
            found |= _recall(way, unit[left], _partners(rated[0][near], rated[1][near], alike, len(unit[left])))
    return found


def _unit(store: Store, kind: Any, keys: Sequence[str]) -> Floats:
    """Pooled embeddings (N, E) of length 1. Raises `MissingFeatures`."""
    lacking = set(keys) - store.keys(kind)
    if lacking:
        what = f"the store {store.path} lacks {len(lacking):,} of {len(set(keys)):,} {kind}s of benchmark 'cxc'"
        raise MissingFeatures(what, f"Add them: compal extract --backbone {store.spec.backbone} --benchmark cxc")
    return pooled_units(store, kind, keys)


def _placed(rated: Rated, left: dict[str, int], right: dict[str, int]) -> tuple[Any, Any, Any]:
    """Rows of both sides and the rating, of the pairs whose both members are there."""
    there = [(left[one], right[other], score) for one, other, score in rated if one in left and other in right]
    columns = zip(*there, strict=True) if there else ((), (), ())
    one, other, score = columns
    return np.array(one, np.int64), np.array(other, np.int64), np.array(score, np.float64)


def _agreement(kind: str, queries: Any, scores: Any, ratings: Any, draws: int, seed: int) -> dict[str, Any]:
    if draws < 1:
        raise InputError(f"{draws} samples; at least 1 is needed")
    order = np.argsort(queries, kind="stable")
    known, starts, sizes = np.unique(queries[order], return_index=True, return_counts=True)
    rng, half, values = np.random.default_rng(seed), len(known) // 2, []
    for _ in range(draws if half > 1 else 0):
        chosen = rng.choice(len(known), half, replace=False)
        rows = order[starts[chosen] + (rng.random(half) * sizes[chosen]).astype(np.int64)]
        value = spearman(scores[rows], ratings[rows])
        if value is not None:
            values.append(100.0 * value)
    mean, spread = (float(np.mean(values)), float(np.std(values))) if values else (None, None)
    return {kind: mean, f"{kind}_std": spread, f"{kind}_n": len(queries)}


def spearman(left: Any, right: Any) -> float | None:
    """Spearman's rank correlation of two vectors (N,), ties at their mean rank; None if either is constant."""
    from scipy.stats import rankdata

    one, other = (rankdata(values) - (len(values) + 1) / 2 for values in (left, right))
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size else None


def _partners(left: Any, right: Any, alike: tuple[Any, ...], count: int) -> list[NDArray[np.int64]]:
    """The right answers of every row but itself: those rated near, either way, and those of one label of `alike`."""
    found: list[set[int]] = [set() for _ in range(count)]
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        found[one].add(other)
        found[other].add(one)
    for labels in alike:
        members: dict[int, list[int]] = {}
        for row, label in enumerate(labels.tolist()):
            members.setdefault(label, []).append(row)
        for row, label in enumerate(labels.tolist()):
            found[row].update(members[label])
    return [np.array(sorted(partners - {row}), np.int64) for row, partners in enumerate(found)]


def _recall(way: str, unit: Floats, partners: list[NDArray[np.int64]]) -> dict[str, Any]:
    """Strict recall of the rows that have a partner, among all rows but themselves."""
    asked = [row for row, right in enumerate(partners) if len(right)]
    ranks = np.zeros(len(asked), np.int64)
    for start in range(0, len(asked), BLOCK):
        rows = asked[start : start + BLOCK]
        scores = unit[rows] @ unit.T
        for number, row in enumerate(rows):
            best = scores[number, partners[row]].max()
            # Counted among all, then the right ones and the row itself are taken out again.
            out = [*partners[row], row]
            ranks[start + number] = 1 + (scores[number] >= best).sum() - (scores[number, out] >= best).sum()
    return {**{f"{way}_r@{k}": percent(ranks <= k) for k in KS}, f"{way}_n": len(asked)}
