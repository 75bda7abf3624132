"""A disk without room is said in one line, before the work: what is needed, what is free, what helps."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from command_line import rows, run, table

from compal.errors import InputError
from compal.stores import space

SAID = re.compile(r"take about [\d.e-]+ GB, and the disk of \S+ has [\d.e-]+ GB free\. Free space, or choose another")


@pytest.fixture
def full(monkeypatch):
    """From here on no disk has a byte more than the reserve."""

    def fill():
        usage = type(shutil.disk_usage("/"))(1 << 40, 1 << 40, space.RESERVE)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return fill


def test_what_fits_is_not_refused(tmp_path, full):
    space.check(tmp_path, 1000, "files")
    assert space.free(tmp_path / "not" / "there" / "yet") == shutil.disk_usage(tmp_path).free
    full()
    space.check(tmp_path, 0, "nothing")
    assert space.lacking(tmp_path, 0, "nothing") == ""
    with pytest.raises(InputError) as raised:
        space.check(tmp_path, 3_000_000_000, "the files")
    assert str(raised.value).startswith("the files take about 3 GB")
    assert SAID.search(str(raised.value))


def test_no_command_begins_what_the_disk_cannot_hold(tmp_path, monkeypatch, full):
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    few, more = table(tmp_path / "set", rows(4)), table(tmp_path / "more", rows(9))
    for path in (few, more):
        assert run("extract", "--backbone", "random:4x8", "--data", path)[0] == 0
    (store,) = (tmp_path / "work" / "stores").iterdir()
    before = sorted(tmp_path.rglob("*"))
    full()
    words = ["--backbone", "random:4x8", "--data", table(tmp_path / "last", rows(12))]
    before = sorted({*before, *(tmp_path / "last").rglob("*"), tmp_path / "last"})
    for command in (
        ["extract", *words],
        ["fit", "linear", "--backbone", "random:4x8", "--data", few],
        ["store", "cast", store, "--dtype", "bfloat16", "--into", tmp_path / "cast"],
        ["store", "compact", store],
        ["store", "merge", store, "--into", tmp_path / "merged"],
    ):
        code, _, error = run(*command)
        assert (code, bool(SAID.search(error))) == (1, True), (command, error)
    code, out, _ = run("extract", *words, "--dry-run")
    assert code == 0
    assert "that is too little" in out
    code, out, _ = run("fit", "linear", "--backbone", "random:4x8", "--data", few, "--dry-run")
    assert code == 0
    assert "lacks  its checkpoints take about" in out
    new = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()]
    assert [path for path in new if path.suffix in (".arrow", ".safetensors") or "c.0" in path.name] == []
    assert Path(few).is_file()
