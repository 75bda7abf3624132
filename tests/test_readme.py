"""The README and CONTRIBUTING say what exists: their commands parse, their tables name the parts there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import blocks, check_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "demo.py",
        *(f"cli/{file.name}" for file in (ROOT / "cli").glob("*.py")),
        *(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")),
    )
}


def commands() -> list[str]:
    """Every `compal …` of the pages' code blocks, sentences, help examples and closing words."""
    found = []
    for name, text in PAGES.items():
        code = "".join(block.code for block in blocks(text)) if name.endswith(".md") else text
        found += re.findall(r"^compal [^\n]+", code.replace("\\\n", " "), re.M)
        found += re.findall(r"`(compal [a-z][^`…|]*)`", text)
        found += re.findall(r"Example: (compal [^\n]+)", text)
        found += re.findall(r'"  (compal [^"{]+)"', text)
    return sorted({re.split(r"\s{2,}", line)[0] for line in found})


def test_first_commands_stand_first():
    assert len(README.splitlines()) <= 150
    top = "\n".join(README.splitlines()[:20])
    assert "make demo" in top
    assert "make test" in top


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for text in (PAGES["README.md"], PAGES["CONTRIBUTING.md"], (ROOT / ".ci" / "run").read_text()):
        for line in re.findall(r"^make ([a-z ]+)", text, re.M):
            assert set(line.split()) <= targets, line


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    """Command and options exist; names of parts are real."""
    check_command(line)


def test_commands_were_collected():
    assert len(commands()) >= 15


def test_the_tree_is_the_disk():
    for name in re.findall(r"^([a-z]+)/", README, re.M):
        assert (ROOT / name).is_dir(), name
    for name in re.findall(r"\b([a-z]+\.py)\b", README.split("## The tree")[1].split("```")[1]):
        assert (ROOT / name).is_file(), name
