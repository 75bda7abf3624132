"""Published set-ups: a recipe with the backbone, the data and the schedule of its paper, so that one name says all.

    recipe = "degla"                        what is fitted, a recipe by name
    backbone = "clip"                       on which features, where --backbone says nothing else
    dataset = "degla"                       and on which pairs, where --data says nothing else
    prepare = ["compal extract --backbone {backbone} --data {data} --level pixels"]   commands that make both
    [optim], [data], [loss], [head], …      above the recipe: what was published, said in full

A file in `assets/setups`, or one of the user's. Its settings are those of `FitConfig`, and stand below `--set`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import registry
from ..config import read_toml
from ..errors import UnknownName, UsageError

OWN = ("recipe", "backbone", "dataset", "prepare")


@dataclass(frozen=True)
class Setup:
    """What `compal fit NAME` means. For a recipe `backbone` and `dataset` are "", and there is nothing to prepare.

    settings  the tables of a `FitConfig`: the recipe's, and those of the set-up above them
    """

    recipe: str
    settings: dict[str, Any]
    backbone: str = ""
    dataset: str = ""
    prepare: tuple[str, ...] = ()

    def commands(self, backbone: str, data: str) -> tuple[str, ...]:
        """`prepare` for a backbone and a dataset, as a shell takes them."""
        given = {"{backbone}": shlex.quote(backbone), "{data}": shlex.quote(data)}
        found = []
        for line in self.prepare:
            for name, value in given.items():
                line = line.replace(name, value)
            found.append(line)
        return tuple(found)


def read(name: str) -> Setup:
    """A recipe or a set-up by name, or either by the path of a TOML file: one with a `recipe` is a set-up.

    Raises `UnknownName` for a name that is neither, `UsageError` for a set-up without recipe, backbone or dataset,
    `InputError` for a file that cannot be parsed.
    """
    path = _path(name)
    tables = read_toml(path)
    if "recipe" not in tables:
        return Setup(name, tables)
    own = {key: tables.pop(key) for key in OWN if key in tables}
    prepare = own.pop("prepare", [])
    if len(own) < len(OWN) - 1 or not all(isinstance(text, str) for text in (*own.values(), *prepare)):
        raise UsageError(f"{path} lacks a recipe, a backbone or a dataset, each a text", 'Example: recipe = "negclip"')
    recipe = read_toml(registry.path("recipes", own["recipe"]))
    return Setup(**own, prepare=tuple(prepare), settings=_above(recipe, tables))


def _path(name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    for kind in ("recipes", "setups"):
        if name in registry.names(kind):
            return registry.path(kind, name)
    known = [*registry.names("recipes"), *registry.names("setups")]
    new = f"{registry.KINDS['recipes'].folder}/{name}.toml with a [head] table"
    raise UnknownName.among("recipe", name, known, f"To add it, create {new}.")


def _above(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """The tables of `low` with those of `high` above them."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = _above(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
