"""Paired comparisons: p by hand and by enumeration, intervals against a slow loop, Holm, seeds, doubts."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
from scipy.stats import binomtest

from compal.errors import InputError, UnknownName, UsageError
from compal.eval import compare, outcomes, report, results, seeds
from compal.eval.doubts import doubts, ties_told, told
from compal.eval.provenance import recipe_of
from compal.eval.results import load_results
from compal.eval.sources import Group

FACTS = {
    "benchmark": "b", "split": "", "metric": "pairs", "ks": [], "pools": {}, "averages": {}, "seed": 0, "sample": "s",
    "chance": {"accuracy": 50.0}, "title": "B", "groups": 60, "written": "1", "order": 0, "tie_rule": "lose",
    "headline": ["accuracy"], "store": {"backbone": "clip", "fingerprint": "f" * 64, "manifest": 3},
}  # fmt: skip


def save(folder, label, hits, images=None, **more):
    """A row of pairs whose items are hit as told; `images` names the photograph of each."""
    images = images or [f"i{n}" for n in range(len(hits))]
    groups = [Group(str(n), (images[n],), (f"r{n}", f"w{n}"), ((True, False),), "xy"[n % 2]) for n in range(len(hits))]
    right = np.asarray(hits, np.float32)
    values = np.stack([right, np.where(right == 0.5, 0.5, 1 - right)], axis=1).ravel()
    meta = FACTS | {"label": label, "role": "scorer", "scorer": {}} | more
    return results.save(folder / label, outcomes.table(groups, values.astype("f4"), "pairs"), meta)


def drawn(p: float, seed: int, n: int = 60) -> list[int]:
    return (np.random.default_rng(seed).random(n) < p).astype(int).tolist()


def test_mcnemar_is_the_tosses_of_what_only_one_answers():
    assert compare.mcnemar(0, 0) == 1.0
    assert compare.mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert compare.mcnemar(9, 1) == compare.mcnemar(1, 9)


def test_holm_by_hand():
    assert compare.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert compare.holm([0.9, 0.5]) == [1.0, 1.0]
    assert compare.holm([]) == []


def test_swaps_within_photographs_equal_their_enumeration():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(8), 4)
    change = rng.choice([-1.0, 0.0, 0.0, 1.0, 1.0], 32)
    sums = np.bincount(cluster, change)
    exact = np.mean([abs(np.dot(signs, sums)) >= abs(sums.sum()) for signs in itertools.product((-1, 1), repeat=8)])
    # 20,000 swaps: four standard errors are at most 0.014.
    assert compare.swapped(change, cluster) == pytest.approx(exact, abs=0.014)


def test_without_shared_photographs_swaps_are_mcnemar():
    change = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 20)
    assert compare.swapped(change, np.arange(31)) == pytest.approx(float(binomtest(2, 11).pvalue))


def test_shared_luck_makes_mcnemar_too_sure_and_the_test_by_image_not():
    """Null: per photograph one of two rows is better on all of its five captions. McNemar's test rejects far more often
    than 5 %, the test by image does not (200 samples; 5 % has a standard error of 1.5 points)."""
    rng = np.random.default_rng(3)
    naive, fair = [], []
    for trial in range(200):
        cluster = np.repeat(np.arange(30), 5)
        change = rng.choice([-1.0, 1.0], 30)[cluster] * (rng.random(150) < 0.5)
        naive.append(compare.mcnemar(int((change > 0).sum()), int((change < 0).sum())) < 0.05)
        fair.append(compare.swapped(change, cluster, trial, swaps=400) < 0.05)
    assert np.mean(naive) > 0.15
    assert np.mean(fair) < 0.1


def test_the_difference_is_paired_and_by_image():
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(12), 3)
    one, two = rng.random(36) < 0.5, rng.random(36) < 0.6
    change = two.astype(float) - one
    found = compare.difference(change, cluster, seed=4)
    draws = np.random.default_rng(4).integers(0, 12, (2000, 12))
    slow = [np.concatenate([change[cluster == c] for c in row]).mean() for row in draws]
    assert (found.low, found.high) == pytest.approx(tuple(100 * np.quantile(slow, [0.025, 0.975])))
    nothing = compare.difference(np.zeros(36), cluster)
    assert nothing.value == 0.0
    assert nothing.high == pytest.approx(100 * (1 - 0.025 ** (1 / 12)))


def test_methods_are_compared_with_their_seeds_averaged_item_by_item(tmp_path):
    rng = np.random.default_rng(2)
    images = [f"i{n // 3}" for n in range(60)]
    hits = {
        f"{name}-s{seed}": (rng.random(60) < p).astype(int)
        for name, p in (("a", 0.4), ("b", 0.7))
        for seed in (0, 1, 2)
    }
    rows = {name: results.row_of(save(tmp_path, name, each.tolist(), images)) for name, each in hits.items()}
    a, b = ([row for name, row in rows.items() if name.startswith(who)] for who in "ab")
    found = compare.between(a, b, "accuracy", seed=3)
    change = np.mean([hits[f"b-s{n}"] for n in range(3)], axis=0) - np.mean([hits[f"a-s{n}"] for n in range(3)], axis=0)
    assert found.value == pytest.approx(100 * change.mean())
    # In the order of their names, as items are paired: "0", "1", "10", …
    order = np.argsort(np.array([str(n) for n in range(60)]), kind="stable")
    numbers: dict[str, int] = {}
    cluster = np.array([numbers.setdefault(images[n], len(numbers)) for n in order])
    assert found == compare.difference(change[order], cluster, seed=3)
    assert compare.between(a, a, "accuracy").value == 0.0
    other = results.row_of(save(tmp_path, "c", hits["a-s0"].tolist()[:30], images[:30], sample="t"))
    with pytest.raises(InputError, match="other items"):
        compare.between(a, [other], "accuracy")


def test_rows_are_compared_in_every_format(tmp_path):
    save(tmp_path, "cosine", drawn(0.5, 0))
    save(tmp_path, "tflocal", drawn(0.9, 1))
    save(tmp_path, "linear", drawn(0.5, 2))
    rows = load_results(tmp_path)
    found = {one.other: one for one in compare.compare(rows, "cosine")}
    better = found["tflocal"]
    values = {row.label: row.overall.metrics["accuracy"].value for row in rows}
    assert better.difference.value == pytest.approx(values["tflocal"] - values["cosine"])
    assert better.gained - better.lost == pytest.approx(60 * better.difference.value / 100)
    assert better.holm == pytest.approx(2 * better.by_image)
    assert better.holm < 0.01 < found["linear"].holm
    listed = list(found.values())
    assert "against cosine" in report.compared(listed)
    assert json.loads(report.compared(listed, "json"))["comparisons"][0]["first"] == "cosine"
    line = next(csv.DictReader(io.StringIO(report.compared([better], "csv"))))
    assert (line["other"], float(line["p_holm"])) == ("tflocal", better.holm)
    assert r"\toprule" in report.compared(listed, "latex")
    with pytest.raises(UnknownName, match="Did you mean 'cosine'"):
        compare.compare(rows, "cosin")
    with pytest.raises(UnknownName, match="accuracy"):
        compare.compare(rows, "cosine", metric="acuracy")
    with pytest.raises(UsageError, match="no row stands beside"):
        compare.compare([row for row in rows if row.label == "cosine"], "cosine")


def test_rows_on_other_groups_are_never_paired(tmp_path):
    save(tmp_path, "cosine", drawn(0.5, 0))
    save(tmp_path, "tflocal", drawn(0.9, 1), sample="t")
    with pytest.raises(UsageError, match="no row stands beside"):
        compare.compare(load_results(tmp_path), "cosine")


# --- seeds --------------------------------------------------------------------------------------------


def test_seeds_of_one_recipe_are_one_row_with_their_spread(tmp_path):
    hits = [drawn(0.7, seed) for seed in range(3)]
    for seed, one in enumerate(hits):
        save(tmp_path, f"tflocal-s{seed}", one, scorer={"recipe": "r", "seed": seed})
    save(tmp_path, "linear-s0", drawn(0.5, 9), scorer={"recipe": "other", "seed": 0})
    rows = {row.label: row for row in seeds.aggregate(load_results(tmp_path))}
    assert set(rows) == {"chance", "tflocal (3 seeds)", "linear-s0"}
    found = rows["tflocal (3 seeds)"].overall.metrics["accuracy"]
    means = [100 * np.mean(one) for one in hits]
    assert found.value == pytest.approx(np.mean(means))
    assert found.sd == pytest.approx(np.std(means, ddof=1))
    draws = np.random.default_rng(0).integers(0, 60, (2000, 60))
    mean = np.mean(hits, axis=0)
    assert (found.low, found.high) == pytest.approx(tuple(100 * np.quantile(mean[draws].mean(axis=1), [0.025, 0.975])))
    text = report.render(list(rows.values()), "md")
    assert f"{found.value:.1f} ± {found.sd:.1f} [{found.low:.1f}, {found.high:.1f}]" in text
    assert "standard deviation over seeds" in text
    assert r" $\pm$ " in report.render(list(rows.values()), "latex")


def test_a_run_of_before_an_option_is_a_seed_of_the_same_recipe(tmp_path):
    """What stands in its file at the default is not there at all in an older one."""
    texts = {
        "old": 'seed = 1\n[head]\nname = "linear"\n[optim]\nlr = 0.01\n',
        "new": 'seed = 2\ncompile = false\n[head]\nname = "linear"\nbias = false\n[optim]\nlr = 0.01\nchunk = 0\n',
        "other": 'seed = 1\n[head]\nname = "linear"\nbias = true\n[optim]\nlr = 0.01\n',
        "taught": 'seed = 3\n[head]\nname = "linear"\n[loss]\nname = "degla"\n[ema]\ndecay = 0.99\n',
        "slower": 'seed = 4\n[head]\nname = "linear"\n[loss]\nname = "degla"\n[ema]\ndecay = 0.999\n',
        "gone": 'seed = 1\n[head]\nname = "linear"\nsmell = true\n',
    }
    found = {}
    for name, text in texts.items():
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.toml").write_text(text)
        found[name] = recipe_of(tmp_path / name / "checkpoints" / "best.safetensors")
    assert [found[name].get("seed") for name in texts] == [1, 2, 1, 3, 4, None]
    assert found["taught"]["recipe"] != found["slower"]["recipe"]
    assert found["old"]["recipe"] == found["new"]["recipe"] != found["other"]["recipe"]
    assert recipe_of(tmp_path / "old" / "best.safetensors") == {}


# --- doubts and ties ----------------------------------------------------------------------------------


def loaded(tmp_path, hits, label="model", **more):
    save(tmp_path, label, hits, **more)
    return next(row for row in load_results(tmp_path) if row.label == label)


def test_below_chance_is_said_with_its_cause(tmp_path):
    swapped = loaded(tmp_path / "a", [0] * 55 + [1] * 5)
    assert "right and wrong captions swapped" in doubts(swapped)[0].cause
    tied = loaded(tmp_path / "b", [0.5] * 50 + [1] * 10)
    assert "50 of 60 items are ties" in doubts(tied)[0].cause
    assert "with ties broken by tossing 58.3" in doubts(tied)[0].cause
    worse = loaded(tmp_path / "c", [0] * 42 + [1] * 18)
    assert "QuickGELU" in doubts(worse)[0].cause
    assert doubts(loaded(tmp_path / "d", drawn(0.5, 5))) == []
    assert "Doubt: model (clip): accuracy 16.7 lies below chance (50.0) beyond its interval: " in report.render(
        [tied], "md"
    )
    again = dataclasses.replace(worse, label="twin")
    assert told([worse, again])[0].startswith(
        "model (clip): accuracy 30.0, twin (clip): accuracy 30.0 lie below chance"
    )
    assert len(told([worse, again, tied])) == 2


def test_quadruplets_that_are_not_told_apart_are_no_swapped_captions(tmp_path):
    """One caption for both images: half of all comparisons are right, and no group is."""
    groups = [Group(str(n), (f"i{n}", f"j{n}"), (f"c{n}", f"d{n}"), ((True, False), (False, True))) for n in range(60)]
    values = np.tile(np.array([[0.9, 0.1], [0.8, 0.2]], "f4"), (60, 1, 1)).ravel()
    facts = FACTS | {"metric": "quads", "chance": {"group": 100 / 6}, "headline": ["group"], "label": "model"}
    folder = results.save(
        tmp_path / "model", outcomes.table(groups, values, "quads"), facts | {"role": "scorer", "scorer": {}}
    )
    assert "one caption is preferred for both images" in doubts(results.row_of(folder))[0].cause


def test_what_a_tokenizer_makes_equal_is_the_cause_that_is_named(tmp_path):
    cut = loaded(tmp_path, [0.5] * 50 + [1] * 10, twins={"items": 50, "cut": 50, "context": 16})
    table = results.read(tmp_path / "model")[0].append_column("twin", [[True] * 50 + [False] * 10])
    results.save(tmp_path / "model", table, cut.meta)
    row = results.row_of(tmp_path / "model")
    assert row.overall.twins == 50
    assert "50 are cut at its context of 16 tokens" in doubts(row)[0].cause
    assert "50 of them between candidates that the encoder cannot tell apart" in ties_told(row)


def test_ties_are_told_under_every_rule_and_a_table_can_be_counted_under_another(tmp_path):
    row = loaded(tmp_path, [0.5] * 12 + [1] * 48, tie_rule="win")
    assert row.overall.if_tied == {"half": {"accuracy": pytest.approx(90.0)}, "win": {"accuracy": 100.0}}
    text = report.render([row], "md")
    assert "Ties of model: 12; accuracy lose 80.0, half 90.0, win 100.0" in text
    assert "--ties win" in text
    won = load_results(tmp_path, rule="win")
    assert won[1].overall.metrics["accuracy"].value == 100.0
    assert "a tie is a hit" in report.render(won, "md")


def test_every_cell_can_be_traced(tmp_path):
    row = loaded(tmp_path, drawn(0.5, 5), commit="c" * 40, command="compal eval b", revision="r1")
    told = report.source_of(row)
    assert told["store"] == "f" * 16
    assert (told["commit"], told["command"], told["revision"]) == ("c" * 40, "compal eval b", "r1")
    assert "% model · clip: folder " in report.render([row], "latex")
    assert "<!-- model · clip: folder " in report.render([row], "md")
    assert json.loads(report.render([row], "json"))["results"][1]["source"] == told
    line = list(csv.DictReader(io.StringIO(report.render([row], "csv"))))[-1]
    assert (line["commit"], line["store"]) == ("c" * 40, "f" * 16)
