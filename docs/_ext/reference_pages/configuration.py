"""Configuration, from the dataclasses that read it: compal.toml and recipes."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any

from compal import workspace
from compal.align.recipe import FitConfig

from .prose import code, fence, inline, markdown, rows, table

ONLY = re.compile(r"(\w+): (.+)\.")
# What their docstring's rows do not say, since their names do.
PLAIN = {
    "seed": "of the initialisation, of the order of batches and of dropout",
    "optim": "the optimiser, below",
    "data": "what is fitted on, below",
    "validation": "what judges it meanwhile, below",
}


def settings() -> str:
    """compal.toml: what its docstring says, and every key."""
    about = inspect.getdoc(workspace) or ""
    return "\n\n".join([_toml(about), keys(workspace.Settings), *_tables(workspace.Settings)])


def _toml(about: str) -> str:
    """The module's words, with its example as TOML."""
    parts = []
    for block in re.split(r"\n\s*\n", about):
        inside = block.splitlines()
        if all(line.startswith("    ") for line in inside):
            parts.append(fence("toml", inspect.cleandoc(block)))
        else:
            parts.append(inline(block))
    return "\n\n".join(parts)


def recipes() -> str:
    """Every setting of a recipe, a table of it a section."""
    return "\n\n".join([keys(FitConfig), *_tables(FitConfig)])


def _tables(cls: Any, prefix: str = "") -> list[str]:
    """The sections of the tables inside a configuration, and of those inside them."""
    parts = []
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            dotted = f"{prefix}{name}"
            parts += [f"### [{dotted}]", *words(inspect.getdoc(hint) or ""), keys(hint, dotted)]
            parts += _tables(hint, f"{dotted}.")
    return parts


def words(docstring: str) -> list[str]:
    """What a docstring says beside its rows, as Markdown paragraphs."""
    return [
        markdown(block)
        for block in re.split(r"\n\s*\n", docstring)
        if block.strip() and not rows(block) and not ONLY.fullmatch(block.strip())
    ]


def keys(cls: Any, prefix: str = "") -> str:
    """A table of the fields of a configuration: key, type, default, what it is."""
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):  # what is inherited is said where it comes from
        said |= rows(inspect.cleandoc(base.__doc__ or "")) | _only(base)
    lines: list[tuple[str, ...]] = []
    for field, hint in zip(dataclasses.fields(cls), _hints(cls).values(), strict=True):
        key = f"{prefix}.{field.name}" if prefix else field.name
        what = said.get(field.name, PLAIN.get(field.name, "") if cls is FitConfig else "")
        lines.append((code(key), _type(hint), _default(field), inline(what)))
    return table(("key", "type", "default", "what it is"), lines)


def _only(cls: Any) -> dict[str, str]:
    """What a docstring of the form `name: what it is.` says."""
    found = ONLY.fullmatch((cls.__doc__ or "").strip())
    return {found[1]: found[2]} if found else {}


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " ".join(code(repr(value).replace("'", '"')) for value in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return "table"
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return code(text.replace("typing.", "").replace("|", "or"))


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        return "below"
    return code(_shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(_shown(one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_shown(one)}" for key, one in value.items()) + "}"
    return str(value)
