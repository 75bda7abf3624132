"""Retrieval at scale: candidates however the gallery is cut, re-ranking against exact scores and a slow transcription,
ties at every border, mean average precision by all orders, and what cannot be re-ranked."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import layouts
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from compal import registry
from compal.align.scorer import Dims, build_head
from compal.errors import InputError, UnknownName, UsageError
from compal.eval import candidates, ranking, report, retrieval, seeds
from compal.eval.candidates import Gallery, nearest
from compal.eval.outcomes import ranked
from compal.eval.score import Options, evaluate
from compal.eval.scoring import Judge
from compal.eval.sources import Group, Matches, Sources


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def drawn(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


# --- candidates ---------------------------------------------------------------------------------------


def brute(queries, gallery, k):
    products = (queries[:, None, :] * gallery[None]).sum(axis=2)
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(products, order, axis=1)


@pytest.mark.parametrize("k", [1, 30, 500])
def test_the_nearest_are_those_of_all_products_with_ties_by_row(k):
    queries, gallery = drawn(40), drawn(300, seed=1)
    gallery[20:80] = gallery[5]  # sixty times the same
    gallery[100:] = np.repeat(gallery[100:200], 2, axis=0)
    rows, products = nearest(queries, Gallery.of(gallery), k)
    wanted, values = brute(queries, gallery, k)
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(products, values)


@pytest.mark.parametrize("part", [1, 7, 64, 299, 300, 1000])
def test_a_gallery_in_parts_gives_the_same_bits(part, monkeypatch):
    queries, gallery = drawn(40, 64), drawn(300, 64, seed=1)
    gallery[200:260] = gallery[5]
    whole = nearest(queries, Gallery.of(gallery, 300), 50)
    monkeypatch.setattr(candidates, "BLOCK", 13)
    monkeypatch.setattr(candidates, "PAIRS", 11)
    parts = nearest(queries, Gallery.of(gallery, part), 50)
    assert [one.tobytes() for one in parts] == [one.tobytes() for one in whole]


def test_no_more_than_a_part_is_asked_of_a_gallery():
    gallery, asked = drawn(1000, seed=1), []

    def read(start, stop):
        asked.append((start, stop))
        return gallery[start:stop]

    nearest(drawn(5), Gallery(1000, read, 128), 10)
    assert asked == [(start, min(start + 128, 1000)) for start in range(0, 1000, 128)]


@pytest.mark.parametrize(("index", "least"), [("ivf", 0.8), ("hnsw", 0.95)])
def test_what_an_index_finds_is_scored_as_flat_is_and_nearly_all(index, least):
    pytest.importorskip("faiss")
    centres = np.random.default_rng(2).normal(size=(30, 16))
    gallery = unit(np.repeat(centres, 100, axis=0) + 0.3 * np.random.default_rng(3).normal(size=(3000, 16)))
    queries = unit(centres + 0.1 * np.random.default_rng(4).normal(size=(30, 16)))
    flat, products = nearest(queries, Gallery.of(gallery), 20)
    rows, values = nearest(queries, Gallery.of(gallery), 20, index)
    shared = [len({*one} & {*other}) / 20 for one, other in zip(flat.tolist(), rows.tolist(), strict=True)]
    assert np.mean(shared) >= least
    same = rows == flat
    np.testing.assert_array_equal(values[same], products[same])
    again = nearest(queries, Gallery.of(gallery, 100), 20, index)
    np.testing.assert_array_equal(again[0], rows)


def test_flat_through_faiss_as_with_a_gpu_is_flat(monkeypatch):
    pytest.importorskip("faiss")
    queries, gallery = drawn(60, 32), drawn(500, 32, seed=1)
    rows, products = nearest(queries, Gallery.of(gallery), 20)
    monkeypatch.setattr(candidates, "_on_gpu", lambda n, size: True)
    again = nearest(queries, Gallery.of(gallery, 64), 20)
    np.testing.assert_array_equal(again[0], rows)
    np.testing.assert_array_equal(again[1], products)


def test_candidates_need_finite_vectors_a_known_index_and_faiss(monkeypatch):
    bad = drawn(20)
    bad[3, 0] = np.nan
    for queries, gallery in ((bad, drawn(20)), (drawn(20), bad)):
        with pytest.raises(InputError, match="not finite"):
            nearest(queries, Gallery.of(gallery), 5)
    with pytest.raises(UnknownName, match="no index 'tree'"):
        nearest(drawn(2), Gallery.of(drawn(2)), 1, "tree")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"--index ivf needs faiss.*compal\[mining\]"):
        nearest(drawn(2), Gallery.of(drawn(2)), 1, "ivf")
    assert nearest(drawn(2), Gallery.of(drawn(9)), 3)[0].shape == (2, 3), "flat needs none"


# --- re-ranking ---------------------------------------------------------------------------------------

IMAGES, CAPTIONS = 12, 40


def problem(seed: int, levels: int = 4) -> tuple[Group, dict[str, np.ndarray], np.ndarray]:
    """Images × captions with one to five right ones, vectors with many ties, scores of a head with many ties."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((IMAGES, CAPTIONS), bool)
    truth[rng.integers(0, IMAGES, CAPTIONS), np.arange(CAPTIONS)] = True
    truth[0, :4] = True
    truth[:, -1] = False  # a caption of nothing
    group = Group(
        "g",
        tuple(f"i{n}" for n in range(IMAGES)),
        tuple(f"c{n}" for n in range(CAPTIONS)),
        Matches(tuple(tuple(np.flatnonzero(row).tolist()) for row in truth), CAPTIONS),
    )
    vectors = {
        "image": rng.integers(-1, 2, (IMAGES, 3)).astype(np.float32),
        "text": rng.integers(-1, 2, (CAPTIONS, 3)).astype(np.float32),
    }
    return group, vectors, rng.integers(0, levels, (IMAGES, CAPTIONS)).astype(np.float32)


class Plan(retrieval.Rerank):
    """Candidates by vectors that a test has made."""

    def vectors(self, store, device):
        made = self.scorer
        return lambda kind, keys: np.stack([made[kind][int(key[1:])] for key in keys])


def judge_of(scores, asked=None):
    def score(images, captions, pairs):
        rows = np.array([int(key[1:]) for key in images])[pairs[:, 0]]
        columns = np.array([int(key[1:]) for key in captions])[pairs[:, 1]]
        if asked is not None:
            asked.extend(zip(rows.tolist(), columns.tolist(), strict=True))
        return scores[rows, columns]

    return Judge(score, 7, 9)


def transcribed(products, scores, right, k):
    """Per query: the first k by (product, wrong before right, row), then its matrix row with −inf elsewhere; the strict
    ranks of all right answers, whether they are candidates, and average precision."""
    found = []
    for row, own, mask in zip(products, scores, right, strict=True):
        if not mask.any():
            continue
        order = sorted(range(len(row)), key=lambda place: (-row[place], mask[place], place))[:k]
        left = np.full(len(row), -np.inf)
        left[order] = own[order]
        ranks = [1 + int((left[~mask] >= left[place]).sum()) for place in np.flatnonzero(mask)]
        inside = [place in order for place in np.flatnonzero(mask)]
        listed = sorted(np.flatnonzero(mask).tolist(), key=lambda place: -left[place])
        wrong = [int((left[~mask] >= left[place]).sum()) for place in listed]
        precision = np.mean([(j + 1) / (wrong[j] + j + 1) for j in range(len(listed))])
        found.append((ranks, inside, precision))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 3, 10, 39, 100])
def test_reranking_is_its_slow_transcription(seed, k, monkeypatch):
    monkeypatch.setattr(retrieval, "QUERIES", 5)
    monkeypatch.setattr(retrieval, "PART", 6)
    monkeypatch.setattr(retrieval, "ENTRIES", 4)
    monkeypatch.setattr(retrieval, "CAPTIONS", 5)
    group, vectors, scores = problem(seed)
    asked: list[tuple[int, int]] = []
    (row,) = retrieval.reranked([group], judge_of(scores, asked), "head", None, Plan((k,), scorer=vectors), {})
    assert len(asked) == len(set(asked)) == row.facts["pairs_scored"], "a pair is scored once for both directions"
    products, right = vectors["image"] @ vectors["text"].T, group.right()
    for way, wanted in (
        ("i2t", transcribed(products, scores, right, k)),
        ("t2i", transcribed(products.T, scores.T, right.T, k)),
    ):
        part = row.rows.filter([one == way for one in row.rows["direction"].to_pylist()])
        strict = [
            [1 + a + e for a, e in zip(above, equal, strict=True)]
            for above, equal in zip(part["above"].to_pylist(), part["equal"].to_pylist(), strict=True)
        ]
        assert strict == [ranks for ranks, _, _ in wanted]
        assert part["found"].to_pylist() == [inside for _, inside, _ in wanted]
        np.testing.assert_allclose(ranking.average_precision(part), [precision for _, _, precision in wanted])
        figures = ranking.ranking(row.rows)[way]
        assert figures["median_rank"] == np.median([min(ranks) for ranks, _, _ in wanted])
        assert figures["bound"] == pytest.approx(100 * np.mean([any(inside) for _, inside, _ in wanted]))


def test_all_candidates_are_exact_and_a_sweep_is_its_parts():
    group, vectors, scores = problem(7)
    exact = ranked(group, scores, "recall")
    rows = retrieval.reranked([group], judge_of(scores), "head", None, Plan((3, 10, CAPTIONS), scorer=vectors), {})
    assert (
        rows[2]
        .rows.drop_columns(["found", "rival", "rival_score"])
        .equals(exact.drop_columns(["rival", "rival_score"]))
    )
    assert rows[2].rows["rival_score"].equals(exact["rival_score"])
    for k, row in zip((3, 10), rows, strict=False):
        (alone,) = retrieval.reranked([group], judge_of(scores), "head", None, Plan((k,), scorer=vectors), {})
        assert alone.rows.equals(row.rows)
        assert row.label == f"head ({k} by cosine)"
    pytest.importorskip("faiss")
    (row,) = retrieval.reranked([group], judge_of(scores), "head", None, Plan((3,), index="hnsw", scorer=vectors), {})
    assert row.label == "head (3 by cosine, hnsw)"
    assert "through hnsw, which may miss some of them, not exact" in retrieval.told(row.label, row.facts)


def test_a_constant_finds_nothing_at_any_border():
    group, vectors, _ = problem(1)
    same = {kind: np.ones_like(rows) for kind, rows in vectors.items()}
    perfect = group.right().astype(np.float32)
    (row,) = retrieval.reranked([group], judge_of(perfect), "head", None, Plan((6,), scorer=same), {})
    assert {figures["bound"] for figures in ranking.ranking(row.rows).values()} == {0.0}
    constant = np.ones_like(perfect)
    (row,) = retrieval.reranked([group], judge_of(constant), "head", None, Plan((CAPTIONS,), scorer=vectors), {})
    wrong = [[IMAGES - len(one)] * len(one) for one in row.rows["right"].to_pylist()[IMAGES:]]
    assert row.rows["equal"].to_pylist()[IMAGES:] == wrong


def test_nan_and_a_wrong_number_of_scores_are_errors():
    group, vectors, scores = problem(2)
    scores[3] = np.nan
    with pytest.raises(InputError, match="'head' gave NaN for"):
        retrieval.reranked([group], judge_of(scores), "head", None, Plan((5,), scorer=vectors), {})
    short = dataclasses.replace(judge_of(scores), score=lambda images, captions, pairs: np.zeros(1))
    with pytest.raises(InputError, match=r"'head' gave \(1,\) scores for"):
        retrieval.reranked([group], short, "head", None, Plan((5,), scorer=vectors), {})


# --- average precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["lose", "half", "win"])
def test_average_precision_is_that_of_all_orders_of_what_is_equal(rule):
    rng = np.random.default_rng(5)
    for _ in range(12):
        right = rng.random((1, 6)) < 0.5
        right[0, 0] = True
        scores = rng.integers(0, 3, (1, 6)).astype(np.float32)
        names = tuple("abcdef")
        group = Group("g", ("i",), names, (tuple(right[0].tolist()),))
        found = ranking.average_precision(ranked(group, scores, "recall")[:1], rule)
        values = []
        for order in itertools.permutations(range(6)):
            listed = sorted(order, key=lambda place: -scores[0, place])
            hits = right[0][listed]
            values.append((np.cumsum(hits) / np.arange(1, 7))[hits].mean())
        assert found[0] == pytest.approx({"lose": min, "win": max, "half": np.mean}[rule](values))


# --- from a store to a table --------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path, filled):
    root = tmp_path / "coco_retrieval"
    root.mkdir()
    layouts.write("coco_retrieval", root)
    sources = Sources(root=root)
    return sources, filled("coco_retrieval", sources)


def test_maxsim_over_all_candidates_is_exact_maxsim(coco, tmp_path):
    sources, store = coco
    scorers = {"maxsim": build_head("maxsim", {}, Dims.of(store.spec))}
    exact = evaluate("coco_retrieval", sources, store, scorers, tmp_path)[-1]
    plan = retrieval.Rerank((2, 10_000))
    rows = evaluate("coco_retrieval", sources, store, scorers, tmp_path, options=Options(rerank=plan))
    two, whole = rows[-2:]
    assert [row.label for row in (two, whole)] == ["maxsim (2 by cosine)", "maxsim (10000 by cosine)"]
    assert whole.overall.metrics == exact.overall.metrics
    assert two.overall.metrics != exact.overall.metrics
    assert len({row.folder for row in (exact, two, whole)}) == 3
    ways = ranking.told_of(two)
    assert all(two.overall.metrics[f"{way}_r@1"].value <= ways[way]["bound"] for way in ways)
    text = report.render([exact, two, whole])
    assert "maxsim (2 by cosine): re-ranked 2 of" in text
    assert "by cosine, not exact." in text
    assert "maxsim (10000 by cosine): all were re-ranked, so this is exact." in text
    assert "i2t bound" in text
    told = json.loads(report.render([exact, two], "json"))["results"]
    assert [one.get("retrieval") is None for one in told if one["role"] == "scorer"] == [True, False]
    assert told[-1]["ranking"]["t2i"]["ms_a_query"] > 0


def test_candidates_of_a_head_of_one_vector_a_side(coco, tmp_path):
    sources, store = coco
    torch.manual_seed(0)
    linear = build_head("linear", {}, Dims.of(store.spec))
    torch.nn.init.normal_(linear.map.weight)
    plan = retrieval.Rerank((3,), "linear", scorer=linear)
    scorers = {"maxsim": build_head("maxsim", {}, Dims.of(store.spec)), "linear": linear}
    *_, row, own = evaluate("coco_retrieval", sources, store, scorers, tmp_path, options=Options(rerank=plan))
    assert (row.label, own.label) == ("maxsim (3 by linear)", "linear"), "what finds them is scored exactly"
    group = next(iter(registry.load("benchmarks", "coco_retrieval").groups(sources)))
    vectors = plan.vectors(store, "cpu")
    products = vectors("image", group.images) @ vectors("text", group.captions).T
    found = pq.read_table(Path(row.folder) / "rows.parquet")["found"].to_pylist()[: len(group.images)]
    wanted = transcribed(products, np.zeros_like(products), group.right(), 3)
    assert found == [inside for _, inside, _ in wanted]
    maxsim = dataclasses.replace(plan, candidates="maxsim", scorer=scorers["maxsim"])
    with pytest.raises(UsageError, match="--candidates maxsim: this head has no vector a side"):
        maxsim.vectors(store, "cpu")


def test_seeds_of_other_depths_are_not_one_row(coco, tmp_path):
    sources, store = coco
    plan = retrieval.Rerank((2, 3))
    origin = {f"head-s{seed}": {"recipe": "r", "seed": seed} for seed in (0, 1)}
    scorers = {label: build_head("maxsim", {}, Dims.of(store.spec)) for label in origin}
    how = Options(references=(), rerank=plan, provenance=origin)
    rows = evaluate("coco_retrieval", sources, store, scorers, tmp_path, options=how)
    joined = [row for row in seeds.aggregate(rows) if row.role == "scorer"]
    assert [row.meta["scorer"]["rerank"]["k"] for row in joined] == [2, 3]
    report.render(joined)


def test_what_cannot_be_reranked_is_said_in_a_line(coco, tmp_path):
    _, store = coco
    with pytest.raises(UsageError, match="benchmark 'shapes' asks for quads"):
        evaluate("shapes", Sources(), store, {}, tmp_path, options=Options(rerank=retrieval.Rerank((5,))))
    for text in ("x", "0", "10:", "-3", "1.5"):
        with pytest.raises(UsageError, match="is no number of candidates"):
            retrieval.planned("cxc", text, "cosine", "flat", True)
    with pytest.raises(UsageError, match="nothing to score candidates with"):
        retrieval.planned("cxc", "5", "cosine", "flat", False)
    with pytest.raises(UnknownName, match="no index 'tree'"):
        retrieval.planned("cxc", "5", "cosine", "tree", True)
    for more in (("run", "flat"), ("cosine", "hnsw")):
        with pytest.raises(UsageError, match="are of --rerank"):
            retrieval.planned("cxc", "", *more)
    with pytest.raises(UsageError, match="this run is not loaded"):
        retrieval.planned("cxc", "5", "run").vectors(store, "cpu")
    assert retrieval.planned("cxc", "", "cosine", "flat", True) is None
    assert retrieval.planned("cxc", "100:0:10:100", "cosine", "flat", True).ks == (10, 100)
