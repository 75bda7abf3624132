"""The same features in fewer bytes: a store of another dtype, made from one that is there, part by part.

Only what loses nothing but digits is cast: from float32 to all others, from float16 to bfloat16 and int8, from
bfloat16 to int8. Widening would give a store the fingerprint of features that were computed at that precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UsageError
from . import space
from .buffers import Array, aligned_empty
from .compaction import OWN
from .dtypes import READ, pooled_dtype
from .manifest import Part, commit_change, complete_part, done_names, read_done, read_manifest, written_now
from .parts import Origin, write_images, write_texts
from .rows import image_dim, image_rows, is_ragged, quarantined_of, text_rows, token_dim
from .store import Store

NARROWER = {
    "float16": ("bfloat16", "int8"),
    "float32": ("float16", "bfloat16", "int8"),
    "bfloat16": ("int8",),
    "int8": (),
}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}  # of a number on disk


@dataclass(frozen=True)
class CastSummary:
    """What was made.

    path          the new store
    fingerprint   of its spec
    dtype         of its tokens
    manifest      number of its newest manifest
    parts         how many parts the source lists
    written       how many of them this run wrote
    dropped       how many the new store lists no longer, because the source does not
    rows          rows of all of them
    source_bytes  bytes of the source's parts
    bytes         bytes of the same parts in the new store
    seconds       wall time
    """

    path: str
    fingerprint: str
    dtype: str
    manifest: int
    parts: int
    written: int
    dropped: int
    rows: int
    source_bytes: int
    bytes: int
    seconds: float


def cast(
    source: Path, folder: Path | None, dtype: str, progress: Callable[[int, int], None] | None = None
) -> CastSummary:
    """Write the features of the store `source` as `dtype` into `folder` (None: beside the source, named by its
    own fingerprint).

    The new store lists the parts that the source lists, in its order and by its names, and what it holds
    besides. Run again it adds what the source gained, and drops what the source dropped; nothing is written
    twice, and a killed run is continued. One commit at the end. `progress` is called with (parts done, parts in
    all). A part is held in memory at a time.

    Raises `UsageError` for a dtype that would not be narrower, `InputError` for an empty source and for values
    too large for the dtype, naming the item, `VerificationError` for a damaged source.
    """
    started = time.perf_counter()
    store = Store.open(Path(source))
    _check(store, dtype)
    spec = store.spec.with_dtype(dtype)
    target = Store.create(Path(folder) if folder else store.path.parent / spec.folder, spec)
    present = set(done_names(target.path))
    wanted = [part for part in store.parts if part.name not in present]
    ratio = BYTES[dtype] / BYTES[store.spec.dtype]
    space.check(target.path, int(ratio * sum(part.bytes for part in wanted)), f"{len(wanted):,} parts as {dtype}")
    for count, part in enumerate(wanted, 1 + len(store.parts) - len(wanted)):
        _write(store, target, part)
        if progress:
            progress(count, len(store.parts))
    before = {part.name for part in target.parts}
    number = _commit(store, target)
    names, after = {part.name for part in store.parts}, Store.open(target.path).parts
    made = [part for part in after if part.name in names]
    return CastSummary(
        path=str(target.path),
        fingerprint=spec.fingerprint,
        dtype=dtype,
        manifest=number,
        parts=len(store.parts),
        written=len(wanted),
        dropped=len(before - {part.name for part in after}),
        rows=sum(part.rows for part in made),
        source_bytes=sum(part.bytes for part in store.parts),
        bytes=sum(part.bytes for part in made),
        seconds=round(time.perf_counter() - started, 3),
    )


def _check(store: Store, dtype: str) -> None:
    present = store.spec.dtype
    if dtype not in NARROWER:
        raise UsageError(f"no dtype '{dtype}' to cast to", f"Known: {', '.join(NARROWER)}.")
    if present not in NARROWER:
        what = f"{store.path} holds pixels and token ids (level {store.spec.level}), of which no bit can be left out"
        raise UsageError(what, "Cast the features that are computed from them.")
    if dtype not in NARROWER[present]:
        cure = f"From {present} to: {', '.join(NARROWER[present])}." if NARROWER[present] else "Cast its source."
        raise UsageError(f"casting {store.path} from {present} to {dtype} would not make it smaller", cure)
    if not store.manifest:
        raise InputError(f"{store.path} has no committed part", "Extract first; see: compal store info")
    if dtype == "int8" and not (store.spec.text_dim or image_dim(store.spec)):
        cure = "Its float16 embeddings are stored as they are by int8 stores, too."
        raise UsageError(f"{store.path} holds pooled embeddings only (level {store.spec.level})", cure)


def _write(store: Store, target: Store, part: Part) -> None:
    done = read_done(store.path, part.name)
    origin = Origin(
        target.path,
        target.spec,
        part.name,
        tuple(quarantined_of(done)),
        _provenance(done, store.spec.fingerprint),
    )
    columns, (tokens, pooled) = store._table(part, None).to_pydict(), _arrays(store, part)
    if part.kind == "image":
        write_images(origin, image_rows(columns, tokens, pooled))
    else:
        write_texts(origin, text_rows(columns, None if tokens is None else list(tokens), pooled))


def _provenance(done: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """What is known of the computation, without what this process says of itself."""
    found = done.get("written")
    known = {key: value for key, value in (found or {}).items() if key not in OWN}
    return {**known, "operation": "cast", "cast_from": fingerprint}


def _arrays(store: Store, part: Part) -> tuple[Array | list[Array] | None, Array]:
    spec = store.spec
    pooled = aligned_empty((part.rows, spec.pooled_dim), READ[pooled_dtype(spec.dtype)])
    rows = np.arange(part.rows)
    if not part.rows:
        return ([] if token_dim(spec, part.kind) else None), pooled
    if is_ragged(spec, part.kind):
        file = store._ragged(part)
        file.pooled_into(rows, pooled, rows)
        return (None if file.tokens is None else [file.row(row) for row in range(part.rows)]), pooled
    store._dense(part, "pooled").read_into(rows, pooled, rows)
    if not image_dim(spec):
        return None, pooled
    tokens = aligned_empty((part.rows, *spec.image_shape), READ[spec.dtype])
    store._dense(part, "tokens").read_into(rows, tokens, rows)
    return tokens, pooled


def _commit(store: Store, target: Store) -> int:
    source = store.spec.fingerprint
    listed_there = {part.name for part in read_manifest(store.path, store.manifest).parts}

    def stale(name: str) -> bool:
        """Cast from a part that the source does not list any more."""
        if name in listed_there:
            return False
        written = read_done(target.path, name).get("written")
        return isinstance(written, dict) and written.get("cast_from") == source

    def change(listed: dict[str, Part]) -> dict[str, Part]:
        made = {part.name: complete_part(target.path, target.spec.fingerprint, part.name) for part in store.parts}
        return made | {name: part for name, part in listed.items() if name not in made and not stale(name)}

    written = written_now("cast", origin={"cast_from": source})
    return commit_change(target.path, target.spec.fingerprint, change, written)
