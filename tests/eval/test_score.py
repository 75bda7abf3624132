"""Scoring from a real store: rows, references, chunks, what lacks, provenance, atomic saving."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from compal import registry
from compal.align.scorer import Dims, build_head
from compal.errors import (
    InputError,
    MissingFeatures,
    SpecMismatch,
    UnknownName,
    UsageError,
    VerificationError,
)
from compal.eval import results, scoring
from compal.eval.results import load_results
from compal.eval.score import Options, evaluate
from compal.eval.sources import Group, Sources, check

LABELS = ["chance", "random", "text-only", "cosine"]


def constant(images, captions, pairs):
    return np.zeros(len(pairs))


def head(store, name="cosine"):
    return build_head(name, {}, Dims.of(store.spec))


def by_label(rows):
    return {row.label: row for row in rows}


def similarities(row):
    return pq.read_table(Path(row.folder) / "rows.parquet")["similarities"].combine_chunks().flatten().to_numpy()


def test_sugarcrepe_table_has_every_reference_and_every_average(sugarcrepe, filled, tmp_path):
    sources = Sources(root=sugarcrepe)
    store = filled("sugarcrepe", sources)
    rows = evaluate("sugarcrepe", sources, store, {"constant": constant}, tmp_path / "scores")
    assert [row.label for row in rows] == [*LABELS, "constant"]
    assert [row.role for row in rows] == ["chance", "reference", "reference", "reference", "scorer"]
    found = by_label(rows)
    assert list(found["cosine"].overall.metrics) == [
        "accuracy",
        "accuracy (3-category)",
        "accuracy (7-subset)",
    ]
    assert {e.value for e in found["constant"].overall.metrics.values()} == {0.0}
    assert {e.value for e in found["chance"].overall.metrics.values()} == {50.0}
    assert (found["constant"].overall.n, found["constant"].overall.ties) == (20, 20)
    assert found["chance"].overall.ties is None
    assert {"replace", "swap", "add", "swap_obj"} <= set(found["cosine"].by_category)
    assert found["cosine"].by_category["replace"].n == 9


def test_averages_are_means_of_pools_and_of_subsets(sugarcrepe, filled, tmp_path):
    sources = Sources(root=sugarcrepe)
    row = by_label(evaluate("sugarcrepe", sources, filled("sugarcrepe", sources), {}, tmp_path))["random"]
    value = {name: summary.metrics["accuracy"].value for name, summary in row.by_category.items()}
    three = sum(value[name] for name in ("replace", "swap", "add")) / 3
    seven = sum(value[name] for name in registry.load("benchmarks", "sugarcrepe").SUBSETS) / 7
    overall = row.overall.metrics
    assert overall["accuracy (3-category)"].value == pytest.approx(three)
    assert overall["accuracy (7-subset)"].value == pytest.approx(seven)
    assert overall["accuracy (7-subset)"].low <= seven <= overall["accuracy (7-subset)"].high


def test_an_average_over_a_subset_that_is_not_there_is_undefined(sugarcrepe, filled, tmp_path):
    sources = Sources(root=sugarcrepe, split="swap_att")
    row = by_label(evaluate("sugarcrepe", sources, filled("sugarcrepe", sources), {}, tmp_path))["cosine"]
    assert row.overall.metrics["accuracy"].value is not None
    assert row.overall.metrics["accuracy (7-subset)"].value is None


def test_the_cosine_row_equals_the_cosine_head(bivlc, filled, tmp_path):
    sources = Sources(root=bivlc)
    store = filled("bivlc", sources)
    rows = by_label(evaluate("bivlc", sources, store, {"head": head(store)}, tmp_path))
    assert similarities(rows["cosine"]) == pytest.approx(similarities(rows["head"]), abs=1e-6)
    assert rows["cosine"].overall.n == 5
    assert list(rows["cosine"].overall.metrics) == ["i2t", "t2i", "group"]


def test_the_text_only_row_never_sees_an_image(bivlc, filled, tmp_path):
    sources = Sources(root=bivlc)
    row = by_label(evaluate("bivlc", sources, filled("bivlc", sources), {}, tmp_path))["text-only"]
    scores = similarities(row).reshape(-1, 2, 2)
    assert np.array_equal(scores[:, 0], scores[:, 1])
    assert {name: e.value for name, e in row.overall.metrics.items()} == {"i2t": 0, "t2i": 0, "group": 0}
    assert row.overall.ties == 5


@pytest.mark.parametrize("name", ["cosine", "maxsim"])
@pytest.mark.parametrize("at_once", [4, 7, 1000])
def test_chunks_change_nothing(sugarcrepe, filled, tmp_path, name, at_once):
    sources = Sources(root=sugarcrepe)
    store = filled("sugarcrepe", sources)
    groups = list(registry.load("benchmarks", "sugarcrepe").groups(sources))
    scorer = head(store, name)
    asked = scoring.judge(name, scorer, store, pairs_at_once=at_once)
    found = scoring.score_groups(groups, asked, name)
    slow = [
        scorer.score_pairs(score_batch(store, image, caption), torch.zeros((1, 2), dtype=torch.long)).item()
        for group in groups
        for image in group.images
        for caption in group.captions
    ]
    assert found == pytest.approx(np.array(slow, np.float32), abs=1e-6)


def score_batch(store, image, caption):
    from compal.align.batches import join

    return join(store, [image], [caption])


def retrieval(store, images=11, captions=17):
    chosen = sorted(store.keys("image"))[:images], sorted(store.keys("text"))[:captions]
    truth = tuple(tuple(c % images == i for c in range(captions)) for i in range(images))
    return Group("all", tuple(chosen[0]), tuple(chosen[1]), truth)


def test_a_large_group_is_scored_in_tiles(sugarcrepe, filled):
    store = filled("sugarcrepe", Sources(root=sugarcrepe))
    group = retrieval(store)
    scorer = head(store)
    whole = scoring.score_groups([group], scoring.judge("cosine", scorer, store), "cosine")
    tiles = scoring.score_groups([group], scoring.judge("x", _Tokens(scorer), store, pairs_at_once=9), "x")
    assert tiles == pytest.approx(whole, abs=1e-6)


class _Tokens:
    """A head that says it reads tokens, so that it is asked in small tiles."""

    needs = "tokens"

    def __init__(self, scorer):
        self.score_pairs = scorer.score_pairs


def test_retrieval_is_summarised_by_query(sugarcrepe, filled):
    store = filled("sugarcrepe", Sources(root=sugarcrepe))
    group = retrieval(store)
    truth = np.array(group.truth)
    perfect = truth.astype(np.float32).ravel()
    meta = {"metric": "recall", "ks": [1, 5], "pools": {}, "averages": {}, "seed": 0}
    overall, _ = results.summarise(results.table([group], perfect, "recall"), meta)
    assert {name: e.value for name, e in overall.metrics.items()} == dict.fromkeys(
        ("i2t_r@1", "i2t_r@5", "t2i_r@1", "t2i_r@5"), 100.0
    )
    assert (overall.n, overall.ties) == (28, 0)
    flat, _ = results.summarise(results.table([group], np.zeros_like(perfect), "recall"), meta)
    assert flat.metrics["i2t_r@1"].value == 0.0
    # 11 images are 11 clusters: the bound at 0 is that of 11 draws, not of 17 captions.
    assert flat.metrics["t2i_r@1"].high == pytest.approx(100 * (1 - 0.025 ** (1 / 11)))


def test_groups_that_share_an_image_are_one_cluster(bivlc, filled, tmp_path):
    sources = Sources(root=bivlc)
    row = by_label(evaluate("bivlc", sources, filled("bivlc", sources), {"0": constant}, tmp_path))["0"]
    # Five items, two of which share a photograph: four clusters.
    assert row.overall.metrics["group"].high == pytest.approx(100 * (1 - 0.025**0.25))


def test_random_scores_do_not_depend_on_the_store_or_the_order(bivlc, filled, tmp_path):
    sources = Sources(root=bivlc)
    one = by_label(evaluate("bivlc", sources, filled("bivlc", sources), {}, tmp_path / "a"))["random"]
    other_spec = dataclasses.replace(filled("bivlc", sources).spec, weights="seed-1")
    other = by_label(evaluate("bivlc", sources, filled("bivlc", sources, spec=other_spec), {}, tmp_path / "b"))
    assert Path(one.folder).name == Path(other["random"].folder).name
    assert Path(one.folder).name != Path(other["cosine"].folder).name
    assert np.array_equal(similarities(one), similarities(other["random"]))
    reseeded = by_label(evaluate("bivlc", sources, filled("bivlc", sources), {}, tmp_path / "c", seed=1))
    assert not np.array_equal(similarities(one), similarities(reseeded["random"]))


# --- what lacks -------------------------------------------------------------------------------------


def test_missing_features_are_counted_and_the_command_is_named(bivlc, filled, tmp_path):
    store = filled("bivlc", Sources(root=bivlc, split="swap"))
    with pytest.raises(MissingFeatures) as raised:
        evaluate("bivlc", Sources(root=bivlc), store, {}, tmp_path / "scores")
    text = str(raised.value)
    assert "lacks 5 of 9 images and 6 of 10 captions of benchmark 'bivlc'" in text
    assert "`compal extract --backbone random:8 --benchmark bivlc`" in text
    assert "`compal eval bivlc --extract`" in text
    assert not (tmp_path / "scores").exists()


def test_unreadable_images_are_named_and_left_out_only_when_told(bivlc, filled, tmp_path):
    module = registry.load("benchmarks", "bivlc")
    bad = next(group for group in module.groups(Sources(root=bivlc)) if group.id == "3").images[1]
    store = filled("bivlc", Sources(root=bivlc), without={bad})
    with pytest.raises(MissingFeatures, match=r"1 could not be read .*truncated file.*--allow-missing"):
        evaluate("bivlc", Sources(root=bivlc), store, {}, tmp_path / "scores")
    sources = Sources(root=bivlc, allow_missing=True)
    row = evaluate("bivlc", sources, store, {}, tmp_path / "scores")[1]
    assert row.overall.n == 4
    assert list(sources.excluded) == list(row.meta["excluded"]) == ["3"]


def test_what_is_wrong_is_said_in_one_line(bivlc, filled, tmp_path):
    sources = Sources(root=bivlc)
    store = filled("bivlc", sources)
    out = tmp_path / "scores"
    with pytest.raises(UnknownName, match="Did you mean 'bivlc'"):
        evaluate("bivcl", sources, store, {}, out)
    with pytest.raises(InputError, match=r"scorer 'bad' gave NaN for 20 pairs \(first: group '0'"):
        evaluate("bivlc", sources, store, {"bad": lambda i, c, p: np.full(len(p), np.nan)}, out)
    with pytest.raises(InputError, match="gave"):
        evaluate("bivlc", sources, store, {"short": lambda i, c, p: np.zeros(1)}, out)
    with pytest.raises(UsageError, match="neither a head nor a function"):
        evaluate("bivlc", sources, store, {"3": 3}, out)
    with pytest.raises(UnknownName, match="reference row"):
        evaluate("bivlc", sources, store, {}, out, options=Options(references=("blind",)))
    pooled = dataclasses.replace(store.spec, level="pooled", image_shape=(0, 0), image_grid=(0, 0), text_dim=0)
    with pytest.raises(SpecMismatch, match="reads tokens"):
        evaluate("bivlc", sources, filled("bivlc", sources, spec=pooled), {"m": head(store, "maxsim")}, out)
    assert len(evaluate("bivlc", sources, filled("bivlc", sources, spec=pooled), {}, out)) == 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda g: [g, g], "two groups have the id"),
        (lambda g: [dataclasses.replace(g, truth=((True, False),))], "truth is not 2 images × 2 captions"),
        (lambda g: [dataclasses.replace(g, truth=((False, True), (True, False)))], "is not two images ×"),
        (lambda g: [], "no groups to score"),
    ],
)
def test_groups_that_do_not_fit_their_metric_are_errors(bivlc, change, match):
    group = next(iter(registry.load("benchmarks", "bivlc").groups(Sources(root=bivlc))))
    with pytest.raises(InputError, match=match):
        check(change(group), "quads")


# --- saving -----------------------------------------------------------------------------------------


def test_saved_rows_give_the_same_table_and_tell_where_they_come_from(sugarcrepe, filled, tmp_path):
    sources = Sources(root=sugarcrepe)
    store = filled("sugarcrepe", sources)
    scorer = build_head("linear", {}, Dims.of(store.spec))
    told = {"linear": {"run": "linear-0001"}}
    options = Options(command="compal eval sugarcrepe", provenance=told)
    rows = evaluate("sugarcrepe", sources, store, {"linear": scorer}, tmp_path / "scores", options=options)
    again = load_results(tmp_path / "scores")
    key = {row.label: row for row in again}
    for row in rows:
        assert key[row.label] == row
    meta = key["linear"].meta
    assert meta["command"] == "compal eval sugarcrepe"
    assert meta["scorer"]["run"] == "linear-0001"
    assert len(meta["scorer"]["weights"]) == 64
    assert meta["store"]["fingerprint"] == store.spec.fingerprint
    assert {"python", "numpy", "pyarrow"} <= set(meta["versions"])
    table = pq.read_table(Path(key["linear"].folder) / "rows.parquet")
    expected = ("id", "category", "source", "images", "captions", "truth", "similarities", "accuracy", "tie", "twin")
    assert table.column_names == list(expected)
    assert 100 * np.mean(table["accuracy"]) == pytest.approx(key["linear"].overall.metrics["accuracy"].value)


def test_scoring_again_replaces_and_other_weights_are_another_folder(bivlc, filled, tmp_path):
    sources, out = Sources(root=bivlc), tmp_path / "scores"
    store = filled("bivlc", sources)
    scorer = build_head("linear", {}, Dims.of(store.spec))
    first = by_label(evaluate("bivlc", sources, store, {"linear": scorer}, out))["linear"]
    second = by_label(evaluate("bivlc", sources, store, {"linear": scorer}, out))["linear"]
    assert first.folder == second.folder
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter += torch.randn_like(parameter)
    third = by_label(evaluate("bivlc", sources, store, {"linear": scorer}, out))["linear"]
    assert third.folder != first.folder
    assert [row.folder for row in load_results(out) if row.label == "linear"] == [third.folder]
    assert len([row for row in load_results(out, newest=False) if row.label == "linear"]) == 2


def test_a_training_head_is_scored_in_eval_mode_and_left_as_it_was(bivlc, filled, tmp_path):
    sources = Sources(root=bivlc)
    store = filled("bivlc", sources)
    scorer = head(store)
    modes = []
    original = scorer.score_pairs
    scorer.score_pairs = lambda batch, pairs: (modes.append(scorer.training), original(batch, pairs))[1]
    scorer.train()
    evaluate("bivlc", sources, store, {"head": scorer}, tmp_path)
    assert scorer.training
    assert modes == [False] * len(modes)


def test_altered_truncated_and_half_written_rows_are_not_taken_for_whole(bivlc, filled, tmp_path):
    sources, out = Sources(root=bivlc), tmp_path / "scores"
    rows = evaluate("bivlc", sources, filled("bivlc", sources), {}, out)
    (out / "bivlc" / ".cosine-abc.1").mkdir()
    (out / "bivlc" / ".cosine-abc.1" / "scores.json").write_text("{")
    assert len(load_results(out)) == 4
    folder = Path(rows[1].folder)
    data = (folder / "rows.parquet").read_bytes()
    (folder / "rows.parquet").write_bytes(data[:-1])
    with pytest.raises(VerificationError, match="is not what was written"):
        load_results(out)
    (folder / "rows.parquet").write_bytes(data)
    meta = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        load_results(out)
    (folder / "scores.json").write_text("{")
    with pytest.raises(InputError, match="no readable scores"):
        load_results(out)
    with pytest.raises(InputError, match="no scores in"):
        load_results(tmp_path / "nothing")


def test_a_disk_that_takes_nothing_is_one_line_and_leaves_nothing(bivlc, filled, tmp_path, monkeypatch):
    sources, out = Sources(root=bivlc), tmp_path / "scores"
    store = filled("bivlc", sources)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.pq, "write_table", full)
    with pytest.raises(InputError, match=r"cannot be written to .*No space left on device"):
        evaluate("bivlc", sources, store, {}, out)
    assert list((out / "bivlc").iterdir()) == []


def test_progress_is_told(bivlc, filled, tmp_path):
    sources = Sources(root=bivlc)
    seen = []
    options = Options(references=("random",), progress=lambda *told: seen.append(told))
    evaluate("bivlc", sources, filled("bivlc", sources), {}, tmp_path, options=options)
    assert seen[-1] == ("random", 5, 5)


def test_what_is_left_out_of_one_split_is_not_told_of_another(sugarcrepe, filled, tmp_path):
    (sugarcrepe / "val2017" / "000000301867.jpg").unlink()
    sources = Sources(root=sugarcrepe, allow_missing=True, split="add_obj")
    store = filled("sugarcrepe", dataclasses.replace(sources, split=None))
    one = evaluate("sugarcrepe", sources, store, {}, tmp_path)[1]
    other = evaluate("sugarcrepe", dataclasses.replace(sources, split="swap_obj"), store, {}, tmp_path)[1]
    assert list(one.meta["excluded"]) == ["add_obj/1"]
    assert other.meta["excluded"] == {}
