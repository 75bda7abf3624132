"""The code blocks of a Markdown page: which there are, whether they are well formed, and what is wrong with one.

A fenced block has a language. `bash` and `python` are run, `toml`, `json` and `yaml` parsed, `text` is output or a
drawing. A block that cannot run says why on the line above it: `<!-- not run: needs weights of CLIP -->`; it is parsed
all the same. `<!-- run first: compal extract … -->` prepares what the page takes for granted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
import subprocess
import textwrap
import tomllib
from pathlib import Path

import typer.main
import yaml

from compal import cli, registry
from compal.align import setups
from compal.align.recipe import FitConfig
from compal.config import apply_settings, from_dict
from compal.workspace import Settings

ROOT = Path(__file__).parents[2]
RUN = ("bash", "python")
PARSED = ("toml", "json", "yaml")
SHOWN = ("text", "bibtex")
# What options name, and where it lies.
NAMED = {
    "--backbone": "backbones",
    "--benchmark": "benchmarks",
    "--data": "datasets",
    "--engine": "engines",
    "--head": "heads",
    "--method": "negatives",
    "--segments": "segmenters",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """line    of the page, counted from 1, where the code begins
    reason  why it is not run, "" where it is
    """

    language: str
    code: str
    line: int
    reason: str = ""

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.reason


def pages() -> list[Path]:
    """Every page that is held to the convention, the README first."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order; preparations are bash blocks."""
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"^(\s*)(`{3,}|~{3,})\s*([^\s`]*)", lines[number])
        first = re.match(r"^\s*<!-- run first:(.*)$", lines[number])
        start = number
        if fence:
            indent, marks, language = fence.groups()
            closing = re.compile(rf"^\s*{marks[0]}{{{len(marks)},}}\s*$")
            while number + 1 < len(lines) and not closing.match(lines[number + 1]):
                number += 1
            inside = "\n".join(line.removeprefix(indent) for line in lines[start + 1 : number + 1])
            above = re.match(r"^\s*<!-- not run: *(.*?) *-->\s*$", lines[start - 1]) if start else None
            found.append(Block(language, inside + "\n", start + 2, above.group(1) if above else ""))
            number += 1
        elif first:
            while "-->" not in lines[number]:
                number += 1
            inside = "\n".join([first.group(1), *lines[start + 1 : number + 1]]).split("-->")[0]
            found.append(Block("bash", textwrap.dedent(inside).strip() + "\n", start + 1))
        number += 1
    return found


def check(block: Block) -> None:
    """Raises `ValueError` for a block without a language that the convention knows, with an empty reason, or that
    does not parse; what our parsers raise for a configuration that is not one."""
    if block.language.startswith("{") and block.language not in ("{code-block}", "{code-cell}", "{eval-rst}"):
        return  # a directive of the site
    if block.language not in (*RUN, *PARSED, *SHOWN):
        known = ", ".join((*RUN, *PARSED, *SHOWN))
        raise ValueError(f"line {block.line}: a block of language '{block.language}'; known: {known}")
    if block.language == "toml":
        check_toml(block.code)
    elif block.language == "json":
        json.loads(block.code)
    elif block.language == "yaml":
        yaml.safe_load(block.code)
    elif block.language == "python":
        compile(block.code, f"line {block.line}", "exec")
    elif block.language == "bash":
        check_bash(block.code)


def check_toml(code: str) -> None:
    """A compal.toml, a set-up or a recipe, whole or a part of one: its keys must be known."""
    tables = tomllib.loads(code)
    if set(tables) <= {field.name for field in dataclasses.fields(Settings)}:
        from_dict(Settings, tables)
        return
    for key in setups.OWN:
        tables.pop(key, None)
    config = from_dict(FitConfig, {"head": {"name": "cosine"}, **tables})
    if {"head", "loss"} & set(tables):
        config.complete()


def check_bash(code: str) -> None:
    """The shell parses it; commands, options and names of parts exist."""
    done = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)
    for line in code.replace("\\\n", " ").splitlines():
        if line.strip().startswith("compal "):
            check_command(line.strip())


def check_command(line: str) -> None:
    """Command and options of `compal …` exist; names of parts are real, unless they are in capitals, which stand for
    the reader's, or dotted, which stand outside. Raises `ValueError`, `UnknownName`, `UsageError`."""
    words = shlex.split(re.split(r" [|>]|&&| \|\| |;| 2>", line)[0], comments=True)[1:]
    command = typer.main.get_command(cli.app)
    while words and words[0].startswith("-") and words[0] in options(command):
        words.pop(0)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands") and words:
        raise ValueError(f"no such command: {line}")
    unknown = {word.split("=")[0] for word in words if word.startswith("--")} - options(command)
    if unknown:
        raise ValueError(f"no such option {sorted(unknown)}: {line}")
    for option, value in itertools.pairwise(words):
        name = registry.split_argument(value)[0]
        if option in NAMED and name != name.upper() and not re.search(r"[./$]", name):
            registry.path(NAMED[option], name)
        if option == "--set":
            apply_settings({}, [value])


def options(command: object) -> set[str]:
    """What a command takes, those of all commands included."""
    return {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
