"""Which benchmarks are here: those that are generated, those whose files are found, and what the others lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import registry
from ..errors import CompalError
from .sources import Sources, headline


@dataclass(frozen=True)
class Entry:
    """A benchmark and whether it can be scored.

    state   generated | present | incomplete (files are there, not all) | absent
    root    where compal.toml says its files are
    lacks   what is missing, "" if nothing
    get     where its files come from and where to put them
    """

    name: str
    title: str
    state: Literal["generated", "present", "incomplete", "absent"]
    metric: str
    size: int | None
    licence: str
    revision: str
    url: str
    variants: dict[str, str]
    root: str = ""
    lacks: str = ""
    get: str = ""


def inventory(root_for: Callable[[str], Path | None]) -> list[Entry]:
    """Every benchmark of the registry. Annotations are read and photographs looked for; none is decoded.

    root_for  the folder of a benchmark's files, None if compal.toml names none
    """
    return [_entry(name, root_for) for name in registry.names("benchmarks")]


def _entry(name: str, root_for: Callable[[str], Path | None]) -> Entry:
    module = registry.load("benchmarks", name)
    info, root = module.INFO, root_for(name)
    state: Literal["generated", "present", "incomplete", "absent"]
    state, lacks, cure = "generated", "", ""
    if info.get("files"):
        state = "present"
        if root is None or not Path(str(root).partition("?")[0]).exists():
            state, cure = "absent", str(info["files"])
            lacks = f"no folder {root}" if root else f'no root: [roots] {name} = "FOLDER" in compal.toml'
        else:
            try:
                next(iter(module.groups(Sources(root=root))))
            except StopIteration:
                state, lacks, cure = "incomplete", f"no rows in {root}", str(info["files"])
            except CompalError as error:
                state, lacks, cure = "incomplete", error.what, error.cure or str(info["files"])
    return Entry(
        name=name,
        title=str(info["title"]),
        state=state,
        metric=" ".join(headline(info)),
        size=info.get("size"),
        licence=str(info["licence"]),
        revision=str(info["revision"]),
        url=str(info["url"]),
        variants=dict(info.get("variants", {})),
        root=str(root or ""),
        lacks=lacks,
        get=cure,
    )
