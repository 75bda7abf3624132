"""Every code block of the documentation runs, or says why it does not."""

from __future__ import annotations

import sys
import time

import pytest
from page_runner import BlockFailed, Page
from pages import ROOT, Block, blocks, check, pages

from compal.errors import UnknownName


@pytest.fixture
def page(tmp_path):
    for name in ("work", "calls"):
        (tmp_path / name).mkdir()
    return Page("page.md", tmp_path / "work", tmp_path / "calls")


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_block_runs_or_says_why_not(path, tmp_path):
    for name in ("work", "calls"):
        (tmp_path / name).mkdir()
    page = Page(path.relative_to(ROOT).as_posix(), tmp_path / "work", tmp_path / "calls")
    for block in blocks(path.read_text(encoding="utf-8")):
        check(block)
        if block.runs:
            page.run(block)


# --- the runner itself --------------------------------------------------------------------------------


def test_fences_comments_and_preparations_are_read():
    text = "\n".join([
        "<!-- run first:", "compal ls", "compal doctor -->", "<!-- not run: needs a cluster -->", "```bash", "srun x",
        "```", "- in a list", "", "  ```python", "  if True:", "      pass", "  ```", "````text", "```bash", "````",
        "~~~json", "{}", "~~~",
    ])  # fmt: skip
    assert [(one.language, one.code, one.line, one.reason, one.runs) for one in blocks(text)] == [
        ("bash", "compal ls\ncompal doctor\n", 1, "", True),
        ("bash", "srun x\n", 6, "needs a cluster", False),
        ("python", "if True:\n    pass\n", 11, "", True),
        ("text", "```bash\n", 15, "", False),
        ("json", "{}\n", 18, "", False),
    ]


@pytest.mark.parametrize(
    ("language", "code", "message"),
    [
        ("", "compal ls", "language ''"),
        ("rust", "fn main() {}", "language 'rust'"),
        ("{code-block}", "compal ls", "language"),
        ("python", "a b", "invalid syntax"),
        ("bash", "if true; then", "syntax error"),
        ("bash", "compal stor ls", "no such command"),
        ("bash", "compal ls --nothing", "no such option"),
        ("bash", "x=1\ncompal extract \\\n  --backbone nothing | head", "nothing"),
        ("bash", "compal fit linear --set optim", "KEY=VALUE"),
        ("toml", "remotes = 3", "remotes"),
        ("toml", "[optim]\nsteps = 'x'", "optim.steps"),
        ("toml", "[head]\nname = 'nothing'", "nothing"),
        ("json", "{", "Expecting"),
        ("yaml", "a: [", "flow"),
    ],
)
def test_a_block_that_is_no_good_is_refused_even_with_a_reason(language, code, message):
    with pytest.raises(Exception, match=message):
        check(Block(language, code, 1, "needs a cluster"))


def test_good_blocks_pass():
    check(Block("toml", '[remotes]\nteam = "s3://bucket/prefix"', 1))
    check(Block("toml", 'recipe = "linear"\nbackbone = "clip"\ndataset = "coco"\n[optim]\nsteps = 3', 1))
    check(Block("bash", "compal extract --backbone NAME --data mine.table:x | tail -1  # its last", 1))
    with pytest.raises(UnknownName):
        check(Block("bash", "compal eval shapes --head nothing", 1))


@pytest.mark.parametrize(
    ("language", "code", "message"),
    [
        ("python", "print('seen')\n1 / 0", "(?s)seen.*page.md:7.*ZeroDivisionError"),
        ("python", "raise SystemExit(1)", "SystemExit"),
        ("bash", "echo seen\nfalse\necho unseen", "(?s)seen\n\nexit code 1"),
        ("bash", "compal store info nothing", "(?s)compal: .*exit code 1"),
        ("bash", "compal ls --nothing", "exit code 2"),
        ("bash", "compal store info nothing | cat", "exit code 1"),
        ("bash", "echo $UNSET", "unbound"),
    ],
)
def test_a_block_that_fails_fails(page, language, code, message):
    with pytest.raises(BlockFailed, match=message):
        page.run(Block(language, code, 7))


def test_blocks_share_a_folder_variables_and_names(page):
    page.run(Block("python", "import os\nfrom pathlib import Path\nPath('a.txt').write_text('1')\nb = 2", 1))
    page.run(Block("bash", "mkdir -p inner; cd inner; export MINE=$(cat ../a.txt); echo 'c = 3' > mine.py", 1))
    page.run(Block("python", "import mine\nassert (b, mine.c, os.environ['MINE']) == (2, 3, '1')", 1))
    page.run(Block("bash", "echo 'c = 4' > mine.py; test -f ../a.txt", 1))
    page.run(Block("python", "import mine\nassert (mine.c, Path.cwd().name) == (4, 'inner')", 1))
    page.run(Block("bash", "mkdir bare; touch bare/one.py", 1))
    page.run(Block("python", "import bare.one", 1))
    assert not {"mine", "bare", "bare.one"} & set(sys.modules)  # what a page imports is not the next page's


def test_what_a_block_imports_stays_imported(page):
    """Torch cannot be imported twice, and the next block's commands need it."""
    sys.modules.pop("this", None)
    page.run(Block("python", "import this", 1))
    assert "this" in sys.modules
    assert sys.modules["__main__"] is not page.module


def test_commands_run_warm_in_the_shell(page):
    started = time.monotonic()
    shown = page.run(
        Block(
            "bash", "for kind in heads losses; do\n  compal ls $kind | head -2\ndone\ncompal ls nothing || echo $?", 1
        )
    )
    assert "compal: no kind of part 'nothing'" in shown
    assert shown.endswith("1\n")
    assert time.monotonic() - started < 5
    assert page.run(Block("bash", "compal ls heads --json > heads.json; head -c 1 heads.json", 1)) in ("{", "[")


def test_steps_are_few(page):
    assert page.run(Block("bash", "echo --set optim.steps=5000 --set optim.steps=7", 1)).split()[1::2] == [
        "optim.steps=20", "optim.steps=7",
    ]  # fmt: skip


def test_no_workspace_of_the_reader_is_used(page, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", "/nowhere")
    fresh = Page("page.md", page.folder, page.calls)
    assert fresh.run(Block("bash", "echo ${COMPAL_HOME-none}", 1)) == "none\n"
