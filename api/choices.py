"""What stands where a call says nothing, as on the command line: the workspace, the names used last."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..workspace import Workspace

if TYPE_CHECKING:
    from ..align.fit import RunResult
    from ..stores.spec import FeatureSpec
    from ..stores.store import Store

Place: TypeAlias = "Workspace | str | os.PathLike[str] | None"
"""A workspace or its folder; None: that of the current folder (`Workspace.find`)."""
Features: TypeAlias = "str | os.PathLike[str] | FeatureSpec | Store"
"""A backbone by name, a store by the name of its folder or by path; "" is the backbone used last."""
Run: TypeAlias = "str | os.PathLike[str] | RunResult"
"""A run by its id or folder, what `fit` returned, a shipped head (`shipped:tflocal`), or a .safetensors file."""
Settings: TypeAlias = "Iterable[str] | Mapping[str, Any]"
"""`["optim.steps=300"]`, or `{"optim.steps": 300}`."""


def workspace_of(place: Place) -> Workspace:
    """The workspace that is meant. Raises what `Workspace.find` raises."""
    if isinstance(place, Workspace):
        return place
    return Workspace.find() if place is None else Workspace.find().at(Path(place))


def backbone_of(given: str, workspace: Workspace) -> str:
    """The backbone that is named, else compal.toml's, the one used last, or the embedded one."""
    return workspace.choose("backbone", given, "shapes-vit")[0]


def data_of(given: str, workspace: Workspace) -> str:
    """The dataset that is named, else compal.toml's, the one used last, or the embedded one."""
    return workspace.choose("data", given, "shapes")[0]


def listed(given: Any, one: type | tuple[type, ...] = (str, os.PathLike)) -> list[Any]:
    """What was given as a list, where a single one may stand alone."""
    return [given] if isinstance(given, one) else list(given)


def store_named(given: Features, level: str, dtype: str, workspace: Workspace) -> tuple[Store | None, FeatureSpec, str]:
    """The store if it was given or named by path (None: the workspace's store of the spec), the spec, and the name to
    remember, "" for features that lie elsewhere. Raises what `pipeline.stored.spec_named` and `Store.open` raise."""
    from ..pipeline.stored import spec_named
    from ..stores.spec import FeatureSpec
    from ..stores.store import Store

    if isinstance(given, FeatureSpec):
        there = (workspace.find_store(given) / "spec.json").is_file()
        return None, given, given.backbone if there else ""
    if isinstance(given, Store):
        here = given.path.absolute() == workspace.find_store(given.spec)
        return given, given.spec, given.spec.backbone if here else ""
    name = os.fspath(given)
    if name and (isinstance(given, os.PathLike) or "/" in name) and (Path(name) / "spec.json").is_file():
        return store_named(Store.open(Path(name)), level, dtype, workspace)
    name = backbone_of(name, workspace)
    return None, spec_named(name, level, dtype, workspace), name
