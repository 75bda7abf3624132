"""Tables are a pure function of saved rows."""

from __future__ import annotations

import csv
import io
import json

import pytest

from compal.errors import UnknownName
from compal.eval import report
from compal.eval.results import Estimate, ResultRow, Summary, load_results
from compal.eval.score import evaluate
from compal.eval.sources import Sources

META = {"chance": {"accuracy": 50.0}, "title": "SugarCrepe", "size": 7511, "groups": 514, "written": "1"}


def row(label: str, value: float | None, role: str = "scorer", **how) -> ResultRow:
    bounds = (None, None) if value is None else (value - 2.04, value + 1.96)
    summary = Summary({"accuracy": Estimate(value, *bounds)}, 514, 3)
    facts = {
        "benchmark": "sugarcrepe",
        "split": "",
        "backbone": "clip",
        "sample": "s",
        "folder": label,
        "meta": META,
    }
    return ResultRow(label=label, role=role, overall=summary, by_category={"swap_obj": summary}, **(facts | how))


ROWS = [row("cosine", 76.56, "reference"), row("tflocal", 80.0), row("tfglobal", None)]


def test_markdown_by_hand():
    lines = report.render(ROWS, "md").splitlines()
    assert lines[:7] == [
        "**SugarCrepe · 514 of 7,511 groups**",
        "",
        "| row | accuracy | n | ties |",
        "| --- | ---: | ---: | ---: |",
        "| chance | 50.0 | 514 | – |",
        "| cosine | 76.6 [74.5, 78.5] | 514 | 3 |",
        "| tflocal | **80.0 [78.0, 82.0]** | 514 | 3 |",
    ]
    assert lines[7] == "| tfglobal | – | 514 | 3 |"


def test_terminal_table_stars_the_best():
    text = report.render(ROWS)
    assert "80.0 [78.0, 82.0]*" in text
    assert text.count("*") == 2  # the figure and the explanation
    assert "a tie is a miss" in text


def test_chance_is_never_the_best_and_ties_share_it():
    text = report.render([row("a", 20.0), row("b", 20.0)], "md")
    assert text.count("**20.0") == 2
    assert "**50.0**" not in text


def test_one_scored_row_is_not_called_best():
    assert "**80.0" not in report.render([row("a", 80.0)], "md")


def test_csv_is_tidy_and_unrounded():
    found = list(csv.DictReader(io.StringIO(report.render(ROWS, "csv"))))
    assert len(found) == 8
    cosine = next(line for line in found if line["label"] == "cosine" and line["category"] == "swap_obj")
    assert (cosine["metric"], cosine["value"], cosine["n"], cosine["ties"]) == (
        "accuracy",
        "76.56",
        "514",
        "3",
    )
    assert next(line for line in found if line["label"] == "tfglobal")["value"] == ""


def test_json_keeps_none():
    found = json.loads(report.render(ROWS, "json"))["results"]
    values = {entry["label"]: entry["overall"]["metrics"]["accuracy"]["value"] for entry in found}
    assert values == {"chance": 50.0, "cosine": 76.56, "tflocal": 80.0, "tfglobal": None}


def test_latex_escapes_and_has_a_cell_per_column():
    text = report.render([row("tf_local 100%", 80.0), row("b", None)], "latex")
    assert r"tf\_local 100\% & 80.0 {\scriptsize [78.0, 82.0]} & 514 & 3 \\" in text
    assert r"b & -- & 514 & 3 \\" in text
    assert r"\begin{tabular}{lrrr}" in text


def test_by_category_has_a_column_per_category():
    text = report.render(ROWS, "md", by_category=True)
    assert "| row | all | swap_obj (n 514) |" in text


def test_rows_are_dropped_only_by_name():
    text = report.render(ROWS, "md", drop=["chance", "cosine"])
    assert "chance" not in text
    assert "cosine |" not in text
    with pytest.raises(UnknownName, match="Did you mean 'chance'"):
        report.render(ROWS, "md", drop=["chanse"])


def test_rows_on_other_groups_are_another_table():
    text = report.render([*ROWS, row("tflocal", 90.0, sample="t")], "md")
    assert text.count("**SugarCrepe · ") == 2
    assert text.count("| chance |") == 2


def test_the_backbone_is_a_column_where_it_differs():
    text = report.render([*ROWS, row("tflocal", 90.0, backbone="siglip2")], "md")
    assert "| row | backbone | accuracy |" in text
    assert "| tflocal | siglip2 | **90.0" in text
    assert "| chance | – |" in text


def test_notes_tell_what_is_not_the_whole_benchmark():
    partial = META | {
        "limit": 5,
        "excluded": {"add_obj/1": "no image"},
        "notes": ["swap_obj still has row 108"],
    }
    text = report.render([row("a", 1.0, meta=partial)], "md")
    assert "Limited to 5 groups of every category" in text
    assert "1 groups left out" in text
    assert "row 108" in text


def test_unknown_format_suggests_one():
    with pytest.raises(UnknownName, match="Did you mean 'latex'"):
        report.render(ROWS, "latx")


@pytest.mark.parametrize("fmt", report.FORMATS)
@pytest.mark.parametrize("by_category", [False, True])
def test_saved_rows_give_the_same_bytes_twice(bivlc, filled, tmp_path, fmt, by_category):
    sources = Sources(root=bivlc)
    rows = evaluate("bivlc", sources, filled("bivlc", sources), {}, tmp_path / "scores")
    text = report.render(load_results(tmp_path / "scores"), fmt, by_category)
    assert text == report.render(load_results(tmp_path / "scores"), fmt, by_category)
    assert text == report.render(rows, fmt, by_category)
    for label in ("chance", "random", "text-only", "cosine"):
        assert label in text
    assert len(report.rich_tables(rows, by_category)) == (3 if by_category else 1)
