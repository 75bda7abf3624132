"""Saved rows → what the report shows: columns (a headline figure of a benchmark each) and methods (seeds joined).

Tuned towers are a method beside the others: the row that the cosine makes on `run:ID`. Their own controls are left out,
and the points of an α sweep stand together (`Sweep`), not among the methods.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import seeds
from ..provenance import recipe_of_run
from ..results import Estimate, ResultRow
from ..sources import headline

Role = Literal["composition", "retention"]
Table = tuple[str, str, str, str]
RETENTION = ("recall", "classification")
KINDS = ("chance", "control", "cosine", "published", "parts", "pooled", "tokens", "towers")
"""What reads the encoder: what sees less than a caption and its image; its own cosine; aggregates of others; regions
and segments; a head over pooled vectors; a head over tokens; towers with weights of their own."""
CONTROLS = ("chance", "control", "cosine", "published")


@dataclass(frozen=True)
class Column:
    """A headline figure of a table. key: `c0`, …; chance: what guessing scores, percent; n: items it is over."""

    key: str
    table: Table
    role: Role
    metric: str
    chance: float | None
    n: int
    limit: int | None

    @property
    def name(self) -> str:
        """`shapes in_domain`."""
        return " ".join(part for part in self.table[:3] if part)

    @property
    def title(self) -> str:
        """`shapes in_domain group`."""
        return f"{self.name} {self.metric}"


@dataclass(frozen=True, eq=False)
class Method:
    """A row of the report: the same label and backbone on every table.

    rows     by table; where there are several seeds, their mean with its spread
    members  by table, the saved rows that it is made of
    cost     CPU ms of one scored pair, features at hand; None where it was not measured
    """

    label: str
    kind: str
    backbone: str
    rows: dict[Table, ResultRow] = field(default_factory=dict)
    members: dict[Table, list[ResultRow]] = field(default_factory=dict)
    cost: float | None = None

    def estimate(self, column: Column) -> Estimate | None:
        """Its figure in a column, None where it was not scored."""
        row = self.rows.get(column.table)
        return row.overall.metrics.get(column.metric) if row else None

    @property
    def seeds(self) -> int:
        """The most seeds that a row is the mean of."""
        return max((len(rows) for rows in self.members.values()), default=0)

    def first(self, table: Table) -> ResultRow | None:
        """The saved row that stands for the method where items are looked at."""
        return next(iter(self.members.get(table, ())), None)


@dataclass(frozen=True, eq=False)
class Sweep:
    """The points of an interpolation between two models: α → rows by table."""

    base: str
    tuned: str
    points: dict[float, dict[Table, ResultRow]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Gathered:
    """What is shown, and `notes` on what is not."""

    columns: tuple[Column, ...]
    methods: tuple[Method, ...]
    sweeps: tuple[Sweep, ...]
    ladder: tuple[ResultRow, ...]
    notes: tuple[str, ...]

    def chosen(self, role: Role) -> list[Column]:
        """The columns of a role."""
        return [column for column in self.columns if column.role == role]


def gather(rows: Sequence[ResultRow], progress: Callable[[str, int, int], None] | None = None) -> Gathered:
    """Rows of `results.load_results` as columns and methods. Raises what `seeds.aggregate` raises."""
    swept = [(row, alpha) for row in rows if (alpha := _alpha(row))]
    loose = {id(row) for row, _ in swept}
    ladder = _ladder(rows)
    climbed = {id(row) for row in ladder}
    told = [_told(row) for row in rows if id(row) not in loose]
    tables, aside = _tables([row for row in told if id(row) not in climbed])
    kept = [row for row in told if row.table in tables and not _of_tuned(row)]
    found: dict[tuple[str, str], Method] = {}
    for number, table in enumerate(tables):
        of_table = [row for row in kept if row.table == table]
        for row in seeds.aggregate(of_table):
            _add(found, row, of_table)
        if progress:
            progress("tables", number + 1, len(tables))
    methods = sorted(found.values(), key=lambda one: KINDS.index(one.kind) if one.kind in CONTROLS else len(KINDS))
    sweeps = _sweeps(swept)
    notes = [*aside, *([f"{len(swept):,} rows are points of α sweeps: see Trade-offs"] if swept else [])]
    return Gathered(tuple(_columns(kept, tables)), tuple(methods), sweeps, tuple(ladder), tuple(notes))


def _add(found: dict[tuple[str, str], Method], row: ResultRow, of_table: Sequence[ResultRow]) -> None:
    folders = set(row.meta.get("folders", [row.folder]))
    members = [one for one in of_table if one.folder in folders and one.role == row.role] if row.folder or (
        "folders" in row.meta
    ) else []  # fmt: skip
    # A method with another number of seeds on another table is the same method.
    label = row.label.rpartition(" (")[0] if "seeds" in row.meta else row.label
    backbone = "" if row.role == "chance" or row.label == "random" else row.backbone
    method = found.setdefault((label, backbone), Method(label, kind_of(row), backbone))
    method.rows[row.table] = row
    method.members[row.table] = members


def kind_of(row: ResultRow) -> str:
    """One of `KINDS`."""
    store = row.meta.get("store") or {}
    if row.role in ("chance", "published"):
        return row.role
    if row.role == "reference":
        return "cosine" if row.label == "cosine" else "control"
    if row.meta.get("tuned"):
        return "towers"
    if str(store.get("level", "")).startswith("regions"):
        return "parts"
    scorer = (row.meta.get("scorer") or {}).get("class", "")
    if scorer.endswith(".cosine.Cosine"):
        return "cosine"
    return "pooled" if _needs(scorer) == "pooled" else "tokens"


def _needs(name: str) -> str:
    """What a scorer's class reads, by its full name; "" for one that cannot be imported here."""
    module, _, own = name.rpartition(".")
    try:
        return str(getattr(getattr(importlib.import_module(module), own), "needs", ""))
    except (ImportError, AttributeError, ValueError):
        return ""


def run_of(row: ResultRow) -> Path | None:
    """The folder of the run that a row's weights are of: of a head, or of tuned towers (`run:ID`)."""
    store, scorer = row.meta.get("store") or {}, row.meta.get("scorer") or {}
    backbone = str(store.get("backbone", ""))
    if backbone.startswith("run:") and store.get("path"):
        return Path(store["path"]).parent.parent / "runs" / backbone.removeprefix("run:")
    path = Path(scorer.get("checkpoint", ""))
    return path.parent.parent if path.parent.name == "checkpoints" else None


def _told(row: ResultRow) -> ResultRow:
    """The row with the recipe and seed of its run, which older scores do not say; of tuned towers with the backbone
    that they were tuned from, so that their seeds are of one method."""
    scorer, run = dict(row.meta.get("scorer") or {}), run_of(row)
    if row.role != "scorer" or run is None:
        return row
    scorer |= recipe_of_run(run)
    tuned = row.backbone.startswith("run:")
    told = told_of(run)
    backbone = f"{told.get('features', {}).get('backbone', 'towers')}, tuned" if tuned else row.backbone
    return dataclasses.replace(row, backbone=backbone, meta=row.meta | {"scorer": scorer, "tuned": tuned})


@functools.cache
def told_of(run: Path, file: str = "provenance.json") -> dict[str, Any]:
    """What a file of a run's folder says; {} where it is not here."""
    try:
        found: dict[str, Any] = json.loads((run / file).read_text())
        return found
    except (OSError, ValueError):
        return {}


def _of_tuned(row: ResultRow) -> bool:
    """Whether it is a control of tuned towers, whose own row says the same or nothing."""
    return row.role == "reference" and row.backbone.startswith("run:")


def _alpha(row: ResultRow) -> tuple[str, str, float] | None:
    """Base, tuned and α of a row that is a point of a sweep."""
    run = run_of(row)
    told = told_of(run).get("patch") if run and row.role == "scorer" else None
    return (told["base"]["name"], told["tuned"]["name"], float(told["alpha"])) if told else None


def _sweeps(rows: Sequence[tuple[ResultRow, tuple[str, str, float]]]) -> tuple[Sweep, ...]:
    found: dict[tuple[str, str], Sweep] = {}
    for row, (base, tuned, alpha) in rows:
        sweep = found.setdefault((base, tuned), Sweep(base, tuned))
        sweep.points.setdefault(alpha, {})[row.table] = row
    return tuple(sweep for sweep in found.values() if len(sweep.points) > 1)


def _tables(rows: Sequence[ResultRow]) -> tuple[list[Table], list[str]]:
    """Of every benchmark, split and variant, the sample with most rows; a sentence on each of the others."""
    counts: dict[Table, int] = {}
    for row in rows:
        if row.role != "chance":
            counts[row.table] = counts.get(row.table, 0) + (row.role == "scorer")
    sizes = {row.table: row.meta.get("groups", 0) for row in rows}
    best: dict[tuple[str, ...], Table] = {}
    for table in sorted(counts, key=lambda one: (counts[one], sizes[one])):
        best[table[:3]] = table
    kept = [table for table in counts if best[table[:3]] == table]
    aside = [
        f"{' '.join(part for part in table[:3] if part)} on another sample ({sizes[table]:,} groups, "
        f"{counts[table]:,} rows) is not comparable and left out: compal report shows it"
        for table in counts
        if table not in kept
    ]
    return kept, aside


def _columns(rows: Sequence[ResultRow], tables: Sequence[Table]) -> list[Column]:
    found: list[Column] = []
    for table in tables:
        scored = [one for one in rows if one.table == table and one.role not in ("chance", "published")]
        if not scored:
            continue
        row = scored[0]
        # Rows of one sample: a limit that not all of them name is none to that sample.
        limits = {one.meta.get("limit") for one in scored}
        limit = None if None in limits else min(int(one) for one in limits if one is not None)
        for metric in headline(row.meta):
            key = f"c{len(found)}"
            chance = row.meta.get("chance", {}).get(metric)
            found.append(Column(key, table, role_of(row), metric, chance, row.overall.n, limit))
    return found


def role_of(row: ResultRow) -> Role:
    """What a benchmark measures: retrieval and classification are what tuning must keep, the rest is composition."""
    zero_shot = "zero-shot" in str(row.meta.get("title", "")).lower()
    return "retention" if row.meta.get("metric") in RETENTION or zero_shot else "composition"


RUNGS = (("oracle", "oracle"), ("crops", "crops"), ("roi", "pooled"), ("dense", "dense"))


def _ladder(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows of a ladder (`compal diagnose`), in its order: of the sample on which an oracle was scored last."""
    parts = [row for row in rows if row.role == "scorer" and row.label == "oracle"]
    if not parts:
        return []
    last = max(parts, key=lambda row: str(row.meta.get("written", "")))
    there = [row for row in rows if row.table == last.table and row.role != "chance" and row.label != "random"]

    def place(row: ResultRow) -> tuple[int, str]:
        named = [number for number, (name, _) in enumerate(RUNGS) if row.label.startswith(name)]
        return (0, "") if row.label == "cosine" else (1 + named[0], row.label) if named else (9, row.label)

    return sorted({row.label: row for row in there}.values(), key=place)
