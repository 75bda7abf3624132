"""Metrics by hand, against slow loops, and against published per-item answers."""

from __future__ import annotations

import csv
import gzip
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compal.errors import InputError
from compal.eval import metrics
from compal.eval.references import random_scores

DATA = Path(__file__).parents[1] / "data"
# Few distinct values, so that most rows hold ties.
FEW = st.sampled_from([-1.0, 0.0, 0.5, 1.0])


def rows(name: str) -> list[dict[str, str]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- pairs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positive", "negatives", "accuracy", "ties"),
    [
        ([0.9], [[0.1]], 100.0, 0),
        ([0.1], [[0.9]], 0.0, 0),
        ([0.5], [[0.5]], 0.0, 1),
        ([0.9, 0.1], [[0.1], [0.9]], 50.0, 0),
        ([0.9, 0.9], [[0.1, 0.8], [0.1, 0.9]], 50.0, 1),
        ([0.9, 0.2], [[0.9, 1.0], [0.1, 0.1]], 50.0, 1),
    ],
)
def test_pairs_by_hand(positive, negatives, accuracy, ties):
    assert metrics.pairs(positive, negatives) == {"accuracy": accuracy, "n": len(positive), "ties": ties}


def test_constant_scores_are_no_hits_in_any_metric():
    assert metrics.pairs(np.ones(5), np.ones((5, 3))) == {"accuracy": 0.0, "n": 5, "ties": 5}
    constant = metrics.quads(np.ones((5, 2, 2)))
    assert constant == {"i2t": 0.0, "t2i": 0.0, "group": 0.0, "n": 5, "ties": 5}
    found = metrics.recall(np.ones((4, 4)), np.eye(4, dtype=bool), ks=(1, 3))
    assert found == {
        "i2t_r@1": 0,
        "i2t_r@3": 0,
        "t2i_r@1": 0,
        "t2i_r@3": 0,
        "n": 4,
        "n_captions": 4,
        "ties": 8,
    }


def test_nothing_is_undefined_not_zero():
    assert metrics.pairs([], np.zeros((0, 1))) == {"accuracy": None, "n": 0, "ties": 0}
    undefined = {"i2t": None, "t2i": None, "group": None, "n": 0, "ties": 0}
    assert metrics.quads(np.zeros((0, 2, 2))) == undefined
    empty = metrics.recall(np.zeros((0, 0)), np.zeros((0, 0), bool), ks=(1,))
    assert empty == {"i2t_r@1": None, "t2i_r@1": None, "n": 0, "n_captions": 0, "ties": 0}


def test_nan_is_an_error_that_names_the_row():
    with pytest.raises(InputError, match="positive: row 1 holds NaN"):
        metrics.pairs([0.0, np.nan], [[1.0], [1.0]])
    with pytest.raises(InputError, match="negatives: row 0 holds NaN"):
        metrics.pairs([0.0, 1.0], [[np.nan], [1.0]])
    broken = np.zeros((4, 2, 2))
    broken[2, 1, 0] = np.nan
    with pytest.raises(InputError, match=r"scores: row 2 holds NaN \(1 such"):
        metrics.quads(broken)
    with pytest.raises(InputError, match="similarity: row 3"):
        metrics.recall(np.where(np.eye(4)[3], np.nan, 0.0)[:, None], np.ones((4, 1), bool))


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.pairs([1.0], [[1.0], [2.0]]),
        lambda: metrics.pairs([1.0], np.zeros((1, 0))),
        lambda: metrics.pairs([1.0], [1.0]),
        lambda: metrics.quads(np.zeros((3, 4))),
        lambda: metrics.quads(np.zeros((3, 2, 3))),
        lambda: metrics.positives(np.zeros((2, 3)), np.zeros((2, 1))),
        lambda: metrics.positives(np.zeros((2, 2)), np.zeros((2, 0))),
        lambda: metrics.text_hits(np.zeros((2, 4))),
        lambda: metrics.classification(np.zeros((2, 2)), np.zeros((2, 3), bool)),
        lambda: metrics.recall(np.zeros((2, 2)), np.zeros((2, 3), bool)),
        lambda: metrics.recall(np.zeros((2, 2)), np.eye(2, dtype=bool), ks=(0,)),
    ],
)
def test_shapes_that_do_not_fit_are_errors(call):
    with pytest.raises(InputError):
        call()


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.integers(2, 4)), elements=FEW))
def test_pairs_equal_a_slow_loop(table):
    hits = [all(row[0] > other for other in row[1:]) for row in table.tolist()]
    ties = [any(row[0] == other for other in row[1:]) for row in table.tolist()]
    found = metrics.pairs_hits(table[:, 0], table[:, 1:])
    assert found[0].tolist() == hits
    assert found[1].tolist() == ties


# --- quads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "i2t", "t2i", "group", "ties"),
    [
        ([[0.9, 0.1], [0.1, 0.9]], 100, 100, 100, 0),
        ([[0.1, 0.9], [0.9, 0.1]], 0, 0, 0, 0),
        # Image 1 scores high with every text: each image finds its text, text 0 finds the wrong image.
        ([[0.5, 0.4], [0.8, 0.9]], 100, 0, 0, 0),
        # Text 1 scores high with every image.
        ([[0.5, 0.8], [0.4, 0.9]], 0, 100, 0, 0),
        ([[0.9, 0.9], [0.1, 0.9]], 0, 0, 0, 1),
        ([[0.9, 0.1], [0.9, 0.95]], 100, 0, 0, 1),
    ],
)
def test_quads_by_hand(scores, i2t, t2i, group, ties):
    assert metrics.quads([scores]) == {"i2t": i2t, "t2i": t2i, "group": group, "n": 1, "ties": ties}


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(2), st.just(2)), elements=FEW))
def test_quads_equal_a_slow_loop(scores):
    found = metrics.quads_hits(scores)
    for number, ((a, b), (c, d)) in enumerate(scores.tolist()):
        i2t, t2i = a > b and d > c, a > c and d > b
        assert found["i2t"][number] == i2t
        assert found["t2i"][number] == t2i
        assert found["group"][number] == (i2t and t2i)
        assert found["ties"][number] == (a in (b, c) or d in (b, c))


# --- recall -----------------------------------------------------------------------------------------


def test_recall_by_hand():
    # Image 0 has two captions, image 1 one; the last caption describes nothing.
    truth = np.array([[1, 1, 0, 0], [0, 0, 1, 0]], bool)
    similarity = np.array([[0.2, 0.9, 0.5, 0.1], [0.3, 0.8, 0.7, 0.7]])
    found = metrics.recall(similarity, truth, ks=(1, 3))
    # Image 1: captions 1 is above and 3 equals its own, so its rank is 3. Caption 0 prefers image 1.
    assert found["i2t_r@1"] == 50.0
    assert found["i2t_r@3"] == 100.0
    assert found["t2i_r@1"] == pytest.approx(200 / 3)
    assert found["n"] == 2
    assert found["n_captions"] == 3
    assert found["ties"] == 1


def test_one_image_is_found_and_an_image_without_caption_does_not_count():
    assert metrics.recall([[0.3]], [[True]], ks=(1,))["i2t_r@1"] == 100.0
    found = metrics.recall([[0.3, 0.1], [0.9, 0.9]], [[True, False], [False, False]], ks=(1,))
    assert found["i2t_r@1"] == 100.0
    assert found["t2i_r@1"] == 0.0
    assert (found["n"], found["n_captions"]) == (1, 1)
    assert metrics.recall([[0.3]], [[False]], ks=(1,))["i2t_r@1"] is None


@st.composite
def retrievals(draw):
    shape = draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    similarity = draw(hnp.arrays(np.float64, shape, elements=FEW))
    return similarity, draw(hnp.arrays(np.bool_, shape))


@given(retrievals(), st.integers(1, 3))
def test_recall_ranks_equal_a_slow_loop(retrieval, block):
    similarity, truth = retrieval
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        ranks, ties = metrics.recall_ranks(similarity, truth)
    for number, (scores, right) in enumerate(zip(similarity.tolist(), truth.tolist(), strict=True)):
        own = [score for score, mine in zip(scores, right, strict=True) if mine]
        wrong = [score for score, mine in zip(scores, right, strict=True) if not mine]
        assert ranks[number] == (1 + sum(score >= max(own) for score in wrong) if own else 0)
        assert ties[number] == (bool(own) and any(score == max(own) for score in wrong))


@settings(max_examples=25)
@given(retrievals())
def test_recall_directions_are_each_other_transposed(retrieval):
    similarity, truth = retrieval
    one, other = metrics.recall(similarity, truth), metrics.recall(similarity.T, truth.T)
    assert {f"t2i_{k[4:]}": v for k, v in one.items() if k.startswith("i2t")} == {
        k: v for k, v in other.items() if k.startswith("t2i")
    }
    assert (one["n"], one["n_captions"], one["ties"]) == (other["n_captions"], other["n"], other["ties"])


# --- positives, text ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "itt", "first", "second", "ties"),
    [
        ([0.9, 0.8], [0.1], 100, 100, 100, 0),
        ([0.9, 0.1], [0.5], 0, 100, 0, 0),
        ([0.1, 0.9], [0.5], 0, 0, 100, 0),
        ([0.9, 0.5], [0.5], 0, 100, 0, 1),
        ([0.1, 0.2], [0.5], 0, 0, 0, 0),
    ],
)
def test_positives_by_hand(right, wrong, itt, first, second, ties):
    expected = {"itt": itt, "p1_neg": first, "p2_neg": second, "n": 1, "ties": ties}
    assert metrics.positives([right], [wrong]) == expected


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=FEW))
def test_positives_and_text_hits_equal_a_slow_loop(table):
    found, text = metrics.positives_hits(table[:, :2], table[:, 2:]), metrics.text_hits(table)
    for number, (a, b, c) in enumerate(table.tolist()):
        assert (found["p1_neg"][number], found["p2_neg"][number]) == (a > c, b > c)
        assert found["itt"][number] == (a > c and b > c)
        assert found["ties"][number] == (c in (a, b))
        assert text[number] == (a > b and a > c)


# --- classification -----------------------------------------------------------------------------------


def test_classification_by_hand():
    similarity = [[0.9, 0.1, 0.0], [0.2, 0.9, 0.1], [0.8, 0.5, 0.1], [0.3, 0.3, 0.1], [0.1, 0.2, 0.9]]
    truth = np.eye(3, dtype=bool)[[0, 0, 0, 0, 2]]
    found = metrics.classification(similarity, truth, ks=(1, 2))
    # Class 0: of four images two are first, one is second, one ties and is second. Class 2: one of one. Class 1: none.
    assert found == {"top1": 60.0, "top2": 100.0, "mean_per_class": 75.0, "n": 5, "ties": 1}
    constant = metrics.classification(np.ones((5, 3)), truth, ks=(1, 2))
    assert constant == {"top1": 0.0, "top2": 0.0, "mean_per_class": 0.0, "n": 5, "ties": 5}
    nothing = metrics.classification(np.zeros((0, 3)), np.zeros((0, 3), bool), ks=(1,))
    assert nothing == {"top1": None, "mean_per_class": None, "n": 0, "ties": 0}


# --- published answers ------------------------------------------------------------------------------


def test_published_sugarcrepe_answers_give_the_published_means():
    """Through `pairs`: a right answer is the scores (1, 0), a wrong one (0, 1)."""
    answers = rows("sugarcrepe_clip_vit_b_32.csv.gz")
    positive = np.array([float(row["correct"]) for row in answers])
    found = metrics.pairs(positive, 1.0 - positive[:, None])
    assert (found["n"], found["ties"]) == (7512, 0)
    assert round(found["accuracy"], 2) == 76.56
    kinds = np.array([row["type"] for row in answers])
    subsets = np.array([f"{row['type']}_{row['subtype']}" for row in answers])

    def mean_over(labels):
        parts = [metrics.pairs(positive[labels == n], 1 - positive[labels == n, None]) for n in set(labels)]
        return sum(part["accuracy"] for part in parts) / len(parts)

    # The published 73.04 pools the rows of each type; the mean of subset means within types is 71.91.
    assert round(mean_over(kinds), 2) == 73.04
    assert round(mean_over(subsets), 2) == 73.08


def matrix_of(i0: int, i1: int, c0: int, c1: int) -> np.ndarray:
    """Scores (2, 2) whose four comparisons come out as given: i0 is s00 > s01, i1 s11 > s10, c0 s00 > s10, c1
    s11 > s01. Exists unless the four form a cycle (1, 1, 0, 0 and 0, 0, 1, 1)."""
    for a, b, c, d in itertools.permutations(range(4)):
        if (a > b, d > c, a > c, d > b) == (i0, i1, c0, c1):
            return np.array([[a, b], [c, d]], float)
    raise AssertionError("no scores order like this")


def test_published_bivlc_answers_give_the_published_means():
    """Through `quads`, on score matrices rebuilt from the four booleans of each row. None of the 2,933 rows
    is one of the two patterns that no scores can have."""
    answers = rows("bivlc_clip_vit_b_32.csv.gz")
    order = ("text_score_i0", "text_score_i1", "image_score_c0", "image_score_c1")
    scores = np.stack([matrix_of(*(int(row[name]) for name in order)) for row in answers])
    kinds = np.array([row["type"] for row in answers])
    found = metrics.quads(scores)
    assert (found["n"], found["ties"]) == (2933, 0)
    assert [round(found[name], 2) for name in ("i2t", "t2i", "group")] == [75.83, 52.40, 49.06]
    swap = metrics.quads(scores[kinds == "swap"])
    assert [round(swap[name], 2) for name in ("i2t", "t2i", "group")] == [46.52, 16.16, 13.65]
    hits = metrics.quads_hits(scores)
    for name, column in (("i2t", "text_score"), ("t2i", "image_score"), ("group", "group_score")):
        assert hits[name].tolist() == [row[column] == "1" for row in answers]


def test_random_scores_land_at_chance():
    keys = [f"{number:032x}" for number in range(40_000)]
    count = len(keys) // 2
    pairs = np.array([(2 * q + i, 2 * q + c) for q in range(count) for i in (0, 1) for c in (0, 1)])
    found = metrics.quads(random_scores(0)(keys, keys, pairs).reshape(-1, 2, 2))
    # Three standard errors of 20,000 items are 0.92 points at 25 %.
    for name, chance in (("i2t", 25), ("t2i", 25), ("group", 100 / 6)):
        assert found[name] == pytest.approx(chance, abs=0.92)
    assert found["ties"] == 0


def test_metrics_and_report_import_no_torch():
    modules = "compal.eval.metrics, compal.eval.report, compal.eval.score, compal.eval.intervals"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
