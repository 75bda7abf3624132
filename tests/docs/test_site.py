"""The documentation's site: it builds without a warning, its links lead somewhere, everything there is stands in its
reference, and in a browser its search finds."""

from __future__ import annotations

import ast
import functools
import html.parser
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer.main
from playwright.sync_api import sync_playwright

from compal import cli, registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
LOOKED_AT = ("index", "guides/fit", "reference/configuration", "reference/api/kernels")

sys.path.insert(0, str(DOCS / "_ext"))
from reference_pages import api, commands, errors, prose, written  # noqa: E402
from reference_pages.configuration import keys  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-n", "-q", str(DOCS), str(out)],
        capture_output=True, text=True, check=False, env=os.environ | {"COMPAL_DOCS_NOTEBOOKS": "off"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Links(html.parser.HTMLParser):
    """What a page links to, what it shows, and what can be linked to in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.names, self.shown = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.names |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given[key] for key in ("href", "src") if given.get(key)]

    def handle_data(self, data):
        self.shown.append(data)


@pytest.fixture(scope="module")
def pages(site):
    """Page → what is in it; without the pages that Sphinx adds."""
    return {
        path.relative_to(site).as_posix(): Links(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts
    }


def text(pages, name):
    return " ".join("".join(pages[name].shown).split())


def test_it_builds_without_a_warning_and_its_links_lead_somewhere(site, pages):
    lost = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("http", "https", "mailto", "data"), (name, link)
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = Path(os.path.normpath(target))
            known = pages.get(target.relative_to(site).as_posix())
            if not target.exists() or (known and parts.fragment and unquote(parts.fragment) not in known.names):
                lost.append((name, link))
    assert not lost
    assert len(pages) > 60


def test_the_site_asks_nobody(pages):
    """Fonts, scripts and styles are its own: it works without a network, and tells nobody who reads it."""
    for name, page in pages.items():
        for link in page.links:
            if re.search(r"\.(js|css|woff2?|png|svg)(\?|$)", link):
                assert not urlsplit(link).netloc, (name, link)


def test_every_part_is_in_the_reference(pages):
    for kind in registry.KINDS:
        page = pages[f"reference/parts/{kind}.html"]
        shown = text(pages, f"reference/parts/{kind}.html")
        for name in registry.names(kind):
            assert re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") in page.names, (kind, name)
            first = registry.summary(kind, name).split("`")[0].split('"')[0].split("'")[0].split(" - ")[0]
            assert " ".join(first.replace("--", "–").split())[:40] in shown.replace("--", "–"), (kind, name)


def test_every_command_and_option_is_in_the_reference(pages):
    names = pages["reference/commands.html"].names | pages["reference/commands_store.html"].names
    found = list(commands.walk(typer.main.get_command(cli.app), ("compal",)))
    assert len(found) > 25
    for path, command in found:
        assert len(path) == 1 or "-".join(path) in names, path
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                anchor = f"cmdoption-{'-'.join(path)}-{option.lstrip('-')}".lower().replace("_", "-")
                assert anchor in {name.lower().replace("_", "-") for name in names} or option in ("-h", "--help"), (
                    anchor
                )


def test_every_error_is_in_the_reference_with_its_cures(pages):
    page = pages["reference/errors.html"]
    for name, cls in errors.classes().items():
        assert f"compal.errors.{name}" in page.names
        assert f"Exit code {cls.exit_code}." in text(pages, "reference/errors.html")
    assert text(pages, "reference/errors.html").count("{path}") > 50
    assert sum(map(len, errors.messages().values())) > 500


def test_the_python_api_is_in_the_reference(pages):
    for name, modules in api.PAGES.items():
        for module, chosen in modules.items():
            for short in api.public(module, chosen):
                assert f"{module}.{short}" in pages[f"reference/api/{name}.html"].names


def test_variables_that_the_code_reads_are_in_the_reference(pages):
    read = set()
    for path in errors.sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read |= set(re.findall(r"\bCOMPAL_[A-Z_]+\b", node.value))
    private = {"COMPAL_FIT_PARENT"}
    assert read - private <= set(re.findall(r"COMPAL_[A-Z_]+", text(pages, "reference/configuration.html")))


def test_reasons_are_shown_and_preparations_are_not(pages):
    shown = text(pages, "guides/fit.html")
    assert "Not run by the tests: needs two machines with GPUs." in shown
    assert "run first" not in shown
    assert "generated:" not in "".join(text(pages, name) for name in pages)


# --- in a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(site):
    """Of a server of the site: a browser does not let scripts read files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture
def opened(browser, address):
    """Opens a page at a width and theme; what the console says is kept."""
    contexts = []

    def at(name, width=1440, theme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme))
        page = contexts[-1].new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(f"{address}{name}.html")
        return page

    yield at
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("word", "leads"), [("sugarcrepe", "reference/parts/benchmarks"), ("maxsim", "kernels")])
def test_search_finds(opened, word, leads):
    page = opened("index")
    page.get_by_placeholder("Search").first.fill(word)
    page.get_by_placeholder("Search").first.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("document.querySelectorAll('#search-results li').length > 2")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
    assert any(leads in link for link in found), found
    assert not page.said


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_pages_are_for_everybody(opened, name, theme):
    """Nothing hangs over the edge at both widths; axe finds nothing serious at the last."""
    page = opened(name, theme=theme)
    for width in (360, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
    page.evaluate((ROOT / "tests" / "data" / "axe.min.js").read_text())
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    serious = [
        (one["id"], [node["html"][:120] for node in one["nodes"][:3]])
        for one in found if one["impact"] in ("serious", "critical")
    ]  # fmt: skip
    assert not serious
    assert not page.said


# --- how the reference is written ---------------------------------------------------------------------


def test_docstrings_become_markdown():
    shown = prose.markdown(
        "First, a * b.\n\na, b    what both are,\n        and more\nc       `x|y` and z|\n\n    set in\n\n"
        "- first  is a row"
    )
    assert shown.split("\n\n") == [
        "First, a \\* b.", "`a, b`\n: what both are, and more", "`c`\n: `x|y` and z\\|", "```text\nset in\n```",
        "`first`\n: is a row",
    ]  # fmt: skip
    assert prose.markdown("Of both:\na  one\nb  two,\n   more\nRaises it.") == (
        "Of both:\n\n`a`\n: one\n\n`b`\n: two, more\n\nRaises it."
    )
    assert prose.rows("a, b    what both are")["b"] == "what both are"
    assert prose.code("a`b") == "``a`b``"


def test_what_is_inherited_is_said():
    from compal.align.losses.sparc import Config

    shown = keys(Config)
    assert "| `temperature` | `float` | `0.07` | scores are divided by it |" in shown
    assert "| `fine` | `float` | `1.0` | weight of the term within pairs |" in shown


def test_messages_are_read_from_the_code():
    tree = ast.parse(
        'CURE = "Do it."\ndef f(x):\n    raise InputError(f"{x.path} is no {x}", CURE)\n'
        '    raise UnknownName.among("head", x.name, known, f"Add {x}.")\n    raise errors.UsageError("a" "b" + "c")\n'
        '    raise ValueError("not ours")\n    return InputError(*parts)\n'
    )
    reader = errors.Reader(tree)
    assert [said for said in map(reader.said, ast.walk(tree)) if said] == [
        ("InputError", "{x.path} is no {x}", "Do it."),
        ("UnknownName", "no head '{x.name}'", "Names the nearest, lists those that are known. Add {x}."),
        ("UsageError", "abc", ""),
    ]


def test_comments_of_the_convention_become_words():
    given = "<!-- run first: compal ls -->\n<!-- not run: needs a GPU -->\n```bash\ncompal ls\n```\nafter"
    assert written(given) == "```bash\ncompal ls\n```\n\n{.not-run}\nNot run by the tests: needs a GPU.\n\nafter"
