"""Exact ranks while a gallery is read in parts: those of the whole matrix, the same however it is cut."""

from __future__ import annotations

import numpy as np
import pytest

from compal.eval import candidates, outcomes, ranking, scoring, streamed
from compal.eval.score import evaluate
from compal.eval.sources import Group, Matches


def problem(seed: int, whole: bool) -> tuple[Group, dict[str, np.ndarray]]:
    """Images × captions; whole numbers, so that products are exact and many tie, or unit vectors some of which are
    equal."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((23, 90), bool)
    truth[rng.integers(0, 23, 90), np.arange(90)] = True
    truth[0, :9] = True
    truth[5] = False
    truth[:, -1] = False
    group = Group(
        "g",
        tuple(f"i{n}" for n in range(23)),
        tuple(f"c{n}" for n in range(90)),
        Matches(tuple(tuple(np.flatnonzero(row).tolist()) for row in truth), 90),
        "kind",
    )
    if whole:
        return group, {
            "image": rng.integers(-1, 2, (23, 3)).astype("f4"),
            "text": rng.integers(-1, 2, (90, 3)).astype("f4"),
        }
    made = {"image": rng.normal(size=(23, 33)), "text": rng.normal(size=(90, 33))}
    made = {kind: (v / np.linalg.norm(v, axis=1, keepdims=True)).astype("f4") for kind, v in made.items()}
    made["text"][40:70] = made["text"][3]
    made["image"][10:15] = made["image"][2]
    return group, made


def judge_of(made):
    def vectors(kind, keys):
        return np.stack([made[kind][int(key[1:])] for key in keys])

    return scoring.Judge(lambda *_: 1 / 0, 1, 1, vectors)


def cut(monkeypatch, part, block):
    monkeypatch.setattr(streamed, "PART", part)
    monkeypatch.setattr(streamed, "BLOCK", block)
    monkeypatch.setattr(streamed, "QUERIES", block)
    monkeypatch.setattr(candidates, "PAIRS", 2 * block)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("part", "block"), [(1, 3), (7, 11), (1000, 1000)])
def test_ranks_are_those_of_all_products_however_the_gallery_is_cut(seed, whole, part, block, monkeypatch):
    group, made = problem(seed, whole)
    scores = (made["image"][:, None, :] * made["text"][None]).sum(axis=2)
    wanted = outcomes.ranked(group, scores, "recall")
    cut(monkeypatch, part, block)
    found = streamed.ranked(group, judge_of(made))
    rivals = ["rival", "rival_score"]
    assert found.drop_columns(rivals).to_pydict() == wanted.drop_columns(rivals).to_pydict()
    assert sum(map(sum, found["equal"].to_pylist())) > 0, "no tie, nothing shown"
    assert ranking.ranking(found) == ranking.ranking(wanted)


def test_one_vector_for_all_images_is_a_tie_of_all(monkeypatch):
    group, made = problem(0, whole=False)
    made["image"][:] = made["image"][0]
    cut(monkeypatch, 8, 16)
    found = streamed.ranked(group, judge_of(made))
    queries = found.filter([way == "t2i" for way in found["direction"].to_pylist()])
    wanted = [[23 - len(right)] * len(right) for right in queries["right"].to_pylist()]
    assert queries["equal"].to_pylist() == wanted
    assert {above for row in queries["above"].to_pylist() for above in row} == {0}


def test_a_large_group_is_evaluated_without_its_matrix(filled, tmp_path, monkeypatch):
    from compal.eval.sources import Sources

    sources = Sources()
    store = filled("shapes_retrieval", sources)
    plain = {row.label: row for row in evaluate("shapes_retrieval", sources, store, {}, tmp_path / "a")}
    monkeypatch.setattr(streamed, "MATRIX", 1000)
    monkeypatch.setattr(streamed, "CELLS", 7000)
    monkeypatch.setattr(scoring, "matrix", None)
    rows = {row.label: row for row in evaluate("shapes_retrieval", sources, store, {}, tmp_path / "b")}
    assert rows["cosine"].overall == plain["cosine"].overall
    assert rows["text-only"].overall == plain["text-only"].overall
    assert rows["random"].overall == plain["random"].overall
