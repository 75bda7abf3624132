"""`compal eval --list`, and what `compal report` is asked beside tables: ties, comparisons, seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import run

from compal.eval import outcomes, results
from compal.eval.sources import Group

META = {
    "benchmark": "b", "split": "", "title": "B", "metric": "pairs", "ks": [], "pools": {}, "averages": {}, "seed": 0,
    "sample": "s", "chance": {"accuracy": 50.0}, "groups": 40, "written": "1", "order": 0, "tie_rule": "lose",
    "headline": ["accuracy"], "store": None,
}  # fmt: skip


@pytest.fixture
def work(tmp_path):
    """A workspace with saved scores: a reference, and two seeds of one recipe, 8 of whose 40 items tie."""
    groups = [Group(str(n), (f"i{n}",), (f"r{n}", f"w{n}"), ((True, False),)) for n in range(40)]
    for label, role, hits, scorer in (
        ("cosine", "reference", np.arange(40) % 2, {}),
        ("tflocal-s0", "scorer", np.where(np.arange(40) < 8, 0.5, 1.0), {"recipe": "r", "seed": 0}),
        ("tflocal-s1", "scorer", np.ones(40), {"recipe": "r", "seed": 1}),
    ):
        values = np.stack([hits, np.where(hits == 0.5, 0.5, 1 - hits)], axis=1).ravel().astype("f4")
        meta = META | {"label": label, "role": role, "scorer": scorer}
        results.save(tmp_path / "scores" / "b" / label, outcomes.table(groups, values, "pairs"), meta)
    return tmp_path


def test_what_is_here_is_listed(tmp_path):
    code, out, _ = run("eval", "--list", "--json", "--work", tmp_path)
    assert code == 0
    states = {entry["name"]: entry["state"] for entry in json.loads(out)}
    assert (states["shapes"], states["sugarcrepe"]) == ("generated", "absent")
    _, text, _ = run("eval", "--list", "--work", tmp_path)
    assert text.index("\nnot here") > text.index("shapes")
    assert "github.com/RAIVNLab/sugar-crepe" in text
    code, _, error = run("eval", "--work", tmp_path)
    assert (code, "compal eval --list" in error) == (2, True)


def test_a_report_counts_ties_as_asked(work):
    def accuracy(*more):
        code, out, error = run("report", "--json", "--work", work, *more)
        assert code == 0, error
        found = {row["label"]: row["overall"]["metrics"]["accuracy"]["value"] for row in json.loads(out)["results"]}
        return found["tflocal-s0"]

    assert [accuracy(), accuracy("--ties", "half"), accuracy("--ties", "win")] == [80.0, 90.0, 100.0]
    code, _, error = run("report", "--ties", "won", "--work", work)
    assert (code, "Did you mean 'win'" in error) == (1, True)


def test_rows_are_compared_by_label(work):
    code, out, _ = run("report", "tflocal-s1", "--compare", "cosine", "--json", "--work", work)
    assert code == 0
    (found,) = json.loads(out)["comparisons"]
    assert (found["other"], found["gained"], found["lost"]) == ("tflocal-s1", 20, 0)
    assert found["holm"] == pytest.approx(2 / 2**20)
    assert "tflocal-s0" in run("report", "--compare", "cosine", "--work", work)[1]
    for arguments, word in (
        (("--metric", "accuracy"), "--compare ROW"),
        (("--compare", "cosine", "--seeds"), "single rows"),
        (("--compare", "cosin"), "Did you mean 'cosine'"),
        (("tflocal-s9",), "tflocal-s1"),
        (("no/such/folder",), "no scores in"),
    ):
        code, _, error = run("report", *arguments, "--work", work)
        assert code in (1, 2), arguments
        assert word in error, arguments


def test_seeds_are_one_row_where_asked(work):
    _, out, _ = run("report", "--seeds", "--work", work)
    assert "tflocal (2 seeds)" in out
    assert "90.0 ± 14.1" in out
    assert "tflocal-s0" in run("report", "--work", work)[1]
