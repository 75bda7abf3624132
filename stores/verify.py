"""Is a store whole? Every problem as data, none as an exception.

Checked: the spec; the chain of manifests and the head; for every committed part its done file, the size and
xxh3_128 of each file, the crc32c of each sample, that values are finite, that the table's rows are the
arrays' rows, that spans lie inside their captions; and files that no manifest lists.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import CompalError, VerificationError
from .buffers import Array, aligned_empty
from .dense import DenseArray, open_array
from .files import abandoned, checked_path, checksum, read_json
from .manifest import (
    FOLDERS,
    Manifest,
    Part,
    done_names,
    head_content,
    manifest_path,
    numbers,
    read_done,
    read_manifest,
)
from .parts import items_digest
from .ragged import RaggedFile
from .rows import SCHEMAS, image_dim, quarantined_of, ragged_images
from .spec import FeatureSpec
from .tables import read_table

BLOCK_BYTES = 1 << 24
LISTED = 10  # damaged samples named per array; more say nothing new
COPY = "Restore the file from a copy."
RESUME = "Run the extraction again: it completes the store."
STRAY = "If no extraction is running, a killed one left it: delete it, or extract again."


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


def verify(path: Path, deep: bool = True) -> list[Problem]:
    """All problems of the store at `path`; empty means whole. `deep` reads every byte twice (files, then
    samples); otherwise only descriptions, presence and sizes are checked. Never raises on damaged input."""
    root = Path(path)
    problems = list(_guarded("", "spec.json", COPY, _check_spec(root)))
    spec = None if problems else FeatureSpec.from_json(read_json(root / "spec.json"))
    manifests: dict[int, Manifest] = {}
    for number in _quietly(numbers, root) or []:
        file = f"manifests/{number}.json"
        problems += _guarded("", file, COPY, _check_manifest(root, number, spec, manifests))
    newest = manifests[max(manifests)] if manifests else None
    problems += _guarded("", "head.json", RESUME, _check_head(root))
    for part in newest.parts if newest else ():
        problems += _check_part(root, part, spec, deep)
    problems += _strays(root, newest)
    return problems


def _guarded(part: str, file: str, cure: str, found: Iterator[str]) -> Iterator[Problem]:
    """A check yields what is wrong; what it raises is one more problem, whatever the damage made of it."""
    try:
        for what in found:
            yield Problem(part, file, what, cure)
    except CompalError as error:
        yield Problem(part, file, error.what, cure)
    except Exception as error:  # arrow, parquet, zarr and json fail in their own ways
        yield Problem(part, file, f"cannot be checked ({type(error).__name__}: {error})", cure)


def _quietly(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception:
        return None


# --- the store as a whole --------------------------------------------------------------------------------


def _check_spec(root: Path) -> Iterator[str]:
    if not root.is_dir():
        yield f"there is no folder {root}"
        return
    spec = FeatureSpec.from_json(read_json(root / "spec.json"))
    if spec.to_json() != (root / "spec.json").read_bytes():
        yield "is not canonical JSON, its fingerprint is not the store's"


def _check_manifest(root: Path, number: int, spec: FeatureSpec | None, manifests: dict[int, Manifest]) -> Iterator[str]:
    manifest = manifests[number] = read_manifest(root, number)
    if spec and manifest.spec != spec.fingerprint:
        yield "names another spec than spec.json"
    before = manifest_path(root, number - 1)
    if number > 1 and not before.is_file():
        yield f"its parent {number - 1} is missing"
    digest = hashlib.sha256(before.read_bytes()).hexdigest() if before.is_file() else ""
    if manifest.parent != digest:
        yield f"its parent is not manifest {number - 1} as it is now"
    parent = manifests.get(number - 1)
    lost = {part.name for part in parent.parts} - {part.name for part in manifest.parts} if parent else set()
    if lost:
        yield f"drops the parts {', '.join(sorted(lost))}"


def _check_head(root: Path) -> Iterator[str]:
    existing = numbers(root)
    head = root / "head.json"
    if not existing:
        if head.exists():
            yield "names a manifest, but there is none"
    elif not head.is_file():
        yield "is missing"
    elif head.read_bytes() != head_content(root, existing[-1]):
        yield f"does not name the newest manifest {existing[-1]}"


def _strays(root: Path, newest: Manifest | None) -> Iterator[Problem]:
    listed = {part.name: part for part in newest.parts} if newest else {}
    known = {file for part in listed.values() for file in part.files}
    known |= {f"done/{name}.json" for name in listed}
    for name in _quietly(done_names, root) or []:
        if name not in listed:
            part = _quietly(lambda name=name: Part.of_done(root, read_done(root, name)))
            known |= {f"done/{name}.json", *(part.files if part else ())}
            what = "the part is complete but not committed" if part else "is damaged"
            yield Problem(name, f"done/{name}.json", what, RESUME)
    for folder in (*FOLDERS.values(), "tables", "done", "manifests"):
        for place, _, files in os.walk(root / folder):
            for path in sorted(Path(place, file) for file in files):
                file = path.relative_to(root).as_posix()
                numbered = folder == "manifests" and path.suffix == ".json" and path.stem.isdecimal()
                if file not in known and not numbered:
                    yield Problem("", file, "no manifest lists it", STRAY)
    for path in _quietly(abandoned, root) or []:
        yield Problem("", path.relative_to(root).as_posix(), "a killed writer left it", RESUME)


# --- one part --------------------------------------------------------------------------------------------


def _check_part(root: Path, part: Part, spec: FeatureSpec | None, deep: bool) -> list[Problem]:
    again = f"Restore it from a copy, or delete done/{part.name}.json and extract again."
    done = f"done/{part.name}.json"
    problems = list(_guarded(part.name, done, again, _check_done(root, part)))
    for file, size in part.files.items():
        problems += _guarded(part.name, file, again, _check_file(root, file, size, deep))
    if deep and spec:
        table = f"tables/{part.name}.parquet"
        problems += _guarded(part.name, table, again, _check_table(root, part))
        for file, found in _array_checks(root, part, spec):
            problems += _guarded(part.name, file, again, found)
    return problems


def _check_done(root: Path, part: Part) -> Iterator[str]:
    done = read_done(root, part.name)
    quarantined_of(done)
    if Part.of_done(root, done) != part:
        yield "is not what the manifest lists"


def _check_file(root: Path, file: str, size: dict[str, Any], deep: bool) -> Iterator[str]:
    path = checked_path(root, file)
    if not path.is_file():
        yield "is missing"
    elif (actual := path.stat().st_size) != size["bytes"]:
        yield f"has {actual} bytes, {size['bytes']} were written"
    elif deep and checksum(path)["xxh3_128"] != size["xxh3_128"]:
        yield "its xxh3_128 is not what was written"


def _check_table(root: Path, part: Part) -> Iterator[str]:
    table = _table(root, part)
    keys = table.column("key").to_pylist()
    if len(keys) != part.rows:
        yield f"has {len(keys)} rows, the manifest lists {part.rows}"
    if len(set(keys)) < len(keys):
        yield "holds a key twice"
    quarantined = quarantined_of(read_done(root, part.name))
    if items_digest(keys, quarantined) != part.items:
        yield "does not hold the keys that were planned"
    if part.kind == "text":
        for row in table.to_pylist():
            end = len(row["caption"])
            spans = [(span["start"], span["end"]) for span in row["spans"]]
            inside = all(0 <= a <= b <= end for a, b in spans if (a, b) != (-1, -1))
            segments = all(0 <= one["start"] <= one["end"] <= end for one in row["segments"])
            if not (inside and segments):
                yield f"caption {row['key']} has a span outside its {end} characters"


def _table(root: Path, part: Part) -> pa.Table:
    table = read_table(checked_path(root, f"tables/{part.name}.parquet"))
    if not table.schema.equals(SCHEMAS[part.kind]):
        raise VerificationError("its columns are not those of a table of this kind")
    return table


def _array_checks(root: Path, part: Part, spec: FeatureSpec) -> Iterator[tuple[str, Iterator[str]]]:
    if not part.rows:
        return
    if part.kind == "text" or ragged_images(spec):
        file = f"{FOLDERS[part.kind]}/{part.name}.arrow"
        yield file, _check_ragged(root, part, spec, file)
        return
    arrays = {"pooled": (spec.pooled_dim,)} | ({"tokens": spec.image_shape} if image_dim(spec) else {})
    for name, inner in arrays.items():
        folder = f"images/{part.name}/{name}"
        yield folder, _check_dense(root, folder, (part.rows, *inner), spec.dtype)


def _check_dense(root: Path, folder: str, shape: tuple[int, ...], dtype: str) -> Iterator[str]:
    array = open_array(checked_path(root, folder))
    if (array.shape, array.dtype.name) != (shape, dtype):
        yield f"holds {array.dtype.name} {array.shape} in place of {dtype} {shape}"
        return
    step = max(1, BLOCK_BYTES // max(1, int(np.prod(shape[1:])) * array.dtype.itemsize))
    out = aligned_empty((min(step, shape[0]), *shape[1:]), array.dtype)
    damaged: dict[str, None] = {}
    for start in range(0, shape[0], step):
        rows = np.arange(start, min(start + step, shape[0]))
        block = out[: len(rows)]
        damaged |= dict.fromkeys(_read_block(array, rows, block))
        if len(damaged) >= LISTED:
            break
    yield from list(damaged)[:LISTED]


def _read_block(array: DenseArray, rows: Array, out: Array) -> Iterator[str]:
    try:
        array.read_into(rows, out, np.arange(len(rows)))
    except VerificationError:
        for position in range(len(rows)):
            try:
                array.read_into(rows[position : position + 1], out, np.zeros(1, np.int64))
            except VerificationError as error:
                yield error.what
        return
    for row in np.flatnonzero(~np.isfinite(out.reshape(len(rows), -1)).all(axis=1)):
        yield f"row {rows[row]} holds NaN or infinity"


def _check_ragged(root: Path, part: Part, spec: FeatureSpec, file: str) -> Iterator[str]:
    arrow = RaggedFile(checked_path(root, file))
    dim = spec.text_dim if part.kind == "text" else image_dim(spec)
    tokens = arrow.tokens
    if arrow.pooled.shape != (part.rows, spec.pooled_dim) or arrow.pooled.dtype.name != spec.dtype:
        yield f"its pooled embeddings are {arrow.pooled.dtype.name} {arrow.pooled.shape}"
        return
    found = (0, spec.dtype) if tokens is None else (tokens.shape[1], tokens.dtype.name)
    if found != (dim, spec.dtype):
        yield f"its tokens are not {spec.dtype} of {dim}"
        return
    spans = _span_counts(root, part) if part.kind == "text" and tokens is not None else None
    damaged = 0
    for row in range(part.rows):
        try:
            wrong = list(_check_row(arrow, row))
        except VerificationError as error:
            wrong = [error.what]
        if spans is not None and not wrong and spans[row] != arrow.lengths[row]:
            wrong = [f"row {row} has {arrow.lengths[row]} tokens, its table {spans[row]} spans"]
        yield from wrong
        damaged += len(wrong)
        if damaged >= LISTED:
            return


def _span_counts(root: Path, part: Part) -> list[int] | None:
    table = _quietly(_table, root, part)  # its own problems are reported with the table
    counts = None if table is None else [len(row) for row in table.column("spans").to_pylist()]
    return counts if counts and len(counts) == part.rows else None


def _check_row(arrow: RaggedFile, row: int) -> Iterator[str]:
    pooled = np.empty((1, arrow.pooled.shape[1]), arrow.pooled.dtype)
    arrow.pooled_into(np.array([row]), pooled, np.zeros(1, np.int64))
    finite = np.isfinite(pooled).all()
    if arrow.tokens is not None:
        tokens = arrow.row(row)
        finite &= np.isfinite(tokens).all()
        if not len(tokens):
            yield f"row {row} has no tokens"
    if not finite:
        yield f"row {row} holds NaN or infinity"
