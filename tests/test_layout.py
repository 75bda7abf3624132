"""The house: layers point down, imports are relative, the package list is the disk, functions and files are short."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("stores", "world", "pipeline", "align", "eval", "assets", "api", "cli", "console", "publish")
LEAVES = ("errors", "registry", "config", "hub", "workspace")
MAY_IMPORT = {
    "errors": (),
    "registry": ("errors",),
    "config": ("errors",),
    "hub": (),
    "workspace": ("errors", "config", "registry"),
    "stores": LEAVES,
    "world": (*LEAVES, "stores"),
    "pipeline": (*LEAVES, "stores", "world", "assets"),
    "align": (*LEAVES, "stores", "assets"),
    "eval": (*LEAVES, "stores", "world", "align"),
    "assets": (),
}
FREE = (
    "__init__",
    "__main__",
    "api",
    "cli",
    "console",
    "demo",
    "diagnose",
    "diagnose_cost",
    "experiments",
    "fit_plan",
    "publish",
    "sweep",
    "sweep_scores",
)  # the top: may import every room


def sources() -> list[Path]:
    files = [*ROOT.glob("*.py")]
    for room in ROOMS:
        files += (ROOT / room).rglob("*.py")
    return sorted(files)


def imported_rooms(path: Path) -> set[str]:
    """Our own rooms that a file imports, imports inside functions included."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            target = (*base, *(node.module or "").split(".")) if node.module else base
            names = [target[0]] if target and target[0] else [alias.name for alias in node.names]
            found.update(names)
    return found & {*ROOMS, *LEAVES, *FREE}  # `from .. import __version__` names no room


def test_every_file_is_seen():
    seen = {path.relative_to(ROOT).as_posix() for path in sources()}
    assert {
        "errors.py",
        "stores/spec.py",
        "world/render.py",
        "pipeline/extract.py",
        "eval/metrics.py",
    } <= seen


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows_point_down(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room in FREE:
        return
    assert room in MAY_IMPORT, f"{path.name}: a new room needs a row in MAY_IMPORT"
    crossing = imported_rooms(path) - {room} - set(MAY_IMPORT[room])
    assert not crossing, f"{path.relative_to(ROOT)} imports {sorted(crossing)}; {room} may import {MAY_IMPORT[room]}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_our_own_rooms_are_imported_relatively(path):
    """A bare `import stores` would make a second copy of the module."""
    own = {*ROOMS, *LEAVES, "compal"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & own, path
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] not in own, path


def test_package_list_is_the_disk():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    disk = {"compal"}
    for room in ROOMS:
        folders = {path.parent for path in (ROOT / room).rglob("__init__.py")}
        disk |= {"compal." + folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert listed == disk


def lines_of_code(node: ast.AST) -> int:
    """Lines of a function without its docstring."""
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        doc = node.body[0]
        lines -= doc.end_lineno - doc.lineno + 1
    return lines


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_tails_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, f"{path.name}: split it by sentence"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_of_code(node) <= 60, f"{path.name}:{node.name}"


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["ls", "backbones"], ["extract", "--help"]])
def test_help_needs_no_torch(arguments):
    code = (
        "import sys\nfrom compal.cli import main\nsys.argv = ['compal', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "heavy = {'torch', 'open_clip', 'zarr', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "align" / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_stand_alone(path):
    """They are importable without the rest of compal: of it they know the errors, and each other."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            base = package[: len(package) - (node.level - 1)]
            assert (*base, *(node.module or "").split(".")) == ("errors",), f"line {node.lineno}"
