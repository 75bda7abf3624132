"""What arrives from others, checked before it is published here: nothing of it is executed or unpickled.

Checksums prove that the bytes are what the sender listed; this proves that they are what compal writes:
plain numbers in plain layouts, tables of the known columns, each key once, no codec that is code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import VerificationError
from ..files import read_json
from ..manifest import Part
from ..parts import items_digest
from ..rows import SCHEMAS, quarantined_of
from ..shard import DTYPES
from ..tables import read_table

CODECS = {"sharding_indexed", "bytes", "crc32c"}
ROW_BYTES = 1 << 16  # of a table, uncompressed: captions and spans take some hundred
REFUSED = "Nothing of it was taken over. Ask its owner, and do not use the store before it is explained."


def check_part(stage: Path, part: Part, done: dict[str, Any]) -> None:
    """Raises `VerificationError` unless the verified files of `part` below `stage` are what compal writes."""
    table = f"tables/{part.name}.parquet"
    if table not in part.files:
        raise VerificationError(f"part {part.name} has no table", REFUSED)
    keys = table_keys(stage / table, part)
    if items_digest(keys, quarantined_of(done)) != part.items:
        raise VerificationError(f"the table of part {part.name} does not hold the keys that were planned", REFUSED)
    for path in part.files:
        check_arrays(stage / path, part, path)


def check_arrays(local: Path, part: Part, path: str) -> None:
    """Raises `VerificationError` for a `zarr.json` or an Arrow file that compal does not write; `path` is its place
    in the store. Any other file is numbers and has been checked by its checksum."""
    if path.endswith("/zarr.json"):
        _check_zarr(local, part, path.removesuffix("zarr.json"))
    elif path.endswith(".arrow"):
        _check_arrow(local, part)


def table_keys(path: Path, part: Part) -> list[str]:
    """The keys of a part's table. Raises `VerificationError` for a table that is not one of ours, a count that
    is not the manifest's, and a key that stands twice."""
    try:
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, ValueError, pa.ArrowException) as error:
        raise VerificationError(f"the table of part {part.name} cannot be read: {error}", REFUSED) from None
    if rows != part.rows or size > (rows + 16) * ROW_BYTES:
        raise VerificationError(f"the table of part {part.name} has {rows} rows, {size} bytes unpacked", REFUSED)
    if not schema.equals(SCHEMAS[part.kind]):
        raise VerificationError(f"the table of part {part.name} has other columns than compal writes", REFUSED)
    keys: list[str] = read_table(path, ["key"], REFUSED).column("key").to_pylist()
    if len(set(keys)) < len(keys) or not all(keys):
        raise VerificationError(f"the table of part {part.name} holds a key twice, or none", REFUSED)
    return keys


def _check_zarr(path: Path, part: Part, folder: str) -> None:
    data = read_json(path)
    if data.get("node_type") == "group":
        return
    try:
        shape = [int(length) for length in data["shape"]]
        codecs = _codec_names(data["codecs"])
        dtype = DTYPES.get(str(data["data_type"]))
        wrong = not codecs <= CODECS or not dtype or min(shape, default=-1) < 0 or data.get("storage_transformers")
        stored = sum(size["bytes"] for file, size in part.files.items() if file.startswith(folder))
        wrong = wrong or dtype is None or int(np.prod(shape, dtype=object)) * dtype.itemsize > stored
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        wrong = True
    if wrong:
        what = f"the array {folder} is not made of plain numbers by compal's codecs"
        raise VerificationError(what, REFUSED)


def _codec_names(codecs: Any) -> set[str]:
    names: set[str] = set()
    for codec in codecs:
        names.add(str(codec["name"]))
        configuration = codec.get("configuration", {})
        for inner in ("codecs", "index_codecs"):
            names |= _codec_names(configuration.get(inner, ()))
    return names


def _check_arrow(path: Path, part: Part) -> None:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            plain = all(_plain(field.type) for field in reader.schema)
            one = reader.num_record_batches == 1
            rows = reader.get_batch(0).num_rows if one else 0
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise VerificationError(f"the Arrow file of part {part.name} cannot be read: {error}", REFUSED) from None
    if not plain or rows != part.rows:
        raise VerificationError(f"the Arrow file of part {part.name} is not {part.rows} rows of numbers", REFUSED)


def _plain(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _plain(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
