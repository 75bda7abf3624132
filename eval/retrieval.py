"""Retrieval at scale: candidates by one vector a side, scored again by any head.

A head that reads pairs would see 125 million of COCO's; it sees the k candidates of every query instead, each pair once
for both directions. What is not among the candidates ranks below all of them, so recall is bounded by theirs: every
figure of such a row stands beside that bound, and is never one of exact retrieval.

Ties are misses, also at the border: of equal products, wrong candidates come before right ones.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .. import registry
from ..errors import InputError, UnknownName, UsageError
from .candidates import INDICES, PART, Gallery, nearest, strict
from .references import cosine
from .scoring import Judge, Vectors, judge
from .sources import Group, Matches

if TYPE_CHECKING:
    from ..stores.store import Store

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

COSINE = "cosine"
QUERIES = 1 << 16  # queries whose lists are held; a larger number reads the gallery several times
IMAGES, CAPTIONS = 128, 1024  # a tile of the score matrix, whose features are read together
CHUNKS = 16  # a tile's pairs are asked so many times `Judge.at_once` at a time
ENTRIES = 4096  # right answers ranked at a time


@dataclass(frozen=True)
class Rerank:
    """What to score again.

    ks          how many candidates of every query, ascending; each is a row of the table
    candidates  what finds them: "cosine" of the backbone, or a run, by its label once `scorer` is its head
    index       flat, exact; ivf or hnsw, through faiss
    scorer      the head of `candidates`, of one vector a side; None for cosine
    """

    ks: tuple[int, ...]
    candidates: str = COSINE
    index: str = "flat"
    scorer: Any = None

    @property
    def named(self) -> bool:
        """Whether a run is named whose head is not there yet."""
        return self.candidates != COSINE and self.scorer is None

    @property
    def found_by(self) -> str:
        """What finds candidates, as rows are labelled."""
        return self.candidates if self.index == INDICES[0] else f"{self.candidates}, {self.index}"

    def by(self, label: str, scorer: Any, store: Store, device: str) -> Rerank:
        """The same with candidates by a run's head. Raises as `vectors`."""
        found = dataclasses.replace(self, candidates=label, scorer=scorer)
        found.vectors(store, device)
        return found

    def vectors(self, store: Store, device: str) -> Vectors:
        """Each side's vectors. Raises `UsageError` for a head whose scores are no products of two vectors."""
        if self.named:
            raise UsageError(f"--candidates {self.candidates}: this run is not loaded", "Give its head with `by`.")
        if self.scorer is None:
            return cosine(store).vectors
        found = judge(self.candidates, self.scorer, store, device).vectors
        if found is None:
            raise UsageError(
                f"--candidates {self.candidates}: this head has no vector a side to search with",
                "Take cosine, or a run of linear, mlp, meanpool.",
            )
        return found


def depths(text: str) -> tuple[int, ...]:
    """The numbers of candidates of "100" or "0:10:100", ascending; 0 is the candidates' own order, a row of its own
    anyway. Raises `UsageError` for anything else, and for nothing above 0."""
    parts = text.split(":")
    found = sorted({int(part) for part in parts if part.isdecimal()} - {0})
    if not found or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--rerank {text} is no number of candidates", "For example --rerank 100, or 0:10:100:1000.")
    return tuple(found)


def check(benchmark: str, metric: str, index: str) -> None:
    """Refuse what cannot be re-ranked. Raises `UsageError` for a benchmark without retrieval, `UnknownName` for an
    index."""
    if metric != "recall":
        raise UsageError(
            f"--rerank is of retrieval, and benchmark '{benchmark}' asks for {metric}",
            "Leave it out: so few candidates are scored exactly.",
        )
    if index not in INDICES:
        raise UnknownName.among("index", index, INDICES)


def planned(
    benchmark: str, text: str, candidates: str = COSINE, index: str = INDICES[0], scored: bool = True
) -> Rerank | None:
    """What the options ask for; None if nothing is re-ranked. `text` is what `depths` reads, `scored` whether there is
    anything to re-rank with. Raises `UsageError` and `UnknownName`."""
    if not text:
        if candidates != COSINE or index != INDICES[0]:
            raise UsageError("--candidates and --index are of --rerank", "Say how many: --rerank 100.")
        return None
    check(benchmark, registry.load("benchmarks", benchmark).INFO["metric"], index)
    if not scored:
        raise UsageError("--rerank has nothing to score candidates with", "Name it: --head maxsim, or --run ID.")
    return Rerank(depths(text), candidates, index)


@dataclass(frozen=True)
class Reranked:
    """A row of a table: its label, its queries as `outcomes.ranked` has them with the column `found` (which right
    answers are candidates), and what to know of it."""

    label: str
    rows: pa.Table
    facts: dict[str, Any]


def reranked(
    groups: Sequence[Group], judge: Judge, label: str, store: Store, plan: Rerank, how: dict[str, Any]
) -> list[Reranked]:
    """A row for every k of the plan. Pairs are scored once, those of the largest k.

    how  device, seed (of an inverted file), progress (called with (label, tiles done, tiles in all)) or None
    Raises what `Rerank.vectors` and `candidates.nearest` raise, and `InputError` for a NaN score.
    """
    vectors = plan.vectors(store, how.get("device", "cpu"))
    parts: dict[int, list[pa.Table]] = {k: [] for k in plan.ks}
    search_s, counts = {"i2t": 0.0, "t2i": 0.0}, {"i2t": 0, "t2i": 0}
    pairs, pairs_s = 0, 0.0
    for group in groups:
        sides = sides_of(group)
        for side in sides:
            started = time.perf_counter()
            side.search(vectors, plan, int(how.get("seed", 0)))
            search_s[side.way] += time.perf_counter() - started
            counts[side.way] += len(side.asked)
        started = time.perf_counter()
        pairs += _score(group, sides, judge, label, how.get("progress"))
        pairs_s += time.perf_counter() - started
        for k in plan.ks:
            parts[k] += [side.table(group, k) for side in sides]
    cost = {
        "pairs_scored": pairs,
        "ms_a_pair": 1000 * pairs_s / max(pairs, 1),
        "search_ms_a_query": {way: 1000 * search_s[way] / max(counts[way], 1) for way in counts},
    }
    most = {"i2t": max(len(group.captions) for group in groups), "t2i": max(len(group.images) for group in groups)}
    return [
        Reranked(f"{label} ({k} by {plan.found_by})", pa.concat_tables(parts[k]), _facts(plan, k, most, cost))
        for k in plan.ks
    ]


def _facts(plan: Rerank, k: int, of: dict[str, int], cost: dict[str, Any]) -> dict[str, Any]:
    """What a row tells beside its figures. The time of fewer candidates than were scored is their share of it."""
    asked = {way: search + min(k, of[way]) * cost["ms_a_pair"] for way, search in cost["search_ms_a_query"].items()}
    return {"rerank": k, "candidates": plan.candidates, "index": plan.index, "of": of, "ms_a_query": asked, **cost}


def told(label: str, facts: dict[str, Any]) -> str:
    """One sentence on what a re-ranked row is; "" for an exact one."""
    if not facts:
        return ""
    of, k = facts["of"], facts["rerank"]
    index = "" if facts["index"] == "flat" else f" through {facts['index']}, which may miss some of them"
    if k >= max(of.values()) and not index:
        return f"{label}: all were re-ranked, so this is exact"
    captions, images = (f"{min(k, of[way]):,} of {of[way]:,}" for way in ("i2t", "t2i"))
    return f"{label}: re-ranked {captions} captions and {images} images by {facts['candidates']}{index}, not exact"


# --- one direction ------------------------------------------------------------------------------------


@dataclass
class Side:
    """One direction of a group.

    query, right  (N,) each: a query and a place that is right for it, ordered by query
    asked         (Q,) the queries that have one
    near, scores  (Q, k) candidates, -1 where there are fewer, and what the head gives them
    """

    way: str
    queries: tuple[str, ...]
    gallery: tuple[str, ...]
    query: Ints
    right: Ints
    asked: Ints = dataclasses.field(init=False)
    starts: Ints = dataclasses.field(init=False)
    sizes: Ints = dataclasses.field(init=False)
    near: Ints = dataclasses.field(init=False)
    scores: Floats = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.asked, self.starts, self.sizes = np.unique(self.query, return_index=True, return_counts=True)

    def search(self, vectors: Vectors, plan: Rerank, seed: int) -> None:
        """Find the candidates of all queries, the gallery read part by part."""
        kinds = ("image", "text") if self.way == "i2t" else ("text", "image")
        gallery = Gallery(len(self.gallery), lambda start, stop: vectors(kinds[1], self.gallery[start:stop]), PART)
        k, spare = plan.ks[-1], int(self.sizes.max(initial=0))
        parts = []
        for first in range(0, len(self.asked), QUERIES):
            some = self.asked[first : first + QUERIES]
            asked = vectors(kinds[0], [self.queries[query] for query in some.tolist()])
            rows, products = nearest(asked, gallery, k + spare, plan.index, seed)
            order = strict(rows, products, self.is_right(first, rows))[:, :k]
            parts.append(np.take_along_axis(rows, order, axis=1).astype(np.int64))
        self.near = np.concatenate(parts) if parts else np.zeros((0, min(k, len(self.gallery))), np.int64)
        self.scores = np.full(self.near.shape, -np.inf, np.float32)

    def is_right(self, first: int, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the `rows` (n, k) of the queries from the `first` on are right."""
        width = len(self.gallery) + 1
        numbers = np.repeat(np.arange(len(self.asked)), self.sizes) * width + self.right
        place = (np.arange(len(rows))[:, None] + first) * width + np.where(rows < 0, width - 1, rows)
        found = np.searchsorted(numbers, place)
        return np.asarray(numbers[np.minimum(found, len(numbers) - 1)] == place)

    def pairs(self, captions: int) -> Ints:
        """The number image · captions + caption of every candidate (Q, k); -1 where there is none."""
        query = self.asked[:, None]
        number = query * captions + self.near if self.way == "i2t" else self.near * captions + query
        return np.where(self.near < 0, -1, number)

    def table(self, group: Group, k: int) -> pa.Table:
        """The rows to save for the first k candidates."""
        near, scores = self.near[:, :k], self.scores[:, :k]
        wrong = (near >= 0) & ~self.is_right(0, near)
        own, above, equal, inside = self._ranked(near, scores, wrong)
        best = np.where(wrong, scores, -np.inf)
        rival = np.take_along_axis(near, best.argmax(axis=1)[:, None], axis=1)[:, 0]
        rival[~wrong.any(axis=1)] = -1
        return self.rows(group, own, above, equal, (rival, best.max(axis=1))).append_column(
            "found", pa.LargeListArray.from_arrays(pa.array(self.offsets, pa.int64()), pa.array(inside))
        )

    @property
    def offsets(self) -> Ints:
        """Where the right answers of each query begin, and the end."""
        return np.append(self.starts, len(self.right))

    def rows(
        self, group: Group, own: Floats, above: NDArray[Any], equal: NDArray[Any], rival: tuple[Ints, Floats]
    ) -> pa.Table:
        """The columns of `outcomes.ranked`, of every right answer its score and the wrong places above it and equal to
        it, of every query the best wrong place (-1: none) and its score."""
        keys, offsets = pa.array(self.gallery, pa.string()), pa.array(self.offsets, pa.int64())
        owners = self.asked if self.way == "i2t" else self.right[self.starts]

        def listed(values: Any, kind: Any) -> Any:
            return pa.LargeListArray.from_arrays(offsets, pa.array(values, kind))

        def same(text: str) -> Any:
            return pa.array([text] * len(self.asked), pa.string()).dictionary_encode()

        return pa.table(
            {
                "id": same(group.id),
                "category": same(group.category),
                "direction": same(self.way),
                "query": pa.array(self.queries, pa.string()).take(pa.array(self.asked)),
                "image": pa.array(group.images, pa.string()).take(pa.array(owners)),
                "right": pa.LargeListArray.from_arrays(offsets, keys.take(pa.array(self.right))),
                "right_scores": listed(own, pa.float32()),
                "above": listed(above, pa.int32()),
                "equal": listed(equal, pa.int32()),
                "rival": keys.take(pa.array(rival[0], mask=rival[0] < 0)),
                "rival_score": pa.array(rival[1], pa.float32(), mask=rival[0] < 0),
            }
        )

    def _ranked(self, near: Ints, scores: Floats, wrong: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
        """Of every right answer: its score, wrong candidates above it and equal to it, whether it is a candidate. One
        that is not has every wrong place of the gallery above it."""
        place = np.repeat(np.arange(len(self.asked)), self.sizes)
        own = np.full(len(place), -np.inf, np.float32)
        above = (len(self.gallery) - self.sizes[place]).astype(np.int32)
        equal, inside = np.zeros(len(place), np.int32), np.zeros(len(place), bool)
        for first in range(0, len(place), ENTRIES):
            some = slice(first, first + ENTRIES)
            hit = near[place[some]] == self.right[some, None]
            there = hit.any(axis=1)
            chosen = np.flatnonzero(there) + first
            values, against = scores[place[chosen]], wrong[place[chosen]]
            own[chosen] = values[hit[there]]
            above[chosen] = ((values > own[chosen, None]) & against).sum(axis=1)
            equal[chosen] = ((values == own[chosen, None]) & against).sum(axis=1)
            inside[some] = there
        return own, above, equal, inside


def sides_of(group: Group) -> tuple[Side, Side]:
    """Both directions of a group."""
    if isinstance(group.truth, Matches):
        image = np.repeat(np.arange(len(group.images)), [len(row) for row in group.truth.rows]).astype(np.int64)
        caption = np.array([place for row in group.truth.rows for place in row], np.int64)
        image, caption = np.unique(np.stack([image, caption]), axis=1)
    else:
        image, caption = np.nonzero(group.right())
    turned = np.lexsort((image, caption))
    return (
        Side("i2t", group.images, group.captions, image, caption),
        Side("t2i", group.captions, group.images, caption[turned], image[turned]),
    )


# --- scoring pairs ------------------------------------------------------------------------------------


def _score(
    group: Group, sides: Sequence[Side], judge: Judge, label: str, progress: Callable[[str, int, int], None] | None
) -> int:
    """Score the candidates of both directions, a pair that both ask for once; how many there were."""
    numbers = [side.pairs(len(group.captions)) for side in sides]
    wanted = np.unique(np.concatenate([found[found >= 0] for found in numbers]))
    values = np.empty(len(wanted), np.float32)
    tiles = list(_tiles(wanted, len(group.captions), judge.rows))
    for done, members in enumerate(tiles, 1):
        values[members] = _tile(group, wanted[members], judge, label)
        if progress:
            progress(label, done, len(tiles))
    bad = np.flatnonzero(np.isnan(values))
    if len(bad):
        what = f"scorer '{label}' gave NaN for {len(bad):,} pairs of group '{group.id}'"
        raise InputError(what, "Look at its features (`compal store verify`) and at what it was fitted on.")
    for side, found in zip(sides, numbers, strict=True):
        side.scores[found >= 0] = values[np.searchsorted(wanted, found[found >= 0])]
    return len(wanted)


def _tiles(numbers: Ints, captions: int, rows: int) -> Iterator[Ints]:
    """Which pairs lie in each tile of the score matrix that holds any."""
    image, caption = numbers // captions, numbers % captions
    tile = image // min(IMAGES, rows) * captions + caption // min(CAPTIONS, rows)
    order = np.argsort(tile, kind="stable")
    starts = np.flatnonzero(np.diff(tile[order], prepend=-1))
    yield from np.split(order, starts[1:]) if len(order) else ()


def _tile(group: Group, numbers: Ints, judge: Judge, label: str) -> Floats:
    image, caption = numbers // len(group.captions), numbers % len(group.captions)
    parts = []
    for start in range(0, len(numbers), judge.at_once * CHUNKS):
        some = slice(start, start + judge.at_once * CHUNKS)
        images, left = np.unique(image[some], return_inverse=True)
        captions, right = np.unique(caption[some], return_inverse=True)
        keys = [group.images[row] for row in images.tolist()], [group.captions[row] for row in captions.tolist()]
        found = np.asarray(judge.score(*keys, np.stack([left, right], axis=1).astype(np.int64)), np.float32)
        if found.shape != left.shape:
            raise InputError(f"scorer '{label}' gave {found.shape} scores for {len(left)} pairs")
        parts.append(found)
    return np.concatenate(parts)
