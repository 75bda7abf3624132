"""Every recipe of a table on one data set, with several seeds: what to fit, what is fitted, what it scored.

A table is a TOML file in `assets/tables`, or one of the user's. Its runs are named `RECIPE-sSEED`; one that is complete
is not fitted again, one that was interrupted goes on from its last checkpoint, if it has one (`checkpoint_every`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry
from .config import from_dict, read_toml
from .errors import InputError, UnknownName, UsageError

if TYPE_CHECKING:
    from .align.fit import Progress, RunResult
    from .workspace import Workspace

TABLES = registry.ROOT / "assets" / "tables"


@dataclass(frozen=True)
class TableConfig:
    """backbone, data  what is fitted on            seeds    of each recipe's runs
    common         settings of all recipes
    recipes        by the name that a run has: settings of the recipe of that name, or {recipe, settings} of another
    """

    backbone: str
    data: str
    recipes: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2)
    common: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """A run of a table: a row of it at one seed. `settings` are on top of the recipe."""

    row: str
    recipe: str
    seed: int
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.row}-s{self.seed}"


def table_of(data: str) -> Path:
    """The table of a data set (`shapes`), or a TOML file itself. Raises `UnknownName`."""
    path = Path(data) if data.endswith(".toml") else TABLES / f"{data.partition(':')[0]}.toml"
    if not path.is_file():
        raise UnknownName.among("table of experiments", data, [file.stem for file in TABLES.glob("*.toml")])
    return path


def read_table(path: Path) -> TableConfig:
    """Raises `InputError` for a file that is no table, `UnknownName` for a key or a recipe that does not exist."""
    table = from_dict(TableConfig, read_toml(path))
    if not table.recipes or not table.seeds:
        raise InputError(f"{path} names no recipe or no seed", "Give [recipes] and seeds.")
    for row in table.recipes:
        recipe, settings = _row(table, row)
        registry.path("recipes", recipe)
        if not isinstance(settings, list) or not all(isinstance(one, str) for one in settings):
            raise InputError(f"{path}: recipes.{row} has no list of texts", 'Example: ["optim.steps=100"]')
    return table


def _row(table: TableConfig, row: str) -> tuple[str, Any]:
    """Recipe and settings of a row."""
    given = table.recipes[row]
    return (given.get("recipe", row), given.get("settings", [])) if isinstance(given, dict) else (row, given)


def planned(
    table: TableConfig, only: Sequence[str] = (), share: tuple[int, int] = (0, 1), settings: Sequence[str] = ()
) -> list[Planned]:
    """The runs of a table, seed by seed, so that an interrupted table holds all recipes; every `share[1]`-th from
    `share[0]` on. `settings` stand above the table's. Raises `UnknownName` for a recipe in `only` that the table does
    not have."""
    for name in only:
        if name not in table.recipes:
            raise UnknownName.among("recipe of the table", name, table.recipes)
    first, step = share
    if not 0 <= first < step:
        raise UsageError(f"share {first}/{step}", "Give K/N with K from 0 to N - 1.")
    runs = [
        Planned(row, recipe, seed, (*table.common, *own, *settings, f"seed={seed}"))
        for seed in table.seeds
        for row in table.recipes
        if not only or row in only
        for recipe, own in [_row(table, row)]
    ]
    return runs[first::step]


def fit_all(
    table: TableConfig,
    runs: Sequence[Planned],
    workspace: Workspace,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[tuple[Planned, RunResult]]:
    """Fit what is not fitted yet, in order. Raises what `api.fit` raises: `UsageError` for a run of that name with
    other settings."""
    from . import api

    for run in runs:
        resume = (workspace.runs / run.name / "provenance.json").is_file()
        result = api.fit(
            run.recipe,
            table.backbone,
            table.data,
            settings=run.settings,
            name=run.name,
            device=device,
            resume=resume,
            workspace=workspace,
            progress=progress,
        )
        yield run, result


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (n - 1); 0 for one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
