"""Saved scores: writing, reading and finding them, and the rows of a table they are. numpy and pyarrow only.

One folder per row of a table: `rows.parquet` (an item or a query a row; see `outcomes`) and `scores.json` (what was
scored, with what, when; the checksum of the rows). Every figure is computed from the rows, and kept beside them
(see `estimates`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ..errors import InputError, VerificationError
from . import estimates, ties
from .outcomes import table
from .sheets import figure
from .summary import Estimate, Summary, summarise

__all__ = [
    "Estimate", "ResultRow", "Summary", "chance_row", "load_results", "read", "row_of", "save", "summarise", "table",
    "with_chance",
]  # fmt: skip

FORMAT = 2  # 1 kept whole matrices for retrieval
ROWS, META = "rows.parquet", "scores.json"
# What `scores.json` says of its own row; the rest it says of the evaluation.
OF_ONE_ROW = ("label", "role", "order", "store", "scorer", "rows", "format")


@dataclass(frozen=True, repr=False)
class ResultRow:
    """One row of a table.

    role      chance | reference | published (an aggregate of others, not recomputed) | scorer
    sample    fingerprint of the groups: only rows that share it may be compared
    variant   the form of the benchmark that was read; "" for its corrected default
    rule      what a tie is worth: "lose" is strict
    overall   metrics over all items, then the benchmark's averages as `metric (average)`
    by_category   the same metrics per category and per pool of categories
    folder    where the scored items lie; "" for chance
    meta      the content of `scores.json`
    """

    benchmark: str
    split: str
    label: str
    role: str
    backbone: str
    sample: str
    overall: Summary
    by_category: dict[str, Summary]
    folder: str = ""
    variant: str = ""
    rule: str = ties.STRICT
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> tuple[str, str, str, str]:
        """Rows that share it stand in one table."""
        return self.benchmark, self.split, self.variant, self.sample

    def __repr__(self) -> str:
        where = " ".join(part for part in self.table[:3] if part)
        told = ", ".join(f"{name} {figure(estimate)}" for name, estimate in self.overall.metrics.items())
        return f"<{where}: {self.label}, {told or 'no figure'}, n {self.overall.n:,}>"

    def to_json(self) -> dict[str, Any]:
        """Everything but the provenance, as plain JSON data."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "meta"}


def save(folder: Path, rows: pa.Table, meta: dict[str, Any]) -> Path:
    """Write a row's folder whole or not at all; an older one of the same name is replaced.

    Raises `InputError` if the disk does not take it.
    """
    staged = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        pq.write_table(rows, staged / ROWS, compression="zstd")
        whole = meta | {
            "format": FORMAT,
            "rows": {"items": rows.num_rows, "xxh3_128": _checksum(staged / ROWS)},
        }
        (staged / META).write_text(json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        for name in (ROWS, META):
            with open(staged / name, "rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            retired = staged.with_name(f"{staged.name}.old")
            shutil.rmtree(retired, ignore_errors=True)
            folder.rename(retired)
            staged.rename(folder)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            staged.rename(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(staged)
        why = error.strerror or str(error)
        raise InputError(
            f"scores cannot be written to {folder}: {why}", "Free space or choose another --out."
        ) from None
    return folder


def _checksum(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def read(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Rows and provenance of one saved row. Raises `InputError` for another format, `VerificationError` for
    rows that are not what was written."""
    with _told(folder):
        meta, _ = _verified(folder)
        return _rows(folder), meta


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no readable scores: {error}", "Evaluate again.") from None


def provenance_bytes(folder: Path) -> bytes:
    """`scores.json` as it is on disk. Raises `InputError`."""
    with _told(folder):
        return (folder / META).read_bytes()


def _rows(folder: Path) -> pa.Table:
    return pq.read_table(folder / ROWS)


def _verified(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The content of `scores.json`, and its bytes, where the rows are those that it tells of."""
    written = (folder / META).read_bytes()
    meta = json.loads(written)
    if meta["format"] > FORMAT:
        raise InputError(f"{folder} has format {meta['format']}, this version reads {FORMAT}", "Upgrade compal.")
    if _checksum(folder / ROWS) != meta["rows"]["xxh3_128"]:
        raise VerificationError(f"{folder / ROWS} is not what was written", "Evaluate again.")
    return meta, written


def row_of(folder: Path, rule: str = ties.STRICT) -> ResultRow:
    """The table row of a saved folder under a rule of ties: recomputed from the items, or as `estimates` kept it.
    Raises what `read` raises, and `UnknownName`."""
    ties.check(rule)
    with _told(folder):
        meta, written = _verified(folder)

    def compute() -> estimates.Summaries:
        with _told(folder):
            rows = _rows(folder)
        return summarise(rows, meta, rule)

    overall, by_category = estimates.remembered(folder, [written], rule, compute)
    return ResultRow(
        benchmark=meta["benchmark"],
        split=meta["split"],
        label=meta["label"],
        role=meta["role"],
        backbone=meta["store"].get("backbone", "") if meta["store"] else "",
        sample=meta["sample"],
        overall=overall,
        by_category=by_category,
        folder=str(folder),
        variant=meta.get("variant", ""),
        rule=rule,
        meta=meta,
    )


def chance_row(row: ResultRow) -> ResultRow:
    """What guessing scores on the groups of `row`, from the benchmark's own figures."""
    chance = row.meta["chance"]

    def of(summary: Summary) -> Summary:
        values = {name: Estimate(chance.get(name.partition(" (")[0])) for name in summary.metrics}
        return Summary(values, summary.n, None)

    return ResultRow(
        benchmark=row.benchmark,
        split=row.split,
        label="chance",
        role="chance",
        backbone="",
        sample=row.sample,
        overall=of(row.overall),
        by_category={name: of(summary) for name, summary in row.by_category.items()},
        variant=row.variant,
        rule=row.rule,
        meta={key: value for key, value in row.meta.items() if key not in OF_ONE_ROW},
    )


ROLES = ("chance", "reference", "published", "scorer")


def with_chance(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """The rows, one chance row before those of every sample, references before scorers."""
    listed = [row for row in rows if row.role != "chance"]
    first: dict[tuple[str, ...], ResultRow] = {}
    for row in listed:
        first.setdefault(row.table, row)
    whole = [*listed, *(chance_row(row) for row in first.values())]
    order = {key: number for number, key in enumerate(first)}
    return sorted(whole, key=lambda row: (order[row.table], ROLES.index(row.role)))


def load_results(path: Path, newest: bool = True, rule: str = ties.STRICT) -> list[ResultRow]:
    """All rows saved at or below `path`, with chance beside them; of rows that differ only in when and with
    which weights they were scored, the newest. Raises `InputError` if there are none."""
    folders = sorted(
        file.parent
        for file in ([path / META] if (path / META).is_file() else path.rglob(META))
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not folders:
        raise InputError(f"no scores in {path}", "Make some: compal eval BENCHMARK")
    # What is superseded is left before its figures are computed, which is what takes time.
    told = sorted(((_identity(folder), folder) for folder in folders), key=lambda one: one[0][0])
    kept = list({who: folder for (_, who), folder in told}.values()) if newest else [folder for _, folder in told]
    return with_chance(row_of(folder, rule) for folder in kept)


def _identity(folder: Path) -> tuple[tuple[str, int], tuple[str, ...]]:
    """When a saved row was written, with its place, and what a later one of the same replaces. Raises `InputError`."""
    try:
        meta = json.loads((folder / META).read_text())
        named = [meta[name] for name in ("benchmark", "split", "sample", "label")]
        backbone = meta["store"].get("backbone", "") if meta["store"] else ""
        return (meta["written"], meta["order"]), (*named, meta.get("variant", ""), backbone)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} holds no readable scores: {error}", "Evaluate again.") from None
