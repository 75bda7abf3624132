"""What CxC asks within a side, from `eval` to a table and JSON; what is left out and why."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import pytest

from compal.eval import crisscrossed, report, within
from compal.eval.results import load_results
from compal.eval.score import Options, evaluate
from compal.eval.sources import Sources


@pytest.fixture
def cxc(tmp_path: Path, filled):
    root = tmp_path / "cxc"
    root.mkdir()
    layouts.write("cxc", root)
    sources = Sources(root=root)
    return sources, filled("cxc", sources)


def test_the_table_of_a_side_has_the_figures_of_the_store(cxc, tmp_path):
    sources, store = cxc
    evaluate("cxc", sources, store, {}, tmp_path / "scores")
    rows = load_results(tmp_path / "scores")
    wanted = crisscrossed.judge(store, sources)
    assert next(row for row in rows if row.label == "cosine").meta["within"] == wanted
    title = "CxC"
    sheet = within.sheet(title, rows)
    assert sheet.header[:4] == ("backbone", "sits", "sts", "t2t_r@1")
    (line,) = sheet.body
    told = dict(zip(sheet.header, (cell.text for cell in line), strict=True))
    assert told["backbone"] == store.spec.backbone
    assert told["t2t_r@5"] == f"{wanted['t2t_r@5']:.1f}"
    assert told["n i2i"] == str(wanted["i2i_n"])
    assert "within a side" in report.render(rows)
    found = json.loads(report.render(rows, "json"))["results"]
    assert [one["label"] for one in found if "within" in one] == ["text-only", "cosine"]


@pytest.mark.parametrize("kinds", [("sts",), ("sts", "sis")])
def test_without_its_ratings_the_rest_is_scored_and_a_note_says_so(cxc, tmp_path, kinds):
    sources, store = cxc
    for kind in kinds:
        (sources.root / f"{kind}_test.csv").unlink()
    rows = evaluate("cxc", sources, store, {}, tmp_path / "scores")
    assert within.sheet("CxC", rows) is None
    lacking = " and ".join(f"{kind}_test.csv" for kind in kinds)
    assert f"no figures within a side: {lacking} lack" in report.render(rows)


def test_it_is_of_the_cosine_row_and_of_no_other_benchmark(cxc, tmp_path, filled):
    sources, store = cxc
    rows = evaluate("cxc", sources, store, {}, tmp_path / "a", options=Options(references=("random", "text-only")))
    assert within.sheet("CxC", rows) is None
    shapes = Sources(limit=2)
    rows = evaluate("shapes", shapes, filled("shapes", shapes), {}, tmp_path / "b")
    assert within.sheet("shapes", rows) is None
