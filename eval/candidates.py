"""The nearest of a gallery by the product of two vectors: what retrieval re-ranks.

A gallery is read part by part with a running list of the nearest of every query, so that it may be larger than memory:
what is held is the queries (4·E bytes each), their lists (8 bytes a place) and one part. A matrix product proposes, and
whatever its rounding could have hidden is scored again row by row, which gives the same bits in every part and place:
the lists do not depend on how the gallery is cut. An inverted file, a graph and faiss on a GPU need all vectors at once
and may miss some of the nearest; their proposals are scored again in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnknownName

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

INDICES = ("flat", "ivf", "hnsw")
PART = 8192  # vectors of a gallery at a time: 16 MB of width 512
BLOCK = 512  # queries whose products with a part are held: 16 MB
ON_GPU = 4 << 30  # bytes of a gallery that faiss takes on a GPU whole; a larger one is read part by part
PAIRS = 1 << 14  # pairs scored row by row at a time: 32 MB of width 512 a side


@dataclass(frozen=True)
class Gallery:
    """`count` vectors of which `read(start, stop)` gives (stop - start, E) float32, `part` at a time."""

    count: int
    read: Callable[[int, int], Floats]
    part: int = PART

    @classmethod
    def of(cls, vectors: Floats, part: int = PART) -> Gallery:
        """One that is in memory."""
        return cls(len(vectors), lambda start, stop: vectors[start:stop], part)

    def parts(self) -> Iterator[tuple[int, Floats]]:
        """Where each part starts, and the part. Raises `InputError` for vectors that are not finite."""
        for start in range(0, self.count, self.part):
            found = np.ascontiguousarray(self.read(start, min(start + self.part, self.count)), dtype=np.float32)
            _finite(found)
            yield start, found


def nearest(
    queries: Floats, gallery: Gallery, k: int, index: str = "flat", seed: int = 0
) -> tuple[NDArray[np.int32], Floats]:
    """Rows (Q, n) of the gallery by descending product, equal ones by row, and their products, n = min(k, gallery).

    queries (Q, E) float32. "flat" is exact; "ivf" and "hnsw" go through faiss, which may find fewer: -1 and -inf there.
    A product is the float32 sum of a row of products. Raises `InputError` for vectors that are not finite and without
    faiss, `UnknownName` for another index.
    """
    if index not in INDICES:
        raise UnknownName.among("index", index, INDICES)
    asked = np.ascontiguousarray(queries, dtype=np.float32)
    _finite(asked)
    n = min(k, gallery.count)
    if not n or not len(asked):
        return np.full((len(asked), n), -1, np.int32), np.full((len(asked), n), -np.inf, np.float32)
    if index == "flat" and not _on_gpu(n, gallery.count * asked.shape[1] * asked.itemsize):
        return _running(asked, gallery, n)
    return _indexed(asked, gallery, n, index, seed)


def strict(rows: NDArray[np.int32], scores: Floats, right: NDArray[np.bool_]) -> Ints:
    """Places (Q, n) of `nearest` in the order of a strict first stage: by score, of equal ones the wrong before the
    right, then by row. Its first k are the candidates, if n is at least k and the right answers of a query more."""
    return np.lexsort((rows, right, -scores), axis=1)


def _finite(vectors: Floats) -> None:
    if not np.isfinite(vectors).all():
        raise InputError(
            "vectors to find candidates with are not finite", "compal store verify finds damaged features."
        )


def rounding(lengths: Floats, part: Floats) -> Floats:
    """By how much (N,) two sums of products of queries so long (N,) with rows of a part (R, E) can differ, at most: a
    share of both lengths (Higham, section 3.1)."""
    share = 2 * (part.shape[1] + 1) * float(np.finfo(np.float32).eps)
    found: Floats = share * lengths * float(np.linalg.norm(part, axis=1).max())
    return found


def products(left: Floats, right: Floats, pairs: tuple[Ints, Ints]) -> Floats:
    """The products (N,) of rows of both sides, each the same bits wherever it stands."""
    found = np.empty(len(pairs[0]), np.float32)
    for start in range(0, len(found), PAIRS):
        some = slice(start, start + PAIRS)
        found[some] = (left[pairs[0][some]] * right[pairs[1][some]]).sum(axis=1)
    return found


def _running(queries: Floats, gallery: Gallery, n: int) -> tuple[NDArray[np.int32], Floats]:
    rows, scores = np.full((len(queries), n), -1, np.int32), np.full((len(queries), n), -np.inf, np.float32)
    lengths = np.linalg.norm(queries, axis=1)
    for start, part in gallery.parts():
        slack = rounding(lengths, part)
        for first in range(0, len(queries), BLOCK):
            block = slice(first, first + BLOCK)
            found = _better(queries[block], part, scores[block, -1], slack[block], n)
            _merge(rows[block], scores[block], found, start, products(queries[block], part, found))
    return rows, scores


def _better(queries: Floats, part: Floats, last: Floats, slack: Floats, n: int) -> tuple[Ints, Ints]:
    """Pairs of a query and a row of the part that may belong to the query's n nearest."""
    close = queries @ part.T
    bound = last - slack
    if len(part) > n:
        own = np.partition(close, len(part) - n, axis=1)[:, len(part) - n]
        # Both the row at the bound and the row that is held against it are off by the slack.
        bound = np.maximum(bound, own - 2 * slack)
    query, row = np.nonzero(close >= bound[:, None])
    return query, row


def _merge(rows: NDArray[np.int32], scores: Floats, found: tuple[Ints, Ints], start: int, values: Floats) -> None:
    """Put what was found into the lists, in place."""
    held_query, held_place = np.nonzero(rows >= 0)
    query = np.concatenate([held_query, found[0]])
    row = np.concatenate([rows[held_query, held_place].astype(np.int64), found[1] + start])
    value = np.concatenate([scores[held_query, held_place], values])
    order = np.lexsort((row, -value, query))
    query, row, value = query[order], row[order], value[order]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    kept = place < rows.shape[1]
    rows[query[kept], place[kept]] = row[kept]
    scores[query[kept], place[kept]] = value[kept]


def _on_gpu(n: int, size: int) -> bool:
    """Whether faiss has a GPU that takes so many neighbours in a gallery of so many bytes."""
    from ..align.neighbours import GPU_NEIGHBOURS, MARGIN, gpus

    return n + MARGIN <= GPU_NEIGHBOURS and size <= ON_GPU and gpus() > 0


def _indexed(queries: Floats, gallery: Gallery, n: int, index: str, seed: int) -> tuple[NDArray[np.int32], Floats]:
    """Through an index of faiss over the whole gallery."""
    from ..align.neighbours import MARGIN, Neighbours, import_faiss

    import_faiss(f"--index {index}")
    vectors = np.concatenate([part for _, part in gallery.parts()])
    most = min(n + MARGIN, gallery.count)
    search = Neighbours(vectors, index, seed, most)  # type: ignore[arg-type]  # checked against INDICES
    rows, scores = np.full((len(queries), n), -1, np.int32), np.full((len(queries), n), -np.inf, np.float32)
    for first in range(0, len(queries), BLOCK):
        block = slice(first, first + BLOCK)
        near = search(queries[block], most)
        query, place = np.nonzero(near >= 0)
        found = query, near[query, place]
        _merge(rows[block], scores[block], found, 0, products(queries[block], vectors, found))
    return rows, scores
