"""The runs of a sweep: which α, which folders, written whole or not at all, reused and never overwritten."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
import torch

from compal import api, sweep, sweep_scores
from compal.align.checkpoint import save_scorer
from compal.align.scorer import Dims, build_head
from compal.errors import CompalError, InputError, UsageError, VerificationError
from compal.pipeline.encoder import resolve
from compal.workspace import Workspace


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0.6", ["0.6"]),
        ("0:1:0.1", ["0", *(f"0.{n}" for n in range(1, 10)), "1"]),
        ("0:1:0.3", ["0", "0.3", "0.6", "0.9"]),
        ("1,0.4:0.6:0.1, 0", ["0", "0.4", "0.5", "0.6", "1"]),
        ("0.5,0.50,1e-1", ["0.1", "0.5"]),
        ("-1:2:1.5", ["-1", "0.5", "2"]),
        ("1.00", ["1"]),
        (0.1 + 0.2, ["0.30000000000000004"]),
        ([0, 0.25], ["0", "0.25"]),
    ],
)
def test_alphas_are_decimal(text, alphas):
    found = sweep.alphas_of(text)
    assert [sweep.written(alpha) for alpha in found] == alphas
    assert [float(alpha) for alpha in found] == [float(alpha) for alpha in alphas]
    assert all(isinstance(alpha, Decimal) for alpha in found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no number"),
        ("a", "'a' is no number and no START:STOP:STEP"),
        ("0:1", "'0:1' is no number and no START:STOP:STEP"),
        ("nan", "'nan' is no number"),
        ("0:inf:1", "is no number"),
        ("0:1:0", "goes nowhere"),
        ("1:0:0.1", "goes nowhere"),
        ("0:1:0.001", "more than 201"),
        ("60", "beyond -1 to 2"),
        ("-1.1", "beyond -1 to 2"),
        ([], "beyond -1 to 2"),
    ],
)
def test_wrong_alphas_are_one_line(text, says):
    with pytest.raises(UsageError, match=says) as found:
        sweep.alphas_of(text)
    assert found.value.cure
    assert "\n" not in str(found.value)


def head(path, seed):
    """A linear head on the features of shapes-vit."""
    spec = resolve("shapes-vit")
    scorer = build_head("linear", {}, Dims.of(spec))
    scorer.map.weight.data += 0.1 * torch.randn(scorer.map.weight.shape, generator=torch.Generator().manual_seed(seed))
    save_scorer(path, scorer, spec)


@pytest.fixture
def work(tmp_path):
    """A workspace with the heads `one` and `two`."""
    workspace = Workspace(tmp_path / "work")
    for seed, name in enumerate(("one", "two")):
        head(workspace.runs / name / "checkpoints" / "best.safetensors", seed)
    return workspace


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_say_the_end_and_alpha(work):
    def names(*asked, **how):
        return [run.name for run in sweep.open_sweep(*asked, workspace=work, **how).runs()]

    assert names("one", "two") == ["two-patch-0.6"]
    assert names("one", "two", "0:1:0.5") == ["two-patch-0", "two-patch-0.5", "two-patch-1"]
    assert names("one", "two", 0.5, name="half") == ["half"]
    assert names("one", "two", "0.5,1", name="mix") == ["mix-0.5", "mix-1"]
    assert names("init", str(work.runs / "two"), 1) == ["two-patch-1"]
    assert names("init", str(work.runs / "two" / "checkpoints" / "best.safetensors"), 1) == ["two-patch-1"]
    with pytest.raises(UsageError, match="no name of a folder"):
        names("one", "two", name="../two")


def test_a_run_is_complete_and_says_where_it_is_from(work):
    (run,), scored = api.patch("one", "two", workspace=work)
    assert scored is None
    assert not run.existed
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "provenance.json"]
    told = json.loads((run.path / "provenance.json").read_text())
    assert told["patch"]["kind"] == "head"
    assert told["patch"]["alpha"] == 0.6
    assert (told["patch"]["base"]["name"], told["patch"]["tuned"]["name"]) == ("one", "two")
    assert told["command"]
    assert told["features"]["fingerprint"] == resolve("shapes-vit").fingerprint
    assert {path.name for path in work.list_runs()} == {"one", "two", run.name}


def test_the_same_again_is_taken_as_it_is(work):
    api.patch("one", "two", "0.5,1", workspace=work)
    before = tree(work.runs)
    runs, _ = api.patch("one", "two", "0.5,1", workspace=work)
    assert [run.existed for run in runs] == [True, True]
    assert tree(work.runs) == before
    (work.runs / "one").rename(work.runs / "first")  # the same weights by another name
    assert api.patch("first", "two", 0.5, workspace=work)[0][0].existed


def test_a_folder_of_something_else_is_never_touched(work):
    api.patch("one", "two", 0.5, name="half", workspace=work)
    before = tree(work.runs)
    for asked in (("one", "two", 0.4), ("init", "two", 0.5), ("two", "one", 0.5)):
        with pytest.raises(InputError, match="half already holds something else"):
            api.patch(*asked, name="half", workspace=work)
    with pytest.raises(InputError, match="already holds something else"):
        api.patch("one", "two", name="one", workspace=work)
    (work.runs / "half" / "provenance.json").write_text("[1]")
    with pytest.raises(InputError, match="already holds something else"):
        api.patch("one", "two", 0.5, name="half", workspace=work)
    assert tree(work.runs) == {**before, work.runs / "half" / "provenance.json": b"[1]"}


def test_weights_that_were_changed_since_are_not_taken(work):
    (run,), _ = api.patch("one", "two", 0.5, workspace=work)
    head(run.path / "checkpoints" / "best.safetensors", 9)
    with pytest.raises(VerificationError, match="is not what was written"):
        api.patch("one", "two", 0.5, workspace=work)


def test_nothing_half_written_is_left(work, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("compal.stores.files.write_synced", full)
    before = tree(work.runs)
    with pytest.raises(InputError, match="No space left"):
        api.patch("one", "two", "0,1", workspace=work)
    assert tree(work.runs) == before
    assert not [path for path in work.runs.iterdir() if path.name.startswith(".")]


def test_benchmarks_by_name_and_split(work, tmp_path):
    one, two = sweep_scores.judged(["shapes:in_domain", "sugarcrepe"], work, 3, {"sugarcrepe": tmp_path})
    assert (one.benchmark, one.sources.split, one.sources.limit) == ("shapes", "in_domain", 3)
    assert (two.benchmark, two.sources.split, two.sources.root) == ("sugarcrepe", None, tmp_path)
    for wrong, says in (
        (["shape"], "Did you mean 'shapes'"),
        (["shapes:in"], "no split of shapes 'in'"),
        (["shapes", "shapes"], "named twice"),
    ):
        with pytest.raises(CompalError, match=says):
            sweep_scores.judged(wrong, work)
    with pytest.raises(InputError, match="no benchmark of this sweep 'winoground'"):
        sweep_scores.judged(["shapes"], work, roots={"winoground": tmp_path})


def test_a_plan_writes_nothing_and_counts(work):
    asked = sweep_scores.judged(["shapes:in_domain"], work, 2)
    found = sweep_scores.plan(sweep.open_sweep("one", "two", "0:1:0.5", workspace=work), asked)
    assert not (work.path / "stores").exists()
    assert [path.name for path in work.list_runs()] == ["one", "two"]
    assert [run.existed for run in found.runs] == [False] * 3
    assert found.bytes == 3 * 4 * 64 * 64
    (cost,) = found.costs
    assert (cost.groups, cost.pairs, cost.items) == (10, 3 * 10 * 4, 40)
    api.patch("one", "two", 0.5, workspace=work)
    again = sweep_scores.plan(sweep.open_sweep("one", "two", "0:1:0.5", workspace=work), [])
    assert [run.existed for run in again.runs] == [False, True, False]
    assert again.bytes == 2 * 4 * 64 * 64


def test_the_function_takes_names_of_benchmarks(work):
    runs, found = api.patch(
        "one", "two", [0, 1], benchmarks=["shapes-retrieval"], extract_missing=True, workspace=work
    )  # fmt: skip
    assert [run.name for run in runs] == ["two-patch-0", "two-patch-1"]
    ends = {point.alpha: point.estimates[0].value for point in found.curve}
    rows = api.evaluate("shapes-retrieval", runs=["one", "two"], backbone="shapes-vit", workspace=work)
    scored = {row.label: row.overall.metrics["i2t_r@1"].value for row in rows}
    assert ends == {0.0: scored["one"], 1.0: scored["two"]}
