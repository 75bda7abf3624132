"""Which store of the workspace is meant: the exact one, or the only one whose features differ in how they were made."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

from .. import registry
from ..errors import CompalError, InputError, MissingFeatures
from ..stores.spec import FeatureSpec
from ..stores.store import Store
from ..workspace import Workspace
from .encoder import resolve
from .segments import load

LOG = logging.getLogger("compal")


def spec_named(name: str, level: str, dtype: str, workspace: Workspace) -> FeatureSpec:
    """The spec of the store to use for a backbone, or of the workspace's store whose folder is called `name`.

    Without such a store it is what `resolve` says. Raises what `resolve` raises, and `InputError` if several stores
    would do.
    """
    folder = workspace.stores / name
    if name and folder.parent == workspace.stores and (folder / "spec.json").is_file():
        return Store.open(folder).spec
    with workspace.used():
        spec = resolve(name, level, dtype)
    return stored_spec(spec, workspace)


def stored_spec(spec: FeatureSpec, workspace: Workspace) -> FeatureSpec:
    """The spec itself if the workspace has its store, or none; else that of the only store which differs from it in
    nothing but the precision of the pass, the scale that JPEGs were decoded at, or the segmenter. Raises
    `InputError` if several do."""
    if (workspace.find_store(spec) / "spec.json").is_file():
        return spec
    # A folder's name ends in the 16 digits that tell apart what is alike.
    folders = [file.parent for file in workspace.stores.glob(f"{spec.folder[:-16]}*/spec.json")]
    read = ((folder, _read(folder)) for folder in sorted(folders))
    found = [other for folder, other in read if other and other.folder == folder.name and _alike(other, spec)]
    if len(found) > 1:
        what = f"{len(found)} stores of {spec.backbone} at level '{spec.level}' in {workspace.stores}"
        which = "; ".join(f"{other.folder} ({_way(other)})" for other in found)
        raise InputError(f"{what}: {which}", "Choose one by its folder's name: --backbone FOLDER")
    return found[0] if found else spec


def _read(folder: Path) -> FeatureSpec | None:
    try:
        return FeatureSpec.from_json(json.loads((folder / "spec.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, CompalError):
        return None  # opening that store by its name says what is wrong with it


def _alike(one: FeatureSpec, other: FeatureSpec) -> bool:
    return _plain(one) == _plain(other)


def _plain(spec: FeatureSpec) -> FeatureSpec:
    """The spec without what says how the features were made."""
    preprocess = {key: value for key, value in spec.preprocess.items() if key != "jpeg"}
    extra = {key: value for key, value in spec.extra.items() if key != "segments"}
    return dataclasses.replace(spec, precision="float32", preprocess=preprocess, extra=extra)


def _way(spec: FeatureSpec) -> str:
    jpeg = ["JPEGs at reduced scale"] if "jpeg" in spec.preprocess else []
    segments = [f"segments of {spec.extra['segments']}"] if "segments" in spec.extra else []
    return ", ".join([spec.precision, *jpeg, *segments])


def segmenter_of(spec: FeatureSpec) -> str:
    """The segmenter that cuts captions as the spec says, "" for the dataset's own. Raises `InputError` if it is not
    the one that is installed."""
    title = spec.extra.get("segments", "")
    name, _, version = title.partition(" ")
    if not name:
        return ""
    # A version of spaCy's names the model: 1-en_core_web_sm-3.8.0.
    for candidate in (name, *(f"{name}:{part}" for part in version.split("-")[1:2])):
        try:
            if load(candidate).title == title:
                return candidate
        except CompalError:
            continue
    known = ", ".join(registry.names("segmenters"))
    raise InputError(f"{spec.folder} has segments of {title}, which cannot be made here", f"Installed are {known}.")


def store_of(spec: FeatureSpec, workspace: Workspace, benchmark: str = "") -> Store:
    """The store of a spec, or the one that `stored_spec` finds. Raises `MissingFeatures` naming the command that makes
    it, for a `benchmark` if given, and `InputError` if several would do."""
    spec = stored_spec(spec, workspace)
    folder = workspace.find_store(spec)
    if not (folder / "spec.json").is_file():
        asked = "" if spec.level == "tokens" else f" --level {spec.level}"
        asked += f" --benchmark {benchmark}, or add --extract" if benchmark else ""
        raise MissingFeatures(
            f"no features of {spec.backbone} at level '{spec.level}' in {workspace.stores}",
            f"Make them: compal extract --backbone {spec.backbone}{asked}",
        )
    LOG.info("store %s is read: %s at level %s, %s", folder, spec.backbone, spec.level, spec.dtype)
    return Store.open(folder)
