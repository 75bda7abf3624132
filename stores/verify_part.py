"""Is one part whole? Its done file, its files, its table and every value, against what was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..config import canonical
from ..errors import CompalError, VerificationError
from .buffers import Array, aligned_empty
from .dense import DenseArray, open_array
from .dtypes import READ, STORED, finite_rows, pooled_dtype, to_float32
from .files import checked_path, checksum
from .manifest import FOLDERS, Part, done_path, read_done
from .parts import items_digest
from .quantized import open_ragged, open_tokens
from .ragged import RaggedFile
from .reading import Reading
from .rows import SCHEMAS, image_dim, is_ragged, quarantined_of, spans_inside, token_dim
from .spec import FeatureSpec
from .tables import read_table

BLOCK_BYTES = 1 << 24
LISTED = 10  # damaged samples named per array; more say nothing new
# Unit length survives rounding to float16 within 0.001, to bfloat16 within 0.004, and normalising in bfloat16
# within 0.01; features that were not normalised are off by far more.
NORM_TOLERANCE = 0.02
# Every checksum, whatever was read before; and no memory map, under which a failing disk ends the process.
READING = Reading(mode="pread", check="always")


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written.

    part  the part's name, "" for the store as a whole
    file  path inside the store
    what  what is wrong, and `cure` what to do about it
    """

    part: str
    file: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}. {self.cure}"


def guarded(part: str, file: str, cure: str, found: Iterator[str]) -> Iterator[Problem]:
    """A check yields what is wrong; what it raises is one more problem, whatever the damage made of it."""
    try:
        for what in found:
            yield Problem(part, file, what, cure)
    except CompalError as error:
        yield Problem(part, file, error.what, cure)
    except Exception as error:  # arrow, parquet, zarr and json fail in their own ways
        yield Problem(part, file, f"cannot be checked ({type(error).__name__}: {error})", cure)


def quietly(function: Any, *arguments: Any) -> Any:
    """What `function` returns, None if it raises."""
    try:
        return function(*arguments)
    except Exception:
        return None


def check_part(root: Path, part: Part, spec: FeatureSpec | None, deep: bool) -> list[Problem]:
    """The problems of a part that a manifest lists."""
    again = f"Restore it from a copy, or delete done/{part.name}.json and extract again."
    problems = check_files(root, part, again, deep)
    if deep and spec:
        table = f"tables/{part.name}.parquet"
        problems += guarded(part.name, table, again, _check_table(root, part))
        for file, found in _array_checks(root, part, spec):
            problems += guarded(part.name, file, again, found)
    return problems


def check_files(root: Path, part: Part, cure: str, deep: bool) -> list[Problem]:
    """The problems of a part's done file and, by size and (if `deep`) checksum, of its files."""
    problems = list(guarded(part.name, f"done/{part.name}.json", cure, _check_done(root, part)))
    for file, size in part.files.items():
        problems += guarded(part.name, file, cure, _check_file(root, file, size, deep))
    return problems


def _check_done(root: Path, part: Part) -> Iterator[str]:
    done = read_done(root, part.name)
    quarantined_of(done)
    if Part.of_done(root, done) != part:
        yield "is not what the manifest lists"
    if done_path(root, part.name).read_bytes() != canonical(done):
        yield "is not canonical JSON"


def _check_file(root: Path, file: str, size: dict[str, Any], deep: bool) -> Iterator[str]:
    path = checked_path(root, file)
    if not path.is_file():
        yield "is missing"
    elif (actual := path.stat().st_size) != size["bytes"]:
        yield f"has {actual} bytes, {size['bytes']} were written"
    elif deep and checksum(path)["xxh3_128"] != size["xxh3_128"]:
        yield "its xxh3_128 is not what was written"


# --- the table -------------------------------------------------------------------------------------------


def _check_table(root: Path, part: Part) -> Iterator[str]:
    table = _table(root, part)
    keys = table.column("key").to_pylist()
    if len(keys) != part.rows:
        yield f"has {len(keys)} rows, the manifest lists {part.rows}"
    if len(set(keys)) < len(keys):
        yield "holds a key twice"
    quarantined = quarantined_of(read_done(root, part.name))
    if len(quarantined) != part.quarantined:
        yield f"{len(quarantined)} items are quarantined, the manifest lists {part.quarantined}"
    if items_digest(keys, quarantined) != part.items:
        yield "does not hold the keys that were planned"
    if part.kind == "text":
        for row in table.to_pylist():
            spans, segments = ([(one["start"], one["end"]) for one in row[name]] for name in ("spans", "segments"))
            if not spans_inside(row["caption"], spans, segments):
                yield f"caption {row['key']} has a span outside its {len(row['caption'])} characters"
            if row["spans"] and not -1 <= row["pool_index"] < len(row["spans"]):
                yield f"caption {row['key']} pools token {row['pool_index']} of {len(row['spans'])}"


def _table(root: Path, part: Part) -> pa.Table:
    table = read_table(checked_path(root, f"tables/{part.name}.parquet"))
    if not table.schema.equals(SCHEMAS[part.kind]):
        raise VerificationError("its columns are not those of a table of this kind")
    return table


# --- the values ------------------------------------------------------------------------------------------


def _array_checks(root: Path, part: Part, spec: FeatureSpec) -> Iterator[tuple[str, Iterator[str]]]:
    if not part.rows:
        return
    if is_ragged(spec, part.kind):
        file = f"{FOLDERS[part.kind]}/{part.name}.arrow"
        yield file, _check_ragged(root, part, spec, file)
        return
    folder = f"images/{part.name}"
    if spec.pooled_dim:
        yield f"{folder}/pooled", _check_pooled(root, part, spec, f"{folder}/pooled")
    if image_dim(spec):
        yield f"{folder}/tokens", _check_tokens(root, part, spec, folder)


def _check_tokens(root: Path, part: Part, spec: FeatureSpec, folder: str) -> Iterator[str]:
    array = open_tokens(checked_path(root, folder), spec.dtype, READING)
    yield from _check_dense(array, (part.rows, *spec.image_shape), READ[spec.dtype], False)


def _check_pooled(root: Path, part: Part, spec: FeatureSpec, folder: str) -> Iterator[str]:
    array = open_array(checked_path(root, folder), READING)
    dtype = STORED[pooled_dtype(spec.dtype)]
    yield from _check_dense(array, (part.rows, spec.pooled_dim), dtype, spec.normalized)


def _check_dense(array: DenseArray, shape: tuple[int, ...], dtype: np.dtype[Any], unit: bool) -> Iterator[str]:
    if (array.shape, array.dtype) != (shape, dtype):
        yield f"holds {array.dtype.name} {array.shape} in place of {dtype.name} {shape}"
        return
    step = max(1, BLOCK_BYTES // max(1, int(np.prod(shape[1:])) * array.dtype.itemsize))
    out = aligned_empty((min(step, shape[0]), *shape[1:]), array.dtype)
    damaged: dict[str, None] = {}
    for start in range(0, shape[0], step):
        rows = np.arange(start, min(start + step, shape[0]))
        damaged |= dict.fromkeys(_read_block(array, rows, out[: len(rows)], unit))
        if len(damaged) >= LISTED:
            break
    yield from list(damaged)[:LISTED]


def _read_block(array: DenseArray, rows: Array, out: Array, unit: bool) -> Iterator[str]:
    try:
        array.read_into(rows, out, np.arange(len(rows)))
    except VerificationError:
        for position in range(len(rows)):
            try:
                array.read_into(rows[position : position + 1], out, np.zeros(1, np.int64))
            except VerificationError as error:
                yield error.what
        return
    for row, what in wrong_rows(out.reshape(len(rows), -1), unit):
        yield f"row {rows[row]} {what}"


def wrong_rows(values: Array, unit: bool) -> Iterator[tuple[int, str]]:
    """(row, what is wrong) of (N, E) stored values: not finite, or not of length 1 where they must be (`unit`).
    uint16 are the bits of bfloat16."""
    finite = finite_rows(values)
    for row in np.flatnonzero(~finite):
        yield int(row), "holds NaN or infinity"
    if unit:
        norms = np.sqrt(np.square(to_float32(values[finite]).astype(np.float64)).sum(axis=1))
        for row, norm in zip(np.flatnonzero(finite), norms, strict=True):
            if abs(norm - 1) > NORM_TOLERANCE:
                yield int(row), f"has length {norm:.4g}, the spec says that it is normalised"


def _check_ragged(root: Path, part: Part, spec: FeatureSpec, file: str) -> Iterator[str]:
    arrow = open_ragged(checked_path(root, file), spec.dtype, READING)
    dim = token_dim(spec, part.kind)
    tokens, pooled = arrow.tokens, STORED[pooled_dtype(spec.dtype)]
    if arrow.pooled.shape != (part.rows, spec.pooled_dim) or arrow.pooled.dtype != pooled:
        yield f"its pooled embeddings are {arrow.pooled.dtype.name} {arrow.pooled.shape}"
        return
    found = (0, STORED[spec.dtype]) if tokens is None else (tokens.shape[1], tokens.dtype)
    if found != (dim, STORED[spec.dtype]):
        yield f"its tokens are not {spec.dtype} of {dim}"
        return
    spans = _span_counts(root, part) if part.kind == "text" and tokens is not None else None
    damaged = 0
    for row in range(part.rows):
        try:
            wrong = list(_check_row(arrow, row, spec.normalized and spec.pooled_dim > 0))
        except VerificationError as error:
            wrong = [error.what]
        if spans is not None and not wrong and spans[row] != arrow.lengths[row]:
            wrong = [f"row {row} has {arrow.lengths[row]} tokens, its table {spans[row]} spans"]
        yield from wrong
        damaged += len(wrong)
        if damaged >= LISTED:
            return


def _span_counts(root: Path, part: Part) -> list[int] | None:
    table = quietly(_table, root, part)  # its own problems are reported with the table
    counts = None if table is None else [len(row) for row in table.column("spans").to_pylist()]
    return counts if counts and len(counts) == part.rows else None


def _check_row(arrow: RaggedFile, row: int, unit: bool) -> Iterator[str]:
    pooled = np.empty((1, arrow.pooled.shape[1]), arrow.pooled.dtype)
    arrow.pooled_into(np.array([row]), pooled, np.zeros(1, np.int64))
    found = [what for _, what in wrong_rows(pooled, unit)]
    if arrow.tokens is not None:
        tokens = arrow.row(row)
        if not len(tokens):
            yield f"row {row} has no tokens"
        found += [what for _, what in wrong_rows(tokens.reshape(1, -1), False)] if len(tokens) else []
    for what in dict.fromkeys(found):
        yield f"row {row} {what}"
