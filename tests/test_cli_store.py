"""`compal store …` as a user meets it: versions, upkeep, sharing by two people and a third, conversion, wrong input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import rows, run, table

from compal.cli.store import store_path
from compal.errors import UnknownName
from compal.stores.store import Store


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A workspace whose store was appended to once: 3 pictures, then 2 more."""
    folder = tmp_path_factory.mktemp("extracted")
    table(folder / "data", rows(5))
    first = folder / "data" / "first.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    for name in ("first", "captions"):
        code, _, error = run(
            "extract", "-b", "shapes-vit", "-d", folder / "data" / f"{name}.jsonl", "--work", folder / "work"
        )
        assert code == 0, error
    return folder


@pytest.fixture
def here(extracted, tmp_path, monkeypatch):
    """A copy of it, in which one stands, with a remote named team beside it."""
    shutil.copytree(extracted / "work", tmp_path / "work")
    (tmp_path / "compal.toml").write_text('workspace = "work"\n[remotes]\nteam = "share"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(*arguments):
    code, out, error = run(*arguments, "--json")
    assert code == 0, error or out
    return json.loads(out)


def only_store(folder: Path) -> Path:
    (path,) = (folder / "stores").iterdir()
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a store but what is private to writers."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {path: content for path, content in found.items() if not path.startswith(".")}


def test_versions_are_listed_restored_and_taken_up_again(here, extracted):
    versions = result("store", "log")
    assert [one["number"] for one in versions] == [2, 1]
    assert [one["rows_added"] for one in versions] == [4, 6]
    assert "append" in run("store", "log")[1]
    assert result("store", "restore", "shapes-vit", "1")["version"] == 3
    assert result("store", "info")["images"] == 3
    assert result("store", "verify")["problems"] == []
    (again,) = result("extract", "-b", "shapes-vit", "-d", extracted / "data" / "captions.jsonl")
    assert (again["images"], again["texts"]) == (0, 0)
    assert result("store", "info")["images"] == 5


def test_a_store_is_named_by_its_folder_or_its_backbone(here):
    folder = only_store(here / "work")
    other = folder.parent / "open-clip-vit-b-32-laion2b-s34b-b79k-some-t-tokens-0123456789abcdef"
    other.mkdir()
    (other / "spec.json").write_text("{}")
    for name in ("shapes", "shapes-vit", "Shapes_ViT", folder.name, str(folder)):
        assert store_path(name, None) == folder
    assert store_path("open_clip:ViT-B-32/laion2b_s34b_b79k-some-tag-of-many-words", None) == other
    with pytest.raises(UnknownName, match="no store ':'"):
        store_path(":", None)


def test_small_parts_become_full_ones_and_the_old_are_collected(here):
    path = only_store(here / "work")
    before = Store.open(path)
    keys = sorted(before.keys("image"))
    tokens = before.image_tokens(keys)
    assert result("store", "compact", "--dry-run")["sources"] == result("store", "compact")["sources"]
    waiting = result("store", "gc", "--dry-run")
    assert waiting["parts"] == []
    assert len(waiting["waiting"]) == 4
    collected = result("store", "gc", "--days", "0")
    assert len(collected["parts"]) == 4
    after = Store.open(path)
    np.testing.assert_array_equal(after.image_tokens(keys), tokens)
    assert len(after.parts) == 2
    assert result("store", "verify")["problems"] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_cast_store_differs_and_is_whole(here, dtype):
    cast = result("store", "cast", "--dtype", dtype, "--into", here / "cast")
    assert cast["dtype"] == dtype
    assert result("store", "verify", here / "cast")["problems"] == []
    code, out, _ = run("store", "diff", "shapes-vit", here / "cast")
    assert code == 1
    assert f"'{dtype}' there" in out


def test_merging_a_copy_adds_nothing(here):
    path = only_store(here / "work")
    assert result("store", "merge", path, "--into", here / "all")["items"] == 10
    assert result("store", "merge", path, "--into", here / "all")["parts"] == 0
    assert result("store", "diff", path, here / "all")["equal"] is True
    assert "are equal" in run("store", "diff", path, here / "all")[1]


@pytest.mark.parametrize("name", ["s.h5", "s.safetensors", "s.npz"])
def test_out_and_in_again(here, name):
    written = result("store", "export", "shapes-vit", here / name)
    assert (written["images"], written["texts"]) == (5, 5)
    code, _, error = run("store", "export", "shapes-vit", here / name)
    assert code == 1
    assert "exist" in error
    back = result("store", "import", here / name, "--into", here / "back")["store"]
    assert result("store", "diff", "shapes-vit", back)["equal"] is True


def test_a_team(here, extracted, tmp_path_factory):
    """One pushes; a second extracts the same and runs nothing; a third adds a dataset and computes just that."""
    pushed = result("store", "push")
    assert pushed["parts"] == 4
    assert result("store", "push")["parts"] == 0
    (shared,) = result("ls", "--remote")
    assert (shared["images"], shared["texts"]) == (5, 5)
    assert "5 images" in run("ls", "--remote")[1]

    others = []
    for number in range(2):
        folder = tmp_path_factory.mktemp("other")
        (folder / "compal.toml").write_text(f'workspace = "work"\n[remotes]\nteam = "{here / "share"}"\n')
        others.append(folder)
        wanted = table(folder / "data", rows(5 + number))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            code, out, error = run("extract", "-b", "shapes-vit", "-d", wanted)
            assert code == 0, error
            assert f"{number} images and {number} captions extracted" in out
            assert "10 came from a remote, which saved" in out
            result("store", "push")
    for folder in (here, others[0]):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            result("store", "pull")
    stores = [only_store(folder / "work") for folder in (here, *others)]
    assert tree(stores[0]) == tree(stores[1]) == tree(stores[2])
    assert Store.open(stores[0]).count("image") == 6


def test_only_what_a_dataset_needs_comes(here, extracted, tmp_path_factory):
    result("store", "push")
    other = tmp_path_factory.mktemp("other")
    got = result(
        "store", "pull", "--remote", here / "share", "--data", extracted / "data" / "first.jsonl", "--work", other
    )
    assert (got["parts"], got["items"]) == (2, 6)
    assert Store.open(only_store(other)).count("image") == 3


def test_computing_although_a_remote_has_it(here, extracted, tmp_path):
    result("store", "push")
    shutil.rmtree(here / "work" / "stores")
    first = extracted / "data" / "first.jsonl"
    (done,) = result("extract", "-b", "shapes-vit", "-d", first, "--no-remote")
    assert (done["images"], done["pulled"]) == (3, 0)


def test_a_rewritten_history_is_refused_once_it_is_trusted(here):
    result("store", "push")
    pin = result("store", "trust")
    assert (pin["version"], len(pin["sha256"])) == (2, 64)
    shared = only_store_of_share(here)
    manifest = shared / "manifests" / "2.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"append"', b'"appeMd"'))
    code, _, error = run("store", "pull")
    assert code == 3
    assert "trust" in error
    assert result("store", "trust", "--forget")["forgotten"] is True


def only_store_of_share(here):
    (path,) = (path for path in (here / "share").iterdir() if (path / "spec.json").exists())
    return path


def test_a_remote_that_fails_does_not_end_an_extraction(here, extracted):
    (here / "compal.toml").write_text('workspace = "fresh"\n[remotes]\nteam = "share"\n')
    (here / "share").write_text("a file where a folder should be")
    first = extracted / "data" / "first.jsonl"
    (done,) = result("extract", "-b", "shapes-vit", "-d", first)
    assert done["images"] == 3


WRONG = [
    (["store", "restore", "shapes-vit", "9"], 1, "9"),
    (["store", "restore", "nothing", "1"], 1, "no store 'nothing'"),
    (["store", "cast", "--dtype", "int4"], 2, "int4"),
    (["store", "export", "shapes-vit", "x.docx"], 2, "names no format"),
    (["store", "export", "shapes-vit", "x", "--format", "docx"], 1, "no format 'docx'"),
    (["store", "import", "absent.h5", "--into", "y"], 1, "absent.h5"),
    (["store", "import", "x.npz", "--into", "y", "--map", "keys"], 2, "NAME=DATASET"),
    (["store", "pull", "nothing"], 1, "there is no store on"),
    (["store", "pull", "--split", "train"], 2, "--data"),
    (["store", "push", "--remote", "teem"], 1, "Did you mean 'team'?"),
    (["store", "push", "--remote", "s3://user:secret@bucket/x"], 2, "password"),
    (["store", "diff", "shapes-vit", "nothing"], 1, "no store 'nothing'"),
    (["store", "merge", "shapes-vit", "--into", "compal.toml"], 1, "compal.toml"),
    (["ls", "heads", "--remote"], 2, "remotes hold stores"),
    (["extract", "-b", "shapes-vit", "--dtype", "int8"], 2, "compal store cast"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "said"), WRONG, ids=[" ".join(one[0][:4]) for one in WRONG])
def test_wrong_input_is_one_line(here, arguments, exit_code, said):
    code, _, error = run(*arguments)
    assert (code, said in error) == (exit_code, True), error
    assert "secret@" not in error
