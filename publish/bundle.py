"""What of a run or of a store is published: the files, under the names they have on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import InputError, VerificationError
from ..workspace import Workspace

RUN = ("config.toml", "provenance.json", "result.json", "metrics.jsonl")
"""Texts of a run that are published beside its weights."""
WEIGHTS = "checkpoints/best.safetensors"


@dataclass(frozen=True)
class Bundle:
    """The files of a repository by their path in it; texts as they are published, everything else on disk.

    kind  "model" for a run, "dataset" for a store, as the hub calls its repositories
    name  the run's or the store's folder
    """

    kind: Literal["model", "dataset"]
    name: str
    source: Path
    files: dict[str, Path | bytes] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


def of_run(folder: Path, workspace: Workspace) -> Bundle:
    """A run: its best checkpoint (and the towers it tuned), configuration, provenance, result, steps. Places of this
    machine are left out of the texts. Raises `InputError` for a run that is not finished or keeps no weights."""
    lacking = [
        name for name in (WEIGHTS, "config.toml", "provenance.json", "result.json") if not (folder / name).is_file()
    ]
    towers = sorted(path for path in (folder / "towers").glob("*") if path.is_file())
    if lacking and not (towers and (folder / "provenance.json").is_file()):
        cure = "Finish it with compal fit … --resume, or name another: compal ls runs"
        raise InputError(f"{folder} is no finished run: it has no {lacking[0]}", cure)
    files: dict[str, Path | bytes] = {}
    for name in RUN:
        if (folder / name).is_file():
            files[name] = without_places((folder / name).read_text(encoding="utf-8"), workspace).encode()
    if (folder / WEIGHTS).is_file():
        files[WEIGHTS] = folder / WEIGHTS
    for path in towers:
        json = path.suffix == ".json"
        text = without_places(path.read_text(encoding="utf-8"), workspace).encode() if json else path
        files[f"towers/{path.name}"] = text
    return Bundle("model", folder.name, folder, files)


def of_store(path: Path) -> Bundle:
    """A store as remotes lay it out, below its folder's name: the spec, the manifests, what the newest of them lists.
    Raises `VerificationError` for a store that is not whole, `InputError` for one without parts."""
    from ..stores.store import Store
    from ..stores.verify import verify

    store = Store.open(path)
    if not store.parts:
        raise InputError(f"{path} holds nothing yet", "Fill it: compal extract")
    problems = verify(path, deep=False)
    if problems:
        raise VerificationError(f"{path} is not whole: {problems[0]}", "See all: compal store verify")
    names = ["spec.json", "head.json"]
    names += sorted(f"manifests/{file.name}" for file in (path / "manifests").glob("*.json"))
    for part in store.parts:
        names += [f"done/{part.name}.json", *part.files]
    return Bundle("dataset", path.name, path, {f"{path.name}/{name}": path / name for name in dict.fromkeys(names)})


def without_places(text: str, workspace: Workspace) -> str:
    """A text without where things lie on this machine: the workspace is `compal-work`, the home `~`, a program its
    name, and of every other absolute path its last name is left."""
    text = text.replace(str(workspace.path), "compal-work").replace(str(Path.home()), "~")
    return re.sub(r"(?<![\w.:/~-])/(?:[^/\s\"'\\,:]+/)+([^/\s\"'\\,:]*)", r"\1", text)
