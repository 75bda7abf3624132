"""`compal init`: every setting stands in the file, what lies in the folder is proposed, nothing is overwritten; and the
newcomer's way from an empty folder."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from command_line import rows, run, table
from PIL import Image
from typer.testing import CliRunner

from compal import cli
from compal.cli.init import template
from compal.stores import holdout
from compal.workspace import CONFIG_FILE, Defaults, Settings, Workspace

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMPAL_HOME", raising=False)


def written():
    return tomllib.loads(Path(CONFIG_FILE).read_text())


def test_every_setting_is_in_the_template_and_works_once_uncommented():
    text = template("", "", {}, {}, "")
    assert tomllib.loads(text) == {"defaults": {}, "roots": {}, "remotes": {}}
    lines = [line.removeprefix("# ") if " = " in line or "# [" in line else line for line in text.splitlines()]
    kept = [line for line in lines if not line.startswith("#") and (" = " in line or line.startswith("["))]
    kept = [line for line in kept if not line.startswith(("A ", "What ", "NAME "))]
    Path(CONFIG_FILE).write_text("\n".join(kept))
    settings = Workspace.find().settings
    assert {field.name for field in dataclasses.fields(Settings)} <= set(written())
    assert {field.name for field in dataclasses.fields(Defaults)} == set(written()["defaults"])
    assert settings.defaults.log == ("wandb",)
    assert all(getattr(settings, field.name) for field in dataclasses.fields(Settings))


def test_what_is_given_is_written_and_said():
    code, out, _ = run(
        "init", "--backbone", "clip", "--data", "coco", "--root", "coco=/data/coco", "--remote", "team=s3://bucket/x",
        "--workspace", "features", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["file"] == str(Path.cwd() / CONFIG_FILE)
    found = Workspace.find()
    assert (found.path.name, found.settings.defaults.backbone, found.settings.defaults.data) == (
        "features",
        "clip",
        "coco",
    )
    assert found.root_for("coco") == Path("/data/coco")
    assert found.remotes[0].url == "s3://bucket/x"


def test_a_file_that_is_there_stays():
    Path(CONFIG_FILE).write_text("# mine\n")
    code, _, error = run("init")
    assert (code, "is there already. Edit it" in error) == (1, True)
    assert Path(CONFIG_FILE).read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--root", "coco"], "--root coco is not NAME=FOLDER"),
        (["--remote", "=x"], "--remote =x is not NAME=URL"),
        (["--remote", "team=s3://me:word@bucket"], "holds a password"),
    ],
)
def test_wrong_words_write_nothing(words, said):
    code, _, error = run("init", *words)
    assert (code, said in error) == (2, True), error
    assert not Path(CONFIG_FILE).exists()
    assert "word@" not in error


def coco(folder):
    (folder / "annotations").mkdir()
    (folder / "annotations" / "captions_val2017.json").write_text("{}")


def texts(folder, count=3):
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")


def test_what_lies_in_the_folder_is_proposed(tmp_path):
    def proposed(lay):
        Path(CONFIG_FILE).unlink(missing_ok=True)
        lay()
        assert run("init")[0] == 0
        found = written()
        return found["defaults"].get("data"), found["roots"]

    assert proposed(lambda: None) == (None, {})
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.jsonl").write_text("{")
    assert proposed(lambda: None) == (None, {})
    (tmp_path / "photos").mkdir()
    assert proposed(lambda: texts(tmp_path / "photos")) == ("folder", {"folder": "photos"})
    assert proposed(lambda: texts(tmp_path / "photos", 25)) == ("folder", {"folder": "photos?holdout=0.2"})
    assert proposed(lambda: table(tmp_path, rows(3))) == ("table", {"table": "captions.jsonl"})
    assert proposed(lambda: table(tmp_path, rows(25))) == ("table", {"table": "captions.jsonl?holdout=0.2"})
    split = [{**row, "split": "val" if number % 5 else "train"} for number, row in enumerate(rows(25))]
    assert proposed(lambda: table(tmp_path, split)) == ("table", {"table": "captions.jsonl"})
    assert proposed(lambda: coco(tmp_path)) == ("coco", {"coco": "."})


def next_of(result):
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("next ")]
    return line.split()[2:]


def test_a_newcomer_types_what_is_said_next(tmp_path, monkeypatch):
    """From pictures and a table to a report, each command as the one before named it; also from a folder below."""
    table(tmp_path, [{"image": f"{n}.png", "caption": f"picture number {n}"} for n in range(40)])
    typed, words = [], ["init"]
    below = tmp_path / "below"
    below.mkdir()
    while words and words[0] != "view":
        assert len(typed) < 6
        typed.append(words[0])
        # Fewer steps, and a report in no browser: the test has no time.
        more = ["--set", "optim.steps=3"] if words[0] == "fit" else []
        result = CliRunner().invoke(cli.app, [*words, *more])
        assert result.exit_code == 0, (words, result.output, result.exception)
        words = next_of(result)
        monkeypatch.chdir(below)
    assert typed == ["init", "extract", "fit", "eval"]
    assert words == ["view"]
    result = CliRunner().invoke(cli.app, ["view", "--no-open", "-q"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path(result.stdout.strip()).is_file()
    held = sum(holdout.split_of(f"{n}.png", 0.2) == "val" for n in range(40))
    assert 0 < held < 40
    rows_ = json.loads(run("report", "--json")[1])["results"]
    assert {row["overall"]["n"] for row in rows_ if row["role"] == "scorer"} == {2 * held}
