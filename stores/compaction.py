"""Rewriting small parts into full ones, every value as it was.

Many small appends leave many small parts: more files to open, less to read in one go. The rows of the small
parts are taken in the order in which they are listed and written into parts of a power of two rows; a key that
an earlier part holds too is left out, since it is never read there. The new parts are named by what they are
made of (keys and the records of the parts they come from, so that equal names mean equal bits), which makes a
killed run resumable: parts that are done are kept, and one commit at the end puts the new parts in the place of
the old. The files of the old ones stay until `upkeep.gc` collects them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import CompalError, InputError, VerificationError
from . import space
from .buffers import Array, aligned_empty
from .dense import open_array
from .dtypes import STORED
from .files import RESTORE, checked_path, checksum, disk_errors, read_json
from .manifest import (
    FOLDERS,
    KINDS,
    Part,
    advance_head,
    commit_change,
    complete_part,
    done_names,
    done_path,
    newest,
    numbers,
    read_done,
    written_now,
)
from .parts import Origin, write_images, write_texts
from .ragged import RaggedFile
from .rows import SCHEMAS, Quarantined, image_dim, image_rows, quarantined_of, text_rows
from .shard import Rows
from .sizes import MIN_PART_ROWS, PART_BYTES, part_rows
from .spec import FeatureSpec
from .tables import read_table

MAX_ROWS = 65_536  # above, the table of a part alone is hard to hold in memory
ATTEMPTS = 10
OWN = {"host", "pid", "time", "seconds", "user", "compal", "python", "platform", "operation", "sources"}


@dataclass(frozen=True)
class Compacted:
    """What was rewritten, or would be.

    dry_run     whether nothing was written
    manifest    number of the newest manifest afterwards
    sources     the small parts, listed no longer
    parts       the parts that took their place
    rows        how many rows these hold
    bytes       of the small parts
    duplicates  rows left out because an earlier part holds the key
    notes       what was left as it is, and why
    """

    dry_run: bool
    manifest: int
    sources: tuple[str, ...]
    parts: tuple[str, ...]
    rows: int
    bytes: int
    duplicates: int
    notes: tuple[str, ...] = ()


@dataclass
class _Group:
    """A part to be written: rows of small parts in order, and the items that could not be read there."""

    kind: str
    slices: list[tuple[Part, Rows]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    name: str = ""


@dataclass
class _Plan:
    """Per kind the parts as they were listed, the small ones among them, and what these become."""

    listed: dict[str, list[Part]]
    sources: dict[str, list[Part]]
    groups: list[_Group]


class _Moved(Exception):
    """Somebody else changed what the plan rests on."""


def compact(
    root: Path,
    part_bytes: int = PART_BYTES,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Compacted:
    """Rewrite the parts of a kind that are less than half as large as `part_bytes` into full ones.

    Values, tables and quarantine are carried over; what any key reads is the same before and after. One part is
    held in memory at a time. Safe beside readers and writers; a killed run is resumed by the next. `progress` is
    called with (parts written, parts in all). Raises `VerificationError` for a small part that is damaged,
    before anything of it is copied, `InputError` if others rewrote the store at each of several attempts.
    """
    root = Path(root)
    if not (root / "spec.json").is_file():
        raise InputError(f"{root} is not a store: it has no spec.json", "See: compal ls stores")
    if part_bytes < 1:
        raise InputError(f"parts of {part_bytes} bytes", "Choose 1 or more; the default is 256 MiB.")
    spec = FeatureSpec.from_json(read_json(root / "spec.json"))
    for _ in range(ATTEMPTS):
        before = numbers(root)[-1:]
        try:
            return _compact(root, spec, part_bytes, dry_run, progress)
        except _Moved:
            continue
        except (OSError, CompalError):
            if numbers(root)[-1:] == before:  # else parts may have left under our hands: look again
                raise
    raise InputError(f"others keep rewriting {root}", "Run the command again when they have finished.")


def _compact(
    root: Path,
    spec: FeatureSpec,
    part_bytes: int,
    dry_run: bool,
    progress: Callable[[int, int], None] | None,
) -> Compacted:
    plan, notes = _planned(root, spec, part_bytes)
    sources = [part for kind in KINDS for part in plan.sources[kind]]
    rows = sum(len(group.keys) for group in plan.groups)
    manifest = newest(root)
    number = manifest.number if manifest else 0
    if not dry_run:
        space.check(root, sum(part.bytes for part in sources), "the parts that take the place of small ones")
        for count, group in enumerate(plan.groups, 1):
            _write(root, spec, group)
            if progress:
                progress(count, len(plan.groups))
        number = _commit(root, spec, plan)
    return Compacted(
        dry_run,
        number,
        tuple(part.name for part in sources),
        tuple(group.name for group in plan.groups),
        rows,
        sum(part.bytes for part in sources),
        sum(part.rows for part in sources) - rows,
        notes,
    )


# --- planning --------------------------------------------------------------------------------------------


def _planned(root: Path, spec: FeatureSpec, part_bytes: int) -> tuple[_Plan, tuple[str, ...]]:
    manifest, done = newest(root), set(done_names(root))
    parts = manifest.parts if manifest else ()
    plan = _Plan({kind: [part for part in parts if part.kind == kind] for kind in KINDS}, {k: [] for k in KINDS}, [])
    if spec.dtype == "int8":  # each part has its own scale per channel: joining two would round their values again
        return plan, (("int8 parts are left as they are: compact the source and cast it again",) if parts else ())
    for kind, listed in plan.listed.items():
        present = [part for part in listed if part.name in done]  # without one that is about to be made anew
        rows = _target_rows(present, part_bytes)
        small = [part for part in present if part.rows * 2 < rows]
        if len(small) > 1:
            plan.sources[kind] = small
            plan.groups += _groups(root, spec, kind, present, small, rows)
    return plan, ()


def _target_rows(parts: Sequence[Part], part_bytes: int) -> int:
    """Rows of a full part: the power of two nearest to what `part_bytes` hold."""
    rows = sum(part.rows for part in parts)
    if not rows:
        return MIN_PART_ROWS
    return part_rows(sum(part.bytes for part in parts) / rows, part_bytes, MAX_ROWS)


def _groups(
    root: Path, spec: FeatureSpec, kind: str, listed: Sequence[Part], small: Sequence[Part], rows: int
) -> list[_Group]:
    taken, groups = _first_held(root, listed, small), [_Group(kind)]
    held = {key for _, keys in taken.values() for key in keys}
    refused: set[str] = set()
    for part in small:
        chosen, keys = taken[part.name]
        start = 0
        while start < len(chosen):
            group = groups[-1]
            stop = min(len(chosen), start + rows - len(group.keys))
            group.slices.append((part, chosen[start:stop]))
            group.keys += keys[start:stop]
            start = stop
            if len(group.keys) == rows:
                groups.append(_Group(kind))
        for item in quarantined_of(read_done(root, part.name)) if part.quarantined else ():
            if item.key not in held | refused:
                groups[-1].quarantined.append(item)
                refused.add(item.key)
    groups = [group for group in groups if group.keys or group.quarantined]
    for group in groups:
        group.name = _name(spec, group)
    return groups


def _first_held(root: Path, listed: Sequence[Part], small: Sequence[Part]) -> dict[str, tuple[Rows, list[str]]]:
    """Of each small part, the rows (and their keys) that no earlier part holds: those that are read."""
    keys = {part.name: _keys(root, part) for part in small}
    wanted = {key for some in keys.values() for key in some}
    seen: set[str] = set()
    found = {}
    for part in listed:
        if part.name in keys:
            fresh = [(row, key) for row, key in enumerate(keys[part.name]) if key not in seen]
            found[part.name] = (np.array([row for row, _ in fresh], np.int64), [key for _, key in fresh])
            seen.update(keys[part.name])
            if len(found) == len(keys):
                break
        else:
            seen.update(wanted.intersection(_keys(root, part)))
    return found


def _keys(root: Path, part: Part) -> list[str]:
    keys: list[str] = _table(root, part, ["key"]).column("key").to_pylist()
    return keys


def _table(root: Path, part: Part, columns: list[str] | None = None) -> pa.Table:
    table = read_table(checked_path(root, f"tables/{part.name}.parquet"), columns)
    if table.num_rows != part.rows:
        raise VerificationError(f"the table of part {part.name} has {table.num_rows} rows, not {part.rows}", RESTORE)
    return table


def _name(spec: FeatureSpec, group: _Group) -> str:
    digest = hashlib.sha256(spec.fingerprint.encode())
    for part, rows in group.slices:
        digest.update(b"\0" + part.record.encode() + b"\0%d" % len(rows))
    for key in (*group.keys, *(item.key for item in group.quarantined)):
        digest.update(b"\0" + key.encode())
    return f"{group.kind[0]}-{digest.hexdigest()[:16]}"


# --- writing ---------------------------------------------------------------------------------------------


def _write(root: Path, spec: FeatureSpec, group: _Group) -> None:
    if done_path(root, group.name).exists():  # of a run that was killed later
        return
    for part, _ in group.slices:
        _check_whole(root, part)
    origin = Origin(root, spec, group.name, tuple(group.quarantined), _provenance(root, group))
    if group.kind == "image":
        write_images(origin, image_rows(_columns(root, group), *_image_arrays(root, spec, group)))
    else:
        write_texts(origin, text_rows(_columns(root, group), *_ragged(root, spec, group, spec.text_dim)))


def _check_whole(root: Path, part: Part) -> None:
    """A damaged byte must not be copied under a new checksum."""
    for file, size in part.files.items():
        path = checked_path(root, file)
        if not path.is_file() or checksum(path) != size:
            raise VerificationError(f"{path} is not what was written", RESTORE)


def _provenance(root: Path, group: _Group) -> dict[str, Any]:
    """What all sources say alike, and their seconds of computing in proportion to the rows taken."""
    records, seconds = [], 0.0
    for part, rows in group.slices:
        written = read_done(root, part.name).get("written")
        records.append({key: value for key, value in written.items() if key not in OWN} if written else {})
        spent = records[-1].pop("forward_seconds", 0)
        seconds += spent * len(rows) / max(1, part.rows) if isinstance(spent, int | float) else 0
    alike = {
        key: value
        for key, value in (records[0] if records else {}).items()
        if all(record.get(key) == value for record in records)
    }
    spent_seconds = {"forward_seconds": round(seconds, 3)} if seconds else {}
    return alike | spent_seconds | {"operation": "compact", "sources": [part.name for part, _ in group.slices]}


def _columns(root: Path, group: _Group) -> dict[str, list[Any]]:
    tables = [_table(root, part).take(rows) for part, rows in group.slices]
    table = pa.concat_tables(tables) if tables else SCHEMAS[group.kind].empty_table()
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def _image_arrays(root: Path, spec: FeatureSpec, group: _Group) -> tuple[Array | list[Array] | None, Array]:
    if spec.ragged_images or not group.keys:
        return _ragged(root, spec, group, image_dim(spec))
    tokens = _dense(root, spec, group, "tokens", spec.image_shape) if image_dim(spec) else None
    if not spec.pooled_dim:
        return tokens, np.empty((len(group.keys), 0), STORED[spec.dtype])
    return tokens, _dense(root, spec, group, "pooled", (spec.pooled_dim,))


def _dense(root: Path, spec: FeatureSpec, group: _Group, name: str, inner: tuple[int, ...]) -> Array:
    dtype = STORED[spec.dtype]
    out, start = aligned_empty((len(group.keys), *inner), dtype), 0
    for part, rows in group.slices:
        folder = checked_path(root, f"images/{part.name}/{name}")
        array = open_array(folder)
        if (array.shape, array.dtype) != ((part.rows, *inner), dtype):
            raise VerificationError(f"{folder} holds {array.dtype} {array.shape}", RESTORE)
        array.read_into(rows, out, np.arange(start, start + len(rows)))
        start += len(rows)
    return out


def _ragged(root: Path, spec: FeatureSpec, group: _Group, dim: int) -> tuple[list[Array] | None, Array]:
    pooled = aligned_empty((len(group.keys), spec.pooled_dim), STORED[spec.dtype])
    tokens: list[Array] = []
    start = 0
    for part, rows in group.slices:
        file = RaggedFile(checked_path(root, f"{FOLDERS[part.kind]}/{part.name}.arrow"))
        if file.pooled.shape != (part.rows, spec.pooled_dim) or (dim > 0) != (file.tokens is not None):
            raise VerificationError(f"{file.path} holds other columns than the spec says", RESTORE)
        file.pooled_into(rows, pooled, np.arange(start, start + len(rows)))
        tokens += [file.row(row) for row in rows.tolist()] if dim else []
        start += len(rows)
    return (tokens if dim and group.keys else None), pooled


# --- committing ------------------------------------------------------------------------------------------


def _commit(root: Path, spec: FeatureSpec, plan: _Plan) -> int:
    """The new parts stand where the first small part of their kind stood: before any part that holds one of
    their keys again, so that the same copy is read as before."""
    if not plan.groups and not any(plan.sources.values()):
        with disk_errors(str(root)):
            return advance_head(root)

    def change(listed: dict[str, Part]) -> dict[str, Part]:
        for kind, before in plan.listed.items():
            now = [part for part in listed.values() if part.kind == kind]
            if plan.sources[kind] and now[: len(before)] != before:
                raise _Moved
        new = {group.name: complete_part(root, spec.fingerprint, group.name) for group in plan.groups}
        return _replaced(listed, {part.name for some in plan.sources.values() for part in some}, new)

    return commit_change(root, spec.fingerprint, change, written_now("compact"))


def _replaced(listed: dict[str, Part], old: set[str], new: dict[str, Part]) -> dict[str, Part]:
    changed: dict[str, Part] = {}
    for name, part in listed.items():
        if name in old:
            changed |= {key: made for key, made in new.items() if made.kind == part.kind}
        elif name not in new:
            changed[name] = part
    return changed
