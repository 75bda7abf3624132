"""Tables of negatives: one immutable Parquet file per method, settings and captions, with its whole provenance.

Columns: key (of the caption), caption, negative, type, method, detail. The footer's key `compal` holds a JSON object:
what made the table, from what, and what did not come of it (`negation.run` says which fields).
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import InputError, UnknownName, VerificationError
from ..stores.files import disk_errors, link, sync
from ..stores.items import Item, Pair, caption_key
from ..stores.pairs import read_pairs
from ..stores.tables import read_table
from ..workspace import Workspace

SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "caption", "negative", "type", "method", "detail")])
META = b"compal"
BATCH = 1 << 16  # rows written at a time
AGAIN = "Delete it and write it again: compal negatives"

Row = tuple[str, str, str, str, str, str]


@dataclass(frozen=True)
class Table:
    """A table of negatives: its file, its rows (`SCHEMA`) and its provenance."""

    path: Path
    rows: pa.Table
    meta: dict[str, Any]


def folder(workspace: Workspace) -> Path:
    """Where the tables of a workspace lie."""
    return workspace.path / "negatives"


def find(workspace: Workspace, name: str) -> Path:
    """A table by its path, or by the beginning of its name in the workspace. Raises `UnknownName`, and `InputError`
    if several begin so."""
    given = Path(name).expanduser()
    if given.is_file():
        return given
    known = sorted(path.stem for path in folder(workspace).glob("*.parquet"))
    stem = name.removesuffix(".parquet")
    matching = [one for one in known if one == stem] or [one for one in known if stem and one.startswith(stem)]
    if len(matching) > 1:
        raise InputError(f"'{name}' fits several tables: {', '.join(matching)}", "Give more of the name.")
    if not matching:
        raise UnknownName.among("table of negatives", name, known, "Make one: compal negatives --method NAME")
    return folder(workspace) / f"{matching[0]}.parquet"


def write(path: Path, rows: Iterable[Row], meta: dict[str, Any]) -> bool:
    """Write a table that must not exist yet, whole or not at all; False if somebody was first.

    `rows` may be lazy, and `meta` is looked at when the last of them is written. Raises `InputError` if the disk is
    full or read-only.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}")
    with disk_errors(f"the negatives {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                open(staged, "xb") as file,
                pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as writer,
            ):
                batch: list[Row] = []
                for row in rows:
                    batch.append(row)
                    if len(batch) == BATCH:
                        writer.write_table(_table(batch))
                        batch = []
                writer.write_table(_table(batch))
                writer.add_key_value_metadata({META: json.dumps(meta, ensure_ascii=False).encode()})
            sync(staged)
            won = link(staged, path)
        finally:
            staged.unlink(missing_ok=True)
        sync(path.parent)
    return won


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([] for _ in SCHEMA)
    return pa.table([pa.array(list(column), pa.string()) for column in columns], schema=SCHEMA)


def read(path: Path) -> Table:
    """A table of negatives. Raises `InputError` if there is none, `VerificationError` if it is damaged or another
    kind of table."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no table of negatives {path}", "Make one: compal negatives")
    rows = read_table(path, cure=AGAIN)
    try:
        meta = json.loads((pq.read_metadata(path).metadata or {})[META])
    except (KeyError, ValueError, OSError, pa.ArrowException):
        meta = None
    if rows.schema.names != SCHEMA.names or not isinstance(meta, dict):
        raise VerificationError(f"{path} is no table of negatives", "Make one: compal negatives")
    return Table(path, rows, meta)


def shares_none(path: Path, pairs: Path) -> bool:
    """Whether a table of negatives has none for any caption of a table of pairs. Raises what `read` raises."""
    captions = read_pairs(pairs)["caption"].unique()
    return not pc.any(pc.is_in(read(path).rows["key"], captions)).as_py()


def with_negatives(
    items: Iterable[Item], pairs: Iterable[Pair], tables: Sequence[Table]
) -> tuple[Iterator[Item], Iterator[Pair]]:
    """A dataset's items and pairs with the negatives of the tables.

    The items come as they are, behind them each negative of a caption among them, once, as a caption. Each pair
    has its caption's negatives behind its own, without those that are a true caption of its image. Both may be
    consumed on their own; `pairs` is read whole before the first one comes out.
    """
    return _items(items, tables), _pairs(pairs, tables)


def _columns(table: Table) -> Iterator[tuple[str, str]]:
    """(key of the caption, negative) of every row."""
    for batch in table.rows.select(["key", "negative"]).to_batches(max_chunksize=BATCH):
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def _items(items: Iterable[Item], tables: Sequence[Table]) -> Iterator[Item]:
    present: set[str] = set()
    for item in items:
        if item.kind == "text":
            present.add(item.key)
        yield item
    added: set[str] = set()
    for table in tables:
        for key, negative in _columns(table):
            own = caption_key(negative)
            if key in present and own not in present and own not in added:
                added.add(own)
                yield Item.caption(negative, f"negatives/{table.path.stem}")


def _pairs(pairs: Iterable[Pair], tables: Sequence[Table]) -> Iterator[Pair]:
    listed = list(pairs)
    true: dict[str, set[str]] = defaultdict(set)
    for pair in listed:
        true[pair.image].add(pair.caption)
    wanted = {pair.caption for pair in listed}
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for table in tables:
        for key, negative in _columns(table):
            if key in wanted:
                found[key][caption_key(negative)] = None
    for pair in listed:
        more = (key for key in found.get(pair.caption, ()) if key not in true[pair.image])
        yield dataclasses.replace(pair, negatives=tuple(dict.fromkeys((*pair.negatives, *more))))
