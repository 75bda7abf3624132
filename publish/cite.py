"""`compal cite`: names → what they used → BibTeX, text or JSON."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import registry
from ..errors import InputError, UnknownName
from ..registry import split_argument
from ..workspace import Workspace
from .citations import SECTIONS, Bibliography

FORMATS = ("bibtex", "text", "json")
KINDS = ("recipes", "setups", "benchmarks", "datasets", "backbones", "heads", "losses", "negatives")
"""Kinds of parts that name papers."""
SCORES = "scores.json"


def cited(names: Sequence[str], workspace: Workspace) -> Bibliography:
    """What `names` used: runs, stores, folders of scores, checkpoints, parts by name, `shipped:NAME`, recipes by file;
    without any, all that is scored in the workspace.

    Raises `UnknownName` with the nearest name, `InputError` for a folder that holds none of these.
    """
    found = Bibliography(workspace)
    for name in names:
        if not _path(found, name) and not _name(found, name):
            near = difflib.get_close_matches(name, list(_known(workspace)), 5, 0.5)
            raise UnknownName.among("run, store, scores or part", name, near, "All of them: compal ls")
    if not names and not _scores(found, workspace.path / "scores"):
        raise InputError(f"nothing is scored in {workspace.path}", "Name a run, store, benchmark, recipe or dataset.")
    return found


def _path(found: Bibliography, name: str) -> bool:
    """Cite what lies at a path, or at a name within the workspace."""
    workspace = found.workspace
    if name.startswith("shipped:"):
        return _checkpoint(found, registry.ROOT / "assets" / "heads" / f"{name.removeprefix('shipped:')}.safetensors")
    for path in (workspace.runs / name, Path(name)):
        if (path / "provenance.json").is_file():
            found.run(path)
            return True
    path = Path(name)
    if path.suffix == ".safetensors" and path.is_file():
        run = path.parent.parent
        if (run / "provenance.json").is_file():
            found.run(run)
            return True
        return _checkpoint(found, path)
    if path.suffix == ".toml" and path.is_file():
        found._recipe(path)
        return True
    if (path / "spec.json").is_file():
        found.store(path)
        return True
    if path.is_dir() and name not in _parts():
        if _scores(found, path):
            return True
        raise InputError(f"{path} holds no run, no store and no scores", "Name one: compal ls runs, compal ls stores")
    return False


def _name(found: Bibliography, name: str) -> bool:
    """Cite the parts of a name, of every kind that has it; else the one store or label of scores that is called so."""
    head, argument = split_argument(name)
    kinds = [kind for kind in KINDS if head in registry.names(kind)]
    for kind in kinds:
        if kind == "backbones":
            found.backbone(name)
        elif kind == "datasets":
            found.dataset(name)
        elif not argument:
            found.part(kind, name)
    if kinds:
        found.software({}, "compal")
        return True
    stores = [path for path in found.workspace.list_stores() if path.name.startswith(name)]
    if len(stores) > 1:
        raise InputError(f"'{name}' fits several stores: {', '.join(path.name for path in stores)}", "Give more of it.")
    if stores:
        found.store(stores[0])
        return True
    return _scores(found, found.workspace.path / "scores", name)


def _checkpoint(found: Bibliography, path: Path) -> bool:
    """Cite what the header of a scorer's file says: its head and the features it was fitted on."""
    from safetensors import safe_open

    if not path.is_file():
        return False
    with safe_open(path, framework="numpy") as file:
        header = file.metadata() or {}
    if "head" not in header or "spec" not in header:
        raise InputError(f"{path} is no head that compal fitted", "Name a run: compal ls runs")
    spec = json.loads(header["spec"])
    found.head(header["head"], str(spec.get("level", "tokens")))
    found.backbone(str(spec["backbone"]))
    found.software({}, "compal", "torch", "safetensors")
    return True


def _scores(found: Bibliography, folder: Path, label: str = "") -> bool:
    """Cite the rows saved at or below a folder, those of a label where one is named; whether there are any."""
    some = False
    for file in sorted([folder / SCORES] if (folder / SCORES).is_file() else folder.rglob(SCORES)):
        try:
            meta = json.loads(file.read_text(encoding="utf-8"))
            wanted = not label or meta["label"] == label
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file.parent} holds no readable scores: {error}", "Evaluate again.") from None
        if wanted:
            found.scores(meta)
            some = True
    return some


def _parts() -> set[str]:
    return {name for kind in KINDS for name in registry.names(kind)}


def _known(workspace: Workspace) -> Iterator[str]:
    yield from _parts()
    yield from (path.name for path in workspace.list_runs())
    yield from (path.name for path in workspace.list_stores())


def render(found: Bibliography, fmt: str = "bibtex") -> str:
    """The citations as text in one of `FORMATS`, ending in a newline. Raises `UnknownName` for another format."""
    if fmt not in FORMATS:
        raise UnknownName.among("format of citations", fmt, FORMATS)
    citations = found.citations()
    if fmt == "json":
        told = {"citations": [one.to_json() for one in citations], "without": found.without}
        return json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    lines = []
    mark = "% " if fmt == "bibtex" else ""
    for section in SECTIONS:
        members = [one for one in citations if one.section == section]
        if members:
            lines.append(f"{mark}{section}")
        for one in members:
            uses = ", ".join(one.used_for)
            lines += [f"% {uses}", one.entry.bibtex(), ""] if mark else [f"  {one.entry.text()}  [{uses}]"]
        lines += [""] if members and not mark else []
    if found.without:
        lines.append(f"{mark}without a paper of their own")
        lines += [f"{mark}  {what}{f': {said}' if said else ''}" for what, said in found.without.items()]
    return "\n".join(lines).rstrip("\n") + "\n"
