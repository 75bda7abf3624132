"""BibTeX, read strictly and written plainly: the entries of `assets/citations.bib`, and those that data sets bring."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InputError
from ..eval.latex import LATEX
from ..registry import ROOT

FILE = ROOT / "assets" / "citations.bib"
_HEAD = re.compile(r"@([A-Za-z]+)\s*\{\s*([^\s,{}\"#%'()=~\\]+)\s*,")
_FIELD = re.compile(r"\s*([A-Za-z][\w-]*)\s*=\s*")
_PLAIN = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", "``": "“", "''": "”"}


@dataclass(frozen=True)
class Entry:
    """One entry: its type (`article`, `misc`, …), its key and its fields, whose values are LaTeX."""

    kind: str
    key: str
    fields: dict[str, str]

    @property
    def sources(self) -> tuple[str, ...]:
        """What it is found by: `arXiv:ID`, `doi:…`, `software:KEY`."""
        eprint, doi = self.fields.get("eprint"), self.fields.get("doi")
        found = [f"arXiv:{eprint}"] if eprint else []
        return (*found, *([f"doi:{doi.lower()}"] if doi else []), f"software:{self.key}")

    def bibtex(self) -> str:
        """As a .bib file has it, without a newline at the end."""
        fields = [f"  {name} = {{{value}}}," for name, value in self.fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *fields, "}"])

    def text(self) -> str:
        """As a list of references has it: authors, title, where, when, and where to read it."""
        told = {name: plain(value) for name, value in self.fields.items()}
        authors = told.get("author", "").replace(" and others", " et al.").split(" and ")
        where = told.get("booktitle") or told.get("journal") or ("software" if self.kind == "software" else "")
        link = told.get("url") or (f"https://doi.org/{told['doi']}" if "doi" in told else "")
        parts = ["; ".join(authors), told.get("title", ""), where, told.get("year", ""), told.get("note", ""), link]
        return " ".join(part if part[-1] in ".?!" or part is link else f"{part}." for part in parts if part)


def escaped(text: str) -> str:
    """Plain text as LaTeX."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def plain(value: str) -> str:
    """LaTeX as plain text: braces and the escapes of `escaped` undone."""
    for tex, character in _PLAIN.items():
        value = value.replace(tex, character)
    return re.sub(r"\\([&%$#_])", r"\1", value).replace("{", "").replace("}", "").replace("--", "–")


def parse(text: str, name: str = "BibTeX") -> list[Entry]:
    """The entries of a text: `@type{key, field = {value} or "value" or number, …}`, between them comments and blanks.

    Raises `InputError`, with the line, for anything else, for a field that comes twice and for two equal keys.
    """
    entries: dict[str, Entry] = {}
    for entry, line in _entries(text, name):
        if entry.key in entries:
            raise InputError(f"{name}, line {line}: the key {entry.key} stands there twice")
        entries[entry.key] = entry
    return list(entries.values())


def _entries(text: str, name: str) -> Iterator[tuple[Entry, int]]:
    place = 0
    while (start := re.compile(r"(?:\s+|%[^\n]*)*").match(text, place).end()) < len(text):  # type: ignore[union-attr]
        line = text.count("\n", 0, start) + 1
        head = _HEAD.match(text, start)
        if head is None:
            raise InputError(f"{name}, line {line}: no entry begins here")
        fields: dict[str, str] = {}
        place = head.end()
        while (field := _FIELD.match(text, place)) is not None:
            value, place = _value(text, field.end(), name)
            if field[1].lower() in fields:
                raise InputError(f"{name}, line {line}: {field[1]} stands twice in {head[2]}")
            fields[field[1] if field[1] == "archivePrefix" else field[1].lower()] = value
            comma = re.compile(r"\s*,").match(text, place)
            if comma is None:
                break
            place = comma.end()
        end = re.compile(r"\s*\}").match(text, place)
        if end is None:
            raise InputError(f"{name}, line {line}: {head[2]} does not end with a brace")
        place = end.end()
        yield Entry(head[1].lower(), head[2], fields), line


def _value(text: str, start: int, name: str) -> tuple[str, int]:
    """A field's value and the place behind it."""
    number = re.compile(r"\d+").match(text, start)
    if number:
        return number[0], number.end()
    if text[start : start + 1] not in ("{", '"'):
        raise InputError(f"{name}, line {text.count(chr(10), 0, start) + 1}: a value is in braces, quotes, or a number")
    depth, place = 0, start + 1
    while place < len(text):
        character = text[place]
        if depth == 0 and character == ("}" if text[start] == "{" else '"'):
            return " ".join(text[start + 1 : place].split()), place + 1
        depth += (character == "{") - (character == "}")
        if depth < 0:
            break
        place += 2 if character == "\\" else 1
    raise InputError(f"{name}, line {text.count(chr(10), 0, start) + 1}: a brace or quote is not closed")


@functools.cache
def known() -> dict[str, Entry]:
    """The entries that compal ships, by each of their `sources`."""
    entries = parse(FILE.read_text(encoding="utf-8"), FILE.name)
    return {source: entry for entry in entries for source in entry.sources}


def entry_of(source: str) -> Entry:
    """The entry of a source: as shipped, else as much as its number says, for parts outside the project."""
    found = known().get(source)
    if found is not None:
        return found
    scheme, _, number = source.partition(":")
    key = f"{scheme.lower()}-{re.sub(r'[^A-Za-z0-9.]+', '-', number)}"
    if scheme == "arXiv":
        fields = {"title": source, "eprint": number, "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{number}"}
        return Entry("misc", key, fields)
    return Entry("misc", key, {"title": escaped(source), "doi": number})
