"""What is saved of a scored benchmark, an item or a query a row, and what every row is worth.

`pairs`, `quads` and `positives`: a row a group, with all its raw similarities. `recall` and `classification`: a row a
query, with how many wrong candidates stand above each right one and how many equal it; recall at every k, under every
rule of ties, follows from those, and 125 million similarities need not be kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import InputError
from . import intervals, metrics, ties
from .sources import Group, Matches

MATRICES = ("recall", "classification")
"""Metrics whose groups hold many queries."""
COLUMNS = 32
"""Columns of a score matrix that are turned at once: 5,000 × 32 float32 lie in a processor's cache."""


@dataclass(frozen=True)
class Outcomes:
    """What each of n items or queries is worth.

    credit      (n,) float64 in [0, 1] by metric
    tied        (n,) bool: the right answer equals a wrong one
    cluster     (n,) int64: items that share an image share a number
    categories  of each
    labels      (n,) int64: the class of each image, of `classification`; `top1` averaged over classes is a metric
    counted     False: these are sets of items that are counted already
    """

    credit: dict[str, NDArray[np.float64]]
    tied: metrics.Bools
    cluster: NDArray[np.int64]
    categories: list[str]
    labels: NDArray[np.int64] | None = None
    counted: bool = True


# --- items --------------------------------------------------------------------------------------------


def table(
    groups: list[Group],
    similarities: NDArray[np.float32],
    metric: str,
    texts: NDArray[np.float32] | None = None,
    twins: metrics.Bools | None = None,
) -> pa.Table:
    """The rows to save: `similarities` holds the scores of every group, row-major, end to end.

    texts  (N, 3) similarities between the captions of each group, of `positives`
    twins  (N,) whether a right and a wrong candidate of the group look the same to the encoder
    """
    if metric in MATRICES:
        ends = np.cumsum([0, *(len(group.images) * group.columns for group in groups)])
        blocks = [similarities[start:end] for start, end in itertools.pairwise(ends)]
        parts = [
            ranked(group, block.reshape(len(group.images), -1), metric)
            for group, block in zip(groups, blocks, strict=True)
        ]
        return pa.concat_tables(parts) if parts else pa.table({})
    sizes = np.array([len(group.images) * group.columns for group in groups], np.int64)
    offsets = np.concatenate([[0], sizes.cumsum()])
    columns: dict[str, Any] = {
        "id": [group.id for group in groups],
        "category": [group.category for group in groups],
        "source": [group.source for group in groups],
        "images": pa.array([group.images for group in groups], pa.list_(pa.string())),
        "captions": pa.array([group.captions for group in groups], pa.list_(pa.string())),
        "truth": pa.LargeListArray.from_arrays(offsets, pa.array(truths(groups), pa.bool_())),
        "similarities": pa.LargeListArray.from_arrays(offsets, pa.array(similarities, pa.float32())),
    }
    if any(group.sets for group in groups):
        columns["sets"] = [["\t".join(one) for one in group.sets] for group in groups]
    if texts is not None:
        columns["text_similarities"] = pa.FixedSizeListArray.from_arrays(pa.array(texts.ravel(), pa.float32()), 3)
    hits, tied = _hits(pa.table(columns), metric)
    columns |= {**{name: found > 0 for name, found in hits.items()}, "tie": tied}
    if twins is not None:
        columns["twin"] = twins
    return pa.table(columns)


def truths(groups: Iterable[Group]) -> metrics.Bools:
    """The truth of every group, row-major, end to end."""
    listed = list(groups)
    if any(isinstance(group.truth, Matches) for group in listed):
        return np.concatenate([group.right().ravel() for group in listed])
    rows: Any = itertools.chain.from_iterable(group.truth for group in listed)  # type: ignore[misc]
    return np.fromiter(itertools.chain.from_iterable(rows), bool)


def _hits(
    rows: pa.Table, metric: str, rule: str = ties.STRICT, ks: Iterable[int] = ()
) -> tuple[dict[str, NDArray[np.float64]], metrics.Bools]:
    """Credits by metric, and ties, per item. Where others have more wrong captions, −inf fills the row."""
    flat = rows["similarities"].combine_chunks().flatten().to_numpy()
    if metric == "quads":
        return ties.quads(flat, rule), metrics.quads_hits(flat.reshape(-1, 2, 2))["ties"]
    if metric == "positives":
        wide = flat.reshape(-1, 3)
        return ties.positives(wide, rule), metrics.positives_hits(wide[:, :2], wide[:, 2:])["ties"]
    truth = rows["truth"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    sizes = pc.list_value_length(rows["similarities"].combine_chunks()).to_numpy()
    item = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(flat)) - np.repeat(sizes.cumsum() - sizes, sizes)
    wide = np.full((len(sizes), int(sizes.max(initial=2))), -np.inf, np.float32)
    wide[item[~truth], place[~truth]] = flat[~truth]
    right = flat[truth][:, None]
    above, equal = (wide > right).sum(axis=1), (wide == right).sum(axis=1)
    found = {"accuracy": ties.ranked(above, equal, 1, rule)}
    found |= {f"r@{k}": ties.ranked(above, equal, k, rule) for k in ks if k > 1}
    return found, equal > 0


# --- queries ------------------------------------------------------------------------------------------


def ranked(group: Group, scores: NDArray[np.float32], metric: str) -> pa.Table:
    """A row a query of one group, whose scores are (I, C), or (I, K) for `classification`.

    Columns: id, category, direction, query (key), image (key of the photograph whose luck it shares), right (keys),
    right_scores, above and equal (wrong candidates, for each right one), rival (key of the best wrong one) and its
    score. A class is named by the key of its first prompt. Queries without a right candidate are left out.
    """
    names = group.column_keys()
    places = _right_places(group)
    parts = [_direction(group, "i2t", scores, places, group.images, names)]
    if metric == "recall":
        parts.append(_direction(group, "t2i", scores.T, _turned(places, len(names)), group.captions, group.images))
    return pa.concat_tables(parts)


def _right_places(group: Group) -> list[list[int]]:
    if isinstance(group.truth, Matches):
        return [list(dict.fromkeys(row)) for row in group.truth.rows]
    return [[place for place, right in enumerate(row) if right] for row in group.truth]


def _turned(places: list[list[int]], width: int) -> list[list[int]]:
    turned: list[list[int]] = [[] for _ in range(width)]
    for row, columns in enumerate(places):
        for column in columns:
            turned[column].append(row)
    return turned


def _direction(
    group: Group,
    direction: str,
    scores: NDArray[np.float32],
    places: list[list[int]],
    queries: tuple[str, ...],
    candidates: tuple[str, ...],
) -> pa.Table:
    asked = [number for number, right in enumerate(places) if right]
    offsets = np.cumsum([0, *(len(places[number]) for number in asked)])
    right = np.array([place for number in asked for place in places[number]], np.int64)
    above, equal, own, rival, rival_score = _ranks(scores, places, asked, offsets)
    owners = asked if direction == "i2t" else [places[number][0] for number in asked]
    keys = pa.array(candidates, pa.string())

    def listed(values: Any, kind: Any) -> Any:
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind))

    images = pa.array(group.images, pa.string())
    return pa.table(
        {
            "id": pa.array([group.id] * len(asked), pa.string()).dictionary_encode(),
            "category": pa.array([group.category] * len(asked), pa.string()).dictionary_encode(),
            "direction": pa.array([direction] * len(asked), pa.string()).dictionary_encode(),
            "query": pa.array(queries, pa.string()).take(pa.array(asked, pa.int64())),
            "image": images.take(pa.array(owners, pa.int64())),
            "right": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), keys.take(pa.array(right))),
            "right_scores": listed(own, pa.float32()),
            "above": listed(above, pa.int32()),
            "equal": listed(equal, pa.int32()),
            "rival": keys.take(pa.array(rival, mask=rival < 0)),
            "rival_score": pa.array(rival_score, pa.float32(), mask=rival < 0),
        }
    )


def _ranks(
    scores: NDArray[np.float32], places: list[list[int]], asked: list[int], offsets: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """For every right candidate of every query: wrong ones above, wrong ones equal, its score; for every query the
    place of its best wrong candidate, −1 if there is none, and that one's score."""
    total = int(offsets[-1])
    above, equal = np.empty(total, np.int32), np.empty(total, np.int32)
    own, rival = np.empty(total, np.float32), np.full(len(asked), -1, np.int64)
    best = np.zeros(len(asked), np.float32)
    where = dict(zip(asked, range(len(asked)), strict=True))
    # Where queries are columns of the matrix, they are turned some at a time: a strided row is ten times slower.
    step = COLUMNS if not scores.flags.c_contiguous else max(1, len(scores))
    for start in range(0, len(scores), step):
        block = np.ascontiguousarray(scores[start : start + step])
        for number in range(start, start + len(block)):
            if number not in where:
                continue
            row, right, query = block[number - start], places[number], where[number]
            mine, first = row[right], int(offsets[query])
            for place, score in enumerate(mine, first):
                over, same = (0, 1) if len(right) == 1 else (np.count_nonzero(mine > score), (mine == score).sum())
                above[place] = np.count_nonzero(row > score) - over
                equal[place] = np.count_nonzero(row == score) - same
            own[first : first + len(right)] = mine
            if len(right) < len(row):
                top = int(row.argmax())
                if top in right:
                    row[right] = -np.inf
                    top = int(row.argmax())
                    row[right] = mine
                rival[query], best[query] = top, row[top]
    return above, equal, own, rival, best


def _of_queries(rows: pa.Table, meta: dict[str, Any], rule: str) -> list[Outcomes]:
    ways = rows["direction"].to_pylist()
    found = []
    for way in dict.fromkeys(ways):
        part = rows.filter(pc.equal(rows["direction"], way))
        above, equal, rights = _best(part)
        name = "top" if meta["metric"] == "classification" else f"{way}_r@"
        labels = None
        if meta["metric"] == "classification":
            first = pc.list_element(part["right"].combine_chunks(), 0)
            labels = np.asarray(first.dictionary_encode().indices, np.int64)
        credit = {f"{name}{k}": ties.ranked(above, equal, k, rule, rights) for k in meta["ks"]}
        if labels is not None:
            credit["mean_per_class"] = ties.ranked(above, equal, 1, rule, rights)
        cluster = np.asarray(part["image"].combine_chunks().dictionary_encode().indices, np.int64)
        found.append(Outcomes(credit, equal > 0, cluster, part["category"].to_pylist(), labels))
    return found


def _best(rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of the best right candidate of every query: wrong ones above, wrong ones equal, right ones of its score."""
    lists = rows["above"].combine_chunks()
    sizes = pc.list_value_length(lists).to_numpy()
    starts = np.concatenate([[0], sizes.cumsum()[:-1]]).astype(np.int64) if len(sizes) else np.zeros(0, np.int64)
    above, equal, own = (
        rows[name].combine_chunks().flatten().to_numpy() for name in ("above", "equal", "right_scores")
    )
    if not len(starts):
        return starts, starts, starts
    top = np.maximum.reduceat(own, starts)
    first = own == np.repeat(top, sizes)
    rights = np.add.reduceat(first.astype(np.int64), starts)
    over = np.minimum.reduceat(np.where(first, above, np.iinfo(np.int32).max), starts)
    same = np.maximum.reduceat(np.where(first, equal, 0), starts)
    return over.astype(np.int64), same.astype(np.int64), rights


# --- rows → outcomes ----------------------------------------------------------------------------------


def outcomes(rows: pa.Table, meta: dict[str, Any], rule: str = ties.STRICT) -> list[Outcomes]:
    """What saved rows are worth under a rule of ties, from their `metric` and `ks`. Raises `UnknownName`."""
    ties.check(rule)
    if meta["metric"] in MATRICES:
        return _of_queries(rows if "above" in rows.column_names else _from_matrices(rows), meta, rule)
    if "similarities" in rows.column_names:
        credit, tied = _hits(rows, meta["metric"], rule, meta.get("pair_ks", ()))
    else:
        credit, tied = _told(rows)
    if "text_similarities" in rows.column_names:
        between = rows["text_similarities"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
        credit |= ties.text(between, rule)
    categories = rows["category"].to_pylist()
    cluster = _clusters(rows["images"].combine_chunks())
    whole = Outcomes(credit, tied, cluster, categories)
    return [whole, *(_sets(rows, whole) if "sets" in rows.column_names else ())]


def _told(rows: pa.Table) -> tuple[dict[str, NDArray[np.float64]], metrics.Bools]:
    """Credits by metric of rows that hold answers and no scores (`imports`): under every rule what was answered."""
    if "value" in rows.column_names:
        raise InputError("a published aggregate has no items", "Compare rows that were scored, or import its items.")
    names = [field.name for field in rows.schema if pa.types.is_boolean(field.type)]
    credit = {name: rows[name].combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64) for name in names}
    return credit, np.zeros(rows.num_rows, bool)


def _clusters(images: Any) -> NDArray[np.int64]:
    if len(images) and pc.all(pc.equal(pc.list_value_length(images), 1)).as_py():
        return np.asarray(images.flatten().dictionary_encode().indices, np.int64)
    return intervals.clusters(images.to_pylist())


def _sets(rows: pa.Table, items: Outcomes) -> list[Outcomes]:
    """Items that count together, by the metric they are: a set is worth the product of what its items are."""
    members: dict[str, dict[str, list[int]]] = {}
    for number, names in enumerate(rows["sets"].to_pylist()):
        for name in names:
            metric, _, one = name.partition("\t")
            members.setdefault(metric, {}).setdefault(one, []).append(number)
    images = rows["images"].to_pylist()
    found = []
    for metric, sets in members.items():
        lists = list(sets.values())
        credit = np.array([items.credit["accuracy"][numbers].prod() for numbers in lists])
        tied = np.array([items.tied[numbers].any() for numbers in lists], bool)
        cluster = intervals.clusters([[key for number in numbers for key in images[number]] for numbers in lists])
        categories = [items.categories[numbers[0]] for numbers in lists]
        found.append(Outcomes({metric: credit}, tied, cluster, categories, counted=False))
    return found


def _from_matrices(rows: pa.Table) -> pa.Table:
    """Rows a query from rows a group that hold the whole matrix, as format 1 kept it."""
    parts = []
    for row in rows.to_batches(max_chunksize=1):
        images, captions = (tuple(row[name][0].as_py()) for name in ("images", "captions"))
        truth = row["truth"].flatten().to_numpy(zero_copy_only=False).reshape(len(images), len(captions))
        places = tuple(tuple(np.flatnonzero(mask).tolist()) for mask in truth)
        name, category = row["id"][0].as_py(), row["category"][0].as_py()
        group = Group(name, images, captions, Matches(places, len(captions)), category)
        scores = row["similarities"].flatten().to_numpy().reshape(truth.shape).copy()
        parts.append(ranked(group, scores, "recall"))
    if not parts:
        raise InputError("the scores hold no group", "Evaluate again.")
    return pa.concat_tables(parts)
