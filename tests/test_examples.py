"""The examples run, at a small size; the notebooks are as `make notebooks` leaves them."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
HOME = re.compile(r"/(root|home|tmp|work|Users)/")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The examples share what is extracted."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.delenv("COMPAL_HOME", raising=False)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(EXAMPLES))


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_first_steps(capsys):
    report = example("first_steps")["main"](limit=8, steps=2, groups=1)
    assert [row.label for row in report][-2:] == ["mine", "tflocal"]
    assert "against cosine" in capsys.readouterr().out


def test_own_head(capsys):
    report = example("own_head")["main"](limit=8, steps=2, groups=1)
    assert [row.label for row in report][-2:] == ["top-patches-s0", "top-patches-s1"]
    assert "top-patches (2 seeds)" in capsys.readouterr().out


def test_read_store(capsys):
    assert -1 <= example("read_store")["main"]("shapes-vit") <= 1
    assert "a batch of 8 images × 8 captions, patches (8, 65, 96)" in capsys.readouterr().out


def test_kernels_alone():
    before, after = example("kernels_alone")["main"](steps=40, pairs=16)
    assert after < 0.7 * before


def test_the_table_fits_one_recipe_and_writes_its_page(folder, monkeypatch, capsys):
    table = folder / "table.toml"
    table.write_text(
        'backbone = "shapes-vit"\ndata = "shapes"\nseeds = [0]\n'
        'common = ["data.validation=", "data.batch_size=4", "optim.steps=2"]\n[recipes]\nlinear = []\n'
    )
    asked = ["--data", str(table), "--limit", "1", "--out", str(folder / "page.md")]
    monkeypatch.setattr(sys, "argv", ["experiment_table.py", *asked])
    monkeypatch.setattr("compal.eval.benchmarks.shapes_retrieval.SCENES", 12)
    monkeypatch.setattr("compal.eval.benchmarks.shapes_attributes.SCENES", 6)
    example("experiment_table")["main"]()
    assert "| linear | frozen | 4,096 |" in (folder / "page.md").read_text()
    assert "linear-s0" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_whole_and_pass_on(path):
    """The build of the documentation executes them; here, that what is committed was executed from top to bottom, is
    small, and holds nothing of one machine."""
    assert path.stat().st_size <= 400 * 1024
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs)
    assert not HOME.search(re.sub(r'"image/png": "[^"]*"', "", path.read_text())), "a path of this machine"


def test_the_notebook_s_head_is_the_example_s():
    written = next(
        cell.source
        for cell in nbformat.read(ROOT / "docs" / "notebooks" / "own_head.ipynb", as_version=4).cells
        if cell.source.startswith("%%writefile mine/top_patches.py")
    )
    source = (EXAMPLES / "heads" / "top_patches.py").read_text()
    assert ast.dump(ast.parse(written.partition("\n")[2])) == ast.dump(ast.parse(source))
