"""Sphinx: the reference is written from the code while the site is built, and never committed.

A page says where: `<!-- generated: NAME [ARGUMENT] -->`, up to `<!-- end -->`; what stands between is for readers of
the bare file. A code block that the tests do not run says why below itself, and preparations of the tests are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

GENERATED = re.compile(r"<!-- generated: (\w+) ?([\w.]*) -->.*?<!-- end -->", re.S)
PREPARED = re.compile(r"^[ \t]*<!-- run first:.*?-->[ \t]*\n", re.S | re.M)
EXCUSED = re.compile(
    r"^(?P<indent>[ \t]*)<!-- not run: (?P<reason>.*?) -->\n"
    r"(?P<block>[ \t]*(?P<marks>`{3,}|~{3,}).*?^[ \t]*(?P=marks)[ \t]*$)",
    re.S | re.M,
)


def writers() -> dict[str, Callable[[str], str]]:
    """What a page may ask for. Imported late: the modules load all of compal."""
    from compal import registry

    from . import api, commands, configuration, errors, parts

    return {
        "api": api.page,
        "changelog": lambda _: (registry.ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n", 1)[1],
        "commands": commands.page,
        "errors": lambda _: f"{errors.page()}\n\n## As Python classes\n\n{api.exceptions()}",
        "kinds": lambda _: parts.overview(),
        "parts": parts.page,
        "recipes": lambda _: configuration.recipes(),
        "settings": lambda _: configuration.settings(),
    }


def written(text: str) -> str:
    """A page's source with what is generated filled in, and what is for the tests put into words."""
    text = GENERATED.sub(lambda found: writers()[found[1]](found[2]), text)
    text = EXCUSED.sub(r"\g<block>\n\n\g<indent>{.not-run}\n\g<indent>Not run by the tests: \g<reason>.\n", text)
    return PREPARED.sub("", text)


def _read(_app: Sphinx, _docname: str, source: list[str]) -> None:
    source[0] = written(source[0])


def _outdated(
    _app: Sphinx, environment: BuildEnvironment, _added: Set[str], _changed: Set[str], _removed: Set[str]
) -> list[str]:
    """Pages with generated parts are read again every time: what they are made of is not in the folder."""
    found = []
    for name in environment.found_docs:
        path = environment.doc2path(name)
        if path.suffix == ".md" and GENERATED.search(path.read_text(encoding="utf-8")):
            found.append(name)
    return found


def _accessible(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    """What scrolls is reached by keyboard; the parameters of a signature are a list, not definitions without terms."""
    body = context.get("body", "")
    body = body.replace("<pre>", '<pre tabindex="0">')
    body = body.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')
    body = re.sub(r"<dl>(?=\s*<dd><em class=\"sig-param)", '<dl role="list">', body)
    context["body"] = body.replace('<dd><em class="sig-param', '<dd role="listitem"><em class="sig-param')


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("env-get-outdated", _outdated)
    app.connect("html-page-context", _accessible)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
