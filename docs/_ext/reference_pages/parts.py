"""The catalogue of parts, from the files that are them: what each is, where it comes from, its options."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from compal import registry

from .configuration import keys, words
from .prose import code, fence, inline, markdown

# The entries of INFO in the order of the page, and what each is called there.
FACTS = {
    "title": "title",
    "metric": "metric",
    "chance": "chance",
    "splits": "splits",
    "size": "items",
    "variants": "variants",
    "tie_rule": "ties",
    "citation": "citation",
    "source": "source",
    "licence": "licence",
    "revision": "revision",
    "version": "version",
    "url": "where",
    "files": "files",
}


def page(kind: str) -> str:
    """Every part of a kind."""
    return "\n\n".join(text for name in registry.names(kind) for text in part(kind, name))


def overview() -> str:
    """A line for every kind: what it is called, what a file of it defines, how many there are."""
    lines = []
    for kind, table in registry.KINDS.items():
        defines = ", ".join(code(symbol) for symbol in table.defines) or "`[head]`, `[loss]`, `[optim]`, `[data]`, …"
        count = len(registry.names(kind))
        lines.append(
            f"- [{kind}](parts/{kind}.md): {count}, each a file of {code(table.folder)} that defines {defines}"
        )
    return "\n".join(lines)


def part(kind: str, name: str) -> Iterator[str]:
    """The section of one part."""
    path = registry.path(kind, name)
    text = path.read_text(encoding="utf-8")
    yield f"## {name}"
    if path.suffix == ".toml":
        yield from _recipe(text)
    else:
        yield markdown(ast.get_docstring(ast.parse(text)) or "")
        yield from _module(kind, name)
    yield f"*{code(path.relative_to(registry.ROOT).as_posix())}*"


def _recipe(text: str) -> Iterator[str]:
    """A file of settings: its first comment in words, then the settings."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    yield "\n".join(_said(line.removeprefix("#").strip()) for line in lines[:end])
    yield fence("toml", "\n".join(lines[end:]).strip())


def _said(line: str) -> str:
    return f"\n{code(line)}\n" if line.startswith("compal ") else inline(line)


def _module(kind: str, name: str) -> Iterator[str]:
    module = registry.load(kind, name)
    info = getattr(module, "INFO", {})
    facts = {label: _value(info[key]) for key, label in FACTS.items() if info.get(key) not in (None, "", (), {})}
    facts |= {key: _value(value) for key, value in info.items() if key not in FACTS and isinstance(value, str | int)}
    if facts:
        yield "\n".join(f":{label}: {text}" for label, text in facts.items())
    config = getattr(module, "Config", None)
    if config is not None and registry.KINDS[kind].defines[-1] != "groups":
        about = inspect.getdoc(config) or ""
        lines = keys(config)
        if lines.count("\n") > 1:
            yield "\n\n".join(["**Options**", *words(about), lines])


def _value(value: Any) -> str:
    """A fact as Markdown."""
    if isinstance(value, Mapping):
        return "; ".join(f"{code(str(key))} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.1f} %"
    if isinstance(value, list | tuple):
        return ", ".join(code(str(one)) for one in value)
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return f"<{text}>" if text.startswith(("http://", "https://")) and " " not in text else inline(text)
