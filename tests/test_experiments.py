"""Tables of experiments, and plans of single runs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from compal import api, experiments
from compal.cli import app
from compal.errors import InputError, UnknownName, UsageError
from compal.workspace import Workspace

TABLE = """
backbone = "shapes-vit"
data = "shapes"
seeds = [0, 1]
common = ["data.validation=", "data.batch_size=4"]
[recipes]
linear = ["optim.steps=2"]
hot = { recipe = "linear", settings = ["optim.steps=3", "loss.temperature=1.0"] }
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.toml"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    found = Workspace(tmp_path_factory.mktemp("work"))
    api.extract("shapes-vit", "shapes", splits=["train"], limit=12, workspace=found)
    return found


def test_the_shipped_tables_are_whole():
    for path in experiments.TABLES.glob("*.toml"):
        table = experiments.read_table(path)
        assert len(table.seeds) >= 3
        for run in experiments.planned(table):
            from compal.align.recipe import load_recipe

            assert load_recipe(run.recipe, run.settings).seed == run.seed


def test_runs_are_named_by_row_and_seed(table):
    runs = experiments.planned(experiments.read_table(table))
    assert [run.name for run in runs] == ["linear-s0", "hot-s0", "linear-s1", "hot-s1"]
    assert runs[1].recipe == "linear"
    assert runs[3].settings[-2:] == ("loss.temperature=1.0", "seed=1")
    parts = [experiments.planned(experiments.read_table(table), share=(k, 3)) for k in range(3)]
    assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in runs)
    only = experiments.planned(experiments.read_table(table), ["hot"])
    assert [run.name for run in only] == ["hot-s0", "hot-s1"]


def test_what_is_fitted_is_not_fitted_again(table, workspace):
    read = experiments.read_table(table)
    runs = experiments.planned(read, ["linear"])
    first = list(experiments.fit_all(read, runs, workspace))
    logs = [(workspace.runs / run.name / "metrics.jsonl").read_text() for run, _ in first]
    again = list(experiments.fit_all(read, runs, workspace))
    assert [result.steps for _, result in again] == [2, 2]
    assert logs == [(workspace.runs / run.name / "metrics.jsonl").read_text() for run, _ in again]
    other = experiments.read_table(table.with_name("table.toml"))
    changed = [experiments.Planned(run.row, run.recipe, run.seed, (*run.settings, "optim.lr=1e-5")) for run in runs]
    with pytest.raises(UsageError):
        list(experiments.fit_all(other, changed, workspace))


@pytest.mark.parametrize(
    ("broken", "error", "said"),
    [
        ("linear = 3", InputError, "recipes.linear"),
        ("liner = []", UnknownName, "Did you mean 'linear'"),
        ("", InputError, "names no recipe"),
    ],
)
def test_a_broken_table_is_refused(tmp_path, broken, error, said):
    path = tmp_path / "table.toml"
    path.write_text(f'backbone = "shapes-vit"\ndata = "shapes"\n[recipes]\n{broken}\n')
    with pytest.raises(error, match=said):
        experiments.read_table(path)


def test_settings_stand_above_the_rows_own(table):
    from compal.align.recipe import load_recipe

    runs = experiments.planned(experiments.read_table(table), settings=["optim.steps=9"])
    assert {load_recipe(run.recipe, run.settings).optim.steps for run in runs} == {9}


def test_a_share_that_is_none_is_refused(table):
    with pytest.raises(UsageError, match="share 2/2"):
        experiments.planned(experiments.read_table(table), share=(2, 2))


def test_the_command_fits_a_table(table, workspace):
    def run(*more):
        return CliRunner().invoke(app, ["fit", "all", "--data", str(table), "--work", str(workspace.path), *more])

    planned = run("--dry-run", "--json")
    assert [one["name"] for one in json.loads(planned.stdout)] == ["linear-s0", "hot-s0", "linear-s1", "hot-s1"]
    done = run()
    assert done.exit_code == 0, done.output
    assert "hot-s1" in done.stdout
    assert (workspace.runs / "hot-s1" / "result.json").is_file()
    assert "to fit" not in run("--dry-run").stdout


def test_a_plan_says_what_is_missing(workspace, tmp_path):
    asked = ["fit", "linear", "--backbone", "shapes-vit", "--data", "shapes", "--set", "data.validation=", "--dry-run"]
    there = json.loads(CliRunner().invoke(app, [*asked, "--work", str(workspace.path), "--json"]).stdout)
    assert there["lacks"] == []
    assert there["pairs"] == 24  # twelve swap groups
    assert there["epochs"] == pytest.approx(there["steps"])  # a batch holds all 24 pairs
    assert there["parameters"] == 64 * 64
    empty = CliRunner().invoke(app, [*asked, "--work", str(tmp_path / "empty")])
    assert empty.exit_code == 0
    assert "compal extract --backbone shapes-vit" in empty.stdout
    assert not (tmp_path / "empty" / "runs").exists()
