"""The loop: learns, validates, stops, resumes exactly, refuses what it should."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compal.align import fit as fitting
from compal.align.batches import FeatureTable
from compal.align.checkpoint import load_scorer
from compal.align.fit import FitConfig, fit
from compal.align.pairs import PairTable
from compal.align.recipe import OptimConfig, load_recipe
from compal.align.runs import run_name
from compal.align.scorer import Dims, build_head
from compal.align.validate import Validation
from compal.config import apply_settings, from_dict, to_dict
from compal.errors import InputError, SpecMismatch, UnknownName, UsageError
from compal.stores.items import Pair
from compal.stores.pairs import write_pairs

from .conftest import image_keys, text_keys

TINY = {
    "head": {"name": "tflocal", "interaction": "cross", "width": 16, "layers": 1, "heads": 2, "ffn": 16},
    "loss": {"name": "infonce", "temperature": 1.0, "quad_weight": 1.0},
    "optim": {"steps": 8, "lr": 3e-3},
    "data": {"batch_size": 8, "partners": 1},
    "validation": {"every": 3},
    "log_every": 1,
}


def config(*settings):
    return from_dict(FitConfig, apply_settings(TINY, list(settings)))


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir):
    return [(line["step"], line["loss"], line["rate"]) for line in lines(run_dir) if "loss" in line]


def validations(run_dir):
    return [(line["step"], line["validation"]) for line in lines(run_dir) if "validation" in line]


class Killed(BaseException):
    """Not an `Exception`: as abrupt as Ctrl-C."""


def killed_at(step):
    def progress(seen):
        if seen.step == step:
            raise Killed

    return progress


def test_a_run_leaves_a_complete_folder(store, quad_table, tmp_path):
    seen = []
    result = fit(config(), store, quad_table, quad_table, tmp_path / "run", progress=seen.append)
    run = result.run_dir
    assert [one.step for one in seen] == list(range(1, 9))
    assert [step for step, _ in validations(run)] == [3, 6, 8]
    assert set(validations(run)[0][1]) == {"group", "i2t", "t2i"}
    assert (result.metric, result.steps, result.stopped) == ("group", 8, "steps")
    assert result.score == max(values["group"] for _, values in validations(run))
    assert {path.name for path in run.iterdir()} == {
        "config.toml", "provenance.json", "metrics.jsonl", "result.json", "checkpoints", "tensorboard",
    }  # fmt: skip
    saved = {path.name for path in (run / "checkpoints").iterdir()}
    assert saved == {"best.safetensors", "last.safetensors", "state.safetensors"}
    assert list((run / "tensorboard").iterdir())
    kept = from_dict(FitConfig, tomllib.loads((run / "config.toml").read_text()))
    assert kept == config().complete()
    assert kept.head["text_self_attention"] is True, "defaults are written out"
    facts = json.loads((run / "provenance.json").read_text())
    assert facts["features"]["fingerprint"] == store.spec.fingerprint
    assert facts["pairs"]["train"]["groups"] == 12
    assert {"command", "seed", "versions", "commit", "device", "parameters"} <= set(facts)
    assert json.loads((run / "result.json").read_text())["score"] == result.score


def test_the_same_run_again_is_the_same(store, quad_table, tmp_path):
    torch.manual_seed(1)
    fit(config(), store, quad_table, quad_table, tmp_path / "a")
    state = torch.get_rng_state()
    torch.rand(7)
    fit(config(), store, quad_table, quad_table, tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    torch.set_rng_state(state)
    fit(config("seed=1"), store, quad_table, quad_table, tmp_path / "c")
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


@pytest.mark.parametrize("head", ["cross", "joint"])
@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_resuming_changes_nothing(store, quad_table, tmp_path, head, step):
    """Killed after any step, between checkpoints too: same losses, same validations, same weights."""
    asked = config(f"head.interaction={head}")
    fit(asked, store, quad_table, quad_table, tmp_path / "whole")
    run = tmp_path / "killed"
    with pytest.raises(Killed):
        fit(asked, store, quad_table, quad_table, run, progress=killed_at(step))
    assert not (run / "result.json").exists()
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step":9')  # half a line, as a killed process leaves it
    result = fit(asked, store, quad_table, quad_table, run, resume=True)
    assert losses(run) == losses(tmp_path / "whole")
    assert validations(run) == validations(tmp_path / "whole")
    for name in ("best", "last"):
        file = f"checkpoints/{name}.safetensors"
        one, two = load_file(run / file), load_file(tmp_path / "whole" / file)
        assert all(torch.equal(one[key], two[key]) for key in one | two)
    assert result.steps == 8


def test_resuming_a_finished_run_is_its_result(store, quad_table, tmp_path):
    first = fit(config(), store, quad_table, quad_table, tmp_path)
    before = losses(tmp_path)
    again = fit(config(), store, quad_table, quad_table, tmp_path, resume=True)
    assert (again.score, again.best_step, again.steps) == (first.score, first.best_step, first.steps)
    assert losses(tmp_path) == before


def test_streaming_equals_resident(store, quad_table, tmp_path):
    resident = fit(config(), store, quad_table, quad_table, tmp_path / "a")
    streaming = fit(config("data.resident_gib=0"), store, quad_table, quad_table, tmp_path / "b")
    assert (resident.resident, streaming.resident) == (True, False)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_patience_ends_a_run(store, quad_table, tmp_path):
    asked = config("validation.patience=2", "validation.every=1", "optim.lr=0.0", "optim.steps=50")
    result = fit(asked, store, quad_table, quad_table, tmp_path)
    assert (result.stopped, result.steps, result.best_step) == ("patience", 3, 1)
    assert fit(asked, store, quad_table, quad_table, tmp_path, resume=True).steps == 3


@pytest.mark.parametrize("level", ["tokens", "regions"])
def test_a_run_learns_its_pairs(stores, quad_table, tmp_path, level):
    asked = config("optim.steps=80", "optim.lr=1e-2", "data.batch_size=24", "head.dropout=0.0")
    result = fit(asked, stores[level], quad_table, quad_table, tmp_path)
    assert result.score == 100
    scorer = load_scorer(result.checkpoint, stores[level].spec)
    table = PairTable.read(quad_table, stores[level])
    features = FeatureTable.loaded(stores[level], table.image_keys, table.caption_keys, "cpu", "tokens")
    assert Validation(table, features, 100).measure(scorer)["group"] == 100


@pytest.mark.parametrize(
    ("head", "level"),
    [
        ({"name": "linear"}, "pooled"),
        ({"name": "linear"}, "tokens"),
        ({"name": "tfglobal", "layers": 1}, "pooled"),
    ],
    ids=["linear-pooled", "linear-tokens", "tfglobal-pooled"],
)
def test_pooled_heads_fit_on_any_level(stores, plain_table, tmp_path, head, level):
    asked = from_dict(FitConfig, {**TINY, "head": head, "optim": {"steps": 2}})
    result = fit(asked, stores[level], plain_table, plain_table, tmp_path)
    assert result.metric == "pairs"
    assert result.steps == 2


def test_without_validation_the_last_is_the_best(store, quad_table, tmp_path):
    result = fit(config(), store, quad_table, None, tmp_path)
    assert (result.metric, result.score, result.best_step) == ("", None, 8)
    best, last = (load_file(tmp_path / f"checkpoints/{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[key], last[key]) for key in best | last)


def test_bfloat16_runs(store, quad_table, tmp_path):
    result = fit(config("precision=bf16-mixed"), store, quad_table, quad_table, tmp_path)
    assert {tensor.dtype for tensor in load_file(result.checkpoint).values()} == {torch.float32}


def test_a_folder_with_a_run_is_not_overwritten(store, stores, quad_table, tmp_path):
    fit(config(), store, quad_table, None, tmp_path)
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        fit(config(), store, quad_table, None, tmp_path)
    with pytest.raises(UsageError, match="configured otherwise: optim"):
        fit(config("optim.lr=1.0"), store, quad_table, None, tmp_path, resume=True)
    with pytest.raises(SpecMismatch, match="toy"):
        fit(config(), stores["regions"], quad_table, None, tmp_path, resume=True)


def test_wrong_requests_are_one_line(store, stores, quad_table, tmp_path):
    with pytest.raises(UsageError, match=r"'cosine' has nothing to fit.*--head cosine"):
        fit(from_dict(FitConfig, {"head": {"name": "cosine"}}), store, quad_table, None, tmp_path)
    with pytest.raises(InputError, match="--level tokens"):
        fit(config(), stores["pooled"], quad_table, None, tmp_path)
    with pytest.raises(UsageError, match="no device 'gpu'"):
        fit(config(), store, quad_table, None, tmp_path, device="gpu")
    with pytest.raises(InputError, match="no pairs"):
        fit(config(), store, tmp_path / "none.parquet", None, tmp_path)
    with pytest.raises(UsageError, match="at least 1"):
        fit(config("optim.steps=0"), store, quad_table, None, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is written before everything is checked"


def test_a_loss_that_explodes_stops_the_run(store, quad_table, tmp_path, monkeypatch):
    def exploding(self, batch):
        return self.scorer(batch)[batch.positives].sum() * 1e38 * 1e38

    monkeypatch.setattr(fitting.Training, "forward", exploding)
    with pytest.raises(InputError, match=r"at step 1 .*Lower optim\.lr"):
        fit(config(), store, quad_table, None, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_curriculum_reaches_the_run(store, quad_table, tmp_path):
    stages = 'data.curriculum=[{until=0.5, column="category", match=["colour"]}]'
    fit(config(stages), store, quad_table, None, tmp_path / "a")
    fit(config(), store, quad_table, None, tmp_path / "b")
    assert losses(tmp_path / "a")[0] != losses(tmp_path / "b")[0]


# --- schedule, names, recipes --------------------------------------------------------------------------


def test_one_cycle_is_pytorchs_on_the_way_up_and_ends_at_zero():
    optim = OptimConfig(steps=100, lr=1.0, warmup=0.25)
    rates = [optim.rate(step) for step in range(100)]
    assert rates[24] == max(rates) == 1.0
    assert rates[0] == pytest.approx(1 / 25, abs=0.01)
    assert rates[99] < 1e-3
    assert np.all(np.diff(rates[:25]) > 0)
    assert np.all(np.diff(rates[25:]) < 0)


def test_other_schedules():
    cosine = OptimConfig(steps=10, lr=2.0, warmup=0.2, schedule="cosine")
    assert [cosine.rate(step) for step in (0, 1, 2)] == [1.0, 2.0, 2.0]
    assert cosine.rate(6) == pytest.approx(1.0)
    constant = OptimConfig(steps=10, lr=2.0, warmup=0.0, schedule="constant")
    assert [constant.rate(step) for step in (0, 9)] == [2.0, 2.0]
    assert all(OptimConfig(steps=3, warmup=1.0).rate(step) > 0 for step in range(3))


def test_run_names_follow_the_request(store, stores):
    name = run_name("tflocal", config(), store.spec)
    assert name.startswith("tflocal-")
    assert name == run_name("tflocal", config().complete(), store.spec)
    others = [
        run_name("tflocal", config("seed=3"), store.spec),
        run_name("tflocal", config(), stores["regions"].spec),
        run_name("tflocal", config(), store.spec, "coco"),
    ]
    assert len({name, *others}) == 4
    assert run_name("my/own.toml", config(), store.spec).startswith("own-")


def test_recipes_may_be_files(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[head]\nname = "linear"\n')
    assert load_recipe(str(path)).head == {"name": "linear", "bias": False}
    path.write_text("[head]\nwidth = 3\n")
    with pytest.raises(UsageError, match=r"\[head\] has no name"):
        load_recipe(str(path))
    with pytest.raises(UnknownName, match="Did you mean 'tflocal'"):
        load_recipe("tflocl")
    with pytest.raises(InputError, match="no file"):
        load_recipe(str(tmp_path / "none.toml"))


# --- validation ----------------------------------------------------------------------------------------


class Table:
    """A scorer that looks its scores up: caption key and image key decide."""

    training = False

    def __init__(self, function):
        self.function = function

    def eval(self): ...

    def train(self, mode): ...

    def score(self, batch):
        return self.function(batch.image_pooled[:, None], batch.text_pooled[None])

    def score_pairs(self, batch, pairs):
        return self.score(batch)[pairs[:, 0], pairs[:, 1]]


def measure(store, path, function, limit=500):
    table = PairTable.read(path, store)
    features = FeatureTable.loaded(store, table.image_keys, table.caption_keys, "cpu", "pooled")
    return Validation(table, features, limit).measure(Table(function))


def test_a_constant_scorer_scores_nothing(store, quad_table, plain_table):
    """A tie is a miss."""

    def constant(image, text):
        return torch.zeros(image.shape[0], text.shape[1])

    assert measure(store, quad_table, constant) == {"group": 0, "i2t": 0, "t2i": 0}
    assert measure(store, plain_table, constant) == {"pairs": 0}


def test_a_text_only_scorer_wins_one_direction_by_no_means(store, quad_table):
    """It prefers the same caption for both images: I2T is never right for both, T2I is all ties."""
    measured = measure(store, quad_table, lambda image, text: text[..., 0] + 0 * image[..., 0])
    assert measured == {"group": 0, "i2t": 0, "t2i": 0}


def test_validation_equals_a_slow_loop(store, quad_table, plain_table):
    scorer = build_head("cosine", {}, Dims.of(store.spec))
    table = PairTable.read(quad_table, store)
    features = FeatureTable.loaded(store, table.image_keys, table.caption_keys, "cpu", "pooled")
    everything = features.batch(np.arange(len(table.image_keys)), np.arange(len(table.caption_keys)))
    s = scorer.score(everything)
    groups = 0
    for one, two in table.quads:
        i0, i1, c0, c1 = table.images[one], table.images[two], table.captions[one], table.captions[two]
        groups += bool(min(s[i0, c0], s[i1, c1]) > max(s[i0, c1], s[i1, c0]))
    assert Validation(table, features, 100).measure(scorer)["group"] == pytest.approx(100 * groups / 12)

    table = PairTable.read(plain_table, store)
    features = FeatureTable.loaded(store, table.image_keys, table.caption_keys, "cpu", "pooled")
    s = scorer.score(features.batch(np.arange(len(table.image_keys)), np.arange(len(table.caption_keys))))
    right = [
        bool(s[table.images[p], table.captions[p]] > s[table.images[p], table.negatives_of(p)].max())
        for p in range(len(table))
    ]
    assert Validation(table, features, 100).measure(scorer)["pairs"] == pytest.approx(100 * np.mean(right))
    assert len(Validation(table, features, 7).sample) == 7


def test_pairs_without_negatives_are_judged_by_recall(store, tmp_path):
    keys = zip(image_keys(9), text_keys(9), strict=True)
    write_pairs(tmp_path / "p.parquet", [Pair(image, text) for image, text in keys])
    measured = measure(store, tmp_path / "p.parquet", lambda image, text: (image * text).sum(-1))
    assert list(measured) == ["recall"]
    assert 0 <= measured["recall"] <= 60


def test_settings_survive_toml():
    stages = 'data.curriculum=[{until=0.5, column="objects", match=["1", "2"]}]'
    asked = config(stages).complete()
    assert from_dict(FitConfig, to_dict(asked)) == asked


def test_init_starts_from_a_fitted_head(store, stores, quad_table, tmp_path):
    first = fit(config(), store, quad_table, None, tmp_path / "first").checkpoint
    still = config(f"init={first}", "optim.steps=1", "optim.lr=0.0", "optim.weight_decay=0.0")
    second = fit(still, store, quad_table, None, tmp_path / "second").checkpoint
    states = [load_scorer(path, store.spec).state_dict() for path in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(SpecMismatch, match=r"other settings.*same \[head\] table"):
        fit(config(f"init={first}", "head.width=8"), store, quad_table, None, tmp_path / "third")
    with pytest.raises(SpecMismatch):
        fit(config(f"init={first}"), stores["regions"], quad_table, None, tmp_path / "fourth")
    with pytest.raises(InputError):
        fit(config("init=nowhere.safetensors"), store, quad_table, None, tmp_path / "fifth")
