"""Writing one part: staged, synced, moved into place, and declared done last.

A part is complete or absent. Until `done/<part>.json` is linked, nothing of it counts: a writer that is
killed leaves staging that the next one sweeps, and moved files that the next one replaces. If two write the
same part, the first `done` stays and the second's work is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..config import canonical
from ..errors import InputError
from .buffers import Array
from .files import checksum, disk_errors, link, lock, staging, sync, sync_tree, write_synced
from .manifest import FOLDERS, PART_NAME, read_done
from .ragged import write_ragged
from .rows import (
    ImageRows,
    Quarantined,
    TextRows,
    check_images,
    check_texts,
    image_dim,
    image_table,
    ragged_images,
    text_table,
)
from .shard import DTYPES
from .spec import FORMAT_VERSION, FeatureSpec
from .tables import write_table
from .writer import POOLED_CHUNK_ROWS, NotFinite, write_array, write_group

# Rows are shuffled by the plan, so a few are a fair sample; all of them would cost more than the write.
STATISTICS_ROWS = 256
STATISTICS_VALUES = 1 << 22


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

    def fill(stage: Path) -> None:
        if ragged_images(origin.spec) or not rows.keys:
            _ragged(stage / "images", origin, rows, image_dim(origin.spec))
        else:
            _dense(stage / "images" / origin.name, origin.spec, rows)

    _write(origin, "image", rows, image_table(rows), fill)


def write_texts(origin: Origin, rows: TextRows) -> None:
    """Write a part of captions; see `Store.write_texts`."""
    check_texts(rows, origin.spec, origin.quarantined)

    def fill(stage: Path) -> None:
        _ragged(stage / "texts", origin, rows, origin.spec.text_dim)

    _write(origin, "text", rows, text_table(rows), fill)


def _dense(folder: Path, spec: FeatureSpec, rows: ImageRows) -> None:
    write_group(folder, {"spec": spec.fingerprint})
    if isinstance(rows.tokens, np.ndarray):
        write_array(folder / "tokens", rows.tokens, spec.dtype, names=("sample", "token", "channel"))
    write_array(folder / "pooled", rows.pooled, spec.dtype, POOLED_CHUNK_ROWS, ("sample", "channel"))


def _ragged(folder: Path, origin: Origin, rows: ImageRows | TextRows, dim: int) -> None:
    if rows.keys:  # a part whose items are all quarantined has no arrays
        folder.mkdir(parents=True)
        tokens = None if rows.tokens is None else list(rows.tokens)
        write_ragged(folder / f"{origin.name}.arrow", tokens, rows.pooled, DTYPES[origin.spec.dtype], dim)


def _write(
    origin: Origin, kind: str, rows: ImageRows | TextRows, table: pa.Table, fill: Callable[[Path], None]
) -> None:
    started, root = time.time(), origin.root
    if not PART_NAME.fullmatch(origin.name):
        raise InputError(f"'{origin.name}' cannot name a part", "Use letters, digits, '-' and '_'.")
    done = root / "done" / f"{origin.name}.json"
    items = items_digest(rows.keys, origin.quarantined)
    if done.exists():
        return _check_same(origin, kind, items)
    with disk_errors(f"part {origin.name} of {root}"), staging(root, origin.name) as stage:
        with _named(rows, kind, origin.spec.dtype):
            fill(stage)
        (stage / "tables").mkdir()
        write_table(stage / "tables" / f"{origin.name}.parquet", table)
        record = {
            "format": FORMAT_VERSION,
            "part": origin.name,
            "kind": kind,
            "spec": origin.spec.fingerprint,
            "rows": len(rows.keys),
            "items": items,
            "files": _checksums(stage),
            "statistics": _statistics(rows),
            "quarantined": [dataclasses.asdict(item) for item in origin.quarantined],
        }
        record["written"] = {
            **origin.provenance,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "time": round(started, 3),
            "seconds": round(time.time() - started, 3),
        }
        sync_tree(stage)
        write_synced(stage / "done.json", canonical(record))
        publish(root, stage, FOLDERS[kind], origin.name)
    if not done.exists():
        raise InputError(f"{done} vanished while part {origin.name} was published", "Run the command again.")
    return _check_same(origin, kind, items)


def publish(root: Path, stage: Path, folder: str, name: str) -> None:
    """Move a staged part to its place and declare it done, under the lock; nothing if it is done already.

    `stage` holds what a part consists of (`images/…`, `tables/…`, synced) and `done.json`; `folder` is its
    kind's, `images` or `texts`.
    """
    with lock(root):
        if (root / "done" / f"{name}.json").exists():
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
        link(stage / "done.json", root / "done" / f"{name}.json")
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
            what, cure = f"values too large for {dtype}", "Extract with --dtype float32."
        else:
            what, cure = "NaN or infinity", "Check the weights, or compute with --precision float32."
        what = f"the features of {kind} {key} ({source}) hold {what}; the part was not written"
        raise InputError(what, cure) from None


def items_digest(keys: Iterable[str], quarantined: Iterable[Quarantined]) -> str:
    """sha256 of the sorted keys planned for a part: what its name stands for."""
    planned = sorted([*keys, *(item.key for item in quarantined)])
    return hashlib.sha256("\n".join(planned).encode()).hexdigest()


def _checksums(stage: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    return {path.relative_to(stage).as_posix(): checksum(path) for path in files}


def _statistics(rows: ImageRows | TextRows) -> dict[str, Any]:
    """Per channel mean, standard deviation and largest magnitude over evenly spaced rows of the part."""
    count = len(rows.keys)
    size = 1 if rows.tokens is None or not count else max(1, np.size(rows.tokens[0]))
    step = max(1, -(-count // min(STATISTICS_ROWS, max(1, STATISTICS_VALUES // size))))
    chosen = range(0, count, step)
    found: dict[str, Any] = {"rows": len(chosen)}
    if chosen:
        found["pooled"] = _channels(np.asarray(rows.pooled)[::step])
        if rows.tokens is not None:
            found["tokens"] = _channels(np.concatenate([rows.tokens[row] for row in chosen]))
    return found


def _channels(values: Array) -> dict[str, list[float]]:
    values = values.astype(np.float64)

    def rounded(column: Array) -> list[float]:
        return [float(f"{value:.5g}") for value in column]

    return {
        "mean": rounded(values.mean(axis=0)),
        "std": rounded(values.std(axis=0)),
        "absmax": rounded(np.abs(values).max(axis=0)),
    }
