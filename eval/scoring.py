"""A scorer asked about groups: in chunks that memory holds, as whole matrices where a side is one vector.

A scorer is a head of `align` (`score_pairs(batch, pairs)`) or a function of keys, as `references` makes them. torch is
imported when a head is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..errors import InputError, SpecMismatch, UsageError
from .references import Floats, KeyScorer, Pairs, unit
from .sources import Group

if TYPE_CHECKING:
    from ..stores.store import Store

# Features of one chunk: 64 MiB hold 436 images of CLIP ViT-B/32 tokens in float32.
BUDGET_BYTES = 64 << 20
# What reads pooled embeddings makes no joint tokens: a thousand times more pairs fit.
POOLED_PAIRS = 1024

Vectors = Callable[[Any, Sequence[str]], Floats]
"""`(kind, keys) → (N, E)` float32, of which the products are the scores."""
Block = Callable[[Sequence[str], Sequence[str]], Floats]


@dataclass(frozen=True)
class Judge:
    """A scorer, ready to be asked.

    score    scores of pairs of keys
    at_once  how many pairs to ask at once
    rows     how many images or captions to have at once
    vectors  each side's vectors, if the scores are products of them
    block    the scores (I, C) of images with captions, of a function of keys that has a quicker way to all of them;
             of a class, its first prompt is asked
    """

    score: KeyScorer
    at_once: int
    rows: int
    vectors: Vectors | None = None
    block: Block | None = None


def judge(label: str, scorer: Any, store: Store, device: str = "cpu", pairs_at_once: int = 256) -> Judge:
    """A scorer over a store's features. Raises `SpecMismatch` for a head that reads tokens where there are none, and
    `UsageError` for what is no scorer."""
    if not hasattr(scorer, "score_pairs"):
        if not callable(scorer):
            raise UsageError(f"'{label}' is neither a head nor a function of keys: {type(scorer).__name__}")
        vectors, block = (getattr(scorer, name, None) for name in ("vectors", "block"))
        at_once = POOLED_PAIRS * pairs_at_once
        return Judge(cast(KeyScorer, scorer), at_once, _rows_at_once(store, "pooled"), vectors, block)
    needs = str(getattr(scorer, "needs", "tokens"))
    if needs == "tokens" and not store.spec.keeps_tokens:
        raise SpecMismatch(
            f"'{label}' reads tokens, {store.path} holds pooled embeddings only", "Extract --level tokens."
        )
    rows = _rows_at_once(store, needs)
    at_once = pairs_at_once * (POOLED_PAIRS if needs == "pooled" else 1)
    return Judge(_asked(scorer, store, device, needs), at_once, rows, _vectors(scorer, store, device, needs, rows))


def _rows_at_once(store: Store, needs: str) -> int:
    spec = store.spec
    tokens = (int(np.prod(spec.image_shape)), spec.context_length * spec.text_dim) if needs == "tokens" else ()
    return max(2, BUDGET_BYTES // (4 * max(spec.pooled_dim, 1, *tokens)))


def _asked(scorer: Any, store: Store, device: str, needs: str) -> KeyScorer:
    import torch

    from ..align.batches import join

    def score(images: Sequence[str], captions: Sequence[str], pairs: Pairs) -> Floats:
        with _at_rest(scorer), torch.inference_mode():
            batch = join(store, images, captions, device, cast(Any, needs))
            asked = torch.from_numpy(np.ascontiguousarray(pairs)).to(device)
            return cast(Floats, scorer.score_pairs(batch, asked).float().cpu().numpy())

    return score


def _vectors(scorer: Any, store: Store, device: str, needs: str, rows: int) -> Vectors | None:
    """The vectors of a head that has one a side, and whose scores are nothing but their products."""
    import torch

    from ..align.batches import join
    from ..align.scorer import VectorScorer

    if not isinstance(scorer, VectorScorer) or type(scorer).scores_of is not VectorScorer.scores_of:
        return None

    def vectors(kind: str, keys: Sequence[str]) -> Floats:
        other = [next(iter(store.keys("text" if kind == "image" else "image")))]
        parts = []
        with _at_rest(scorer), torch.inference_mode():
            for start in range(0, len(keys), rows):
                some = list(keys[start : start + rows])
                sides = (some, other) if kind == "image" else (other, some)
                found = scorer.embed(join(store, *sides, device, cast(Any, needs)))[kind != "image"]
                parts.append(found.float().cpu().numpy())
        return cast(Floats, np.concatenate(parts))

    return vectors


class _at_rest:
    """A head in evaluation mode, left as it was."""

    def __init__(self, scorer: Any) -> None:
        self.scorer, self.training = scorer, bool(getattr(scorer, "training", False))

    def __enter__(self) -> None:
        if self.training:
            self.scorer.eval()

    def __exit__(self, *_: object) -> None:
        if self.training:
            self.scorer.train()


Ticker = Callable[[int], None]


def score_groups(groups: list[Group], asked: Judge, label: str, tick: Ticker | None = None) -> NDArray[np.float32]:
    """The scores of every group, row-major, end to end, float32: I × C, or I × K where captions are prompts of
    classes. `tick` is told how many groups are done. Raises `InputError` naming the first group with a NaN, and for a
    scorer that answers another number of scores."""
    ends = np.cumsum([0, *(len(group.images) * group.columns for group in groups)])
    values = np.empty(int(ends[-1]), np.float32)
    done = 0
    # Items of one photograph are asked together, so that its tokens are read once.
    order = sorted(range(len(groups)), key=lambda number: groups[number].images)
    for chunk in _chunks(groups, order, asked):
        some = [groups[number] for number in chunk]
        alone = len(some) == 1 and _alone(some[0], asked)
        found = _matrix(some[0], asked, label).ravel() if alone else _joined(some, asked, label)
        values[np.concatenate([np.arange(ends[number], ends[number + 1]) for number in chunk])] = found
        done += len(chunk)
        if tick:
            tick(done)
    _refuse_nan(groups, values, label)
    return values


def matrix(group: Group, asked: Judge, label: str) -> Floats:
    """The scores (I, C) of one group, (I, K) where captions are prompts of classes; read-only. Raises as `score_groups`
    does."""
    found = _matrix(group, asked, label)
    _refuse_nan([group], found, label)
    return found


def _alone(group: Group, asked: Judge) -> bool:
    return bool(group.classes) or len(group.images) * len(group.captions) > asked.at_once


def _refuse_nan(groups: list[Group], values: Floats, label: str) -> None:
    # One pass without a mask of the size of the scores: the sum is NaN or infinite only if something is.
    if np.isfinite(values.sum(dtype=np.float64)):
        return
    bad = np.flatnonzero(np.isnan(values).ravel())
    if len(bad):
        ends = np.cumsum([len(group.images) * group.columns for group in groups])
        group = groups[int(np.searchsorted(ends, bad[0], side="right"))]
        what = f"scorer '{label}' gave NaN for {len(bad):,} pairs (first: group '{group.id}', {group.source})"
        raise InputError(what, "Look at its features (`compal store verify`) and at what it was fitted on.")


def _answer(asked: Judge, label: str, images: Sequence[str], captions: Sequence[str], pairs: Pairs) -> Floats:
    found = np.asarray(asked.score(images, captions, pairs), np.float32)
    if found.shape != (len(pairs),):
        raise InputError(f"scorer '{label}' gave {found.shape} scores for {len(pairs)} pairs")
    return found


def _chunks(groups: list[Group], order: list[int], asked: Judge) -> Iterator[list[int]]:
    """Runs of groups, by number, of at most so many pairs, images and captions; a larger group is alone."""
    chunk: list[int] = []
    filled, pairs, rows = 0, asked.at_once, asked.rows
    for number in order:
        group = groups[number]
        images, captions = len(group.images), len(group.captions)
        size = pairs if group.classes else max(images * captions, pairs * max(images, captions) // rows)
        if chunk and filled + size > pairs:
            yield chunk
            chunk, filled = [], 0
        chunk.append(number)
        filled += size
    if chunk:
        yield chunk


def _joined(chunk: list[Group], asked: Judge, label: str) -> Floats:
    """Small groups, asked together: each image and each caption once."""
    images: dict[str, int] = {}
    captions: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for group in chunk:
        rows = [images.setdefault(key, len(images)) for key in group.images]
        columns = [captions.setdefault(key, len(captions)) for key in group.captions]
        pairs += [(row, column) for row in rows for column in columns]
    return _answer(asked, label, list(images), list(captions), np.array(pairs, np.int64).reshape(-1, 2))


def _matrix(group: Group, asked: Judge, label: str) -> Floats:
    """The scores of a large group (I, C), of a group of classes (I, K)."""
    if asked.block is not None:
        return asked.block(group.images, group.column_keys())
    if asked.vectors is None:
        block = _tiled(group, asked, label)
        return _by_class(block.T, group.classes).T if group.classes else block
    images, rows = distinct(asked.vectors("image", group.images))
    texts = asked.vectors("text", group.captions)
    captions, columns = distinct(_ensembles(texts, group.classes) if group.classes else texts)
    block = images @ captions.T
    if len(images) == 1:  # the image is not looked at
        return np.broadcast_to(block[:, columns], (len(rows), len(columns)))
    block = block if len(images) == len(rows) else block[rows]
    return block if len(captions) == len(columns) else block[:, columns]


def distinct(vectors: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Vectors without repetitions, and which of them each row is. In a matrix product, equal rows at different places
    can differ in the last bit, and a tie would look like a decision."""
    seen: dict[bytes, int] = {}
    rows = np.ascontiguousarray(vectors)
    numbers = np.array([seen.setdefault(xxhash.xxh3_128_digest(row.data), len(seen)) for row in rows], np.int64)
    _, first = np.unique(numbers, return_index=True)
    return (rows if len(first) == len(rows) else rows[first]), numbers


def _ensembles(vectors: Floats, classes: Sequence[int]) -> Floats:
    """A vector a class: the mean of those of its prompts, each made as long as the next, then made so long again
    (Radford et al., arXiv 2103.00020, section 3.1.4)."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    means, sizes = _by_class(vectors / np.maximum(lengths, 1e-12), classes), _by_class(lengths, classes)
    found: Floats = (unit(means) * sizes).astype(np.float32)
    return found


def _by_class(rows: Floats, classes: Sequence[int]) -> Floats:
    """The mean (K, …) of the rows (C, …) of each class."""
    order = np.argsort(np.asarray(classes), kind="stable")
    counts = np.bincount(np.asarray(classes))
    starts = np.concatenate([[0], counts.cumsum()[:-1]])
    sums = np.add.reduceat(np.asarray(rows)[order], starts, axis=0)
    found: Floats = (sums / counts[:, None]).astype(np.float32)
    return found


def _tiled(group: Group, asked: Judge, label: str) -> Floats:
    """A large group as squares of its score matrix."""
    found = np.empty((len(group.images), len(group.captions)), np.float32)
    side = max(1, min(int(asked.at_once**0.5), asked.rows))
    for top in range(0, len(group.images), side):
        images = list(group.images[top : top + side])
        for left in range(0, len(group.captions), side):
            captions = list(group.captions[left : left + side])
            pairs = np.indices((len(images), len(captions))).reshape(2, -1).T
            block = _answer(asked, label, images, captions, pairs).reshape(len(images), len(captions))
            found[top : top + len(images), left : left + len(captions)] = block
    return found


def text_similarities(groups: list[Group], asked: Judge) -> NDArray[np.float32] | None:
    """(N, 3) similarities between the captions of groups of three: first and second, first and third, second and
    third. None for a scorer without a vector a caption."""
    if asked.vectors is None:
        return None
    captions: dict[str, int] = {}
    rows = np.array([[captions.setdefault(key, len(captions)) for key in group.captions] for group in groups], np.int64)
    vectors = unit(asked.vectors("text", list(captions)))
    columns = [(vectors[rows[:, one]] * vectors[rows[:, other]]).sum(axis=1) for one, other in ((0, 1), (0, 2), (1, 2))]
    found: NDArray[np.float32] = np.stack(columns, axis=1).astype(np.float32)
    return found
