"""Rows of .jsonl, .json, .csv and .parquet files, and which of their columns hold what."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import InputError
from .. import listing
from ._files import Told, printable, read_json

Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """Files of rows and their columns by what they hold, the ones that are not required only where they exist.

    One role may have several columns.
    """

    dataset: str
    files: tuple[Path, ...]
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """Each row with its place, for messages."""
        for file in self.files:
            for where, row in read_rows(file):
                yield f"{file.name} {where}", row

    def cell(self, row: Mapping[str, Any], role: str) -> Any:
        """The value of a role's first column, None where there is no such column."""
        return row.get(self.columns[role][0]) if role in self.columns else None

    def told(self, where: str, row: Mapping[str, Any]) -> tuple[Told, ...]:
        """The captions of a row, each with the row's negatives."""
        negatives = tuple(self._texts(row, "negatives", where))
        return tuple(Told(text, where, negatives) for text in self._texts(row, "caption", where))

    def _texts(self, row: Mapping[str, Any], role: str, where: str) -> Iterator[Any]:
        columns = self.columns.get(role, ())
        for column in columns:
            value = row.get(column)
            if isinstance(value, str) and column in LISTS and value.lstrip().startswith("["):
                value = self._parsed(value, column, where)
            listed = value if isinstance(value, list) else [value]
            # Of several columns, or of negatives, some may be empty; an empty caption alone is a fault.
            optional = role == "negatives" or len(columns) > 1
            yield from (text for text in listed if not optional or text not in (None, ""))

    def _parsed(self, cell: str, column: str, where: str) -> Any:
        try:
            return json.loads(cell)
        except ValueError as error:
            what = f"{self.files[0].parent / where}: {column} are not a JSON list: {error}"
            raise InputError(what, "Correct the row.") from None


# Columns whose text cells may be JSON lists: CSV has no other way to hold several captions.
LISTS = frozenset({"captions", "negatives", "negative_captions", "raw", "sentences"})


def open_table(
    dataset: str,
    files: Sequence[Path],
    usual: Mapping[str, Sequence[str]],
    required: Sequence[str],
    given: Mapping[str, str],
) -> Table:
    """The table of `files` with its columns: those `given` by name (several with commas between), else the first
    of the `usual` ones. Raises `InputError` for an empty table and for a required column that is not there."""
    for file in files:
        if file.suffix.lower() not in READERS:
            raise InputError(f"{file} is not a table", f"Known endings: {', '.join(READERS)}.")
    row = next(iter(read_rows(files[0])), None)
    if row is None:
        raise InputError(f"{files[0]} has no rows", "Give it a header and at least one row.")
    return Table(dataset, tuple(files), choose_columns(dataset, files[0], list(row[1]), usual, required, given))


def choose_columns(
    dataset: str,
    file: Path | str,
    present: Sequence[str],
    usual: Mapping[str, Sequence[str]],
    required: Sequence[str],
    given: Mapping[str, str],
) -> dict[str, tuple[str, ...]]:
    """Which columns hold what. Raises `InputError` for a required or given column that is not there."""
    columns = {}
    for role, names in usual.items():
        wanted = given[role].split(",") if role in given else list(names)
        found = [name for name in wanted if name in present]
        lacking = [name for name in wanted if name not in present] if role in given else []
        if lacking or (not found and role in required):
            name = file.name if isinstance(file, Path) else file
            cure = f"Name it: --data '{dataset}:{name}?{role}=COLUMN'. Columns: {printable(', '.join(present))}."
            raise InputError(f"{file} has no column {' or '.join(map(repr, lacking or wanted))}", cure)
        if found:
            columns[role] = tuple(found if role in given else found[:1])
    return columns


def read_rows(file: Path) -> Iterator[Row]:
    """Each row with its place, for messages. Text that is not UTF-8 is kept for the quarantine.
    Raises `InputError` naming the place for what cannot be read."""
    rows, given = READERS[file.suffix.lower()](file), 0

    def resumed() -> tuple[Iterator[Row], Row | None]:
        again = islice(READERS[file.suffix.lower()](file), given, None)
        return again, next(again, None)

    try:
        while True:
            try:
                row = next(rows, None)
            except OSError:
                rows, row = listing.patiently(file, resumed)
            if row is None:
                return
            yield row
            given += 1
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}", "Check the file.") from None


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file}, line {number} is not JSON: {error}", "Correct or remove the line.") from None
            if not isinstance(row, dict):
                raise InputError(f"{file}, line {number} is not a JSON object", "Write one {...} a line.")
            yield f"line {number}", row


def _read_json(file: Path) -> Iterator[Row]:
    rows = read_json(file)
    if not isinstance(rows, list):
        raise InputError(f"{file} is not a JSON list", "It must be a list of objects, one a row.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{file}, row {number} is not a JSON object", "Write one {...} a row.")
        yield f"row {number}", row


def _read_csv(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            if not "".join(header).isprintable():
                raise InputError(f"the header of {file} is not UTF-8 text", "Save the file as UTF-8.")
            if len(set(header)) != len(header):
                raise InputError(f"{file} has two columns of one name: {', '.join(header)}", "Rename one.")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    what = f"{file}, line {reader.line_num} has {len(cells)} cells, the header {len(header)}"
                    raise InputError(what, "Quote cells that hold a comma.")
                yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{file}, line {reader.line_num} is not CSV: {error}", "Correct the line.") from None


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in _batch_rows(batch):
                    number += 1
                    yield f"row {number}", row
    except pa.ArrowException as error:
        raise InputError(f"{file} is not a Parquet file: {error}", "Write it again.") from None


def _batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # pyarrow checks no text: whoever wrote the file put other bytes there
        yield from (
            {name: _lenient(cell) for name, cell in zip(batch.schema.names, cells, strict=True)}
            for cells in zip(*(_as_bytes(column) for column in batch.columns), strict=True)
        )


def _as_bytes(column: Any) -> list[Any]:
    """A column's values, text as bytes."""
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return list(column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary()).to_pylist())
    if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
        return list(column.view(pa.list_(pa.binary())).to_pylist())
    return list(column.to_pylist())


def _lenient(cell: Any) -> Any:
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    return [_lenient(value) for value in cell] if isinstance(cell, list) else cell


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
