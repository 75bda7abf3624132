"""Exact retrieval where the score matrix does not fit: ranks counted while a gallery is read part by part.

Of a scorer with one vector a side, or with a quick way to a block of scores. What is held is a block of queries, a part
of the gallery and their products; of every right answer its score and two counts. A matrix product decides what its
rounding cannot change; what lies nearer to a right answer's score than that is scored again row by row, as the right
answer was. So the ranks do not depend on how the gallery is cut, and equal vectors tie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .candidates import PART, Floats, Gallery, Ints, products, rounding
from .retrieval import QUERIES, Side, sides_of
from .scoring import Block, Judge, Vectors, distinct
from .sources import Group

MATRIX = 1 << 30
"""Bytes of scores from which on a matrix is not made: COCO's 5,000 × 25,010 are 500 MB."""
BLOCK = 512
CELLS = 1 << 26  # scores of a block at a time, of what makes them by the block: 256 MB


def fits(group: Group, judge: Judge) -> bool:
    """Whether a group of retrieval is to be ranked here: its float32 matrix is too large to hold, and the scorer needs
    none."""
    large = 4 * len(group.images) * len(group.captions) > MATRIX
    return large and (judge.vectors is not None or judge.block is not None)


def ranked(group: Group, judge: Judge) -> pa.Table:
    """The rows of `outcomes.ranked`, without rivals. Raises `InputError` for vectors that are not finite."""
    parts = []
    for side in sides_of(group):
        own, above, equal = _by_vectors(side, judge.vectors) if judge.vectors else _by_block(side, judge.block)
        over, same = _among_right(side, own)
        none = np.full(len(side.asked), -1, np.int64), np.zeros(len(side.asked), np.float32)
        parts.append(side.rows(group, own, above - over, equal - same, none))
    return pa.concat_tables(parts)


def _by_block(side: Side, block: Block | None) -> tuple[Floats, Ints, Ints]:
    """Of every right answer: its score, what is above it and what is equal to it, right ones included."""
    assert block is not None
    own = np.empty(len(side.right), np.float32)
    above, equal = np.zeros(len(own), np.int64), np.zeros(len(own), np.int64)
    step = max(1, CELLS // max(len(side.gallery), 1))
    for first in range(0, len(side.asked), step):
        last = min(first + step, len(side.asked))
        asked = [side.queries[query] for query in side.asked[first:last].tolist()]
        scores = block(asked, side.gallery) if side.way == "i2t" else block(side.gallery, asked).T
        query = np.repeat(np.arange(last - first), side.sizes[first:last])
        for entry, row in enumerate(query.tolist(), int(side.offsets[first])):
            own[entry] = scores[row, side.right[entry]]
            above[entry] = np.count_nonzero(scores[row] > own[entry])
            equal[entry] = np.count_nonzero(scores[row] == own[entry])
    return own, above, equal


def _by_vectors(side: Side, vectors: Vectors) -> tuple[Floats, Ints, Ints]:
    """As `_by_block`, of products of vectors."""
    kinds = ("image", "text") if side.way == "i2t" else ("text", "image")
    gallery = Gallery(len(side.gallery), lambda start, stop: vectors(kinds[1], side.gallery[start:stop]), PART)
    own = np.empty(len(side.right), np.float32)
    above, equal = np.zeros(len(own), np.int64), np.zeros(len(own), np.int64)
    for first in range(0, len(side.asked), QUERIES):
        last = min(first + QUERIES, len(side.asked))
        asked = vectors(kinds[0], [side.queries[query] for query in side.asked[first:last].tolist()])
        asked = np.ascontiguousarray(asked, dtype=np.float32)
        entries = slice(int(side.offsets[first]), int(side.offsets[last]))
        query = np.repeat(np.arange(last - first), side.sizes[first:last])
        own[entries] = _own(asked, query, side.right[entries], gallery)
        _count(asked, query, own[entries], gallery, (above[entries], equal[entries]))
    return own, above, equal


def _own(asked: Floats, query: Ints, right: Ints, gallery: Gallery) -> Floats:
    """The score of every right answer."""
    found = np.empty(len(right), np.float32)
    for start, part in gallery.parts():
        here = np.flatnonzero((right >= start) & (right < start + len(part)))
        found[here] = products(asked, part, (query[here], right[here] - start))
    return found


def _count(asked: Floats, query: Ints, own: Floats, gallery: Gallery, counts: tuple[Ints, Ints]) -> None:
    """Add to the counts, in place, how much of the gallery is above every right answer and equal to it."""
    above, equal = counts
    lengths = np.linalg.norm(asked, axis=1)
    for _, part in gallery.parts():
        rows, numbers = distinct(part)  # a reference that does not look at the image has one vector for all
        times = np.bincount(numbers)
        slack = rounding(lengths, rows)[query]
        for first in range(0, len(own), BLOCK):
            some = slice(first, first + BLOCK)
            block, place = np.unique(query[some], return_inverse=True)
            close = (asked[block] @ rows.T)[place]
            sure = close > (own[some] + slack[some])[:, None]
            entry, row = np.nonzero(~sure & (close >= (own[some] - slack[some])[:, None]))
            values = products(asked, rows, (query[some][entry], row))
            above[some] += np.count_nonzero(sure, axis=1) if len(rows) == len(part) else sure @ times
            np.add.at(above[some], entry, times[row] * (values > own[some][entry]))
            np.add.at(equal[some], entry, times[row] * (values == own[some][entry]))


def _among_right(side: Side, own: Floats) -> tuple[NDArray[Any], NDArray[Any]]:
    """How many right answers of its query are above each right answer, and equal to it, itself included."""
    over, same = np.zeros(len(own), np.int64), np.zeros(len(own), np.int64)
    entry = np.arange(len(own))
    starts, sizes = np.repeat(side.starts, side.sizes), np.repeat(side.sizes, side.sizes)
    for step in range(int(side.sizes.max(initial=0))):
        there = step < sizes
        other = own[np.where(there, starts + step, entry)]
        over += there & (other > own)
        same += there & (other == own)
    return over, same
