"""The command line, from the commands themselves: what they do, what they take, examples."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from compal.cli import app

from .prose import code, fence, inline, markdown


def page(only: str = "") -> str:
    """Every command, or those of one group (`store`)."""
    root = typer.main.get_command(app)
    return "\n\n".join(text for path, command in walk(root, ("compal",)) for text in _command(path, command, only))


def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every command, those of groups too; a group itself is none, but for the root."""
    inner = getattr(command, "commands", None)
    if inner is None or len(path) == 1:
        yield path, command
    for name, child in (inner or {}).items():
        if not child.hidden:
            yield from walk(child, (*path, name))


def _command(path: tuple[str, ...], command: Any, only: str) -> Iterator[str]:
    group = path[1] if len(path) > 2 else ""
    if group != only:
        return
    name = " ".join(path)
    about, examples = _help(command)
    yield f"## {name}" if len(path) > 1 else "## Options of every command"
    if len(path) > 1:
        yield markdown(about)
        yield fence("text", _usage(name, command))
        if examples:
            yield fence("bash", "\n".join(examples))
    yield fence("{program}", "", "```").replace("{program}\n", f"{{program}} {name}\n")
    hints = typing.get_type_hints(command.callback)
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            panels.setdefault(_panel(parameter), []).append(parameter)
    for panel, parameters in panels.items():
        if len(panels) > 1:
            yield f"**{panel}**"
        yield from (_option(parameter, hints.get(parameter.name, bool)) for parameter in parameters)


def _help(command: Any) -> tuple[str, list[str]]:
    """What a command's help says, and its examples."""
    text = inspect.cleandoc((command.callback.__doc__ if command.callback else "") or command.help or "")
    examples = re.findall(r"^Example: (.+)$", text, re.M)
    return re.sub(r"^Example: .+$", "", text, flags=re.M).strip(), examples


def _usage(name: str, command: Any) -> str:
    words = [name, "[OPTIONS]"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            label = _label(parameter)
            words.append(label if parameter.required else f"[{label}]")
    return " ".join(words)


def _label(parameter: Any) -> str:
    shown = parameter.metavar or parameter.name.upper()
    return f"{shown}..." if parameter.nargs == -1 and not shown.endswith("...") else shown


def _panel(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return getattr(parameter, "rich_help_panel", None) or "Options"


def _option(parameter: Any, hint: Any) -> str:
    if parameter.param_type_name == "argument":
        names = _label(parameter)
    else:
        value = "" if hint is bool else f" {parameter.metavar or _value(hint)}"
        names = ", ".join(f"{option}{value}" for option in [*parameter.opts, *parameter.secondary_opts])
    said = inline(getattr(parameter, "help", None) or "")
    facts = [fact for fact in (_default(parameter), _range(parameter), _variable(parameter)) if fact]
    return fence(f"{{option}} {names}", "\n" + said + (f" *{' '.join(facts)}*" if facts else ""), "~~~~")


def _value(hint: Any) -> str:
    """What stands for the value of an option of that type."""
    kinds = {int: "N", float: "X", Path: "PATH"}
    inner = [one for part in (hint, *typing.get_args(hint)) for one in (part, *typing.get_args(part))]
    return next((kinds[one] for one in inner if one in kinds), "TEXT")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "Required."
    shown = parameter.show_default
    if isinstance(shown, str):
        return f"Default: {inline(shown)}."
    default = parameter.default
    if default in (None, "", False, (), []) or callable(default):
        return ""
    return f"Default: {code(str(default)) if default is not True else 'on'}."


def _range(parameter: Any) -> str:
    least = getattr(parameter, "min", None)
    return f"At least {least}." if least not in (None, 0, 0.0) else ""


def _variable(parameter: Any) -> str:
    return f"Environment: {code(str(parameter.envvar))}." if getattr(parameter, "envvar", None) else ""
