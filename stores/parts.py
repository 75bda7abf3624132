"""Writing one part: staged, synced, moved into place, and declared done last.

A part is complete or absent. Until `done/<part>.json` is linked, nothing of it counts: a writer that is
killed leaves staging that the next one sweeps, and moved files that the next one replaces. If two write the
same part, the first `done` stays and the second's work is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .. import __version__
from ..config import canonical
from ..errors import InputError
from . import quantized
from .dtypes import NotFinite, pooled_dtype
from .files import checksum, disk_errors, link, lock, staging, sync, sync_tree, write_synced
from .manifest import FOLDERS, PART_NAME, done_digest, done_path, read_done, user_name
from .ragged_writer import write_ragged
from .rows import (
    ImageRows,
    Quarantined,
    TextRows,
    check_images,
    check_texts,
    image_dim,
    image_table,
    text_table,
)
from .spec import FORMAT_VERSION, FeatureSpec
from .statistics import statistics
from .tables import write_table
from .writer import POOLED_CHUNK_ROWS, Checksums, write_array, write_group


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a part goes and who makes it."""

    root: Path
    spec: FeatureSpec
    name: str
    quarantined: tuple[Quarantined, ...] = ()
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


def write_images(origin: Origin, rows: ImageRows) -> None:
    """Write a part of images; see `Store.write_images`."""
    check_images(rows, origin.spec, origin.quarantined)

    def fill(stage: Path) -> Checksums:
        if origin.spec.ragged_images or not rows.keys:
            return _ragged(stage / "images", origin, rows, image_dim(origin.spec))
        return _dense(stage / "images" / origin.name, origin.spec, rows)

    _write(origin, "image", rows, image_table(rows), fill)


def write_texts(origin: Origin, rows: TextRows) -> None:
    """Write a part of captions; see `Store.write_texts`."""
    check_texts(rows, origin.spec, origin.quarantined)

    def fill(stage: Path) -> Checksums:
        return _ragged(stage / "texts", origin, rows, origin.spec.text_dim)

    _write(origin, "text", rows, text_table(rows), fill)


def _dense(folder: Path, spec: FeatureSpec, rows: ImageRows) -> Checksums:
    write_group(folder, {"spec": spec.fingerprint})
    written: Checksums = {}
    if isinstance(rows.tokens, np.ndarray):
        if spec.dtype == "int8":
            written |= quantized.write_tokens(folder, rows.tokens)
        else:
            written |= write_array(folder / "tokens", rows.tokens, spec.dtype, names=quantized.TOKEN_AXES)
    if not spec.pooled_dim:
        return written
    pooled = pooled_dtype(spec.dtype)
    return written | write_array(folder / "pooled", rows.pooled, pooled, POOLED_CHUNK_ROWS, ("sample", "channel"))


def _ragged(folder: Path, origin: Origin, rows: ImageRows | TextRows, dim: int) -> Checksums:
    if not rows.keys:  # a part whose items are all quarantined has no arrays
        return {}
    folder.mkdir(parents=True)
    path = folder / f"{origin.name}.arrow"
    tokens = None if rows.tokens is None else list(rows.tokens)
    if origin.spec.dtype == "int8" and tokens is not None:
        return {path: quantized.write_ragged(path, tokens, rows.pooled, dim)}
    return {path: write_ragged(path, tokens, rows.pooled, pooled_dtype(origin.spec.dtype), dim)}


def _write(
    origin: Origin, kind: str, rows: ImageRows | TextRows, table: pa.Table, fill: Callable[[Path], Checksums]
) -> None:
    started, root = time.time(), origin.root
    if not PART_NAME.fullmatch(origin.name):
        raise InputError(f"'{origin.name}' cannot name a part", "Use letters, digits, '-' and '_'.")
    done = done_path(root, origin.name)
    items = items_digest(rows.keys, origin.quarantined)
    if done.exists():
        _check_same(origin, kind, items)
        return
    with (
        disk_errors(f"part {origin.name} of {root}"),
        staging(root, origin.name) as stage,
        ThreadPoolExecutor(1) as aside,
    ):
        beside = aside.submit(_beside, stage / "tables" / f"{origin.name}.parquet", rows, table)
        with _named(rows, kind, origin.spec.dtype):
            written = fill(stage)
        numbers = beside.result()
        record = {
            "format": FORMAT_VERSION,
            "part": origin.name,
            "kind": kind,
            "spec": origin.spec.fingerprint,
            "rows": len(rows.keys),
            "items": items,
            "files": _checksums(stage, written),
            "statistics": numbers,
            "quarantined": [dataclasses.asdict(item) for item in origin.quarantined],
        }
        record["written"] = {**writer(), **origin.provenance, **_when(started)}
        sync_tree(stage)
        content = sealed(record)
        write_synced(stage / "done.json", content)
        publish(root, stage, FOLDERS[kind], origin.name)
    if not done.exists():
        raise InputError(f"{done} vanished while part {origin.name} was published", "Run the command again.")
    if done.read_bytes() != content:  # somebody else was first
        _check_same(origin, kind, items)


def _beside(path: Path, rows: ImageRows | TextRows, table: pa.Table) -> dict[str, Any]:
    """What is done while the disk takes the arrays: the table, and the statistics, which are returned."""
    path.parent.mkdir()
    write_table(path, table)
    return statistics(rows)


def sealed(done: dict[str, Any]) -> bytes:
    """The content of a done file: `done` with the digest of all the rest, `written` included."""
    return canonical({**done, "digest": done_digest(done)})


def writer() -> dict[str, str]:
    """Who writes, with what: the part of a record's `written` that any operation has."""
    return {
        "compal": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "user": user_name(),
        "host": os.uname().nodename,
    }


def _when(started: float) -> dict[str, float]:
    seconds = round(time.time() - started, 3)
    return {"pid": os.getpid(), "time": round(started, 3), "seconds": seconds}


def publish(root: Path, stage: Path, folder: str, name: str) -> None:
    """Move a staged part to its place and declare it done, under the lock; nothing if it is done already.

    `stage` holds what a part consists of (`images/…`, `tables/…`, synced) and `done.json`; `folder` is its
    kind's, `images` or `texts`.
    """
    with lock(root):
        if done_path(root, name).exists():
            return
        for place in (f"{folder}/{name}", f"{folder}/{name}.arrow", f"tables/{name}.parquet"):
            final = root / place
            if os.path.lexists(final):  # left by a writer that was killed before it was done
                os.rename(final, stage / f"old-{place.replace('/', '-')}")
            if (stage / place).exists():
                final.parent.mkdir(exist_ok=True)
                os.rename(stage / place, final)
                sync(final.parent)
        (root / "done").mkdir(exist_ok=True)
        link(stage / "done.json", done_path(root, name))
        sync(root / "done")
        sync(root)


def _check_same(origin: Origin, kind: str, items: str) -> None:
    """The part exists: ours or another writer's of the same plan. A name taken by other items is an error."""
    done = read_done(origin.root, origin.name)
    if (done.get("kind"), done.get("items")) != (kind, items):
        raise InputError(
            f"part {origin.name} of {origin.root} already holds other items",
            "Name parts by their content; delete nothing.",
        )


@contextmanager
def _named(rows: ImageRows | TextRows, kind: str, dtype: str) -> Iterator[None]:
    try:
        yield
    except NotFinite as error:
        key, source = rows.keys[error.row], rows.sources[error.row]
        if error.overflow:
            cure = "Cast to bfloat16, which has the range of float32."
            cure = cure if dtype == "int8" else "Extract with --dtype float32."
            what = f"values too large for {dtype}"
        else:
            what, cure = "NaN or infinity", "Check the weights, or compute with --precision float32."
        what = f"the features of {kind} {key} ({source}) hold {what}; the part was not written"
        raise InputError(what, cure) from None


def items_digest(keys: Iterable[str], quarantined: Iterable[Quarantined]) -> str:
    """sha256 of the sorted keys planned for a part: what its name stands for."""
    planned = sorted([*keys, *(item.key for item in quarantined)])
    return hashlib.sha256("\n".join(planned).encode()).hexdigest()


def _checksums(stage: Path, written: Checksums) -> dict[str, dict[str, Any]]:
    """Arrays were hashed while they were written; the small files beside them are read again."""
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    return {path.relative_to(stage).as_posix(): written.get(path) or checksum(path) for path in files}
