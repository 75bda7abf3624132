"""A .jsonl, .csv or .parquet file with a column of image paths and one of captions.

    --data table:captions.csv                            columns found by name
    --data 'table:pairs.parquet?image=path&caption=alt'  or given

Image paths are relative to the table's folder. A caption cell may be a list. A column `id`, if there is one,
must not repeat; a column `split`, if there is one, names the splits, and without it the table is the split
`train`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ...errors import InputError, UnknownName
from ...stores.items import Item, Pair
from ._files import Photo, photo_items, photo_pairs

INFO: dict[str, Any] = {
    "licence": "that of your files",
    "revision": "the table given",
    "citation": "",
    "splits": ("train", "val", "test"),
}

COLUMNS = {
    "image": ("image", "image_path", "filepath", "filename"),
    "caption": ("caption", "text", "captions"),
    "id": ("id",),
    "split": ("split",),
}
REQUIRED = ("image", "caption")

Row = tuple[str, dict[str, Any]]


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The rows of the first `limit` images, each row's image followed by its captions. Raises `InputError`
    and `UnknownName`, some of them only when the row at fault is reached."""
    return photo_items(_photos(_open(root), split, limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`."""
    return photo_pairs(_photos(_open(root), split, limit))


def splits(root: Path | None) -> list[str]:
    """The values of the column `split`; `train` where there is none."""
    table = _open(root)
    if "split" not in table.columns:
        return ["train"]
    return sorted({str(row[table.columns["split"]]) for _, row in _rows(table.file)})


@dataclass(frozen=True)
class _Table:
    """A file and its columns by what they hold; `id` and `split` only where they exist."""

    file: Path
    columns: dict[str, str]


def _open(root: Path | None) -> _Table:
    if root is None:
        raise InputError("dataset 'table' needs its file", "Give it as --data table:FILE.")
    text, _, query = (str(root), "", "") if root.exists() else str(root).partition("?")
    file = Path(text)
    if not file.is_file():
        raise InputError(f"no file {file} for dataset 'table'", "Check the path after the colon.")
    if file.suffix.lower() not in _READERS:
        raise InputError(f"{file} is not a table", f"Known endings: {', '.join(_READERS)}.")
    given = dict(parse_qsl(query, keep_blank_values=True))
    for option in given:
        if option not in COLUMNS:
            raise UnknownName.among("table option", option, COLUMNS, "Example: 'table:FILE?image=COL&caption=COL'.")
    first = next(iter(_rows(file)), None)
    if first is None:
        raise InputError(f"{file} has no rows", "Give it a header and at least one row.")
    return _Table(file, _columns(file, list(first[1]), given))


def _columns(file: Path, present: Sequence[str], given: dict[str, str]) -> dict[str, str]:
    columns = {}
    for role, usual in COLUMNS.items():
        wanted = (given[role],) if role in given else usual
        found = [name for name in wanted if name in present]
        if not found and (role in given or role in REQUIRED):
            cure = f"Name it: --data 'table:{file.name}?{role}=COLUMN'. Columns: {', '.join(present)}."
            raise InputError(f"{file} has no column {' or '.join(map(repr, wanted))}", cure)
        if found:
            columns[role] = found[0]
    return columns


def _photos(table: _Table, split: str, limit: int | None) -> Iterator[Photo]:
    numbers: dict[Any, str] = {}
    images: set[Path] = set()
    seen: set[str] = set()
    for where, row in _rows(table.file):
        _check_id(table, where, row, numbers)
        name = str(row.get(table.columns["split"])) if "split" in table.columns else "train"
        seen.add(name)
        if name != split:
            continue
        photo = _photo(table, where, row)
        images.add(photo.path)
        if limit is not None and len(images) > limit:
            return
        yield photo
    if split not in seen:
        raise UnknownName.among("split", split, seen, f"A column 'split' in {table.file} names the splits.")


def _check_id(table: _Table, where: str, row: dict[str, Any], numbers: dict[Any, str]) -> None:
    number = row.get(table.columns.get("id", ""))
    if number is None or number == "":
        return
    if str(number) in numbers:
        what = f"{table.file}: id {number} stands in {numbers[str(number)]} and in {where}"
        raise InputError(what, "Make the ids differ, or rename the column if it is none.")
    numbers[str(number)] = where


def _photo(table: _Table, where: str, row: dict[str, Any]) -> Photo:
    image = row.get(table.columns["image"])
    if not isinstance(image, str) or not image.strip():
        column = table.columns["image"]
        raise InputError(
            f"{table.file}, {where}: column '{column}' holds {image!r:.60}, not a path", "Correct the row."
        )
    captions = row.get(table.columns["caption"])
    if table.columns["caption"] == "captions" and isinstance(captions, str) and captions.lstrip().startswith("["):
        try:
            captions = json.loads(captions)
        except ValueError as error:
            raise InputError(
                f"{table.file}, {where}: captions are not a JSON list: {error}", "Correct the row."
            ) from None
    listed = captions if isinstance(captions, list) else [captions]
    source = f"{table.file.name} {where}"
    return Photo(
        table.file.parent / image,
        f"{table.file.name}/{image}",
        tuple((caption, source) for caption in listed),
    )


def _rows(file: Path) -> Iterator[Row]:
    """Each row with its place, for messages. Raises `InputError` naming the place for what cannot be read."""
    try:
        yield from _READERS[file.suffix.lower()](file)
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"cannot read {file}: {error}", "It must be a UTF-8 file.") from None


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{file}, line {number} is not JSON: {error}", "Correct or remove the line.") from None
            if not isinstance(row, dict):
                raise InputError(f"{file}, line {number} is not a JSON object", "Write one {...} a line.")
            yield f"line {number}", row


def _read_csv(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
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

    try:
        number = 0
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pa.ArrowException as error:
        raise InputError(f"{file} is not a Parquet file: {error}", "Write it again.") from None


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
