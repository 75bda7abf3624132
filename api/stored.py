"""Stores as functions: the one of a backbone, here or where it is shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..workspace import Workspace

if TYPE_CHECKING:
    from ..stores.spec import FeatureSpec
    from ..stores.store import Store


def open_store(
    backbone: str,
    level: str = "tokens",
    dtype: str = "float16",
    workspace: Workspace | None = None,
    remote: str = "",
) -> Store:
    """The workspace's store of a backbone's features, or the store whose folder is called `backbone`.

    One of another precision, scale of JPEGs or segmenter is taken where it is the only one. Raises `MissingFeatures` if
    there is none, `InputError` if there are several.

    With `remote` (a name of compal.toml, or a URL) the store is read where it lies: samples by ranged GETs,
    what is fetched whole kept in `workspace/cache`.
    """
    workspace = workspace or Workspace.find()
    if remote:
        from ..pipeline.encoder import resolve
        from ..stores.remotes.lazy import open_remote

        return open_remote(workspace.remote(remote), resolve(backbone, level, dtype).folder, workspace.path / "cache")
    from ..pipeline.stored import spec_named

    return store_of(spec_named(backbone, level, dtype, workspace), workspace)


def store_of(spec: FeatureSpec, workspace: Workspace, benchmark: str = "") -> Store:
    """The store of a spec; see `pipeline.stored.store_of`."""
    from ..pipeline import stored

    return stored.store_of(spec, workspace, benchmark)
