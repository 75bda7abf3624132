"""Parquet tables: checksummed pages, read without threads (a data loader may have forked)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import VerificationError
from .files import RESTORE

EXPANSION = 100  # times its file that a table may take in memory; ours take 10
SMALL = 1 << 28  # bytes that any table may take
BATCH_ROWS = 256


def write_table(path: Path, table: pa.Table) -> None:
    """Write a new file. The caller syncs and publishes."""
    with open(path, "xb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | None = None, cure: str = RESTORE) -> pa.Table:
    """Some or all columns. Raises `VerificationError` for damaged pages, footers and missing columns."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            lacking = set(columns or ()) - set(file.schema_arrow.names)
            if lacking:
                raise pa.ArrowInvalid(f"no column {', '.join(sorted(lacking))}")
            return _bounded(file, columns, path.stat().st_size)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise VerificationError(f"{path} cannot be read: {error}", cure) from None


def _bounded(file: pq.ParquetFile, columns: Sequence[str] | None, size: int) -> pa.Table:
    """The table, read in batches: run lengths and dictionaries let a file of 100 KB claim 10 GB, which is noticed
    after the first 256 MiB of it. Costs no more than reading at once."""
    limit, total, batches = max(SMALL, EXPANSION * size), 0, []
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    if sum(group.total_byte_size for group in groups) > limit:
        raise pa.ArrowInvalid(f"it claims more than {limit:,} bytes")
    for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
        total += batch.nbytes
        if total > limit:
            raise pa.ArrowInvalid(f"it expands to more than {limit:,} bytes")
        batches.append(batch)
    schema = file.schema_arrow
    wanted = schema.names if columns is None else [name for name in schema.names if name in set(columns)]
    empty = pa.schema([schema.field(name) for name in wanted], schema.metadata)
    return pa.Table.from_batches(batches, batches[0].schema if batches else empty).combine_chunks()
