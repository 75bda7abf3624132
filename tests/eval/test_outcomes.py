"""Saved rows and what they are worth: queries against slow ranks, classes, sets, twins, chance, the former format."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compal.align.scorer import Dims, build_head
from compal.errors import InputError
from compal.eval import audit, chance, compare, intervals, metrics, outcomes, results, scoring
from compal.eval.references import cosine, random_scores, text_only
from compal.eval.sources import Group, Matches, Sources, check
from compal.eval.summary import summarise

PAIR = ((True, False),)


def meta(metric: str, **more) -> dict:
    return {"metric": metric, "ks": [1, 2], "pools": {}, "averages": {}, "seed": 0, **more}


def drawn_group(seed: int, metric: str = "recall", images: int = 7, captions: int = 9) -> tuple[Group, np.ndarray]:
    """Few distinct scores, so that there are ties; some images with several captions, some with none."""
    rng = np.random.default_rng(seed)
    truth = rng.random((images, captions)) < 0.2
    truth[1] = False
    scores = rng.integers(0, 4, truth.shape).astype(np.float32)
    rows = tuple(tuple(np.flatnonzero(row).tolist()) for row in truth)
    names = [f"i{n}" for n in range(images)], [f"c{n}" for n in range(captions)]
    classes = tuple(range(captions)) if metric == "classification" else ()
    return Group("all", tuple(names[0]), tuple(names[1]), Matches(rows, captions), classes=classes), scores


@pytest.mark.parametrize("seed", range(6))
def test_queries_give_what_the_matrix_gives(seed):
    group, scores = drawn_group(seed)
    found, _ = summarise(outcomes.table([group], scores.ravel(), "recall"), meta("recall"))
    expected = metrics.recall(scores, group.right(), ks=(1, 2))
    assert {name: estimate.value for name, estimate in found.metrics.items()} == pytest.approx(
        {name: value for name, value in expected.items() if "@" in name}
    )
    assert (found.n, found.ties) == (expected["n"] + expected["n_captions"], expected["ties"])


@pytest.mark.parametrize("seed", range(6))
def test_classes_give_what_the_matrix_gives(seed):
    group, scores = drawn_group(seed, "classification")
    check([group], "classification")
    found, _ = summarise(outcomes.table([group], scores.ravel(), "classification"), meta("classification"))
    expected = metrics.classification(scores, group.right(), ks=(1, 2))
    assert {name: estimate.value for name, estimate in found.metrics.items()} == pytest.approx(
        {name: expected[name] for name in ("top1", "top2", "mean_per_class")}
    )
    assert (found.n, found.ties) == (expected["n"], expected["ties"])


def test_the_rows_of_queries_name_the_best_wrong_candidate():
    scores = np.array([[0.5, 0.9, 0.1], [0.2, 0.3, 0.4]], np.float32)
    group = Group("g", ("i0", "i1"), ("c0", "c1", "c2"), Matches(((0, 1), (2,)), 3))
    rows = outcomes.ranked(group, scores, "recall").to_pylist()
    assert [(row["query"], row["direction"], row["rival"]) for row in rows] == [
        ("i0", "i2t", "c2"), ("i1", "i2t", "c1"), ("c0", "t2i", "i1"), ("c1", "t2i", "i1"), ("c2", "t2i", "i0"),
    ]  # fmt: skip
    assert rows[0]["right"] == ["c0", "c1"]
    assert rows[0]["above"] == rows[0]["equal"] == [0, 0]
    assert [row["image"] for row in rows] == ["i0", "i1", "i0", "i0", "i1"]


def test_columns_are_turned_in_blocks_without_a_difference(monkeypatch):
    group, scores = drawn_group(3)
    whole = outcomes.ranked(group, scores, "recall")
    monkeypatch.setattr(outcomes, "COLUMNS", 2)
    assert outcomes.ranked(group, scores, "recall").equals(whole)


def test_rules_of_ties_order_as_they_must_and_half_lies_between():
    group, scores = drawn_group(1)
    table = outcomes.table([group], scores.ravel(), "recall")
    lose, half, win = (summarise(table, meta("recall"), rule)[0] for rule in ("lose", "half", "win"))
    for name in lose.metrics:
        assert lose.metrics[name].value <= half.metrics[name].value <= win.metrics[name].value
    assert lose.if_tied["win"]["i2t_r@1"] == win.metrics["i2t_r@1"].value
    assert lose.if_tied["half"]["t2i_r@1"] == pytest.approx(half.metrics["t2i_r@1"].value)


def test_a_score_among_several_wrong_ones_has_recall_at_k():
    groups = [Group(str(n), (f"i{n}",), ("a", "b", "c"), ((True, False, False),)) for n in range(3)]
    values = np.array([3, 2, 1, 2, 3, 1, 1, 2, 3], np.float32)
    found, _ = summarise(outcomes.table(groups, values, "pairs"), meta("pairs", pair_ks=[1, 2]))
    assert found.metrics["accuracy"].value == pytest.approx(100 / 3)
    assert found.metrics["r@2"].value == pytest.approx(200 / 3)


def test_one_caption_and_several_images_are_pairs_too():
    group = Group("g", ("i0", "i1", "i2"), ("c",), ((True,), (False,), (False,)))
    found, _ = summarise(outcomes.table(check([group], "pairs"), np.array([2, 1, 0], "f4"), "pairs"), meta("pairs"))
    assert found.metrics["accuracy"].value == 100.0
    with pytest.raises(InputError, match="one caption × "):
        check([dataclasses.replace(group, truth=((False,), (True,), (False,)))], "pairs")


def test_sets_are_hit_where_all_their_items_are():
    sets = [(("pair", "x"), ("four", "q")), (("pair", "x"), ("four", "q")), (("pair", "y"), ("four", "q"))]
    groups = [Group(str(n), (f"i{n}",), ("a", "b"), PAIR, "t", sets=one) for n, one in enumerate(sets)]
    values = np.array([1, 0, 1, 0, 0, 1], np.float32)
    found, by_category = summarise(outcomes.table(groups, values, "pairs"), meta("pairs"))
    assert [found.metrics[name].value for name in ("accuracy", "pair", "four")] == [pytest.approx(200 / 3), 50.0, 0.0]
    assert found.n == 3
    assert by_category["t"].metrics["pair"].value == 50.0


# --- classes from prompts -----------------------------------------------------------------------------


def prompts(store, classes=(0, 0, 1, 1, 1, 2)) -> Group:
    images, captions = sorted(store.keys("image"))[:5], sorted(store.keys("text"))[: len(classes)]
    truth = Matches(tuple((number % 3,) for number in range(5)), 3)
    return Group("set", tuple(images), tuple(captions), truth, classes=tuple(classes))


def test_a_class_is_the_mean_of_its_prompts_each_as_long_as_the_next(sugarcrepe, filled):
    store = filled("sugarcrepe", Sources(root=sugarcrepe))
    group = prompts(store)
    image, text = (store.pooled(kind, list(keys)).astype("f8") for kind, keys in
                   (("image", group.images), ("text", group.captions)))  # fmt: skip
    image, text = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text))
    means = np.stack([text[[p for p, c in enumerate(group.classes) if c == k]].mean(axis=0) for k in range(3)])
    slow = image @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    for scorer in (cosine(store), build_head("cosine", {}, Dims.of(store.spec))):
        found = scoring.score_groups([group], scoring.judge("x", scorer, store), "x").reshape(5, 3)
        assert found == pytest.approx(slow, abs=1e-6)
    # The image is not looked at: every row is one.
    blind = scoring.score_groups([group], scoring.judge("x", text_only(store, group.captions), store), "x")
    assert len(np.unique(blind.reshape(5, 3), axis=0)) == 1


def test_a_head_of_pairs_gives_a_class_the_mean_of_its_prompts_scores(sugarcrepe, filled):
    store = filled("sugarcrepe", Sources(root=sugarcrepe))
    group = prompts(store, (0, 1, 0, 2, 1, 0))
    head = build_head("maxsim", {}, Dims.of(store.spec))
    found = scoring.score_groups([group], scoring.judge("x", head, store, pairs_at_once=7), "x").reshape(5, 3)
    flat = Group("flat", group.images, group.captions, Matches(((0,),) * 5, 6))
    each = scoring.score_groups([flat], scoring.judge("x", head, store), "x").reshape(5, 6)
    slow = np.stack([each[:, [p for p, c in enumerate(group.classes) if c == k]].mean(axis=1) for k in range(3)], 1)
    assert found == pytest.approx(slow, abs=1e-6)


def test_a_matrix_of_random_scores_is_what_its_pairs_are():
    images, captions = [f"i{n}" for n in range(4)], [f"c{n}" for n in range(5)]
    pairs = np.array(list(itertools.product(range(4), range(5))))
    scorer = random_scores(3)
    assert np.array_equal(scorer.block(images, captions).ravel(), scorer(images, captions, pairs))


def test_equal_vectors_score_the_same_wherever_they_stand():
    vectors = np.random.default_rng(0).normal(size=(40, 24)).astype("f4")
    vectors[[7, 21, 38]] = vectors[3]
    asked = scoring.Judge(lambda *_: None, 1, 8, lambda kind, keys: vectors[: len(keys)])
    group = Group("g", tuple(map(str, range(40))), tuple(map(str, range(40))), Matches(((0,),) * 40, 40))
    found = scoring.score_groups([group], asked, "x").reshape(40, 40)
    assert (found[:, [7, 21, 38]] == found[:, [3]]).all()
    assert (found[[7, 21, 38]] == found[3]).all()


# --- intervals, chance --------------------------------------------------------------------------------


def test_the_bootstrap_over_classes_equals_a_slow_loop():
    rng = np.random.default_rng(2)
    cluster, labels = rng.integers(0, 6, 30), rng.integers(0, 4, 30)
    cluster[:6], labels[:4], credit = np.arange(6), np.arange(4), rng.random(30)
    found = intervals.bootstrap_classes(cluster, labels, credit, seed=5, resamples=40)
    slow = []
    for draw in np.random.default_rng(5).integers(0, 6, (40, 6)):
        items = np.concatenate([np.flatnonzero(cluster == one) for one in draw])
        slow.append(np.mean([credit[items][labels[items] == k].mean() for k in np.unique(labels[items])]))
    assert found == pytest.approx(slow)


@pytest.mark.parametrize("metric", ["recall", "classification"])
def test_chance_is_what_random_scores_give_on_the_same_groups(metric):
    group, _ = drawn_group(4, metric)
    derived = chance.derived([group], metric, (1, 2))
    rng = np.random.default_rng(0)
    measure = {"recall": metrics.recall, "classification": metrics.classification}[metric]
    drawn = [measure(rng.random((7, 9)), group.right(), (1, 2)) for _ in range(4000)]
    for name, value in derived.items():
        # A mean over 4,000 draws; four standard errors of a percentage of at least 6 queries are under 1.5.
        assert np.mean([one[name] for one in drawn]) == pytest.approx(value, abs=1.5)


# --- twins --------------------------------------------------------------------------------------------


def test_captions_that_the_encoder_cannot_tell_apart_are_named_and_counted(bivlc, filled, tmp_path, monkeypatch):
    from compal.eval.score import evaluate

    sources = Sources(root=bivlc)
    store = filled("bivlc", sources)
    groups = list(__import__("compal").registry.load("benchmarks", "bivlc").groups(sources))
    one, other = groups[2].captions
    pooled = store.pooled

    def cut(kind, keys):
        return pooled(kind, [one if key == other else key for key in keys])

    assert not audit.twins(groups, store, "quads").any()
    monkeypatch.setattr(store, "pooled", cut)
    assert audit.twins(groups, store, "quads").tolist() == [False, False, True, False, False]
    rows = {row.label: row for row in evaluate("bivlc", sources, store, {}, tmp_path)}
    assert (rows["cosine"].overall.twins, rows["random"].overall.twins) == (1, None)
    assert rows["cosine"].overall.ties == 1
    told = rows["cosine"].meta["twins"]
    assert (told["items"], told["cut"]) == (1, 0)
    assert told["examples"] == [{"id": "2", "captions": ["A dog, number 2.", "A cat, number 2."]}]


# --- published answers --------------------------------------------------------------------------------


def published(name: str) -> list[dict[str, str]]:
    import csv
    import gzip

    with gzip.open(Path(__file__).parents[1] / "data" / name, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_sugarcrepes_published_rows_give_every_printed_average():
    """CLIP ViT-B/32 (BiVLC's repository), through rows, pools and averages as `compal report` reads them."""
    from compal import registry

    module, answers = registry.load("benchmarks", "sugarcrepe"), published("sugarcrepe_clip_vit_b_32.csv.gz")
    groups = [
        Group(str(n), (f"i{n}",), (f"r{n}", f"w{n}"), PAIR, f"{row['type']}_{row['subtype']}")
        for n, row in enumerate(answers)
    ]
    values = np.array([(float(row["correct"]), 1 - float(row["correct"])) for row in answers], "f4").ravel()
    facts = meta("pairs", pools=module.POOLS, averages=module.AVERAGES)
    found, by_category = summarise(outcomes.table(groups, values, "pairs"), facts)
    assert found.n == 7512
    assert round(found.metrics["accuracy"].value, 2) == 76.56
    assert round(found.metrics["accuracy (3-category)"].value, 2) == 73.04
    subsets = {"add_att": 68.79, "add_obj": 77.21, "replace_att": 80.08, "replace_obj": 90.92, "replace_rel": 69.20,
               "swap_att": 63.96, "swap_obj": 61.38}  # fmt: skip
    assert {name: round(by_category[name].metrics["accuracy"].value, 2) for name in subsets} == subsets


def test_bivlcs_published_rows_give_every_printed_figure_by_type():
    from compal import registry

    module, answers = registry.load("benchmarks", "bivlc"), published("bivlc_clip_vit_b_32.csv.gz")
    order = ("text_score_i0", "text_score_i1", "image_score_c0", "image_score_c1")
    matrices = {(a > b, d > c, a > c, d > b): (a, b, c, d) for a, b, c, d in itertools.permutations(range(4))}
    values = np.array([matrices[tuple(row[name] == "1" for name in order)] for row in answers], "f4").ravel()
    groups = [
        Group(str(n), (f"i{n}", f"j{n}"), (f"c{n}", f"d{n}"), ((True, False), (False, True)),
              f"{row['type']}_{row['subtype']}")
        for n, row in enumerate(answers)
    ]  # fmt: skip
    found, by_category = summarise(outcomes.table(groups, values, "quads"), meta("quads", pools=module.POOLS))
    printed = {
        "": (75.83, 52.40, 49.06), "replace": (82.09, 60.36, 57.27), "swap": (46.52, 16.16, 13.65),
        "add": (70.32, 44.63, 39.58),
    }  # fmt: skip
    for name, expected in printed.items():
        one = by_category[name] if name else found
        assert [round(one.metrics[metric].value, 2) for metric in ("i2t", "t2i", "group")] == list(expected)


# --- the format before --------------------------------------------------------------------------------


def test_matrices_that_format_1_kept_give_the_same_figures(tmp_path):
    group, scores = drawn_group(2)
    truth = group.right()
    row = {"id": ["all"], "category": [""], "source": [""], "images": [list(group.images)],
           "captions": [list(group.captions)], "truth": [truth.ravel().tolist()],
           "similarities": [scores.ravel().tolist()]}  # fmt: skip
    before = pa.table(row).cast(
        pa.schema([("id", pa.string()), ("category", pa.string()), ("source", pa.string()),
                   ("images", pa.list_(pa.string())), ("captions", pa.list_(pa.string())),
                   ("truth", pa.large_list(pa.bool_())), ("similarities", pa.large_list(pa.float32()))])
    )  # fmt: skip
    facts = meta(
        "recall", benchmark="b", split="", label="x", role="scorer", store=None, sample="s", chance={}, written=""
    )
    folder = results.save(tmp_path / "x", before, facts)
    path = Path(folder) / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    now = summarise(outcomes.table([group], scores.ravel(), "recall"), meta("recall"))
    assert results.row_of(folder).overall == now[0]
    assert pq.read_table(folder / "rows.parquet").num_rows == 1
    twin = dataclasses.replace(results.row_of(folder), label="y")
    paired = compare.compare([results.row_of(folder), twin], "x", "i2t_r@1")[0]
    assert paired.n == truth.any(axis=1).sum()
    assert paired.values[0] == pytest.approx(now[0].metrics["i2t_r@1"].value)
