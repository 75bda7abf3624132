"""Results of others in our tables: joined by what names an item, recomputed where there are items, refused by row."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from compal import registry
from compal.errors import CompalError, InputError, UnknownName, UsageError
from compal.eval import answers, compare, imports, report, results
from compal.eval.results import load_results
from compal.eval.score import evaluate
from compal.eval.sources import Sources
from compal.stores.items import caption_key

DATA = Path(__file__).parents[1] / "data"
OLD, NEW = answers.COMPARISONS
MTEB = {"task_name": "SugarCrepe", "scores": {"test": [{"text_acc": 0.766, "image_acc": 0.0, "main_score": 0.766}]}}


def write(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def quads(rows: list[dict], seed: int = 0, names: tuple[str, ...] = OLD, texts: bool = True) -> list[dict]:
    """Random answers to the rows of BiVLC, in its form."""
    bits = np.random.default_rng(seed).random((len(rows), 4)) < 0.7
    kept = ("type", "subtype", *(("caption", "negative_caption") if texts else ()))
    return [
        {name: row[name] for name in kept} | {name: str(bool(bit)) for name, bit in zip(names, one, strict=True)}
        for row, one in zip(rows, bits, strict=True)
    ]


def by_hand(rows: list[dict], names: tuple[str, ...] = OLD) -> dict[str, float]:
    bits = np.array([[row[name] == "True" for name in names] for row in rows])
    i2t, t2i = bits[:, :2].all(axis=1), bits[:, 2:].all(axis=1)
    return {"i2t": 100 * i2t.mean(), "t2i": 100 * t2i.mean(), "group": 100 * (i2t & t2i).mean()}


def values(row) -> dict[str, float]:
    return {name: found.value for name, found in row.overall.metrics.items() if " (" not in name}


def of(rows, label: str):
    return next(row for row in rows if row.label == label)


@pytest.fixture
def scored(bivlc, filled, tmp_path):
    """Scores of BiVLC's five rows, the folder they are in."""
    sources = Sources(root=bivlc)
    evaluate("bivlc", sources, filled("bivlc", sources), {}, tmp_path / "scores")
    return tmp_path / "scores"


@pytest.mark.parametrize("names", [OLD, NEW])
def test_items_stand_in_our_table_in_any_order(bivlc_rows, scored, tmp_path, names):
    told = quads(bivlc_rows, names=names)
    order = [3, 0, 4, 2, 1]
    file = write(tmp_path / "theirs.csv", [told[n] for n in order])
    row = of(imports.import_results(file, "lab", scored), "lab")
    assert values(row) == pytest.approx(by_hand(told, names))
    ours = of(load_results(scored), "cosine")
    assert row.table == ours.table
    assert row.overall.ties is None
    assert row.overall.metrics["i2t"].low is not None
    table = results.read(Path(row.folder))[0]
    # Each answer is that of the item whose captions it names.
    expected = {caption_key(one["caption"]): all(one[name] == "True" for name in names[:2]) for one in told}
    assert {
        keys[0]: hit for keys, hit in zip(table["captions"].to_pylist(), table["i2t"].to_pylist(), strict=True)
    } == (expected)
    assert {row.label for row in load_results(scored)} >= {"chance", "cosine", "lab"}
    assert [one.other for one in compare.compare(load_results(scored), "cosine")].count("lab") == 1


def test_captions_that_stand_twice_are_taken_in_order(bivlc_rows, tmp_path):
    told = quads([{**bivlc_rows[0]}, {**bivlc_rows[1]}, {**bivlc_rows[0]}])
    found = answers.read(write(tmp_path / "t.csv", told))
    first, second = (tuple(caption_key(row[name]) for name in ("caption", "negative_caption")) for row in told[:2])
    import pyarrow as pa

    rows = pa.table({"id": ["a", "b", "c"], "category": ["replace_obj", "swap_att", "replace_obj"],
                     "captions": [list(first), list(second), list(first)]})  # fmt: skip
    assert imports.joined(found, rows) == [0, 1, 2]
    assert imports.joined(found, pa.concat_tables([rows, rows.slice(0, 1)])) is None


def test_an_item_of_ours_that_is_not_answered_keeps_the_row_out_of_our_table(bivlc_rows, scored, tmp_path):
    file = write(tmp_path / "four.csv", quads(bivlc_rows)[:4])
    row = of(imports.import_results(file, "lab", scored), "lab")
    assert row.table != of(load_results(scored), "cosine").table
    assert row.overall.n == 4


def test_an_answer_to_no_item_of_ours_is_left_out_and_told(bivlc_rows, scored, tmp_path):
    told = quads(bivlc_rows)
    more = told[0] | {"caption": "A bird.", "negative_caption": "A fish."}
    row = of(imports.import_results(write(tmp_path / "six.csv", [more, *told]), "lab", scored), "lab")
    assert values(row) == pytest.approx(by_hand(told))
    told = "lab: 1 of 6 answers are of no item here (six.csv row 0)"
    assert told in row.meta["notes"]
    assert f"Note: {told}." in report.render(load_results(scored), "md")


def test_without_captions_the_place_within_a_category_is_taken_and_told(bivlc_rows, scored, tmp_path):
    told = quads(bivlc_rows, texts=False)
    row = of(imports.import_results(write(tmp_path / "bare.csv", told), "lab", scored), "lab")
    assert values(row) == pytest.approx(by_hand(told))
    assert any("joined by place" in note for note in row.meta["notes"])
    row = of(imports.import_results(write(tmp_path / "bare.csv", told[1:]), "lab", scored), "lab")
    assert row.overall.n == 4


def test_ids_and_metrics_are_a_form_of_their_own(bivlc_rows, scored, tmp_path):
    lines = [{"id": str(n), "i2t": n % 2, "t2i": 1, "group": n % 2} for n in (4, 3, 2, 1, 0)]
    file = write(tmp_path / "ids.csv", lines)
    with pytest.raises(UsageError, match="--benchmark NAME"):
        imports.import_results(file, "lab", scored)
    row = of(imports.import_results(file, "lab", scored, "bivlc"), "lab")
    assert values(row) == pytest.approx({"i2t": 40.0, "t2i": 100.0, "group": 40.0})
    assert results.read(Path(row.folder))[0]["i2t"].to_pylist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bivlc_clip_vit_b_32.csv.gz", {"i2t": 75.83, "t2i": 52.40, "group": 49.06}),
        ("sugarcrepe_clip_vit_b_32.csv.gz", {"accuracy": 76.56}),
    ],
)
def test_published_answers_give_the_published_figures(tmp_path, name, expected):
    row = imports.import_results(DATA / name, "lab", tmp_path)[-1]
    assert {metric: round(value, 2) for metric, value in values(row).items()} == expected
    if "accuracy" in expected:
        assert round(row.overall.metrics["accuracy (3-category)"].value, 2) == 73.04
        assert report.render([row], "md").startswith("**SugarCrepe · 7,512 groups**")
    else:
        swap = {metric: round(found.value, 2) for metric, found in row.by_category["swap"].metrics.items()}
        assert swap == {"i2t": 46.52, "t2i": 16.16, "group": 13.65}


def test_an_aggregate_is_marked_never_best_and_has_no_interval(sugarcrepe, filled, tmp_path):
    sources = Sources(root=sugarcrepe)
    evaluate("sugarcrepe", sources, filled("sugarcrepe", sources), {}, tmp_path / "scores")
    folder = tmp_path / "openai__clip" / "rev"
    folder.mkdir(parents=True)
    (folder / "SugarCrepe.json").write_text(json.dumps(MTEB | {"scores": {"test": [{"text_acc": 1.0}]}}))
    (folder / "model_meta.json").write_text(json.dumps({"name": "openai/clip"}))
    row = of(imports.import_results(folder, "mteb", tmp_path / "scores"), "mteb")
    assert (row.role, values(row), row.overall.metrics["accuracy"].low) == ("published", {"accuracy": 100.0}, None)
    assert row.meta["scorer"]["model"] == "openai/clip"
    rows = load_results(tmp_path / "scores")
    assert row.table == of(rows, "cosine").table
    text = report.render(rows, "md")
    assert "| mteb | 100.0 † |" in text
    assert "**100.0" not in text
    assert "not recomputed" in text
    assert r"mteb & 100.0 $^\dagger$" in report.render(rows, "latex")
    assert "mteb" not in {one.other for one in compare.compare(rows, "cosine")}
    with pytest.raises(UnknownName):
        compare.compare(rows, "mteb")
    line = next(one for one in csv.DictReader(report.render(rows, "csv").splitlines()) if one["label"] == "mteb")
    assert (line["role"], line["value"], line["low"], line["ties"]) == ("published", "100.0", "", "")


def test_parts_of_a_benchmark_alone_are_a_table_by_category(tmp_path):
    runs = [("add_att", 0.69), ("swap_obj", 0.61)]
    for name, value in runs:
        one = {"dataset": f"sugar_crepe/{name}", "model": "ViT-B-32", "pretrained": "openai", "metrics": {"acc": value}}
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    row = imports.import_results(tmp_path, "cb", tmp_path / "scores")[-1]
    assert {name: part.metrics["accuracy"].value for name, part in row.by_category.items()} == pytest.approx(
        {"add_att": 69.0, "swap_obj": 61.0}
    )
    assert not row.overall.metrics
    assert "| cb | – | 69.0 † | 61.0 † |" in report.render([row], "md", by_category=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"text_score_i0": "yes"}, "t.csv row 2: 'text_score_i0' is 'yes', neither true nor false"),
        ({"group_score": "True"}, "t.csv row 2: 'group_score' is True and its comparisons make it False"),
    ],
)
def test_a_wrong_answer_is_named_by_its_row(bivlc_rows, tmp_path, change, match):
    told = [row | dict.fromkeys((*OLD, "group_score"), "False") for row in quads(bivlc_rows)]
    told[2] |= change
    with pytest.raises(InputError, match=match):
        imports.import_results(write(tmp_path / "t.csv", told), "lab", tmp_path)


def test_files_that_are_none_are_refused_in_one_line(bivlc_rows, tmp_path):
    text = write(tmp_path / "t.csv", quads(bivlc_rows)).read_text()
    cases = {
        "cut.csv": (text[: text.rindex(",")], "row 4 has not the 8 cells"),
        "head.csv": (text.splitlines()[0] + "\n", "has no rows"),
        "other.csv": ("a,b\n1,2\n", "no results file of an evaluator"),
        "list.json": ("[]", "no results file of an evaluator"),
        "half.json": ('{"task_name": ', "neither CSV nor valid JSON"),
        "share.json": (json.dumps(MTEB | {"scores": {"test": [{"text_acc": 76.6}]}}), "76.6, which is not between"),
        "nan.json": (json.dumps(MTEB | {"scores": {"test": [{"text_acc": float("nan")}]}}), "not between 0 and 1"),
        "word.json": (json.dumps(MTEB | {"scores": {"test": [{"text_acc": "high"}]}}), "'high', which is no number"),
        "two.json": (json.dumps(MTEB | {"scores": {"test": [{}, {}]}}), "has 2 rows of scores"),
        "else.json": (json.dumps(MTEB | {"task_name": "STS12"}), "holds no number of mteb"),
    }
    for name, (content, match) in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(CompalError, match=match) as error:
            imports.import_results(tmp_path / name, "lab", tmp_path / "scores")
        assert "\n" not in str(error.value)
    (tmp_path / "gone.csv.gz").write_bytes(gzip.compress(b"id")[:-4])
    with pytest.raises(InputError, match="cannot be read"):
        imports.import_results(tmp_path / "gone.csv.gz", "lab", tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_names_that_do_not_fit_are_refused(bivlc_rows, tmp_path):
    file = write(tmp_path / "t.csv", quads(bivlc_rows))
    for how, match in (
        ({"label": "cosine"}, "no row of others is called 'cosine'"),
        ({"label": " "}, "--as LABEL"),
        ({"label": "lab", "benchmark": "sugarcrepe"}, "two images × two captions, and sugarcrepe is pairs"),
        ({"label": "lab", "benchmark": "coco-retrieval"}, "scored by query"),
        ({"label": "lab", "benchmark": "bivcl"}, "Did you mean 'bivlc'"),
        ({"label": "lab", "model": "x"}, "Leave --model out"),
    ):
        with pytest.raises(CompalError, match=match):
            imports.import_results(file, scores=tmp_path / "scores", **how)
    with pytest.raises(InputError, match="no file"):
        imports.import_results(tmp_path / "none.csv", "lab", tmp_path / "scores")


def test_one_of_several_models_must_be_named(tmp_path):
    file = registry.ROOT / "assets" / "references" / "openclip_results.csv"
    with pytest.raises(UsageError, match=r"121 models.*--model NAME"):
        imports.import_results(file, "x", tmp_path, "imagenet")
    with pytest.raises(UnknownName, match=r"no model of openclip 'ViT-B-32/opnai'. It has ViT-B-32/openai"):
        imports.import_results(file, "x", tmp_path, "imagenet", "ViT-B-32/opnai")
    with pytest.raises(UnknownName, match=r"no benchmark in openclip_results.csv 'sugarcrepe'"):
        imports.import_results(file, "x", tmp_path, "sugarcrepe")
    row = imports.import_results(file, "x", tmp_path, "imagenet", "ViT-B-32/openai")[-1]
    assert values(row) == pytest.approx({"top1": 63.32})


def test_the_command_prints_the_table_and_writes_the_row(bivlc_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    file = write(tmp_path / "t.csv", quads(bivlc_rows))
    code, out, _ = run("import", file, "--as", "lab", "--json")
    assert code == 0
    assert [row["label"] for row in json.loads(out)["results"]] == ["chance", "lab"]
    assert run("import", file, "--as", "lab")[1] == run("report", tmp_path / "work" / "scores")[1]
    assert run("import", tmp_path / "no.csv", "--as", "lab")[0] == 1
    assert run("import", file, "--as", "CLIP B/32")[0] == 0
    code, out, _ = run("report", "CLIP B/32", "--json")
    assert [row["label"] for row in json.loads(out)["results"]] == ["chance", "CLIP B/32"]
    assert run("report", "no/folder")[2] == "no scores in no/folder. Make some: compal eval BENCHMARK"
    assert run("import", file)[0] == 2
