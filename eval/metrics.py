"""Metrics as pure functions of score arrays. numpy only.

Every comparison is strict: a tie is a miss, so an encoder that returns a constant scores 0 %. What is
undefined (no items, an image without a right caption) is None, never 0 or 1. A NaN score is an error.
Percentages are in [0, 100] and follow from the per-item hits of `pairs_hits`, `quads_hits`, `positives_hits`,
`text_hits` and `recall_ranks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Result = dict[str, float | int | None]
Bools = NDArray[np.bool_]
Above = Callable[[Any, Any], Any]
"""What is to be above: `np.greater`, strict; `np.greater_equal` where `ties` says what a tie is worth."""

# Rows of the similarity matrix whose comparisons are held at once: 1,024 × 25,000 booleans are 25 MB.
BLOCK = 1024


def percent(hits: Bools) -> float | None:
    """100 × the mean of `hits` (N,); None if N is 0."""
    return 100.0 * float(np.count_nonzero(hits)) / len(hits) if len(hits) else None


def _floats(values: Any, name: str, ndim: int) -> NDArray[np.floating[Any]]:
    """`values` as a float array of `ndim` axes. Raises `InputError` naming the first row that holds NaN."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.ndim != ndim:
        raise InputError(f"{name} has shape {array.shape}; {ndim} axes are needed")
    bad = np.isnan(array).reshape(len(array), -1).any(axis=1) if array.size else np.zeros(0, bool)
    if bad.any():
        raise InputError(f"{name}: row {int(np.argmax(bad))} holds NaN ({int(bad.sum())} such rows)")
    return array


def pairs_hits(positive: Any, negatives: Any, above: Above = np.greater) -> tuple[Bools, Bools]:
    """Per item: is the positive above every negative, and does it equal one of them.

    positive (N,), negatives (N, K) with K ≥ 1 → hits (N,), ties (N,). Raises `InputError` for NaN and shapes
    that do not agree. Source: the strict `>` of SugarCrepe's main_eval.py.
    """
    right, wrong = _floats(positive, "positive", 1), _floats(negatives, "negatives", 2)
    if len(right) != len(wrong) or (len(wrong) and wrong.shape[1] == 0):
        raise InputError(
            f"positive {right.shape} and negatives {wrong.shape} do not agree; (N,) and (N, K ≥ 1) are needed"
        )
    hits, equal = above(right[:, None], wrong), np.equal(right[:, None], wrong)
    return hits.all(axis=1), equal.any(axis=1)


def pairs(positive: Any, negatives: Any) -> Result:
    """One image, one right caption, K wrong ones: `accuracy` in percent, `n` items, `ties` among them.

    Chance is 100 / (K + 1). See `pairs_hits` for shapes and errors.
    """
    hits, ties = pairs_hits(positive, negatives)
    return {"accuracy": percent(hits), "n": len(hits), "ties": int(ties.sum())}


def quads_hits(scores: Any, above: Above = np.greater) -> dict[str, Bools]:
    """Per item of scores (N, 2 images, 2 texts), where image i belongs to text i, four vectors (N,):

    i2t    both images prefer their text:  s(I0,C0) > s(I0,C1) and s(I1,C1) > s(I1,C0)
    t2i    both texts prefer their image:  s(I0,C0) > s(I1,C0) and s(I1,C1) > s(I0,C1)
    group  both;  ties  any of the four comparisons is an equality

    Winoground calls i2t its text score and t2i its image score. Raises `InputError` for NaN or another shape.
    """
    values = _floats(scores, "scores", 3)
    if values.shape[1:] != (2, 2):
        raise InputError(f"scores has shape {values.shape}; (N, 2 images, 2 texts) is needed")
    right = values[:, [0, 1], [0, 1]]
    other_text, other_image = values[:, [0, 1], [1, 0]], values[:, [1, 0], [0, 1]]
    i2t, t2i = above(right, other_text).all(axis=1), above(right, other_image).all(axis=1)
    ties = (right == other_text).any(axis=1) | (right == other_image).any(axis=1)
    return {"i2t": i2t, "t2i": t2i, "group": i2t & t2i, "ties": ties}


def quads(scores: Any) -> Result:
    """Two images and two texts: `i2t`, `t2i`, `group` in percent, `n` items, `ties` among them.

    Chance is 25, 25 and 16.67 (independent continuous scores). See `quads_hits` for definitions and errors.
    """
    hits = quads_hits(scores)
    ties = hits.pop("ties")
    return {**{name: percent(hit) for name, hit in hits.items()}, "n": len(ties), "ties": int(ties.sum())}


def positives_hits(right: Any, wrong: Any, above: Above = np.greater) -> dict[str, Bools]:
    """Per item of one image, two captions that are both right and K wrong ones, four vectors (N,):

    p1_neg, p2_neg  the first, the second right caption is above every wrong one;  itt  both
    ties            one of them equals a wrong one

    right (N, 2), wrong (N, K) with K ≥ 1. Raises `InputError` for NaN or another shape. Source: the image-to-text task
    of SugarCrepe++ (Sri-Harsha/scpp), which is strict.
    """
    values = _floats(right, "right", 2)
    if values.shape[1] != 2:
        raise InputError(f"right has shape {values.shape}; (N, 2 captions) is needed")
    (first, tied), (second, tied_too) = (pairs_hits(values[:, side], wrong, above) for side in (0, 1))
    return {"itt": first & second, "p1_neg": first, "p2_neg": second, "ties": tied | tied_too}


def positives(right: Any, wrong: Any) -> Result:
    """Two right captions and wrong ones: `itt`, `p1_neg`, `p2_neg` in percent, `n` items, `ties` among them.

    Chance is 33.33, 50 and 50 with one wrong caption. See `positives_hits` for shapes and errors.
    """
    hits = positives_hits(right, wrong)
    ties = hits.pop("ties")
    return {**{name: percent(hit) for name, hit in hits.items()}, "n": len(ties), "ties": int(ties.sum())}


def text_hits(between: Any, above: Above = np.greater) -> Bools:
    """Per item: are two captions of one meaning nearer to each other than either is to the wrong one.

    between (N, 3): similarities of (first, second), (first, wrong), (second, wrong) → hits (N,), strict. Chance is
    33.33. Raises `InputError` for NaN or another shape. Source: the text-only task of SugarCrepe++.
    """
    values = _floats(between, "between", 2)
    if values.shape[1] != 3:
        raise InputError(f"between has shape {values.shape}; (N, 3 similarities) is needed")
    hits: Bools = above(values[:, 0], values[:, 1]) & above(values[:, 0], values[:, 2])
    return hits


def recall_ranks(similarity: Any, truth: Any) -> tuple[NDArray[np.int64], Bools]:
    """Strict rank of the best right candidate of every row, and whether a wrong candidate equals it.

    similarity (Q, C), truth (Q, C) bool → ranks (Q,), ties (Q,). rank = 1 + the wrong candidates that score
    at least as high as the best right one; 0 where a row has no right candidate. Raises `InputError` for NaN
    and shapes that do not agree.
    """
    scores, right = _floats(similarity, "similarity", 2), np.asarray(truth, dtype=bool)
    if scores.shape != right.shape:
        raise InputError(f"similarity {scores.shape} and truth {right.shape} differ in shape")
    ranks, ties = np.zeros(len(scores), np.int64), np.zeros(len(scores), bool)
    for start in range(0, len(scores) if scores.shape[1] else 0, BLOCK):
        part, mask = scores[start : start + BLOCK], right[start : start + BLOCK]
        best = np.where(mask, part, -np.inf).max(axis=1, keepdims=True)
        defined = mask.any(axis=1)
        ranks[start : start + BLOCK] = np.where(defined, 1 + ((part >= best) & ~mask).sum(axis=1), 0)
        ties[start : start + BLOCK] = defined & ((part == best) & ~mask).any(axis=1)
    return ranks, ties


def recall(similarity: Any, truth: Any, ks: Sequence[int] = (1, 5, 10)) -> Result:
    """Retrieval in both directions: `i2t_r@k` and `t2i_r@k` in percent for every k of `ks`.

    similarity (I, C), truth (I, C) bool. A query counts if it has a right candidate, and is found at k if the
    best of them ranks ≤ k (see `recall_ranks`). `n` images, `n_captions` captions counted, `ties` among both.
    """
    if any(k < 1 for k in ks):
        raise InputError(f"recall at {list(ks)}: every k must be at least 1")
    scores, right = _floats(similarity, "similarity", 2), np.asarray(truth, dtype=bool)
    result: Result = {}
    ties = 0
    counted: list[int] = []
    for direction, (values, mask) in {"i2t": (scores, right), "t2i": (scores.T, right.T)}.items():
        ranks, tied = recall_ranks(values, mask)
        defined = ranks[ranks > 0]
        result |= {f"{direction}_r@{k}": percent(defined <= k) for k in ks}
        ties += int(tied.sum())
        counted.append(len(defined))
    return {**result, "n": counted[0], "n_captions": counted[1], "ties": ties}


def classification(similarity: Any, truth: Any, ks: Sequence[int] = (1, 5)) -> Result:
    """Images × classes: `top{k}` in percent for every k of `ks`, and `mean_per_class`, the mean over classes of what
    share of their images is right at 1; `n` images, `ties` among them.

    similarity (I, K), truth (I, K) bool. An image without a right class does not count; one with several is found by
    the best of them and belongs to the first. Strict: a class that scores as high as the right one stands before it.
    """
    right = np.asarray(truth, dtype=bool)
    ranks, ties = recall_ranks(similarity, right)
    counted = ranks > 0
    found = ranks[counted]
    labels = right.argmax(axis=1)[counted] if right.size else np.zeros(0, np.int64)
    means = [np.mean(found[labels == label] <= 1) for label in np.unique(labels)]
    result: Result = {f"top{k}": percent(found <= k) for k in ks}
    result["mean_per_class"] = 100.0 * float(np.mean(means)) if means else None
    return {**result, "n": len(found), "ties": int(ties.sum())}
