"""`compal diagnose`: its examples, its rungs against `compal eval`, what is missing, and one line for what is wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image

from compal import api, diagnose, diagnose_cost
from compal.align.checkpoint import save_scorer
from compal.align.recipe import load_recipe
from compal.align.runs import describe
from compal.align.scorer import Dims, build_head
from compal.cli import diagnose as cli_diagnose
from compal.errors import InputError
from compal.eval.benchmarks import shapes
from compal.eval.ladder import compared
from compal.eval.sources import Sources
from compal.pipeline import tuned
from compal.pipeline.encoder import load_encoder, resolve
from compal.workspace import Workspace

FEW = ("--limit", "1", "--measure", "0")


def make(folder):
    """A workspace with towers `ft`, a head `lin` of shapes-vit and `other` of another backbone."""
    workspace = Workspace(folder)
    spec = resolve("shapes-vit")
    for name, of in (("lin", spec), ("other", resolve("random"))):
        path = workspace.runs / name
        save_scorer(path / "checkpoints" / "best.safetensors", build_head("linear", {}, Dims.of(of)), of)
        describe(path, load_recipe("linear"), {"command": "by hand"})
    encoder = load_encoder(spec)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter *= 1.01
    tuned.save_towers(workspace.runs / "ft" / "towers", encoder, spec, {"command": "by hand"})
    return workspace


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A workspace with the features of a swap a category at every rung."""
    workspace = make(tmp_path_factory.mktemp("diagnose") / "work")
    sources = Sources(split="in_domain", limit=1)
    diagnose.diagnose(
        sources=sources, tuned=["run:ft"], extract_missing=True, measure=0, workspace=workspace
    )  # fmt: skip
    return workspace


@pytest.fixture
def work(filled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPAL_HOME", str(filled.path))
    return filled


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    return make(tmp_path / "work")


def examples():
    return [shlex.split(line)[1:] for line in re.findall(r"Example: (compal .+)", cli_diagnose.diagnose.__doc__)]


@pytest.mark.parametrize("words", examples(), ids=lambda words: " ".join(words[-2:]))
def test_the_examples_of_the_help_run(empty, words):
    words = ["1" if words[at - 1] == "--limit" else word for at, word in enumerate(words)]  # fewer, for the test
    code, out, error = run(*words)
    assert (code, error) == (0, "")
    assert ("--plot" in words) == Path("ladder.svg").is_file()
    assert ("would score" in out) == ("--dry-run" in words)
    assert empty.stores.exists() == ("--dry-run" not in words)
    dense = ("dense", "dense-roi", "dense-grid-18")
    for rung in ("cosine", "oracle", "crops-18", "roi", "roi-grid-18", *dense, "tflocal", "tuned"):
        assert re.search(rf"^ *{rung} ", out, re.M), rung


def test_every_rung_scores_what_eval_scores(work):
    code, out, _ = run("diagnose", "--backbone", "shapes-vit", *FEW, "--tuned", "run:ft", "--json")
    assert code == 0
    found = {rung["label"]: rung for rung in json.loads(out)["rungs"]}
    few = Sources(split="in_domain", limit=1)
    for label, how in {
        "cosine": {"heads": ["cosine"]},
        "oracle": {"heads": ["maxsim"], "level": "regions"},
        "crops-18": {"heads": ["maxsim"], "level": "regions:grid-18"},
        "roi": {"heads": ["maxsim"], "level": "regions:roi"},
        "roi-grid-18": {"heads": ["maxsim"], "level": "regions:roi-grid-18"},
        "dense": {"heads": ["maxsim"], "level": "regions:dense"},
        "dense-roi": {"heads": ["maxsim"], "level": "regions:dense-roi"},
        "dense-grid-18": {"heads": ["maxsim"], "level": "regions:dense-grid-18"},
        "tflocal": {"runs": ["shipped:tflocal"]},
        "run:ft": {"heads": ["cosine"], "level": "pooled", "backbone": "run:ft"},
    }.items():
        rows = api.evaluate("shapes", sources=few, workspace=work, **{"backbone": "shapes-vit", **how})
        (row,) = [one for one in rows if one.role == "scorer"]
        told = json.loads(json.dumps(row.to_json()))
        assert found[label]["row"]["overall"] == told["overall"], label
        assert found[label]["row"]["by_category"] == told["by_category"], label
    assert set(found["oracle"]["row"]["by_category"]) == {"colour", "material", "size", "quantity", "relation"}
    assert [found[label]["gap"]["against"] for label in found] == [
        "chance", "cosine", "cosine", "oracle", "crops-18", "cosine", "roi", "roi-grid-18", "oracle", "tflocal",
    ]  # fmt: skip
    assert not any(rung["missing"] for rung in found.values())


def test_without_sources_shapes_is_in_domain_and_others_are_whole(work):
    shapes_own = diagnose.open_course("shapes-vit", "shapes")
    assert {group.id.split("/")[0] for group in shapes_own.groups} == {"in_domain"}
    with pytest.raises(InputError, match="reads files and no --root is given"):  # and not: no split in_domain
        diagnose.open_course("shapes-vit", "winoground")


def test_passes_are_those_of_the_images(work):
    course = diagnose.open_course("shapes-vit", "shapes", Sources(split="in_domain", limit=1), (18, 239))
    images = {item.key: item for item in course.items if item.kind == "image"}.values()
    boxes = sum(len(item.boxes) for item in images) / len(images)
    found = {step.label: diagnose_cost.passes(step, course.items) for step in course.steps}
    wanted = {"cosine": 1, "oracle": boxes + 1, "crops-18": 18, "crops": 239, "roi": 1, "roi-grid-18": 1, "roi-grid": 1}
    wanted |= {"dense": 1, "dense-roi": 1, "dense-grid": 1}
    assert {label: found[label] for label in wanted} == wanted


def test_costs_are_measured_and_crops_cost_more_than_one_pass(empty):
    threads = torch.get_num_threads()
    code, out, _ = run("diagnose", "--backbone", "shapes-vit", "--limit", "2", "--measure", "16", "--extract", "--json")
    assert code == 0
    costs = {rung["label"]: rung["cost"] for rung in json.loads(out)["rungs"]}
    assert torch.get_num_threads() == threads
    assert costs["tuned"] is None
    for label, cost in costs.items():
        if cost:
            assert cost["images"] == 16, label
            assert min(cost["cpu_ms"], cost["pair_ms"], cost["bytes"]) > 0, label
    assert costs["crops-18"]["cpu_ms"] > 2 * costs["roi-grid-18"]["cpu_ms"]
    pooled = resolve("shapes-vit", "pooled").pooled_dim * 2
    assert costs["cosine"]["bytes"] >= pooled
    assert costs["crops-18"]["bytes"] >= 18 * pooled
    assert costs["tflocal"]["bytes"] > 10 * costs["cosine"]["bytes"]


def test_rungs_that_cannot_be_had_name_the_command(work):
    code, out, _ = run("diagnose", "--backbone", "shapes-vit", *FEW, "--crops", "70", "--format", "md")
    assert code == 0
    assert "**crops-70**: missing: no features of shapes-vit at level 'regions:grid-70'" in out
    assert "compal extract --backbone shapes-vit --benchmark shapes --limit 1 --level regions:grid-70" in out
    assert "--level tokens,regions:roi-grid-70" in out
    assert "**tuned**: missing: no tuned towers were given" in out
    assert "| crops-70 | – |" in out
    code, out, _ = run("diagnose", "--backbone", "shapes-vit", *FEW, "--crops", "0", "--run", "lin", "--format", "md")
    assert "**crops**: missing: no grid of windows was asked for" in out
    assert "**lin**: +" in out or "**lin**: -" in out
    assert "tflocal" not in out


def test_a_backbone_without_a_head_lacks_the_learned_rung(empty):
    code, out, _ = run("diagnose", "--backbone", "random", *FEW, "--extract", "--format", "csv")
    assert code == 0
    lacking = re.findall(
        r"^([\w-]+),dense,.*random:49x64 has no level 'regions:dense': its tokens are drawn", out, re.M
    )
    assert lacking == ["dense", "dense-roi", "dense-grid-18"]
    assert re.search(r"^learned,learned,tokens,,.*no run was given.*compal fit tflocal --backbone random", out, re.M)


def test_nothing_extracted_is_one_line(empty):
    code, out, error = run("diagnose", "--backbone", "shapes-vit", *FEW)
    assert (code, out) == (1, "")
    assert "no features of shapes-vit" in error
    assert "--extract" in error


@pytest.fixture
def winoground(tmp_path):
    """A set of photographs: no boxes, no segments."""
    (tmp_path / "w" / "images").mkdir(parents=True)
    rows = []
    for number in range(3):
        names = [f"{number}-{which}.png" for which in (0, 1)]
        for seed, name in enumerate(names):
            pixels = np.random.default_rng(2 * number + seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "w" / "images" / name)
        told = [f"a red star and a blue ring {number}", f"a blue star and a red ring {number}"]
        rows.append(dict(zip(("image_0", "image_1", "caption_0", "caption_1"), [*names, *told], strict=True)))
    (tmp_path / "w" / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "w"


def test_photographs_lack_boxes_and_segments_until_they_are_made(empty, winoground):
    how = ["diagnose", "winoground", "--backbone", "shapes-vit", "--root", winoground, "--measure", "0", "--extract"]
    code, out, _ = run(*how, "--format", "csv")
    assert code == 0
    missing = dict(re.findall(r"^([\w-]+),.*?(no (?:image|caption)[^\n]*)", out, re.M))
    assert set(missing) == {"oracle", "roi", "crops-18", "roi-grid-18", "dense", "dense-roi", "dense-grid-18"}
    assert missing["oracle"].startswith("no image of winoground comes with boxes")
    assert missing["crops-18"].startswith("no caption of winoground comes with segments")
    command = re.search(r"`compal (extract [^`]+grid-18 --segments rules)`", missing["roi-grid-18"])[1]
    assert run(*shlex.split(command))[0] == 0
    assert run(*shlex.split(command.replace("tokens,regions:roi-grid", "regions:grid")))[0] == 0
    code, out, _ = run(*how, "--format", "json")
    found = {rung["label"]: rung for rung in json.loads(out)["rungs"]}
    lacking = [label for label, rung in found.items() if rung["row"] is None]
    assert lacking == ["oracle", "roi", "dense", "dense-roi", "dense-grid-18", "tuned"]
    assert found["roi-grid-18"]["gap"]["against"] == "crops-18"


def test_parts_that_only_some_items_have_are_said(work, monkeypatch):
    listed = list(shapes.items(Sources(split="in_domain", limit=1)))
    images = [item for item in listed if item.kind == "image"]
    bare = images[0].key

    some = [dataclasses.replace(item, boxes=()) if item.key == bare else item for item in listed]
    monkeypatch.setattr(shapes, "items", lambda sources: some)
    course = diagnose.open_course("shapes-vit", "shapes", Sources(split="in_domain", limit=1))
    notes = {step.label: step.notes for step in course.steps}
    count = len({item.key for item in images})
    assert notes["oracle"] == (f"boxes for {count - 1} of {count} images, the others are one region",)
    assert notes["crops-18"] == ()


@pytest.mark.parametrize(("level", "kept"), [("regions:roi", True), ("regions", False), ("tokens", False)])
def test_tokens_that_cannot_be_pooled_are_a_missing_rung_and_other_errors_are_not_hidden(
    work, monkeypatch, level, kept
):
    known = api.evaluate

    def evaluate(benchmark, **how):
        if how["level"] == level:
            raise InputError("the tokens of this tower are no grid of patches", "Use --level regions.")
        return known(benchmark, **how)

    monkeypatch.setattr(api, "evaluate", evaluate)
    code, out, error = run("diagnose", "--backbone", "shapes-vit", *FEW, "--format", "md")
    assert code == (0 if kept else 1)
    told = "missing: the tokens of this tower are no grid of patches. Use --level regions."
    assert (f"**roi**: {told}" in out) == kept
    assert ("no grid of patches" in error) != kept


def test_rungs_on_other_items_are_marked_and_not_compared(work):
    few = Sources(split="in_domain", limit=1)
    found = diagnose.diagnose(sources=few, measure=0, workspace=work)
    one, two = (rung for rung in found.rungs if rung.label in ("cosine", "oracle"))
    apart = dataclasses.replace(two, row=dataclasses.replace(two.row, sample="other"))
    one, apart = compared(diagnose._alike([one, apart]), found.chance)
    assert (one.notes, apart.notes) == ((), ("scored on other items, as some could not be read",))
    assert apart.gap is None
    assert apart.reading.startswith("Not proven: ")
    assert apart.reading.endswith(" scored on other items, as some could not be read.")


def test_a_dry_run_writes_nothing(empty):
    code, out, _ = run(
        "diagnose", "--backbone", "shapes-vit", "--limit", "1", "--tuned", "run:ft", "--dry-run", "--json"
    )
    assert code == 0
    rungs = {rung["label"]: rung for rung in json.loads(out)["rungs"]}
    assert {rung["pairs"] for rung in rungs.values()} == {20}
    assert rungs["cosine"]["images"] + rungs["cosine"]["texts"] == 20
    assert rungs["tflocal"]["images"] == 0  # of the tokens that the cosine reads
    assert rungs["run:ft"]["images"] == 10
    assert not empty.stores.exists()
    assert not (empty.path / "scores").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("shape",), 1, "Did you mean 'shapes'"),
        (("shapes-retrieval",), 2, "asks for retrieval, and the ladder for swaps"),
        (("--split", "in"), 1, "no split of shapes 'in'"),
        (("--crops", "17"), 1, "no grid of windows '17'. Did you mean '70'"),
        (("--crops", "18", "--crops", "18"), 2, "--crops names one twice"),
        (("--run", "lim"), 1, "Did you mean 'lin'"),
        (("--run", "other"), 1, "other was fitted on features of random:49x64, and the ladder is of shapes-vit"),
        (("--tuned", "run:fd"), 1, "no run with towers 'fd'"),
        (("--backbone", "shapes-vif"), 1, "Did you mean 'shapes-vit'"),
        (("winoground",), 1, "reads files and no --root is given"),
        (("--plot", "c.bmp"), 2, "ends in no .svg, .pdf, .png, .html"),
        (("--plot", "c.svg", "--measure", "0"), 2, "--measure 0 measures none"),
        (("--format", "latex"), 1, "no format 'latex'"),
        (("--limit", "0"), 2, ""),
    ],
)
def test_mistakes_are_one_line(work, arguments, code, message):
    backbone = () if "--backbone" in arguments else ("--backbone", "shapes-vit")
    got, out, error = run("diagnose", *arguments, *backbone)
    assert (got, message in error) == (code, True), error
    assert out == ""
    assert not list(Path.cwd().glob("c.*"))
