"""Tables of pairs: which image and caption belong together, by key."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError, VerificationError
from .files import disk_errors, sync
from .items import Pair
from .tables import read_table, write_table

AGAIN = "Write it again: compal extract"
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("caption", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("group", pa.string()),
        ("category", pa.string()),
    ]
)


INFO = b"compal"  # the key of what is said of a table, in its schema's metadata


def write_pairs(path: Path, pairs: Iterable[Pair], info: Mapping[str, str] | None = None) -> int:
    """Write a Parquet table of pairs atomically and return the number of rows. `info` says where they come from
    (dataset, split, licence, revision, …). Raises `InputError` if the disk is full or read-only; the previous
    table then stays."""
    rows = list(pairs)
    columns = {name: [getattr(pair, name) for pair in rows] for name in SCHEMA.names}
    columns["negatives"] = [list(pair.negatives) for pair in rows]
    said = {INFO: json.dumps(info, sort_keys=True).encode()} if info else None
    path = Path(path)
    staged = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}")
    with disk_errors(f"the pairs {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_table(staged, pa.table(columns, schema=SCHEMA.with_metadata(said)))
            sync(staged)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
        sync(path.parent)
    return len(rows)


def read_pairs(path: Path) -> pa.Table:
    """The table (image, caption, negatives, group, category). Raises `InputError` if there is none,
    `VerificationError` if it is damaged."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no pairs {path}", "Write them: compal extract --data NAME")
    table = read_table(path, cure=AGAIN)
    if table.schema.names != SCHEMA.names:
        raise VerificationError(f"{path} has the columns {', '.join(table.schema.names)}", AGAIN)
    return table


def read_info(path: Path) -> dict[str, str]:
    """What `write_pairs` was told of where the pairs come from; empty for a table that does not say. Rows are not read.
    Raises `InputError` if there is no table, `VerificationError` if it is none."""
    if not Path(path).is_file():
        raise InputError(f"no pairs {path}", "Write them: compal extract --data NAME")
    try:
        metadata = pq.read_schema(path).metadata or {}
        said = json.loads(metadata.get(INFO, b"{}"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise VerificationError(f"{path} cannot be read: {error}", AGAIN) from None
    return {str(name): str(value) for name, value in said.items()} if isinstance(said, dict) else {}
