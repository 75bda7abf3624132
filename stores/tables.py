"""Parquet tables: checksummed pages, read without threads (a data loader may have forked)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import VerificationError
from .files import RESTORE


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
            return file.read(columns=columns, use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise VerificationError(f"{path} cannot be read: {error}", cure) from None
