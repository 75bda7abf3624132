"""The folder is the registry: a part is a file, its name is the file's name, its summary the first line.

Listing reads names and docstrings and imports nothing; importing happens in `load`. A part outside the
project is named by its dotted module path (`my_package.my_head`). A name may carry an argument after a
colon (`open_clip:ViT-B-32-quickgelu/openai`), which the part itself understands.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qsl

from .errors import InputError, UnknownName, UsageError

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    """Where the parts of one kind live and what each file must define."""

    singular: str
    folder: str
    defines: tuple[str, ...]
    suffix: str = ".py"


KINDS = {
    "backbones": Kind("backbone", "pipeline/backbones", ("spec", "load")),
    "datasets": Kind("dataset", "pipeline/datasets", ("INFO", "items", "pairs")),
    "segmenters": Kind("segmenter", "pipeline/segmenters", ("version", "segment")),
    "engines": Kind("engine", "pipeline/engines", ("run",)),
    "negatives": Kind("method of negatives", "pipeline/negatives", ("INFO", "Config", "generate")),
    "heads": Kind("head", "align/heads", ("Config", "build")),
    "losses": Kind("loss", "align/losses", ("Config", "loss")),
    "recipes": Kind("recipe", "align/recipes", (), ".toml"),
    "setups": Kind("set-up", "assets/setups", ("recipe", "backbone", "dataset"), ".toml"),
    "benchmarks": Kind("benchmark", "eval/benchmarks", ("INFO", "items", "groups")),
    "formats": Kind("format", "stores/formats", ("SUFFIX", "export")),
}


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UnknownName.among("kind of part", kind, KINDS)
    return KINDS[kind]


def split_argument(name: str) -> tuple[str, str]:
    """`"open_clip:ViT-B-32/openai"` → `("open_clip", "ViT-B-32/openai")`; no colon → `(name, "")`."""
    head, _, argument = name.partition(":")
    return head, argument


def split_options(root: str | os.PathLike[str]) -> tuple[Path, dict[str, str]]:
    """`ROOT?name=value&…` → (ROOT, options). A `?` that no `name=` follows is a wildcard and stays."""
    match = None if os.path.exists(root) else re.fullmatch(r"(.*?)\?(\w+=.*)", str(root), re.DOTALL)
    return (Path(match[1]), dict(parse_qsl(match[2], keep_blank_values=True))) if match else (Path(root), {})


def names(kind: str) -> list[str]:
    """The names of all parts of `kind`, sorted. Underscores in file names read as hyphens, except open_clip's."""
    table = _kind(kind)
    return sorted(
        _shown(path.stem) for path in (ROOT / table.folder).glob(f"*{table.suffix}") if not path.stem.startswith("_")
    )


def _shown(stem: str) -> str:
    return stem if stem == "open_clip" else stem.replace("_", "-")


def path(kind: str, name: str) -> Path:
    """The file of a part. Raises `UnknownName` with the nearest name and the file that would create it."""
    table = _kind(kind)
    folder = ROOT / table.folder
    for stem in (name, name.replace("-", "_")):
        found = folder / f"{stem}{table.suffix}"
        if name and "/" not in name and not stem.startswith("_") and found.is_file():
            return found
    new = f"{table.folder}/{name.replace('-', '_') if table.suffix == '.py' else name}{table.suffix}"
    what = f"defining {', '.join(table.defines)}" if table.defines else "with a [head] table"
    raise UnknownName.among(table.singular, name, names(kind), f"To add it, create {new} {what}.")


def summary(kind: str, name: str) -> str:
    """The first line of the part's docstring (or of a recipe's first comment), read without importing it."""
    text = path(kind, name).read_text(encoding="utf-8")
    if _kind(kind).suffix == ".toml":
        first = text.splitlines()[0] if text else ""
        return first.lstrip("# ").strip()
    return (ast.get_docstring(ast.parse(text)) or "").split("\n", 1)[0].strip()


def licence(kind: str, name: str) -> str:
    """What the part's INFO says of its licence, read without importing it; "unknown" where it says nothing."""
    for node in ast.parse(path(kind, name).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "INFO" for target in targets):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "licence" and isinstance(value, ast.Constant):
                    return str(value.value)
    return "unknown"


def load(kind: str, name: str) -> ModuleType:
    """Import a part by name or by dotted path.

    Raises `UnknownName`; `InputError` if the file does not define what its kind needs.
    """
    table = _kind(kind)
    if table.suffix != ".py":
        raise UsageError(f"a {table.singular} is a {table.suffix} file and is not imported", "Use registry.path().")
    if "." in name and "/" not in name:
        module = _import_outside(table, name)
    else:
        stem = path(kind, name).stem
        package = f"{__package__}.{table.folder.replace('/', '.')}"
        module = importlib.import_module(f"{package}.{stem}")
    lacking = [symbol for symbol in table.defines if not hasattr(module, symbol)]
    if lacking:
        raise InputError(f"{table.singular} '{name}' ({module.__file__}) does not define {', '.join(lacking)}")
    return module


def _import_outside(table: Kind, dotted: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(dotted)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise UnknownName(
            f"no module '{dotted}' for a {table.singular}", "Install it, or put its folder on PYTHONPATH."
        )
    return importlib.import_module(dotted)
