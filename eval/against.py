"""Our number against that of another evaluator for the same model: where they part, by name.

The way from ours to theirs goes through figures of ours on the same saved similarities: their metric and average, their
rule of ties, their rows where a variant of them was scored. What is then left is not explained by any switch; what
scores cannot tell (resize, precision, activation, …) is named beside it and given no share of it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import InputError, UnknownName
from . import published, results, ties
from .outcomes import Outcomes, outcomes
from .published import ARGMAX, QUICK, Definition, Figure
from .results import ResultRow
from .sheets import UNDEFINED, Cell, Sheet, written
from .sources import headline
from .summary import members, percent

FORMATS = ("table", "md", "csv", "json", "latex")
RETRAINED = ("openai", "dfn", "metaclip")
"""Tags of weights that were trained with QuickGELU, whether or not a name says so."""
Values = dict[tuple[str, str], float | None]


@dataclass(frozen=True)
class Step:
    """One cause that is computed: what changes, and our number then, percent."""

    cause: str
    change: str
    value: float


@dataclass(frozen=True)
class Explained:
    """One number of theirs against ours. All percent; `left` in points.

    ours      what our table says
    steps     what leads to their definition, computed
    left      published − ours by their definition; `items` the same as items of `n`
    named     what may be behind it and scores cannot tell, name → sentence
    """

    table: tuple[str, str, str, str]
    title: str
    label: str
    peer: str
    model: str
    number: str
    metric: str
    published: float
    source: str
    ours: float
    steps: tuple[Step, ...]
    left: float
    n: int
    named: dict[str, str]

    @property
    def theirs(self) -> float:
        """Ours by their definition, as far as scores give it."""
        return self.steps[-1].value if self.steps else self.ours

    @property
    def items(self) -> float:
        return self.left * self.n / 100.0


def explain(rows: Sequence[ResultRow], peer: str, model: str = "") -> list[Explained]:
    """Every number that the peer and a row both have.

    peer   PEER, PEER:FILE or FILE of `published`
    model  the peer's name of the model, for the cosine row and every row of a scorer; "" finds that of each backbone,
           of whose rows the cosine alone is that model
    Raises `UnknownName`, `InputError` (a file, or nothing that both have), and what `results.read` raises.
    """
    name, path = published.named(peer)
    figures = published.figures(name, path)
    scored = [row for row in rows if row.folder and _is_model(row, bool(model))]
    shared = {one.benchmark for one in published.definitions(name)}
    here = [row for row in scored if row.benchmark in shared]
    if not here and any(row.benchmark in shared for row in rows if row.role != "chance"):
        labels = ", ".join(dict.fromkeys(row.label for row in rows if row.role != "chance"))
        raise InputError(
            f"of no row here ({labels}) is it known which model it is", f"Say {name}'s name of it: --model."
        )
    if not here:
        have = ", ".join(sorted({row.benchmark for row in rows})) or "none"
        cure = f"It has {', '.join(sorted(shared))}; score one: compal eval NAME."
        raise InputError(f"{name} has none of the benchmarks scored here ({have})", cure)
    found = []
    for row in here:
        of_row = published.chosen(figures, model, row.backbone, name)
        of_row = [one for one in of_row if one.definition.benchmark == row.benchmark and _fits(one.definition, row)]
        found += _of_row(row, of_row, rows) if of_row else []
    if not found:
        backbones = ", ".join(sorted({row.backbone or row.label for row in here}))
        what = f"{name} has no number of {model or backbones} on a benchmark scored here"
        raise InputError(what, f"Name its model: --model NAME, one of {published.some(figures, model or backbones)}.")
    return found


def _is_model(row: ResultRow, named: bool) -> bool:
    if row.role == "reference":
        return row.label == "cosine"
    return named and row.role == "scorer"


def _fits(definition: Definition, row: ResultRow) -> bool:
    """A row of a split is that category alone."""
    return row.split in ("", definition.category)


def _of_row(row: ResultRow, figures: Iterable[Figure], rows: Sequence[ResultRow]) -> list[Explained]:
    evidence = _Evidence(row)
    return [_explained(evidence, one, rows) for one in figures if evidence.has(one.definition)]


class _Evidence:
    """The figures of one saved row under every rule of ties; each rule is computed once."""

    def __init__(self, row: ResultRow) -> None:
        self.row = row
        self.rows, self.meta = results.read(Path(row.folder))
        self.scores = {"similarities", "above"} & set(self.rows.column_names)
        self.parts: dict[str, list[Outcomes]] = {}

    def of(self, rule: str) -> list[Outcomes]:
        if rule not in self.parts:
            self.parts[rule] = _argmax(self.rows) if rule == ARGMAX else outcomes(self.rows, self.meta, rule)
        return self.parts[rule]

    def has(self, definition: Definition) -> bool:
        return self.value(definition, ties.STRICT) is not None

    def value(self, definition: Definition, rule: str, metrics: Sequence[str] = ()) -> float | None:
        """Percent; None where a metric, a category or a member of an average is not there."""
        found = [self._metric(definition, name, rule) for name in metrics or definition.metrics]
        known = [one for one in found if one is not None]
        return float(np.mean(known)) if len(known) == len(found) else None

    def _metric(self, definition: Definition, name: str, rule: str) -> float | None:
        base, _, average = name.partition(" (")
        for part in self.of(rule):
            if base not in part.credit:
                continue
            masks = members(part.categories, self.meta["pools"])
            if not average:
                asked = "" if self.row.split else definition.category
                if asked and asked not in masks:
                    return None
                return percent(part, base, masks[asked] if asked else None)
            names = self.meta["averages"].get(average.rstrip(")"), [])
            values = [percent(part, base, masks[one]) for one in names if one in masks]
            known = [value for value in values if value is not None]
            return float(np.mean(known)) if known and len(known) == len(names) else None
        return None

    def count(self, definition: Definition) -> int:
        """Items, or queries of the first metric's direction."""
        base = definition.metrics[0].partition(" (")[0]
        part = next(part for part in self.of(ties.STRICT) if base in part.credit)
        if definition.category and not self.row.split:
            return int(members(part.categories, self.meta["pools"])[definition.category].sum())
        return len(part.tied)


def _argmax(rows: pa.Table) -> list[Outcomes]:
    """Two images × two captions by argmax over either side, the first of equals taken: MTEB's and CLIP_benchmark's."""
    flat = rows["similarities"].combine_chunks().flatten().to_numpy().reshape(-1, 2, 2)
    right = np.arange(2)
    i2t, t2i = ((flat.argmax(axis=axis) == right).all(axis=1) for axis in (2, 1))
    credit = {name: hit.astype(np.float64) for name, hit in (("i2t", i2t), ("t2i", t2i), ("group", i2t & t2i))}
    none = np.zeros(len(flat), np.int64)
    return [Outcomes(credit, np.zeros(len(flat), bool), none, rows["category"].to_pylist())]


def _explained(evidence: _Evidence, figure: Figure, rows: Sequence[ResultRow]) -> Explained:
    row, definition = evidence.row, figure.definition
    named = {name: told for name, told in definition.causes if _applies(name, figure, row)}
    start = _start(definition, evidence.meta)
    ours = evidence.value(definition, ties.STRICT, start)
    assert ours is not None
    steps = []
    if start != definition.metrics:
        value = evidence.value(definition, ties.STRICT)
        kind = "metric" if " (" not in definition.metrics[0] and len(definition.metrics) == 1 else "aggregation"
        steps.append(Step(kind, f"{start[0]} → {_mean_of(definition.metrics)}", _known(value)))
    if definition.ties != ties.STRICT and evidence.scores:
        value = evidence.value(definition, definition.ties)
        steps.append(Step("ties", f"lose → {definition.ties}", _known(value)))
    elif definition.ties != ties.STRICT:
        named["ties"] = f"a tie there is {definition.ties}, and answers without scores do not tell ties"
    rival = _variant(row, definition, rows)
    count = evidence.count(definition)
    if rival is not None:
        other = _Evidence(rival)
        value = other.value(definition, definition.ties)
        if value is not None:
            count = other.count(definition)
            steps.append(Step("rows", f"variant {definition.variant}", value))
    if definition.variant not in ("", row.variant) and rival is None:
        named["rows"] = f"it counts those of variant {definition.variant}, which was not scored: --variant"
    elif count != definition.rows:
        more = 100.0 * abs(count - definition.rows) / max(count, definition.rows)
        worth = f"{more:.2f} points at most, if one holds the other"
        named["rows"] = f"ours counts {count:,} and theirs {definition.rows:,} ({worth})"
    last = steps[-1].value if steps else ours
    return Explained(
        table=row.table, title=evidence.meta.get("title", row.benchmark), label=row.label, peer=definition.peer,
        model=figure.model, number=definition.name, metric=start[0], published=figure.value, source=figure.source,
        ours=ours, steps=tuple(steps), left=figure.value - last, n=count, named=named,
    )  # fmt: skip


def _known(value: float | None) -> float:
    assert value is not None  # `has` asked for the same metrics
    return value


def _start(definition: Definition, meta: dict[str, Any]) -> tuple[str, ...]:
    """What our table says where theirs says one number: the same metric without its average. A column that names no
    metric of classification stands against our headline."""
    if meta["metric"] == "classification" and len(definition.theirs) == 1:
        return headline(meta)[:1]
    return (definition.metrics[0].partition(" (")[0],)


def _mean_of(metrics: Sequence[str]) -> str:
    return metrics[0] if len(metrics) == 1 else f"mean of {' and '.join(metrics)}"


def _variant(row: ResultRow, definition: Definition, rows: Sequence[ResultRow]) -> ResultRow | None:
    """The row of the same scorer on the rows that theirs has, if it was scored."""
    if definition.variant in ("", row.variant):
        return None
    same = (row.benchmark, row.split, row.label, row.backbone, definition.variant)
    there = [one for one in rows if (one.benchmark, one.split, one.label, one.backbone, one.variant) == same]
    return next((one for one in there if one.folder), None)


def _applies(cause: str, figure: Figure, row: ResultRow) -> bool:
    if cause == "activation":
        tag = figure.model.rpartition("/")[2]
        return QUICK not in figure.model and tag.startswith(RETRAINED)
    if cause == "truncation":
        return row.overall.twins != 0
    return True


# --- tables ------------------------------------------------------------------------------------------------------


def rendered(found: Sequence[Explained], fmt: str = "table") -> str:
    """The explanations as text in one of `FORMATS`, a table for each row of ours. Raises `UnknownName`."""
    if fmt not in FORMATS:
        raise UnknownName.among("report format", fmt, FORMATS)
    if fmt == "json":
        told = [dataclasses.asdict(one) | {"theirs": one.theirs, "items": one.items} for one in found]
        return json.dumps({"against": told}, indent=1, ensure_ascii=False) + "\n"
    if fmt == "csv":
        return _csv(found)
    tables: dict[tuple[str, ...], list[Explained]] = {}
    for one in found:
        tables.setdefault((*one.table, one.label, one.peer, one.model), []).append(one)
    return written([_sheet(part) for part in tables.values()], fmt)


HEADER = ("number", "published", "ours", "difference", "by their definition", "left", "items", "computed")


def _sheet(part: Sequence[Explained]) -> Sheet:
    first = part[0]
    split = " · ".join(one for one in (first.title, *first.table[1:3]) if one)
    body = tuple(
        (
            Cell(one.number), Cell(f"{one.published:.2f}"), Cell(f"{one.ours:.2f}"),
            Cell(_points(one.published - one.ours)), Cell(f"{one.theirs:.2f}"), Cell(_points(one.left)),
            Cell(f"{_points(one.items, 1)} of {one.n:,}"), Cell(_steps(one) or UNDEFINED),
        )
        for one in part
    )  # fmt: skip
    notes = [
        "Left: published less ours by their definition, in points and as items; no switch explains it.",
        "Computed: what their definition changes, in points, on the same similarities.",
    ]
    causes: dict[tuple[str, str], list[str]] = {}
    for one in part:
        for cause, told in one.named.items():
            causes.setdefault((cause, told), []).append(one.number)
    for (cause, told), numbers in causes.items():
        where = "" if len(numbers) == len(part) else f" ({', '.join(numbers)})"
        notes.append(f"Not in the scores: {cause}{where}: {told}.")
    sources = tuple(dict.fromkeys(one.source for one in part))
    return Sheet(f"{split}: {first.label} against {first.peer} ({first.model})", HEADER, body, tuple(notes), 1, sources)


def _points(value: float, digits: int = 2) -> str:
    """With its sign; what rounds to nothing has none below zero."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _steps(one: Explained) -> str:
    before, told = one.ours, []
    for step in one.steps:
        told.append(f"{step.cause} {step.change} {_points(step.value - before)}")
        before = step.value
    return "; ".join(told)


def _csv(found: Sequence[Explained]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("benchmark", "split", "variant", "sample", "label", "peer", "model", "number", "metric", "published")
    writer.writerow([*names, "ours", "theirs", "left", "items", "n", "computed", "named", "source"])
    for one in found:
        own = [one.label, one.peer, one.model, one.number, one.metric, one.published, one.ours, one.theirs]
        rest = [one.left, one.items, one.n, _steps(one), " ".join(one.named), one.source]
        writer.writerow([*one.table, *own, *rest])
    return buffer.getvalue()
