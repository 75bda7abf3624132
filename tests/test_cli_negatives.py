"""`compal negatives`: what it makes, what it says, and one line for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run

COCO = f"coco:{Path(__file__).parent / 'data' / 'coco'}"
OWN = ("--set", "tagger=own")


def swap(work, *more):
    return run("negatives", "--method", "swap", "--data", COCO, "--split", "val2017", *OWN, "--work", work, *more)


def test_negatives_are_made_and_judged_in_text_markdown_and_json(tmp_path):
    code, out, _ = swap(tmp_path)
    assert code == 0
    (path,) = (tmp_path / "negatives").glob("coco-val2017-swap-*.parquet")
    assert out.splitlines()[-1] == f"file   {path}"
    for part in ("yield", "length", "overlap", "grammar", "blindness", "samples", " of 20 ("):
        assert part in out
    before = path.read_bytes()
    code, again, _ = swap(tmp_path)
    assert (code, again, path.read_bytes()) == (0, out, before)
    code, markdown, _ = run("negatives", "--report", path, "--format", "md", "--work", tmp_path)
    assert code == 0
    assert markdown.startswith(f"# {path.name}\n")
    assert "| licence | that of the captions |" in markdown
    code, text, _ = run("negatives", "--report", "coco-val2017", "--json", "--work", tmp_path)
    found = json.loads(text)
    assert code == 0
    assert found["yield"]["captions"] == 20
    assert found["provenance"]["config"]["tagger"] == "own"


def test_a_dry_run_writes_nothing(tmp_path):
    code, out, _ = swap(tmp_path, "--dry-run")
    assert code == 0
    assert "would make negatives of 20 captions" in out
    assert not list(tmp_path.rglob("*.parquet"))
    asked = ("--method", "llm", "--set", "model=m", "--set", "base_url=http://127.0.0.1:9/v1", "--set", "price_in=1")
    code, out, _ = run(
        "negatives", *asked, "--data", COCO, "--split", "val2017", "--dry-run", "--json", "--work", tmp_path
    )
    plan = json.loads(out)
    assert (plan["captions"], plan["estimate"]["requests"], plan["exists"]) == (20, 100, False)
    assert plan["estimate"]["cost"] > 0
    swap(tmp_path)
    assert "there already" in swap(tmp_path, "--dry-run")[1]


def test_the_embedded_world_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("negatives", "--method", "replace", "--limit", "10", "--set", "lexicon=own", *OWN)
    assert code == 0
    assert "shapes-train-replace-" in out.splitlines()[-1]


def test_methods_are_listed():
    code, out, _ = run("ls", "negatives", "--json")
    assert code == 0
    assert set(json.loads(out)["negatives"]) >= {"swap", "replace", "shuffle", "mined", "llm"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no method is given"),
        (("--method", "swop"), 1, "Did you mean 'swap'"),
        (("--method", "swap", "--set", "types=[\"verb\"]"), 1, "no value for 'types' 'verb'"),
        (("--method", "swap", "--set", "colour=1"), 1, "no setting 'colour'"),
        (("--method", "swap", "--set", "colour"), 2, "is not KEY=VALUE"),
        (("--method", "swap", "--set", "per_type=0"), 2, "at least 1"),
        (("--method", "swap", "--split", "val1999"), 1, "no split 'val1999'"),
        (("--method", "swap", "--data", "nothing"), 1, "no dataset 'nothing'"),
        (("--method", "mined"), 2, "needs a backbone"),
        (("--method", "llm"), 2, "needs a model"),
        (("--method", "llm", "--set", "model=m", "--set", "api_key=sk"), 1, "no setting 'api_key'"),
        (("--method", "swap", "--report", "x"), 2, "makes none"),
        (("--report", "x"), 1, "no table of negatives 'x'"),
        (("--report", "x", "--format", "csv"), 1, "no format 'csv'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, arguments, code, message):
    data = () if "--data" in arguments else ("--data", COCO)
    split = () if "--split" in arguments else ("--split", "val2017")
    got, _, error = run("negatives", *data, *split, *arguments, "--work", tmp_path)
    assert (got, message in error) == (code, True), error
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_unknown_option_is_named(tmp_path):
    assert run("negatives", "--methode", "swap", "--work", tmp_path)[0] == 2
