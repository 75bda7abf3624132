"""A sweep's table and picture, by hand."""

from __future__ import annotations

import builtins
import csv
import importlib.util
import io
import re

import pytest

from compal.errors import InputError, UsageError
from compal.eval import curve, tradeoff
from compal.eval.results import Estimate, ResultRow, Summary

QUADS = {"metric": "quads", "chance": {"i2t": 25.0, "group": 100 / 6}, "limit": None}
RECALL = {"metric": "recall", "ks": [1, 5], "chance": {"i2t_r@1": 0.3, "t2i_r@1": 0.3}, "limit": 7}
ALPHAS = {"t-0": 0.0, "t-0.5": 0.5, "t-1": 1.0}


def row(label, values, meta, benchmark, role="scorer", split=""):
    estimates = {name: Estimate(value, value - 2, value + 2) for name, value in values.items()}
    return ResultRow(benchmark, split, label, role, "shapes-vit", "s", Summary(estimates, 20, 1), {}, meta=meta)


def quads(label, value, role="scorer"):
    return row(label, {"i2t": value + 10, "group": value}, QUADS, "shapes", role, "in_domain")


def recall(label, one, two, role="scorer"):
    return row(label, {"i2t_r@1": one, "i2t_r@5": one + 5, "t2i_r@1": two}, RECALL, "shapes-retrieval", role)


@pytest.fixture
def found():
    """Rows as `api.evaluate` gives them, call by call: chance comes with each, references with the first."""
    one = [quads("chance", 100 / 6, "chance"), quads("cosine", 9, "reference"), quads("t-0", 10)]
    one += [quads("chance", 100 / 6, "chance"), quads("t-1", 30), quads("t-0.5", 20)]
    two = [recall("chance", 0.3, 0.3, "chance"), recall("t-0", 80, 82), recall("t-0.5", 85, 80), recall("t-1", 50, 52)]
    return tradeoff.gather("shapes-vit", "run:t", ALPHAS, [one, two])


def test_axes_and_points_by_hand(found):
    assert [(axis.role, axis.title) for axis in found.axes] == [
        ("composition", "shapes in_domain group"),
        ("retention", "shapes-retrieval i2t_r@1"),
        ("retention", "shapes-retrieval t2i_r@1"),
    ]
    assert [(axis.chance, axis.n) for axis in found.axes] == [(100 / 6, 20), (0.3, 20), (0.3, 20)]
    assert [(point.label, point.alpha) for point in found.points] == [
        ("chance", None), ("cosine", None), ("t-0", 0.0), ("t-0.5", 0.5), ("t-1", 1.0),
    ]  # fmt: skip
    values = [[estimate and estimate.value for estimate in point.estimates] for point in found.points]
    assert values[1:] == [[9, None, None], [10, 80, 82], [20, 85, 80], [30, 50, 52]]
    assert found.curve == list(found.points[2:])


def test_the_table_by_hand(found):
    lines = tradeoff.render(found, "md").splitlines()
    assert lines[0] == "**shapes-vit → run:t**"
    assert lines[2] == (
        "| α | shapes in_domain group (n 20) | shapes-retrieval i2t_r@1 (n 20) | shapes-retrieval t2i_r@1 (n 20) |"
    )
    assert lines[5] == "| cosine | 9.0 [7.0, 11.0] | – | – |"
    assert lines[6] == "| 0 (shapes-vit) | 10.0 [8.0, 12.0] | 80.0 [78.0, 82.0] | 82.0 [80.0, 84.0] |"
    assert lines[7].startswith("| 0.5 | 20.0 [18.0, 22.0] | 85.0")
    assert lines[8].startswith("| 1 (run:t) | 30.0")
    assert "Limited to 7 groups" in lines[-1]
    assert "0.5 " in tradeoff.render(found, "table")


def test_csv_and_data_hold_every_metric(found):
    rows = list(csv.DictReader(io.StringIO(tradeoff.render(found, "csv"))))
    at = [line for line in rows if line["alpha"] == "0.5"]
    assert {(line["axis"], line["metric"], line["value"]) for line in at} == {
        ("composition", "i2t", "30"), ("composition", "group", "20"),
        ("retention", "i2t_r@1", "85"), ("retention", "i2t_r@5", "90"), ("retention", "t2i_r@1", "80"),
    }  # fmt: skip
    assert sum(line["row"] == "chance" for line in rows) == 2 + 3
    data = tradeoff.as_data(found)
    assert [point["alpha"] for point in data["points"]] == [None, None, 0.0, 0.5, 1.0]
    assert data["points"][3]["estimates"][1] == {"value": 85, "low": 83, "high": 87, "sd": None}
    assert {result["axis"] for result in data["results"]} == {"composition", "retention"}


def test_one_benchmark_has_a_table_and_no_picture(found, tmp_path):
    alone = tradeoff.gather("a", "b", ALPHAS, [[quads("t-0.5", 20)]])
    assert "| 0.5 | 20.0" in tradeoff.render(alone, "md")
    with pytest.raises(UsageError, match="a trade-off has two axes"):
        curve.draw(alone, tmp_path / "x.svg")


def test_the_picture_names_its_points_ends_and_chance(found, tmp_path):
    curve.draw(found, tmp_path / "deep" / "x.svg")
    text = (tmp_path / "deep" / "x.svg").read_text()
    shown = set(re.findall(r">([^<>]+)</text>", text))
    assert {"α = 0", "0.5", "α = 1", "chance 16.7", "shapes-vit → run:t"} <= shown
    assert "composition: shapes in_domain group (%)" in shown
    assert {f"retention: shapes-retrieval {way}_r@1 (%)" for way in ("i2t", "t2i")} <= shown
    assert text.count(">0.5</text>") == 2 * 2  # two panels, each with what whitens behind it
    for ink in curve.ENDS.values():
        assert ink in text


def test_pictures_of_pixels_and_pages_that_need_no_network(found, tmp_path):
    curve.draw(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    curve.draw(found, tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert "<html" in page
    assert not re.search(r"<script[^>]+src=", page)


def test_undefined_figures_are_not_drawn(tmp_path):
    none = tradeoff.gather("a", "b", ALPHAS, [[quads("t-0", 10), quads("t-1", 20)], [recall("t-1", 50, 60)]])
    curve.draw(none, tmp_path / "x.svg")
    shown = re.findall(r">(α = \d)</text>", (tmp_path / "x.svg").read_text())
    assert set(shown) == {"α = 1"}


def test_labels_avoid_points_and_each_other(found):
    """Eleven points close together: no two labels overlap, and none covers a point."""
    rows = [
        {"x": 50 + number, "y": 20 + number % 3, "alpha": number / 10, "text": f"{number / 10:g}"}
        for number in range(11)
    ]  # fmt: skip
    across, up = [48.0, 62.0], [10.0, 30.0]
    boxes = []
    for place, members in curve.placed(rows, across, up).items():
        for one in members:
            spot = (curve.pixel(one["x"], across), curve.SIDE - curve.pixel(one["y"], up))
            boxes.append(curve.box(spot, place, one["text"]))
    assert len(boxes) == 11
    spots = [(curve.pixel(r["x"], across), curve.SIDE - curve.pixel(r["y"], up)) for r in rows]
    for number, box in enumerate(boxes):
        assert all(curve.overlap(box, other) == 0 for other in boxes[number + 1 :])
        assert all(curve.overlap(box, (x - 3, y - 3, x + 3, y + 3)) == 0 for x, y in spots)


def test_points_on_one_spot_share_a_label():
    spots = [(50.0, 0.2, "0.2"), (50.0, 0.4, "0.4"), (60.0, 0.8, "0.8"), (60.01, 1.0, "α = 1")]
    rows = [{"x": x, "y": 20.0, "alpha": alpha, "text": text} for x, alpha, text in spots]
    found = [row for members in curve.placed(rows, [40.0, 70.0], [10.0, 30.0]).values() for row in members]
    assert {(row["text"], row["alpha"]) for row in found} == {("0.2, 0.4", 0.2), ("0.8, α = 1", 1.0)}


def test_files_that_cannot_be_drawn_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "x.svg").write_text("mine")
    with pytest.raises(InputError, match=r"x\.svg is there already"):
        curve.check(tmp_path / "x.svg")
    with pytest.raises(UsageError, match=r"ends in no \.svg, \.pdf, \.png, \.html"):
        curve.check(tmp_path / "x.bmp")
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "altair" else known(name))
    with pytest.raises(InputError, match="altair, which is not installed") as missing:
        curve.check(tmp_path / "y.svg")
    assert "pip install 'compal[plots]'" in str(missing.value)


def test_tables_need_no_altair(found, monkeypatch):
    known = builtins.__import__

    def refuse(name, *more):
        assert not name.startswith(("altair", "vl_convert")), name
        return known(name, *more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert tradeoff.render(found, "md")
