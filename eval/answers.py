"""What others answered, item by item: CSV files read into hits under our metrics' names.

    bivlc       type, subtype and the four comparisons of two images and two captions, of which i2t, t2i and group
                follow: text_score_i0, text_score_i1, image_score_c0, image_score_c1, or Ipos_2T, Ineg_2T, Tpos_2I,
                Tneg_2I
    sugarcrepe  type, subtype and `correct`
    items       `id`, as ours are known by, and a column for each metric of the benchmark

`caption` and `negative_caption`, where they are there, tell which item a row is. Answers are True, False, 1 or 0.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import InputError, UsageError
from .published import read_text, table

COMPARISONS = (
    ("text_score_i0", "text_score_i1", "image_score_c0", "image_score_c1"),
    ("Ipos_2T", "Ineg_2T", "Tpos_2I", "Tneg_2I"),
)
TOLD = {"i2t": ("text_score", "I2T"), "t2i": ("image_score", "T2I"), "group": ("group_score",)}
"""Columns that say what follows from the comparisons."""
METRICS = {"pairs": ("accuracy",), "quads": ("i2t", "t2i", "group"), "positives": ("itt", "p1_neg", "p2_neg")}
TRUE, FALSE = ("True", "true", "TRUE", "1", "1.0"), ("False", "false", "FALSE", "0", "0.0")


@dataclass(frozen=True)
class Answers:
    """n items of a benchmark as others answered them.

    metric      of the benchmark
    ids         ours, "" where the file has none
    categories  "" where the file has none
    captions    texts of each; () where the file has none
    images      what names the photograph; "" where nothing does
    hits        (n,) bool by metric
    sha256      of the file
    """

    path: Path
    benchmark: str
    metric: str
    ids: list[str]
    categories: list[str]
    captions: list[tuple[str, ...]]
    images: list[str]
    hits: dict[str, list[bool]]
    sha256: str

    def where(self, number: int) -> str:
        return f"{self.path.name} row {number}"


def is_items(path: Path) -> bool:
    """Whether a file is a CSV of items and not of aggregates, by its first line."""
    if not path.is_file() or ".csv" not in path.suffixes:
        return False
    header = _text(path).partition("\n")[0]
    columns = {name.strip('"\r ') for name in header.split(",")}
    return bool({"correct", "id"} & columns) or any(set(names) <= columns for names in COMPARISONS)


def read(path: Path, benchmark: str = "") -> Answers:
    """The answers of a CSV (also .csv.gz). Raises `InputError` naming the row of what is neither true nor false, of
    sums that contradict their parts, and columns that lack; `UsageError` where the benchmark must be named or has
    another metric; `UnknownName`."""
    rows = table(_text(path), path)
    if not rows:
        raise InputError(f"{path} has no rows", "Name the file that the evaluation wrote.")
    columns = list(rows[0])
    names = next((names for names in COMPARISONS if set(names) <= set(columns)), None)
    name = benchmark or ("bivlc" if names else "sugarcrepe" if "correct" in columns else "")
    if not name:
        raise UsageError(f"{path} does not say which benchmark it is of", "Name it: --benchmark NAME.")
    metric = str(registry.load("benchmarks", name).INFO["metric"])
    if metric not in METRICS:
        raise UsageError(f"{name} is scored by query, which answers of items are not", "Import its aggregate.")
    if names and metric != "quads":
        what = f"{path} holds two images × two captions, and {name} is {metric}"
        raise UsageError(what, "Name another --benchmark.")
    if names:
        hits = _quads(path, rows, names)
    else:
        given = {"accuracy": "correct"} if "correct" in columns else {one: one for one in METRICS[metric]}
        if set(given) != set(METRICS[metric]):
            raise UsageError(f"{path} has one answer a row, and {name} is {metric}", "Name another --benchmark.")
        hits = {one: _column(path, rows, column) for one, column in given.items()}
    return Answers(
        path=path,
        benchmark=name,
        metric=metric,
        ids=[row.get("id", "") for row in rows],
        categories=[_category(row) for row in rows],
        captions=[_captions(row) for row in rows],
        images=[row.get("filename", "") for row in rows],
        hits=hits,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _text(path: Path) -> str:
    if path.suffix != ".gz":
        return read_text(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            return file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "Check the path.") from None


def _category(row: dict[str, Any]) -> str:
    if "category" in row:
        return str(row["category"])
    return f"{row['type']}_{row['subtype']}" if "type" in row and "subtype" in row else ""


def _captions(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("caption", "negative_caption")
    return tuple(str(row[name]) for name in names) if set(names) <= set(row) else ()


def _column(path: Path, rows: list[dict[str, Any]], name: str) -> list[bool]:
    if name not in rows[0]:
        raise InputError(f"{path} has no column '{name}'", f"It has: {', '.join(rows[0])}.")
    found = []
    for number, row in enumerate(rows):
        if row[name] not in (*TRUE, *FALSE):
            raise InputError(f"{path} row {number}: '{name}' is '{row[name]}', neither true nor false")
        found.append(row[name] in TRUE)
    return found


def _quads(path: Path, rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, list[bool]]:
    """i2t, t2i and group of the four comparisons; what the file says of them must agree."""
    i0, i1, c0, c1 = (_column(path, rows, name) for name in names)
    i2t = [a and b for a, b in zip(i0, i1, strict=True)]
    t2i = [a and b for a, b in zip(c0, c1, strict=True)]
    hits = {"i2t": i2t, "t2i": t2i, "group": [a and b for a, b in zip(i2t, t2i, strict=True)]}
    for metric, columns in TOLD.items():
        for column in columns:
            if column not in rows[0]:
                continue
            told = _column(path, rows, column)
            wrong = next((number for number, hit in enumerate(hits[metric]) if hit != told[number]), None)
            if wrong is not None:
                what = f"{path} row {wrong}: '{column}' is {told[wrong]} and its comparisons make it {not told[wrong]}"
                raise InputError(what, "Correct the row, or leave the column out.")
    return hits
