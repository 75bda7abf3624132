"""Stores as functions: the one of a backbone, here or where it is shared."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..workspace import Workspace
from .choices import Features, Place, backbone_of, store_named, workspace_of

if TYPE_CHECKING:
    from ..stores.spec import FeatureSpec
    from ..stores.store import Store


def open_store(
    backbone: Features = "",
    level: str = "tokens",
    dtype: str = "float16",
    workspace: Place = None,
    remote: str = "",
) -> Store:
    """Open a store of features for reading: the workspace's of a backbone, or one by its folder's name or by path.

    backbone   as `extract` takes it; "" is the one used last
    level      where the ladder was cut: pooled, tokens, block:-K, pixels or regions
    dtype      on disk: float16, bfloat16, float32, or int8 of `compal store cast`
    workspace  a `Workspace` or its folder; by default that of the current folder
    remote     a name of compal.toml, or a URL: the store is read where it lies, samples by ranged GETs; what is
               fetched whole is kept in `workspace/cache`

    A store is read by key, in any order: `image_tokens(keys)` (N, P, D), `text_tokens(keys)` (N, L, D) and a mask
    (N, L) bool, `pooled("image", keys)` (N, E), numpy arrays in the stored dtype; `table("text")` says what the keys
    stand for. One of another precision, scale of JPEGs or segmenter is taken where it is the only one.

    Raises `MissingFeatures` if there is none, `InputError` if there are several, `UnknownName` for a backbone that
    does not exist, `VerificationError` for a store that is damaged, `RemoteError`.
    """
    workspace = workspace_of(workspace)
    if remote:
        from ..pipeline.encoder import resolve
        from ..stores.remotes.lazy import open_remote

        name = backbone_of(os.fspath(backbone), workspace) if isinstance(backbone, str | os.PathLike) else ""
        spec = resolve(name, level, dtype) if name else store_named(backbone, level, dtype, workspace)[1]
        return open_remote(workspace.remote(remote), spec.folder, workspace.path / "cache")
    store, spec, _ = store_named(backbone, level, dtype, workspace)
    return store or store_of(spec, workspace)


def store_of(spec: FeatureSpec, workspace: Workspace, benchmark: str = "") -> Store:
    """The store of a spec; see `pipeline.stored.store_of`, also for what it raises."""
    from ..pipeline import stored

    return stored.store_of(spec, workspace, benchmark)
