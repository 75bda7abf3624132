"""What works on this machine, each thing with what to do where it does not. Nothing is downloaded, and no host is asked
unless remotes are to be."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CompalError
from . import print_json, terminal

if TYPE_CHECKING:
    from ..workspace import Workspace

State = Literal["good", "careful", "broken"]
GIB = 2**30
LITTLE_DISK, NO_DISK = 10 * GIB, GIB // 10
FILES = 1024  # open files that readers of many parts and data loaders need at the least
SHARED = GIB // 2  # /dev/shm of a container is often 64 MiB
WITHOUT = ("all", "docs", "dev", "gpu")  # extras that are no single ability
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass(frozen=True)
class Check:
    """`state`: good; careful, something is missing that not everybody needs; broken, compal cannot work so."""

    name: str
    value: str
    state: State = "good"
    cure: str = ""


def examine(workspace: Workspace, remotes: Callable[[], list[dict[str, Any]]] | None = None) -> Iterator[Check]:
    """Every check, in the order to show. remotes: lists the stores of every remote; None asks none."""
    yield _python()
    yield Check("processor", f"{platform.machine()}, {os.cpu_count()} cores")
    needed, extras = _requirements()
    yield from _packages(needed)
    if importlib.util.find_spec("torch"):
        yield from _torch()
    yield from _extras(extras)
    yield _spacy()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), "")
    cure = "" if browser else "Only for looking at reports here: compal view --serve PORT, or open the file elsewhere."
    yield Check("browser", browser or "no chromium or chrome", "good" if browser else "careful", cure)
    yield from _machine()
    yield from _workspace(workspace)
    yield from _remotes(workspace, remotes)


def show(workspace: Workspace, remotes: Callable[[], list[dict[str, Any]]] | None, as_json: bool) -> bool:
    """Print the checks; whether nothing is broken."""
    checks = list(examine(workspace, remotes))
    whole = all(check.state != "broken" for check in checks)
    if as_json:
        said = [dataclasses.asdict(check) for check in checks]
        print_json({"workspace": str(workspace.path), "whole": whole, "checks": said})
        return whole
    marks = {"good": "ok", "careful": "--", "broken": "!!"}
    for check in checks:
        styles = {"good": "good", "careful": "careful", "broken": "error"}
        mark = terminal.paint(marks[check.state], styles[check.state], sys.stdout)
        print(f"{mark}  {check.name:<18} {check.value}")
        if check.cure:
            print(f"{'':<23}{check.cure}")
    return whole


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check(
        "python", platform.python_version(), "good" if good else "broken", "" if good else "Take 3.11 or newer."
    )


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that compal needs, and those of each extra, as its own metadata says; an extra holds those that it
    names (`compal[plots]`)."""
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    within: list[tuple[str, str]] = []
    for line in importlib.metadata.requires("compal") or ():
        name = re.match(r"([\w.-]+)(?:\[([\w., -]+)\])?", line)
        extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", line)
        if name and name[1] == "compal" and extra:
            within += [(extra[1], one.strip()) for one in (name[2] or "").split(",")]
        elif name:
            (extras.setdefault(extra[1], []) if extra else needed).append(name[1])
    for outer, inner in within:
        extras[outer] = [*extras.get(outer, ()), *extras.get(inner, ())]
    return needed, {extra: names for extra, names in extras.items() if extra not in WITHOUT}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _packages(needed: list[str]) -> Iterator[Check]:
    missing = [name for name in needed if not _version(name)]
    if missing:
        yield Check("packages", f"missing: {', '.join(missing)}", "broken", f"pip install {' '.join(missing)}")
    shown = ("torch", "open_clip_torch", "timm", "zarr", "pyarrow")
    yield Check("libraries", ", ".join(f"{name} {version}" for name in shown if (version := _version(name))))


def _torch() -> Iterator[Check]:
    started = time.perf_counter()
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check(
            "torch", f"cannot be imported: {error}", "broken", "Install it again for this machine: pytorch.org."
        )
        return
    yield Check("torch", f"imports in {time.perf_counter() - started:.1f} s, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        yield Check("gpu", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {memory / GIB:.0f} GiB each")
    else:
        yield Check("gpu", "none: --device cpu", "careful", "Extraction of large towers wants one; all else does not.")
    yield _kernels("cpu")
    if torch.cuda.is_available():
        yield _kernels("cuda")


def _kernels(device: str) -> Check:
    """Whether a kernel really runs on a device and gives what its reference gives; on a GPU that is Triton's."""
    import torch

    from ..align.kernels import maxsim, reference_maxsim

    name = "kernels (Triton)" if device == "cuda" else "kernels (CPU)"
    draw = torch.Generator().manual_seed(0)
    image, text = (torch.randn(4, tokens, 32, generator=draw).to(device) for tokens in (9, 5))
    try:
        apart = float((maxsim(image, text) - reference_maxsim(image, text)).abs().max())
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        cure = "COMPAL_KERNELS=reference does without. Triton needs a C compiler and the headers of Python."
        return Check(name, f"do not run: {type(error).__name__}: {said}", "broken", cure)
    if apart > (0.05 if device == "cuda" else 1e-4):
        return Check(
            name, f"differ from the reference by {apart:.1g}", "broken", "COMPAL_KERNELS=reference; report it."
        )
    return Check(name, f"run, within {apart:.0e} of the reference")


def _extras(extras: dict[str, list[str]]) -> Iterator[Check]:
    for extra, names in sorted(extras.items()):
        there = {name: _version(name) for name in names}
        missing = [name for name, version in there.items() if not version and not _stands_in(name)]
        value = ", ".join(f"{name} {version}" for name, version in there.items() if version) or "not installed"
        if missing:
            more = f"; lacks {', '.join(missing)}" if len(missing) < len(names) else ""
            yield Check(f"extra {extra}", value + more, "careful", f"pip install 'compal[{extra}]'")
        else:
            yield Check(f"extra {extra}", value)


def _stands_in(package: str) -> bool:
    """Whether another build of faiss gives the same module."""
    return package.startswith("faiss") and importlib.util.find_spec("faiss") is not None


def _spacy() -> Check:
    model = "en_core_web_sm"
    if importlib.util.find_spec("spacy") is None:
        return Check(
            "spaCy's model", "spaCy is not installed", "careful", "Only for --segments spacy; `rules` needs none."
        )
    if importlib.util.find_spec(model) is None:
        return Check("spaCy's model", f"no {model}", "careful", f"python -m spacy download {model}")
    return Check("spaCy's model", f"{model} {_version(model)}")


def _machine() -> Iterator[Check]:
    try:
        import resource
    except ImportError:  # no Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    enough = soft == resource.RLIM_INFINITY or soft >= FILES
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    yield Check("open files", shown, "good" if enough else "careful", "" if enough else f"ulimit -n {most}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        good = free >= SHARED
        cure = "" if good else "Several processes exchange batches there: docker run --shm-size=8g, or mount it larger."
        yield Check("shared memory", f"{free / GIB:,.1f} GiB free", "good" if good else "careful", cure)


def _workspace(workspace: Workspace) -> Iterator[Check]:
    file = workspace.settings_file
    yield Check("settings", str(file) if file else "no compal.toml; compal init writes one")
    parent = next(folder for folder in (workspace.path, *workspace.path.parents) if folder.exists())
    writable = parent.is_dir() and os.access(parent, os.W_OK)
    cure = "" if writable else "Choose another: --work FOLDER, $COMPAL_HOME, or workspace = … in compal.toml."
    stores, runs = len(workspace.list_stores()), len(workspace.list_runs())
    value = f"{workspace.path} ({stores:,} stores, {runs:,} runs)" + ("" if writable else " cannot be written")
    yield Check("workspace", value, "good" if writable else "broken", cure)
    free = shutil.disk_usage(parent).free
    state: State = "broken" if free < NO_DISK else "careful" if free < LITTLE_DISK else "good"
    cure = (
        "" if state == "good" else "Free some, or choose another workspace; compal store gc removes what nothing lists."
    )
    yield Check("disk", f"{free / GIB:,.1f} GiB free", state, cure)


def _remotes(workspace: Workspace, ask: Callable[[], list[dict[str, Any]]] | None) -> Iterator[Check]:
    names = list(workspace.settings.remotes)
    if not names:
        yield Check("remotes", 'none named; [remotes] team = "s3://bucket/prefix" in compal.toml shares stores')
        return
    if ask is None:
        yield Check("remotes", f"{', '.join(names)} (not asked; --remotes asks)")
        return
    try:
        found = ask()
    except CompalError as error:
        yield Check("remotes", error.what, "careful", error.cure)
        return
    for name in names:
        rows = [row for row in found if row["remote"] == name]
        problem = next((str(row["problem"]) for row in rows if row["problem"] and not row["name"]), "")
        if problem:
            yield Check(
                f"remote {name}", problem, "careful", "The computation goes on without it; --no-remote is quiet."
            )
        else:
            yield Check(f"remote {name}", f"answers, {len(rows):,} stores")
