"""What the shell completes, asked as bash and zsh ask; quick, and silent where something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "pyarrow", "zarr")


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMPAL_HOME", raising=False)
    for folder in ("runs/linear-1234abcd", "runs/ft/towers", "stores/shapes-vit-tokens-ff00"):
        (tmp_path / "compal-work" / folder).mkdir(parents=True)
    (tmp_path / "compal-work/stores/shapes-vit-tokens-ff00/spec.json").write_text("{}")
    (tmp_path / "compal.toml").write_text('[remotes]\nteam = "s3://bucket/x"\n')
    (tmp_path / "captions.jsonl").write_text("")


def completed(line, shell="bash"):
    """What a shell would offer for a line whose last word is being typed."""
    words = line.split(" ")
    told = {"bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}, "zsh": {"_TYPER_COMPLETE_ARGS": line}}
    environment = {**os.environ, "_COMPAL_COMPLETE": f"complete_{shell}", **told[shell]}
    code = (
        "import sys\nfrom compal.cli import main\nsys.argv = ['compal']\ntry:\n    main()\nfinally:\n"
        f"    assert not {set(HEAVY)!r} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert "Assertion" not in done.stderr
    assert done.stderr == ""
    return done.stdout.replace("\\", "")  # zsh has colons escaped


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("compal ev", ["eval"], ["fit"]),
        ("compal eval suga", ["sugarcrepe", "sugarcrepe-pp"], ["shapes"]),
        ("compal eval shapes --run ", ["linear-1234abcd", "shipped:tflocal"], []),
        ("compal extract --backbone run:", ["run:ft"], ["linear"]),
        ("compal extract --data ca", ["captions.jsonl"], ["coco"]),
        ("compal store info sh", ["shapes-vit-tokens-ff00"], []),
        ("compal store push --remote ", ["team"], []),
        ("compal fit negc", ["negclip", "negclip-coco"], []),
        ("compal ls back", ["backbones"], ["heads"]),
    ],
)
def test_names_are_completed(shell, line, offered, not_offered):
    said = completed(line, shell)
    assert all(name in said for name in offered), said
    assert not any(name in said for name in not_offered), said


def test_a_broken_workspace_completes_nothing_and_says_nothing(tmp_path):
    (tmp_path / "compal.toml").write_text("[[[")
    assert completed("compal eval shapes --run ").strip() == ""


def test_it_answers_while_one_types():
    """Half a second of this process's own time: the clock of a busy machine is no measure."""
    started = os.times()
    completed("compal fit l")
    ended = os.times()
    assert (ended.children_user + ended.children_system) - (started.children_user + started.children_system) < 1.0
