"""Segments of captions that a segmenter found, kept beside a store: annotation, no part of its identity.

One table per segmenter and version, `<store>/segments/<name>-<version>.parquet`: key, and of each segment start,
end (characters of the caption) and kind, as three lists; a digest of all of it stands in the schema's metadata,
since nothing else guards a Parquet footer. No manifest lists the table and no push carries it: it is made again
from the captions. At level regions, where segments decide what is encoded, they are part of the spec instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import xxhash

from ..errors import InputError, VerificationError
from .files import disk_errors, lock, staging, sync
from .items import Segment
from .tables import read_table, write_table

FOLDER = "segments"
NAME = re.compile(r"[A-Za-z0-9_]+")  # no "-": what follows the first one is the version
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("start", pa.list_(pa.int32())),
        ("end", pa.list_(pa.int32())),
        ("kind", pa.list_(pa.string())),
    ]
)
DIGEST = b"xxh3_128"
AGAIN = "Delete it: the segmenter makes it again."


def segments_path(store: Path, name: str, version: str) -> Path:
    """The table of a segmenter. Raises `InputError` for a name that is not made of letters, digits and `_`, and for
    an empty version."""
    if not NAME.fullmatch(name) or not version:
        raise InputError(f"no segmenter can be called {name!r} in version {version!r}", "Use letters, digits and '_'.")
    return Path(store) / FOLDER / f"{name}-{quote(version, safe='+')}.parquet"


def read_segments(store: Path, name: str, version: str) -> dict[str, tuple[Segment, ...]]:
    """Key of a caption → its segments, () for a caption in which none were found; {} before the first
    `add_segments`. Raises `VerificationError` if the table is damaged."""
    path = segments_path(store, name, version)
    return _read(path) if path.is_file() else {}


def noted(store: Path) -> list[dict[str, tuple[Segment, ...]]]:
    """What every segmenter left beside a store, by the name of its table: as `read_segments` gives it. Raises
    `VerificationError` if a table is damaged."""
    return [_read(path) for path in sorted((Path(store) / FOLDER).glob("*-*.parquet"))]


def _read(path: Path) -> dict[str, tuple[Segment, ...]]:
    table = read_table(path, cure=AGAIN)
    if not table.schema.equals(SCHEMA):
        raise VerificationError(f"{path} has the columns {', '.join(table.schema.names)}", AGAIN)
    if not _whole(table):
        raise VerificationError(f"{path} is not what was written: its digest differs", AGAIN)
    keys, *columns = (table.column(column).to_pylist() for column in SCHEMA.names)
    try:
        found = {
            key: tuple(zip(starts, ends, kinds, strict=True))
            for key, starts, ends, kinds in zip(keys, *columns, strict=True)
        }
        _check(found)
    except (TypeError, ValueError, InputError):  # a list is missing, or longer than its neighbour
        found = {}
    if len(found) != len(keys):
        raise VerificationError(f"{path} holds a key twice, or segments that no caption has", AGAIN)
    return found


def add_segments(store: Path, name: str, version: str, segments: Mapping[str, Sequence[Segment]]) -> int:
    """Add what `segments` says of captions that the table lacks, and return how many these were.

    A key that is there keeps its segments, so adding twice changes nothing and of two writers the first one counts.
    The table is written anew, whole, if there is something to add: add many captions at a time. Safe beside readers
    and, on a file system with locks, beside other writers; without locks what one of two adds may be lost, and is
    found again. Raises `InputError` for segments that no caption has and if the disk cannot be written,
    `VerificationError` if the table is damaged.
    """
    store, path = Path(store), segments_path(store, name, version)
    if not (store / "spec.json").is_file():
        raise InputError(f"{store} is not a store: it has no spec.json", "See: compal ls stores")
    _check(segments)
    with disk_errors(f"the segments {path}"), lock(store):
        known = read_segments(store, name, version)
        fresh = {key: tuple(found) for key, found in segments.items() if key not in known}
        if fresh:
            _write(store, path, known | fresh)
    return len(fresh)


def _check(segments: Mapping[str, Sequence[Segment]]) -> None:
    for key, found in segments.items():
        for start, end, kind in found:
            if not (0 <= start <= end < 1 << 31 and isinstance(kind, str) and kind):
                raise InputError(f"caption {key} has the segment {(start, end, kind)!r}")
    if not all(isinstance(key, str) and key for key in segments):
        raise InputError("a caption has no key")


def _write(store: Path, path: Path, segments: Mapping[str, Sequence[Segment]]) -> None:
    """Sorted, so that equal content is equal bytes in whatever order it came."""
    keys = sorted(segments)
    columns = [[[one[place] for one in segments[key]] for key in keys] for place in range(3)]
    table = pa.table([keys, *columns], schema=SCHEMA)
    with staging(store, path.stem) as folder:
        write_table(folder / "new", _sealed(table))
        sync(folder / "new")
        path.parent.mkdir(exist_ok=True)
        os.replace(folder / "new", path)
    sync(path.parent)


def _sealed(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({DIGEST: _digest(table)})


def _whole(table: pa.Table) -> bool:
    try:
        return (table.schema.metadata or {}).get(DIGEST) == _digest(table).encode()
    except (TypeError, ValueError, pa.ArrowException):  # a text is missing
        return False


def _digest(table: pa.Table) -> str:
    digest = xxhash.xxh3_128()
    for column in table.columns:
        values = column.combine_chunks()
        if pa.types.is_list(values.type):
            digest.update(values.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            values = values.flatten()
        if pa.types.is_string(values.type):
            digest.update("\0".join(values.to_pylist()).encode())
        else:
            digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()
