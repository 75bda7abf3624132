"""The command line as a user meets it: wrong input is one line that says what, where and the cure; nothing
half-written is taken for whole; the three commands run on real photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import rows, run, table
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from compal import cli, registry
from compal.workspace import Workspace

DATA = Path(__file__).parent / "data"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A workspace of its own; no compal.toml above it is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    return tmp_path / "work"


UNKNOWN = [
    (["extract", "--backbone", "shapes-vot"], "no backbone 'shapes-vot'. Did you mean 'shapes-vit'?"),
    (["extract", "--backbone", "open_clip:ViT-B-23/random"], "Did you mean"),
    (["extract", "--backbone", "random", "--data", "shape"], "no dataset 'shape'. Did you mean 'shapes'?"),
    (["extract", "--backbone", "random", "--data", "shapes", "--split", "tran"], "Did you mean 'train'?"),
    (["extract", "--backbone", "random", "--level", "token"], "Did you mean 'tokens'?"),
    (["eval", "sugarcrape", "--backbone", "random"], "no benchmark 'sugarcrape'. Did you mean 'sugarcrepe'?"),
    (["eval", "shapes", "--backbone", "random", "--split", "indomain"], "Did you mean 'in_domain'?"),
    (["fit", "tflokal", "--backbone", "random"], "no recipe 'tflokal'. Did you mean 'tflocal'?"),
    (["fit", "linear", "--backbone", "random", "--set", "optim.lrr=1"], "Did you mean 'optim.lr'?"),
    (["ls", "benchmark"], "Did you mean 'benchmarks'?"),
    (["ls", "run"], "Did you mean 'runs'?"),
    (["store", "info", "nothing"], "no store 'nothing'"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), UNKNOWN, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_an_unknown_name_is_guessed(work, arguments, said):
    code, out, error = run(*arguments)
    assert code == 1
    assert said in error
    assert out == ""


RERANK = [
    (["shapes", "--rerank", "5", "--head", "maxsim"], "benchmark 'shapes' asks for quads. Leave it out"),
    (["shapes-retrieval", "--rerank", "x", "--head", "maxsim"], "--rerank x is no number of candidates"),
    (["shapes-retrieval", "--rerank", "5"], "--rerank has nothing to score candidates with"),
    (["shapes-retrieval", "--rerank", "5", "--head", "maxsim", "--index", "tree"], "no index 'tree'"),
    (["shapes-retrieval", "--head", "maxsim", "--index", "ivf"], "--candidates and --index are of --rerank"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), RERANK, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_cannot_be_reranked_is_one_line_before_anything_is_read(work, arguments, said):
    code, out, error = run("eval", *arguments, "--backbone", "random")
    assert code == (1 if said.startswith("no index") else 2), "an unknown name, or wrong usage"
    assert said in error
    assert len(error.splitlines()) == 1
    assert out == ""


def test_what_to_create_is_named(work):
    assert "create pipeline/backbones/vot.py defining spec, load" in run("extract", "--backbone", "vot")[2]


def test_usage_errors_exit_with_two(work):
    assert run("extract", "--no-such-option")[0] == 2
    assert run("fit")[0] == 2
    assert run("fit", "linear", "--backbone", "random", "--set", "optim.lr")[0] == 2


def test_missing_folder(work):
    code, _, error = run("extract", "--backbone", "random", "--data", "coco:/nowhere/coco")
    assert code == 1
    assert "/nowhere/coco" in error


def test_missing_features_name_the_command(work):
    code, _, error = run("eval", "shapes", "--backbone", "random", "--limit", "1")
    assert code == 1
    assert "compal extract --backbone random" in error
    code, _, error = run("fit", "linear", "--backbone", "random", "--data", "shapes")
    assert code == 1
    assert "compal extract --backbone random --data shapes --split train" in error


def test_unreadable_items_are_listed_and_stop_nothing(work, tmp_path):
    listed = [
        *rows(4),
        {"image": "absent.png", "caption": "not there", "absent": True},
        {"image": "0.png", "caption": " "},
    ]
    path = table(tmp_path / "set", listed)
    cut = tmp_path / "set" / "1.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "set" / "cut.jpg")
    whole = (tmp_path / "set" / "cut.jpg").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    code, out, _ = run("extract", "--backbone", "random:4x8", "--data", path, "--json")
    assert code == 0
    (summary,) = json.loads(out)
    assert summary["images"] == 3
    reasons = {row["source"].split("/")[-1]: row["reason"] for row in summary["quarantined"]}
    assert len(reasons) == 3
    code, out, _ = run("store", "verify", "--json")
    assert code == 0
    assert json.loads(out)["problems"] == []
    again = json.loads(run("extract", "--backbone", "random:4x8", "--data", path, "--json")[1])[0]
    assert (again["images"], again["texts"]) == (0, 0)


def test_duplicate_ids_name_both_rows(work, tmp_path):
    path = table(tmp_path / "set", [{**row, "id": 7} for row in rows(2)])
    code, _, error = run("extract", "--backbone", "random:4x8", "--data", path)
    assert code == 1
    assert "7" in error
    assert "captions.jsonl" in error


def test_a_long_caption_is_flagged(work, tmp_path):
    path = table(tmp_path / "set", [{"image": "0.png", "caption": "red circle and " * 100}])
    code, out, _ = run("extract", "--backbone", "shapes-vit", "--data", path)
    assert code == 0
    assert "1 captions were longer than the context" in out


def test_nan_features_are_refused(work, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(registry.ROOT / "assets" / "shapes_vit", folder)
    weights = load_file(folder / "model.safetensors")
    weights["visual.proj"] = np.full_like(weights["visual.proj"], np.nan)
    save_file(weights, folder / "model.safetensors")
    code, _, error = run("extract", "--backbone", f"shapes-vit:{folder}", "--data", table(tmp_path / "set", rows()))
    assert code == 1
    assert error
    assert run("store", "info")[0] == 1 or '"images": 0' in run("store", "info", "--json")[1]


def test_a_damaged_store_is_found(work, tmp_path):
    run("extract", "--backbone", "random:4x8", "--data", table(tmp_path / "set", rows()))
    (store,) = Workspace(work).list_stores()
    shard = next(store.rglob("c.0.0.0"))
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    code, out, _ = run("store", "verify")
    assert code == 3
    assert "c.0.0.0" in out


def test_a_checkpoint_of_another_backbone_is_refused(work):
    code, _, error = run(
        "eval", "shapes", "--backbone", "random:65x96", "--run", "shipped:tflocal", "--limit", "1", "--extract"
    )  # fmt: skip
    assert code == 1
    assert "shapes-vit" in error
    assert "random" in error


def test_an_unwritable_workspace_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "file"))
    monkeypatch.chdir(tmp_path)
    code, _, error = run("extract", "--backbone", "random:4x8", "--data", table(tmp_path / "set", rows()))
    assert code == 1
    assert "file" in error


def test_three_commands_on_photographs(work):
    """Real JPEGs, real captions, and a benchmark in its official format."""
    data = f"coco:{DATA / 'coco'}"
    assert run("extract", "--backbone", "shapes-vit", "--data", data)[0] == 0
    code, out, error = run(
        "fit", "linear", "--backbone", "shapes-vit", "--data", data,
        "--set", "optim.steps=3", "--set", "validation.every=3", "--json",
    )  # fmt: skip
    assert code == 0, error
    fitted = json.loads(out)
    code, out, error = run(
        "eval", "shapes", "--backbone", "shapes-vit", "--run", Path(fitted["run_dir"]).name,
        "--limit", "2", "--split", "in_domain", "--extract", "--json",
    )  # fmt: skip
    assert code == 0, error
    labels = {row["label"] for row in json.loads(out)["results"]}
    assert {"chance", "random", "text-only", "cosine"} < labels
    assert run("report", "--format", "md")[0] == 0


def test_names_are_remembered_and_said(work, tmp_path):
    path = table(tmp_path / "set", rows())
    run("extract", "--backbone", "random:4x8", "--data", path)
    result = CliRunner().invoke(cli.app, ["extract", "--dry-run"])
    assert result.exit_code == 0
    assert "random:4x8 (used last)" in result.stderr


def test_dry_run_writes_nothing(work, tmp_path):
    path = table(tmp_path / "set", rows())
    code, out, _ = run("extract", "--backbone", "random:4x8", "--data", path, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)[0]["images"] == 3
    assert not work.exists()


def test_ls_and_doctor(work):
    listing = json.loads(run("ls", "--json")[1])
    assert {"shapes-vit", "open_clip", "random", "clip", "siglip2", "pe"} <= set(listing["backbones"])
    assert {"shapes", "coco", "table", "folder"} <= set(listing["datasets"])
    assert {"tflocal", "tfglobal", "linear", "cosine", "maxsim"} <= set(listing["heads"])
    assert {"shapes", "sugarcrepe", "bivlc", "winoground"} <= set(listing["benchmarks"])
    assert all(text for kind in registry.KINDS for text in listing[kind].values())
    said = json.loads(run("doctor", "--json")[1])
    assert (said["workspace"], said["whole"]) == (str(work), True)
    checks = {check["name"]: check for check in said["checks"]}
    assert "altair" in checks["extra report"]["value"]  # an extra within an extra is looked at too
    assert {"gpu", "kernels (CPU)", "extra ray", "spaCy's model", "open files", "disk", "remotes"} <= set(checks)
    assert all(check["cure"] for check in checks.values() if check["state"] != "good")


def test_splits_go_by_their_usual_names():
    from compal.pipeline.naming import _called

    assert _called("train", ["train2017", "val2017"], ("train2017",)) == "train2017"
    assert _called("validation", ["train", "val"], ("val", "val2017")) == "val"
    assert _called("", ["train", "val"], ("val",)) == ""
    assert _called("test", ["train"], ("val",)) == ""
