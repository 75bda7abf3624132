"""Hugging Face datasets: a folder with a dataset of images and one of texts, for `datasets.load_from_disk`.

Columns are those of the store's tables, then what the store keeps of `tokens` (a list of vectors) and `pooled`.
`compal.json` beside the two datasets holds the spec. bfloat16 is stored as its bits (uint16), as in the store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..buffers import Array
from ..files import checked_path
from ..messages import check_message
from ..rows import SCHEMAS, is_ragged, token_dim
from ..sizes import part_rows
from ..store import Store
from ._common import (
    BLOCK_BYTES,
    KINDS,
    PLURAL,
    Exported,
    Importer,
    Kind,
    chosen,
    library,
    publishing,
    quarantined_in,
    read_notes,
    reading,
    refuse,
    row_tokens,
    runs,
    spec_of,
    write_notes,
)
from ._rows import add_rows, features

SUFFIX = ".hf"
READ_ROWS = 1024
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.arrow")


def export(store: Store, path: Path, keys: Sequence[str] | None = None) -> Exported:
    """Write all items, or those of `keys`, to the new folder `path`. Raises `InputError` if it exists."""
    datasets = library("datasets")
    path, tables = Path(path), chosen(store, keys)
    with publishing(path) as staged:
        staged.mkdir()
        write_notes(staged, store, keys)
        for kind in KINDS:
            if tables[kind].num_rows:
                _save(datasets, store, kind, tables[kind], staged)
    return Exported.of(path, "huggingface", tables)


def _save(datasets: Any, store: Store, kind: Kind, table: pa.Table, folder: Path) -> None:
    """Stream the rows to an Arrow file, and let the library write its own layout from that file's map."""
    stream = folder / f"{PLURAL[kind]}.arrow"
    batches = _batches(store, kind, table)
    first = next(batches)
    with pa.OSFile(str(stream), "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
        writer.write_table(first)
        for batch in batches:
            writer.write_table(batch)
    with _quiet(datasets):
        datasets.Dataset.from_file(str(stream)).save_to_disk(str(folder / PLURAL[kind]))
    stream.unlink()


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own bars of progress."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _batches(store: Store, kind: Kind, table: pa.Table) -> Iterator[pa.Table]:
    keys = table.column("key").to_pylist()
    tokens, step = token_dim(store.spec, kind), READ_ROWS
    if tokens:
        step = min(step, BLOCK_BYTES // row_tokens(store, kind, keys[:1])[0].nbytes)
    for run in runs(len(keys), step):
        batch = table.slice(run.start, run.stop - run.start)
        if tokens and is_ragged(store.spec, kind):
            values = row_tokens(store, kind, keys[run])
            offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
            vectors = _fixed(pa.array(np.concatenate(values).reshape(-1)), values[0].shape[1])
            batch = batch.append_column("tokens", pa.ListArray.from_arrays(pa.array(offsets), vectors))
        elif tokens:
            block = store.image_tokens(keys[run])
            vectors = _fixed(pa.array(block.reshape(-1)), block.shape[2])
            batch = batch.append_column("tokens", _fixed(vectors, block.shape[1]))
        if store.spec.pooled_dim:
            pooled = store.pooled(kind, keys[run])
            batch = batch.append_column("pooled", _fixed(pa.array(pooled.reshape(-1)), pooled.shape[1]))
        yield batch


def _fixed(values: Any, size: int) -> Any:
    return pa.FixedSizeListArray.from_arrays(values, size)


def load(path: Path, folder: Path, mapping: dict[str, str] | None = None) -> Path:
    """Write what the folder `path` holds as a store below `folder` and return the store's folder.

    The Arrow files are read directly: nothing of a dataset is executed. Raises `InputError` for what is damaged
    or does not fit.
    """
    path = Path(path)
    if mapping is not None:
        raise InputError(
            "only datasets that compal wrote are imported; they need no mapping", "Extract from the images."
        )
    with reading(path):
        notes = read_notes(path)
        importer = Importer(path, Path(folder), spec_of(path, notes), quarantined_in(path, notes))
        for kind in KINDS:
            if (path / PLURAL[kind]).is_dir():
                _load_kind(importer, kind, path / PLURAL[kind])
        return importer.finish()


def _load_kind(importer: Importer, kind: Kind, folder: Path) -> None:
    gathered: list[Any] = []
    rows = limit = 0
    for batch in _record_batches(folder):
        _check_columns(importer, kind, batch.schema)
        while batch.num_rows:
            limit = limit or part_rows(batch.nbytes / batch.num_rows)
            piece = batch.slice(0, limit - rows)
            batch = batch.slice(piece.num_rows)
            gathered.append(piece)
            rows += piece.num_rows
            if rows == limit:
                _flush(importer, kind, gathered)
                gathered, rows = [], 0
    if gathered:
        _flush(importer, kind, gathered)


def _record_batches(folder: Path) -> Iterator[Any]:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    names = [entry["filename"] for entry in state["_data_files"]]
    if state.get("_indices_data_files"):
        raise refuse(folder, "its rows are chosen by an index", "Save it again after flatten_indices().")
    for name in names:
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
            raise refuse(folder, f"it lists the file {name!r}")
        with reading(folder / name), pa.memory_map(str(checked_path(folder, name))) as source:
            for message in pa.ipc.MessageReader.open_stream(source):
                check_message(message)
            source.seek(0)
            for batch in pa.ipc.open_stream(source):
                batch.validate(full=True)
                yield batch


def _check_columns(importer: Importer, kind: Kind, schema: pa.Schema) -> None:
    wanted = {*SCHEMAS[kind].names, *features(importer, kind)}
    if set(schema.names) != wanted or len(schema.names) != len(wanted):
        raise refuse(importer.label, f"it has the columns {sorted(schema.names)} in place of {sorted(wanted)}")


def _flush(importer: Importer, kind: Kind, batches: list[Any]) -> None:
    table = pa.Table.from_batches(batches).combine_chunks()
    kept = features(importer, kind)
    tokens: Any = None
    if "tokens" in kept:
        column = table.column("tokens").combine_chunks()
        if is_ragged(importer.spec, kind):
            offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))])
            tokens = np.split(_matrix(column.flatten()), offsets[1:-1])
        else:
            inner = column.type.list_size
            vectors = _matrix(column.flatten())
            tokens = vectors.reshape(len(column), inner, vectors.shape[1])
    notes = table.select(SCHEMAS[kind].names).to_pylist()
    pooled = _matrix(table.column("pooled").combine_chunks()) if "pooled" in kept else None
    add_rows(importer, kind, notes, (tokens, pooled))


def _matrix(column: Any) -> Array:
    """FixedSizeList of numbers as (N, D). Null entries cannot become numbers: the conversion refuses them."""
    if column.null_count:
        raise pa.ArrowInvalid("a vector is missing")
    values: Array = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)
