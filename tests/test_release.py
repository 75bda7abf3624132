"""What leaves the checkout: wheel and sdist, extras, licences, lowest versions, citation, changelog, image."""

from __future__ import annotations

import ast
import fnmatch
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from compal.stores.remotes import generic

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
NOT_FOR_USERS = {"all", "docs", "dev"}
CODE = ("*.py", *(f"{name.split('.')[1]}/**/*.py" for name in PACKAGES if name.count(".") == 1))


def checkout() -> list[str]:
    """Every file that git has or would take; of an unpacked sdist, every file."""
    if (ROOT / ".git").exists():
        asked = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    else:
        names = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")]
        made = re.compile(
            r"PKG-INFO|setup\.cfg|.*\.egg-info/.*|\.venv.*|(build|dist)/.*|(.*/)?(\.\w+_cache|__pycache__)/.*"
        )
        names = [name for name in names if not made.fullmatch(name)]
    return sorted(name for name in set(names) if (ROOT / name).is_file())


# --- wheel and sdist ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, the wheel built of it, the wheel built of the tree), with the setuptools of this environment."""
    base = tmp_path_factory.mktemp("release")
    tree = base / "tree"
    for name in checkout():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)

    def build(*what: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", *what, str(tree)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "is absent from the `packages` configuration" not in done.stdout

    build("--outdir", str(base / "both"))  # the wheel from the unpacked sdist
    build("--wheel", "--outdir", str(base / "tree-wheel"))
    (sdist,), (first,) = (base / "both").glob("*.tar.gz"), (base / "both").glob("*.whl")
    (second,) = (base / "tree-wheel").glob("*.whl")
    return sdist, first, second


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    """Code, tables, weights, the viewer's page, the licences; no tests, no documentation."""
    found = contents(built[1])
    rooms = {"", *(name.removeprefix("compal.").replace(".", "/") for name in PACKAGES if name != "compal")}
    wanted = {
        name
        for name in checkout()
        if (str(Path(name).parent) in rooms - {""} or ("/" not in name and name.endswith((".py", ".typed"))))
        or name.startswith("assets/")
    }
    assert {name for name in found if name.startswith("compal/")} == {f"compal/{name}" for name in wanted}
    assert (
        found["compal/assets/shapes_vit/model.safetensors"]
        == (ROOT / "assets/shapes_vit/model.safetensors").read_bytes()
    )
    (info,) = {name.split("/")[0] for name in found} - {"compal"}
    assert info == f"compal-{PROJECT['project']['version']}.dist-info"
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/THIRD_PARTY.md"} <= set(found)
    assert found[f"{info}/entry_points.txt"].decode().split() == ["[console_scripts]", "compal", "=", "compal.cli:main"]


def test_the_wheel_says_what_the_project_says(built):
    found = contents(built[1])
    (name,) = [name for name in found if name.endswith(".dist-info/METADATA")]
    told, project = Parser().parsestr(found[name].decode()), PROJECT["project"]
    assert (told["Name"], told["Version"], told["Summary"]) == ("compal", project["version"], project["description"])
    assert told["License-Expression"] == project["license"]
    assert told.get_all("License-File") == project["license-files"]
    assert told.get_all("Classifier") == project["classifiers"]
    assert set(told.get_all("Provides-Extra")) == set(EXTRAS)
    assert told["Requires-Python"] == project["requires-python"]
    needs = [Requirement(text) for text in told.get_all("Requires-Dist")]
    always = {canonicalize_name(one.name): str(one.specifier) for one in needs if not one.marker}
    assert always == {
        canonicalize_name(Requirement(one).name): str(Requirement(one).specifier) for one in project["dependencies"]
    }


def test_the_sdist_builds_the_same_wheel(built):
    assert built[1].name == built[2].name
    assert contents(built[1]) == contents(built[2])


def test_the_sdist_is_the_checkout(built):
    with tarfile.open(built[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or name.startswith("compal.egg-info/")}
    assert names - made == set(checkout())


# --- extras ------------------------------------------------------------------------------------------------


@cache
def requirements(extra: str) -> set[str]:
    """The distributions of an extra, of extras that it names too; "" for what is always installed."""
    found: set[str] = set()
    for text in EXTRAS[extra] if extra else PROJECT["project"]["dependencies"]:
        one = Requirement(text)
        found |= set().union(*map(requirements, one.extras)) if one.name == "compal" else {canonicalize_name(one.name)}
    return found


@cache
def named_extras() -> set[tuple[str, str]]:
    """(file, extra) of every `compal[extra]` in code, documentation and tests."""
    found = set()
    for name in set(checkout()) - {"tests/test_release.py"}:
        if name.endswith((".py", ".md", ".toml", ".ipynb", ".jinja")) or name in ("Dockerfile", "Makefile", ".ci/run"):
            for extras in re.findall(
                r"compal\\?\[([a-z0-9, {}$_A-Z]+)\\?\]", (ROOT / name).read_text(encoding="utf-8")
            ):
                found |= {
                    (name, extra.strip()) for extra in extras.split(",") if re.fullmatch(r"[a-z0-9]+", extra.strip())
                }
    return found


def test_extras_that_are_named_exist():
    named = named_extras()
    assert {extra for _, extra in named} >= {"hf", "spacy", "mining", "ray", "s3"}
    assert not [pair for pair in named if pair[1] not in EXTRAS]


def test_all_is_every_extra_for_users_but_the_gpu_build():
    """Two builds of faiss are one module: they exclude each other."""
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == set(EXTRAS) - NOT_FOR_USERS - {"gpu"}
    assert requirements("gpu") == {"faiss-gpu"}
    assert requirements("all") | requirements("docs") <= requirements("dev")


def imports() -> list[tuple[str, str]]:
    """(file, top-level module) of all imports of others' modules, those inside functions included."""
    found = set()
    for pattern in CODE:
        for path in ROOT.glob(pattern):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [str(node.module)]
                found |= {(path.relative_to(ROOT).as_posix(), name.split(".")[0]) for name in names}
    return sorted(pair for pair in found if pair[1] not in sys.stdlib_module_names)


DISTRIBUTIONS = {  # of modules that are not called like theirs
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "markupsafe": "jinja2",
    "open_clip": "open-clip-torch",
    "triton": "torch",
    "vl_convert": "vl-convert-python",
}


def distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, canonicalize_name(module))


def test_every_import_is_a_requirement():
    """What the package imports is always installed, or a file of its room names an extra that brings it."""
    always = requirements("")
    named = named_extras() | {("stores/remotes/generic.py", extra) for extra in generic.EXTRAS.values()}
    for file, module in imports():
        if distribution(module) in always:
            continue
        room = file.split("/")[0] if "/" in file else ""
        extras = {extra for name, extra in named if name.endswith(".py") and name.startswith(room)} - {"all", "dev"}
        brought = set().union(*map(requirements, extras))
        assert distribution(module) in brought, (
            f"{file} imports {module}; {room or 'the package'} names {sorted(extras)}"
        )


def test_formats_name_the_extra_of_their_library():
    """`library(module, extra)` imports it, and says which extra brings it where it is not there."""
    asked = [
        (path.name, module, extra or "interop")
        for path in (ROOT / "stores" / "formats").glob("*.py")
        for module, extra in re.findall(r'library\("(\w+)"(?:, "(\w+)")?\)', path.read_text(encoding="utf-8"))
    ]
    assert {module for _, module, _ in asked} >= {"h5py", "datasets", "faiss"}
    assert not [one for one in asked if distribution(one[1]) not in requirements(one[2])]


# --- lowest versions ---------------------------------------------------------------------------------------


def test_the_lowest_versions_are_those_allowed():
    """tests/minimum.txt, with which `make minimum` tests, holds the least release that each lower bound allows."""
    pinned = {}
    for line in (ROOT / "tests" / "minimum.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            one = Requirement(line)
            pinned[canonicalize_name(one.name)] = Version(str(one.specifier).removeprefix("=="))
    asked = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    for extra in set(EXTRAS) - NOT_FOR_USERS - {"gpu"}:
        asked += [Requirement(text) for text in EXTRAS[extra]]
    bounds = {canonicalize_name(one.name): one.specifier for one in asked if one.name != "compal"}
    assert bounds.keys() <= pinned.keys()
    for name, specifier in bounds.items():
        (bound,) = specifier
        assert bound.operator == ">=", name
        low = Version(bound.version)
        same = pinned[name].release[: len(low.release)] == low.release  # the first that was published of it
        assert pinned[name] == low or same, f"{name}: {bound}, tested with {pinned[name]}"


# --- licences, citation, changelog, image --------------------------------------------------------------------


def notices() -> list[tuple[list[str], str]]:
    """Of each row of THIRD_PARTY.md: the patterns of files, the licence."""
    rows = []
    for line in (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            assert len(cells) == 3
            rows.append((re.findall(r"`([^`]+)`", cells[0]), cells[2]))
    return rows


def test_every_data_file_has_an_origin_and_a_licence():
    """Of what is no code of ours and no text about it, each file under exactly one row, and no row without a file."""
    about = re.compile(r".*\.py|(.*/)?(SOURCES\.md|LICENSE[^/]*)")
    data = [name for name in checkout() if name.startswith(("assets/", "tests/data/")) and not about.fullmatch(name)]
    rows = notices()
    for name in data:
        over = [row for row in rows if any(fnmatch.fnmatch(name, pattern) for pattern in row[0])]
        assert len(over) == 1, f"{name}: {len(over)} rows of THIRD_PARTY.md"
    for patterns, licence in rows:
        for pattern in patterns:
            assert fnmatch.filter(data, pattern), pattern
        assert "Apache-2.0" in licence or "](" in licence


def test_every_licence_text_belongs_to_a_row():
    texts = {name for name in checkout() if name.startswith(("assets/", "tests/data/")) and "LICENSE" in name}
    linked = {text for _, licence in notices() for text in re.findall(r"\]\(([^)]+)\)", licence)}
    assert texts == {text for text in linked if "LICENSE" in text}
    assert all((ROOT / text).is_file() for text in linked)


def test_citation():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= told.keys()  # what the format asks for
    assert (told["cff-version"], told["title"], told["type"]) == ("1.2.0", "compal", "software")
    assert str(told["version"]) == PROJECT["project"]["version"]
    assert told["license"] == PROJECT["project"]["license"]
    assert told["keywords"] == PROJECT["project"]["keywords"]
    assert [author["name"] for author in told["authors"]] == [
        author["name"] for author in PROJECT["project"]["authors"]
    ]


def test_changelog():
    """Keep a Changelog: the newest version first, which is the project's; changes under its six headings."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, re.M)
    assert len(versions) == len(re.findall(r"^## ", text, re.M))
    assert versions[0][0] == PROJECT["project"]["version"]
    assert [Version(one) for one, _ in versions] == sorted((Version(one) for one, _ in versions), reverse=True)
    headings = set(re.findall(r"^### (.+)$", text, re.M))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_image():
    """hadolint finds nothing; no folder of the package is left out of the image, whose extras go together."""
    linted = subprocess.run(
        [Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout
    left = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rooms = {name.split(".")[1] for name in PACKAGES if "." in name}
    assert not [room for room in rooms if any(fnmatch.fnmatch(room, pattern) for pattern in left)]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)
    chosen = set(extras.split(","))
    assert chosen <= EXTRAS.keys()
    assert "faiss-cpu" not in set().union(*map(requirements, chosen))
