"""Docstrings to Markdown.

They are Markdown already, with two habits of ours: rows `name  what it is` become a definition list, and lines that are
set in by four spaces or drawn with box characters become a code block.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

ROW = re.compile(r"^(?:- )?(\S+(?: \S+)*?) {2,}(\S.*)$")
LIST = re.compile(r"^(-|\d+\.) ")
DRAWN = re.compile("[├└│]|──")


def markdown(docstring: str, links: Mapping[str, str] | None = None) -> str:
    """A docstring (clean, as `inspect.getdoc` gives it) as Markdown. `links`: short name → dotted name of what the
    reference documents; `Name` in code becomes a link to it."""
    text = "\n\n".join(_block(block) for block in _blocks(docstring))
    if not links:
        return text
    return re.sub(r"(?<!`)`([A-Z]\w+)`(?!`)", lambda found: _link(found[1], links), text)


def _link(name: str, links: Mapping[str, str]) -> str:
    return f"{{py:obj}}`{name} <{links[name]}>`" if name in links else f"`{name}`"


def rows(docstring: str) -> dict[str, str]:
    """The rows of a docstring, one entry a name: `a, b  text` says the same of both."""
    found: dict[str, str] = {}
    for block in _blocks(docstring):
        for names, text in _table(textwrap.dedent(block)) or ():
            found |= dict.fromkeys(re.split(r", ", names), text)
    return found


def inline(text: str) -> str:
    """Plain text as Markdown: what would be markup is escaped, except in code."""
    parts = re.split(r"(`+[^`]+`+)", text)
    for index in range(0, len(parts), 2):
        part = re.sub(r"([*<\\])", r"\\\1", parts[index])
        part = re.sub(r"^(\s*)([#%+>])", r"\1\\\2", part, flags=re.M)
        parts[index] = part.replace("|", "\\|")
    return "".join(parts)


def code(text: str) -> str:
    """Text as inline code, whatever it holds."""
    marks = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{space}{text}{space}{marks}"


def definitions(entries: Mapping[str, str]) -> str:
    """A definition list of Markdown terms and Markdown texts."""
    return "\n\n".join(f"{term}\n: {_hang(text)}" for term, text in entries.items())


def table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A Markdown table; cells are Markdown without line breaks."""
    cells = [head, ("---",) * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in cells)


def fence(language: str, text: str, marks: str = "```") -> str:
    """A code block or a directive."""
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def _hang(text: str) -> str:
    return text.replace("\n", "\n  ")


def _blocks(docstring: str) -> list[str]:
    """Paragraphs; what is set in deeper than the one before stays with it only if it is no paragraph of its own."""
    return [block.strip("\n") for block in re.split(r"\n\s*\n", docstring.rstrip()) if block.strip()]


def _block(block: str) -> str:
    lines = block.splitlines()
    inner = textwrap.dedent(block)
    indented = all(line.startswith("    ") for line in lines)
    found = _table(inner)
    if found:
        return definitions({_term(names): inline(text) for names, text in found})
    if indented or DRAWN.search(block):
        return fence("text", inner)
    if any(LIST.match(line) for line in lines):
        return inline(block)
    parts = _runs(lines)
    if sum(map(bool, (ROW.match(line) for line in lines))) > 1 and len(parts) > 1:  # sentences before or after rows
        return "\n\n".join(map(_block, parts))
    return inline(block)


def _runs(lines: list[str]) -> list[str]:
    """The lines of a block, cut where rows begin and end; what is set in goes on with the row above it."""
    runs: list[list[str]] = []
    among = None
    for line in lines:
        row = bool(ROW.match(line)) or bool(among and line.startswith(" "))
        if row != among:
            runs.append([])
        runs[-1].append(line)
        among = row
    return ["\n".join(run) for run in runs]


def _term(names: str) -> str:
    """The names of a row: code, unless it is prose."""
    return (
        code(names) if re.fullmatch(r"[\w.,`\[\]():=\"'*<>|/%+ -]{1,60}", names) and "`" not in names else inline(names)
    )


def _table(block: str) -> list[tuple[str, str]] | None:
    """(names, text) of each row, if the block is nothing but rows and their continuations."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        row = ROW.match(line)
        if row:
            found.append((row[1], row[2]))
        elif found and line.startswith(" "):
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            return None
    return found
