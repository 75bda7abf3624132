"""What a table of negatives is worth: yield, length change, overlap, grammar, blindness, samples.

Bad negatives fail quietly: too few, true after all, ungrammatical, or told from captions without looking at an
image. Each number here is one of these failures.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .negatives._text import bag, repeated_words, wrong_articles
from .negatives_blind import blindness
from .negatives_table import Table

SAMPLES = 8
MEASURED = 100_000  # rows that are looked at one by one, drawn evenly: 5 seconds
PROVENANCE = (
    "method", "source", "method_version", "config", "seed", "compal", "data", "split", "limit", "dataset_revision",
    "dataset_licence", "licence", "provenance", "date", "command",
)  # fmt: skip


def report(table: Table, seed: int = 0) -> dict[str, Any]:
    """The report as plain data. `seed` draws samples and the captions of the blindness check.

    yield      captions, with negatives, negatives per caption, by type, why captions got none, what was dropped,
               captions left out as an extraction cannot read them
    length     mean words of captions and negatives, the most that were lost and gained
    overlap    mean share of the caption's words kept, share with the same words, and negatives that are captions
               of the dataset: true of another image, perhaps of this one
    grammar    wrong "a" or "an", and repeated words, per 1,000 texts, in captions and negatives
    blindness  by type: area under the ROC curve of a text-only judge, 0.5 = cannot be told apart; None for too few
    samples    type, caption, negative, detail
    """
    counts = table.meta.get("counts", {})
    chosen = sorted(random.Random(seed).sample(range(table.rows.num_rows), min(table.rows.num_rows, MEASURED)))
    rows: list[dict[str, str]] = table.rows.take(pa.array(chosen, pa.int64())).to_pylist()
    return {
        "file": str(table.path),
        "yield": _yield(table.rows, counts),
        "length": _length(rows),
        "overlap": {**_overlap(rows), "captions of the dataset": counts.get("in_dataset", 0)},
        "grammar": _grammar(rows),
        "blindness": _blind(rows, seed),
        "samples": _samples(rows, seed),
        "provenance": {name: table.meta.get(name) for name in PROVENANCE},
    }


def _yield(table: pa.Table, counts: dict[str, Any]) -> dict[str, Any]:
    with_negatives = pc.count_distinct(table.column("key")).as_py()
    types = pc.value_counts(table.column("type")).to_pylist()
    captions = counts.get("captions", with_negatives)
    return {
        "captions": captions,
        "with negatives": with_negatives,
        "share": _rounded(with_negatives / max(captions, 1)),
        "negatives": table.num_rows,
        "per caption": _rounded(table.num_rows / max(with_negatives, 1)),
        "by type": {one["values"]: one["counts"] for one in sorted(types, key=lambda one: -one["counts"])},
        "without": counts.get("without", {}),
        "dropped": counts.get("dropped", {}),
        "unreadable": counts.get("unreadable", {}),
    }


def _length(rows: list[dict[str, str]]) -> dict[str, Any]:
    before = [bag(row["caption"]).total() for row in rows]
    after = [bag(row["negative"]).total() for row in rows]
    change = [new - old for old, new in zip(before, after, strict=True)]
    return {
        "words of captions": _mean(before),
        "words of negatives": _mean(after),
        "change": _mean(change),
        "most lost": -min([0, *change]),
        "most gained": max([0, *change]),
    }


def _overlap(rows: list[dict[str, str]]) -> dict[str, Any]:
    kept, same = [], []
    for row in rows:
        before, after = bag(row["caption"]), bag(row["negative"])
        kept.append((before & after).total() / max(before.total(), 1))
        same.append(before == after)
    return {"words kept": _mean(kept), "same words": _mean(same)}


def _grammar(rows: list[dict[str, str]]) -> dict[str, Any]:
    found = {}
    for name, count in (("wrong articles", wrong_articles), ("repeated words", repeated_words)):
        for column in ("caption", "negative"):
            wrong = sum(count(row[column]) > 0 for row in rows)
            found[f"{name} in {column}s"] = _rounded(1000 * wrong / max(len(rows), 1))
    capital = [row for row in rows if row["caption"][:1].isupper()]
    lost = sum(row["negative"][:1].islower() for row in capital)
    found["capitals lost"] = _rounded(1000 * lost / max(len(capital), 1))
    return found


def _blind(rows: list[dict[str, str]], seed: int) -> dict[str, Any]:
    found = {}
    for kind in dict.fromkeys(row["type"] for row in rows):
        of_kind = [row for row in rows if row["type"] == kind]
        judged = blindness([row["caption"] for row in of_kind], [row["negative"] for row in of_kind], seed)
        found[kind] = {name: _rounded(value) for name, value in dataclasses.asdict(judged).items()} if judged else None
    return found


def _samples(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """As many of each type as there are of the others, as far as it goes."""
    rng = random.Random(seed)
    by_type: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_type.setdefault(row["type"], []).append(row)
    drawn = [rng.sample(some, min(SAMPLES, len(some))) for some in by_type.values()]
    turns = [some[turn] for turn in range(SAMPLES) for some in drawn if turn < len(some)]
    kept = sorted(turns[:SAMPLES], key=lambda row: row["type"])
    return [{name: row[name] for name in ("type", "caption", "negative", "detail")} for row in kept]


def _mean(values: list[Any]) -> float:
    return _rounded(sum(values) / len(values)) if values else 0.0


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else round(value, 3)
