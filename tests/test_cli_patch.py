"""`compal patch`: the examples of its help, tables, pictures, and one line for everything that is wrong."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from command_line import run
from typer.testing import CliRunner

from compal import api, cli
from compal.align.checkpoint import load_scorer, save_scorer
from compal.align.recipe import load_recipe
from compal.align.runs import describe
from compal.align.scorer import Dims, build_head
from compal.cli import patch as cli_patch
from compal.pipeline import tuned
from compal.pipeline.encoder import load_encoder, resolve
from compal.workspace import Workspace

AXES = ("--benchmark", "shapes:in_domain", "--benchmark", "shapes-retrieval")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A workspace, found as commands find theirs, with heads `mine` and `lin` and towers `ft`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    workspace = Workspace.find()
    spec = resolve("shapes-vit")
    shipped = load_scorer(api.checkpoint("shipped:tflocal", workspace), spec)
    generator = torch.Generator().manual_seed(0)
    linear = build_head("linear", {}, Dims.of(spec))
    for name, scorer in (("mine", shipped), ("lin", linear)):
        for parameter in scorer.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
        folder = workspace.runs / name
        save_scorer(folder / "checkpoints" / "best.safetensors", scorer, spec)
        describe(folder, load_recipe("tflocal-shapes" if name == "mine" else "linear"), {"command": "by hand"})
    encoder = load_encoder(spec)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter *= 1.01
    tuned.save_towers(workspace.runs / "ft" / "towers", encoder, spec, {"command": "by hand"})
    return workspace


def examples():
    return [shlex.split(line)[1:] for line in re.findall(r"Example: (compal .+)", cli_patch.patch.__doc__)]


@pytest.mark.parametrize("words", examples(), ids=lambda words: " ".join(words[1:3]))
def test_the_examples_of_the_help_run(work, words):
    words = ["1" if words[at - 1] == "--limit" else word for at, word in enumerate(words)]  # fewer, for the test
    result = CliRunner().invoke(cli.app, words)
    assert (result.exit_code, result.exception) == (0, None)
    assert [path for path in work.list_runs() if path.name.startswith("mine-patch-")]
    assert ("--plot" in words) == Path("curve.svg").is_file()
    assert "next   compal eval BENCHMARK --run mine-patch-0.6" in result.stderr or "1 (mine)" in result.stdout


def test_towers_are_extracted_and_scored(work):
    code, out, _ = run("patch", "init", "run:ft", "--alpha", "0,1", *AXES, "--limit", "1", "--plot", "c.svg", "--json")
    assert code == 0
    found = json.loads(out)
    assert [(one["name"], one["existed"]) for one in found["runs"]] == [("ft-patch-0", False), ("ft-patch-1", False)]
    assert found["base"] == "shapes-vit"
    curve = {point["alpha"]: point["estimates"] for point in found["points"] if point["alpha"] is not None}
    assert set(curve) == {0.0, 1.0}
    assert curve[0.0][1]["value"] > 50
    rows = [row for row in found["results"] if row["role"] == "scorer"]
    assert {row["backbone"] for row in rows} == {"run:ft-patch-0", "run:ft-patch-1"}
    assert Path("c.svg").is_file()
    # α = 0 is the base: what it scores is what the base scores.
    base = api.evaluate(
        "shapes-retrieval", heads=["cosine"], backbone="shapes-vit", level="pooled", extract_missing=True
    )
    (cosine,) = [row for row in base if row.role == "scorer"]
    assert curve[0.0][1]["value"] == cosine.overall.metrics["i2t_r@1"].value
    result = CliRunner().invoke(cli.app, ["patch", "init", "ft", "--alpha", "0,1"])
    assert result.stdout.count("(was there)") == 2
    assert "next   compal eval BENCHMARK --backbone run:ft-patch-1" in result.stderr


def test_heads_at_the_ends_score_as_the_ends(work):
    code, out, _ = run(
        "patch", "init", "lin", "--alpha", "0:1:0.5", *AXES, "--limit", "1", "--extract", "--format", "csv"
    )
    assert code == 0
    lines = [line.split(",") for line in out.splitlines()]
    at = {(line[0], line[1], line[6]): line[7:] for line in lines[1:]}
    assert {alpha for alpha, _, _ in at} == {"", "0.0", "0.5", "1.0"}
    for metric in ("group", "i2t_r@1", "t2i_r@5"):  # an identity-initialised head is the cosine
        assert at["0.0", "lin-patch-0", metric] == at["", "cosine", metric]
    rows = api.evaluate("shapes-retrieval", runs=["lin"], backbone="shapes-vit")
    (lin,) = [row for row in rows if row.role == "scorer"]
    assert float(at["1.0", "lin-patch-1", "t2i_r@1"][0]) == lin.overall.metrics["t2i_r@1"].value


def test_a_dry_run_writes_nothing(work):
    code, out, _ = run("patch", "init", "run:ft", "--alpha", "0:1:0.5", *AXES, "--limit", "1", "--dry-run")
    assert code == 0
    assert "would make 3 of 3 runs (towers)" in out
    assert "would score 270,000 pairs of shapes-retrieval: 1 groups, 3 α" in out
    assert "features of 1,800 images and captions to extract" in out
    code, out, _ = run("patch", "init", "lin", "--dry-run", "--json")
    plan = json.loads(out)
    assert (plan["kind"], plan["runs"][0]["name"], plan["bytes"]) == ("head", "lin-patch-0.6", 4 * 64 * 64)
    assert {path.name for path in work.list_runs()} == {"mine", "lin", "ft"}
    assert not work.stores.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("init",), 2, ""),
        (("init", "lin", "--alpha", "some"), 2, "is no number and no START:STOP:STEP"),
        (("init", "lin", "--alpha", "60"), 2, "0 is BASE and 1 is TUNED, not percent"),
        (("init", "lim"), 1, "Did you mean 'lin'"),
        (("shipped:tflokal", "mine"), 1, "Did you mean 'shipped:tflocal'"),
        (("init", "run:fd"), 1, "no run with towers 'fd'"),
        (("lin", "mine"), 1, "Patch two of one head"),
        (("lin", "run:ft"), 1, "Patch two heads, or two towers"),
        (("init", "shipped:tflocal"), 1, "Name the other end instead of init"),
        (("init", "lin", "--name", "a/b"), 2, "no name of a folder"),
        (("init", "lin", "--name", "mine"), 1, "already holds something else"),
        (("init", "lin", "--benchmark", "shape"), 1, "Did you mean 'shapes'"),
        (("init", "lin", "--benchmark", "shapes:in"), 1, "no split of shapes 'in'"),
        (("init", "lin", "--benchmark", "shapes", "--limit", "1"), 1, "compal extract --backbone shapes-vit"),
        (("init", "lin", "--plot", "c.svg"), 2, "--plot needs two benchmarks"),
        (("init", "lin", *AXES, "--plot", "c.bmp"), 2, "ends in no .svg, .pdf, .png, .html"),
        (("init", "lin", "--root", "crepe"), 2, "--root crepe is no BENCHMARK=FOLDER"),
        (("init", "lin", *AXES, "--images", "bivlc=/x"), 1, "no benchmark of this sweep 'bivlc'"),
        (("init", "lin", "--format", "latex"), 1, "no format 'latex'"),
    ],
)
def test_mistakes_are_one_line(work, arguments, code, message):
    got, out, error = run("patch", *arguments)
    assert (got, message in error) == (code, True), error
    assert out == ""
    assert not list(work.path.parent.glob("c.*"))
