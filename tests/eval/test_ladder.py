"""A ladder's table, its readings and its picture, on items made by hand."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import io
import re

import numpy as np
import pytest

from compal.errors import InputError, UsageError
from compal.eval import ladder, ladder_chart, results
from compal.eval.ladder import Cost, Gap, Ladder, Rung
from compal.eval.sources import QUAD_TRUTH, Group

META = {
    "benchmark": "shapes", "split": "in_domain", "metric": "quads",
    "chance": {"i2t": 25.0, "t2i": 25.0, "group": 50 / 3},
    "role": "scorer", "sample": "s", "pools": {}, "averages": {}, "ks": [1], "seed": 0, "store": None, "order": 0,
    "written": "now", "limit": 7,
}  # fmt: skip
RIGHT, WRONG = [2.0, 1.0, 1.0, 2.0], [1.0, 2.0, 2.0, 1.0]
COUNT = 60


def groups():
    """60 groups of two categories; each two share a picture."""
    keys = [f"i{number // 2}" for number in range(COUNT)]
    kinds = ["colour", "size"]
    return [
        Group(f"g{n}", (keys[n], f"own{n}"), (f"a{n}", f"b{n}"), QUAD_TRUTH, kinds[n % 2]) for n in range(COUNT)
    ]  # fmt: skip


@pytest.fixture
def row(tmp_path):
    """`row(label, hits, **meta)` → a saved row whose groups are right where `hits` say so."""

    def make(label, hits, **meta):
        values = np.array([RIGHT if hit else WRONG for hit in hits], np.float32).reshape(-1)
        meta = META | {"label": label} | meta
        return results.row_of(results.save(tmp_path / label, results.table(groups(), values, "quads"), meta))

    return make


def drawn(share, seed=1):
    return np.random.default_rng(seed).random(COUNT) < share


@pytest.fixture
def found(row):
    """Cosine 0, oracle 60 %, pooled 10 %, a head 100 %, and two that are missing."""
    rows = {
        "cosine": row("cosine", [False] * COUNT),
        "oracle": row("oracle", drawn(0.6)),
        "head": row("head", [True] * COUNT),
    }
    rows["roi"] = row("roi", drawn(0.1, 5))
    chance = results.chance_row(rows["cosine"])
    rungs = [
        Rung("cosine", "cosine", "tokens", rows["cosine"], Cost(1, 2.0, 0.01, 169, 32)),
        Rung("oracle", "oracle", "regions", rows["oracle"], Cost(4.5, 5.0, 0.06, 637, 28)),
        Rung("crops", "crops-18", "regions:grid-18", missing="no features", cure="Add --extract"),
        Rung("pooled", "roi", "regions:roi", rows["roi"], Cost(1, 2.2, 0.05, 637, 32)),
        Rung("learned", "head", "tokens", rows["head"], Cost(1, 1.8, 0.6, 12764, 32)),
        Rung("tuned", "tuned", "pooled", missing="no tuned towers were given", cure="`compal fit finetune`"),
    ]
    return Ladder("shapes-vit", "shapes", "in_domain", chance, ladder.compared(rungs, chance))


def test_a_paired_gap_is_that_of_a_loop_over_the_draws(row):
    one, two = drawn(0.7, 1), drawn(0.4, 2)
    value, low, high = ladder.paired(row("one", one), row("two", two), seed=3)
    change = one.astype(float) - two.astype(float)
    assert value == pytest.approx(100 * change.mean(), abs=1e-12)
    members = [[n for n in range(COUNT) if n // 2 == cluster] for cluster in range(COUNT // 2)]
    rng = np.random.default_rng(3)
    means = []
    for picks in rng.integers(0, len(members), (2000, len(members))):
        items = [n for pick in picks for n in members[pick]]
        means.append(sum(change[n] for n in items) / len(items))
    assert (low, high) == pytest.approx(tuple(100 * np.quantile(means, [0.025, 0.975])), abs=1e-9)
    assert low < value < high


def test_the_same_items_have_no_gap_and_other_items_no_comparison(row):
    one = row("one", drawn(0.5))
    assert ladder.paired(one, row("same", drawn(0.5))) == (0.0, 0.0, 0.0)
    assert ladder.paired(one, row("other", drawn(0.5), sample="t")) is None


def test_each_is_held_against_its_own(found):
    held = {rung.label: (rung.gap.against, rung.gap.kind, rung.gap.outcome) for rung in found.rungs if rung.gap}
    assert held == {
        "cosine": ("chance", "chance", "below"),
        "oracle": ("cosine", "cosine", "above"),
        "roi": ("oracle", "crops", "below"),
        "head": ("oracle", "oracle", "above"),
    }
    by = {rung.label: rung for rung in found.rungs}
    assert by["cosine"].gap.value == pytest.approx(-50 / 3)
    oracle, head = (by[name].row.overall.metrics["group"].value for name in ("oracle", "head"))
    assert by["head"].gap.value == pytest.approx(head - oracle)
    assert by["oracle"].reading.startswith("+")
    assert "the binding is in the frozen encoder, and the pooled read-out loses it" in by["oracle"].reading
    assert "Not proven: that parts can be found" in by["oracle"].reading
    assert by["tuned"].reading == "missing: no tuned towers were given. `compal fit finetune`"


def test_where_a_rung_is_missing_the_cosine_stands_in(row):
    cosine, chance = row("cosine", drawn(0.5)), results.chance_row(row("any", drawn(0.5)))
    others = [("pooled", "roi", "regions:roi"), ("learned", "head", "tokens"), ("tuned", "run:x", "pooled")]
    rungs = [Rung("cosine", "cosine", "tokens", cosine)]
    rungs += [Rung(kind, label, level, row(label.replace(":", ""), drawn(0.5))) for kind, label, level in others]
    held = {rung.label: rung.gap.against for rung in ladder.compared(rungs, chance)}
    assert held == {"cosine": "chance", "roi": "cosine", "head": "cosine", "run:x": "head"}
    assert {rung.label: rung.gap.against for rung in ladder.compared(rungs[:1] + rungs[3:], chance)}[
        "run:x"
    ] == "cosine"


@pytest.mark.parametrize(("level", "against"), [("regions:roi-grid", "crops"), ("regions:roi-grid-18", "crops-18")])
def test_pooled_windows_are_held_against_the_same_windows_encoded(row, level, against):
    one = row("one", drawn(0.5))
    rungs = [
        Rung("cosine", "cosine", "tokens", one), Rung("oracle", "oracle", "regions", one),
        Rung("crops", "crops-18", "regions:grid-18", one), Rung("crops", "crops", "regions:grid", one),
        Rung("pooled", "it", level, one),
    ]  # fmt: skip
    assert ladder.compared(rungs, results.chance_row(one))[-1].gap.against == against


@pytest.mark.parametrize(
    ("level", "against"),
    [("regions:dense", "cosine"), ("regions:dense-roi", "roi"), ("regions:dense-grid-18", "roi-grid-18"),
     ("regions:dense-grid", "cosine")],
)  # fmt: skip
def test_patches_projected_alone_are_held_against_the_tokens_pooled_there(row, level, against):
    one = row("one", drawn(0.5))
    rungs = [
        Rung("cosine", "cosine", "tokens", one), Rung("oracle", "oracle", "regions", one),
        Rung("crops", "crops-18", "regions:grid-18", one), Rung("pooled", "roi", "regions:roi", one),
        Rung("pooled", "roi-grid-18", "regions:roi-grid-18", one), Rung("dense", "it", level, one),
    ]  # fmt: skip
    assert ladder.compared(rungs, results.chance_row(one))[-1].gap.against == against


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(1.0, 5.0, "above"), (-5.0, -1.0, "below"), (-1.0, 5.0, "level"), (0.0, 5.0, "level"), (None, None, "level")],
)
def test_an_interval_that_holds_zero_tells_nothing(low, high, outcome):
    assert Gap("cosine", "cosine", 2.0, low, high).outcome == outcome


def test_every_comparison_has_words_for_every_outcome():
    wanted = {(kind, other) for kind, others in ladder.AGAINST.items() for other in others}
    wanted |= {("cosine", "chance"), ("pooled", "crops"), ("pooled", "cosine")}
    wanted |= {("dense", "pooled"), ("dense", "cosine")}
    assert set(ladder.PROVES) == wanted
    assert all(set(words) == {"above", "below", "level"} for words in ladder.PROVES.values())
    assert all(words["level"].startswith("these items do not tell") for words in ladder.PROVES.values())
    assert set(ladder.LIMITS) == set(ladder.KINDS) == set(ladder_chart.INKS) == set(ladder_chart.SHAPES)


def test_the_table_by_hand(found):
    lines = ladder.render(found, "md").splitlines()
    assert lines[0] == "**shapes-vit · shapes in_domain · n 60**"
    assert lines[2] == "| rung | group | i2t | t2i | passes | CPU ms / image | ms / pair | bytes / image |"
    assert lines[4] == "| chance | 16.7 | 25.0 | 25.0 | – | – | – | – |"
    assert lines[5].startswith("| cosine | 0.0 [0.0, ")
    assert lines[5].endswith("| 1 | 2.00 | 0.010 | 169 |")
    assert "| 4.5 | 5.00 | 0.060 | 637 |" in lines[6]
    assert lines[7] == "| crops-18 | – | – | – | – | – | – | – |"
    assert "Limited to 7 groups" in "".join(lines)
    assert "Measured once on 28 to 32 images" in "".join(lines)
    assert "| rung | colour (n 30) | size (n 30) |" in lines
    assert lines[-1] == "- **tuned**: missing: no tuned towers were given. `compal fit finetune`"
    whole = ladder.render(found, "md", by_category=True)
    assert [whole.count(f"in_domain · n 60: {metric}") for metric in ("group", "i2t", "t2i")] == [1, 1, 1]
    assert ladder.render(found, "table").count("crops-18") == 3


def test_where_captions_need_not_be_swaps_the_table_says_so(found):
    told = "Binding stands here for whatever tells this benchmark's right captions from its wrong ones."
    assert told not in ladder.render(found, "md")
    chance = dataclasses.replace(found.chance, meta={**found.chance.meta, "metric": "pairs"})
    assert told in ladder.render(dataclasses.replace(found, chance=chance), "md")


def test_csv_and_data_hold_every_figure_and_what_is_missing(found):
    rows = list(csv.DictReader(io.StringIO(ladder.render(found, "csv"))))
    head = [line for line in rows if line["rung"] == "head"]
    assert {(line["category"], line["metric"]) for line in head} == {
        (category, metric) for category in ("", "colour", "size") for metric in ("group", "i2t", "t2i")
    }
    (overall,) = [line for line in head if (line["category"], line["metric"]) == ("", "group")]
    assert (overall["value"], overall["against"], overall["bytes"]) == ("100.0", "oracle", "12764")
    assert [line["rung"] for line in rows if line["missing"]] == ["crops-18", "tuned"]
    data = ladder.as_data(found)
    assert [rung["row"] is None for rung in data["rungs"]] == [False, False, True, False, False, True]
    assert data["rungs"][1]["gap"]["outcome"] == "above"
    assert data["rungs"][3]["row"]["overall"]["metrics"]["group"]["value"] is not None
    assert data["rungs"][4]["cost"]["passes"] == 1


def test_the_picture_names_its_points_chance_categories_and_what_is_missing(found, tmp_path):
    ladder_chart.draw(found, tmp_path / "deep" / "x.svg")
    text = (tmp_path / "deep" / "x.svg").read_text()
    shown = re.findall(r">([^<>]+)</text>", text)
    for label in ("cosine", "oracle", "roi", "head"):
        assert shown.count(label) == 2 * 2 + 1, label  # two panels with what whitens behind, and a row
    assert {"crops-18 (missing)", "tuned (missing)", "colour (n 30)", "size (n 30)", "chance 16.7"} <= set(shown)
    assert {title for title, _ in ladder_chart.XS} <= set(shown)


def test_points_stand_where_their_cost_is(found):
    rows = ladder_chart.points(found, lambda cost: cost.cpu_ms)
    assert {row["label"]: row["cost"] for row in rows} == {"cosine": 2.0, "oracle": 5.0, "roi": 2.2, "head": 1.8}
    assert all(row["x"] == pytest.approx(np.log10(row["cost"])) for row in rows)
    low, high = ladder_chart._across([row["cost"] for row in rows])
    assert all(low < row["x"] < high for row in rows)


def test_pictures_of_pixels_and_pages_that_need_no_network(found, tmp_path):
    ladder_chart.draw(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    ladder_chart.draw(found, tmp_path / "x.html")
    assert not re.search(r"<script[^>]+src=", (tmp_path / "x.html").read_text())


def test_pictures_that_cannot_be_drawn_are_one_line(found, tmp_path):
    free = tuple(dataclasses.replace(rung, cost=rung.cost and Cost(rung.cost.passes)) for rung in found.rungs)
    with pytest.raises(UsageError, match="none was measured"):
        ladder_chart.draw(dataclasses.replace(found, rungs=free), tmp_path / "x.svg")
    (tmp_path / "x.svg").write_text("mine")
    with pytest.raises(InputError, match=r"x\.svg is there already"):
        ladder_chart.draw(found, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text() == "mine"


def test_tables_need_no_altair(found, monkeypatch):
    known = builtins.__import__

    def refuse(name, *more):
        assert not name.startswith(("altair", "vl_convert")), name
        return known(name, *more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert ladder.render(found, "md")
