"""Reports as values: rows in every form that `compal report` prints, the page of `compal view`, its charts."""

from __future__ import annotations

import dataclasses
import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnknownName
from ..workspace import Workspace
from .choices import Place, listed, workspace_of
from .extraction import Ticker

if TYPE_CHECKING:
    from ..eval.compare import Comparison
    from ..eval.results import ResultRow
    from ..eval.sheets import Sheet
    from ..eval.viewer.gather import Gathered

Paths = Mapping[str, str | os.PathLike[str]]


class Tables:
    """What is written as tables. In a notebook it shows itself; at a prompt it is the table of the terminal."""

    @abstractmethod
    def render(self, fmt: str = "table", by_category: bool = False, drop: str | Iterable[str] = ()) -> str:
        """The tables as text: "table" for a terminal, "md", "csv", "latex" or "json"."""

    @abstractmethod
    def sheets(self) -> list[Sheet]:
        """The tables before they have a format."""

    def table(self, by_category: bool = False, drop: str | Iterable[str] = ()) -> str:
        """For a terminal, 200 columns wide at most. See `render`."""
        return self.render("table", by_category, drop)

    def markdown(self, by_category: bool = False, drop: str | Iterable[str] = ()) -> str:
        """Markdown, with where each row comes from as comments. See `render`."""
        return self.render("md", by_category, drop)

    def latex(self, by_category: bool = False, drop: str | Iterable[str] = ()) -> str:
        """LaTeX for booktabs, with where each row comes from as comments. See `render`."""
        return self.render("latex", by_category, drop)

    def csv(self, drop: str | Iterable[str] = ()) -> str:
        """A line for each row, category and metric; figures unrounded, an undefined one is empty. See `render`."""
        return self.render("csv", False, drop)

    def json(self, drop: str | Iterable[str] = ()) -> str:
        """One JSON document with where each row comes from. See `render`."""
        return self.render("json", False, drop)

    def to_dict(self, drop: str | Iterable[str] = ()) -> dict[str, Any]:
        """What `json` says, as plain data."""
        found: dict[str, Any] = json.loads(self.json(drop))
        return found

    def __repr__(self) -> str:
        return self.table().rstrip("\n")

    def _repr_markdown_(self) -> str:
        from ..eval.sheets import written

        # Without the comments: paths of a machine are nothing for a notebook that is passed on.
        return written([dataclasses.replace(sheet, sources=()) for sheet in self.sheets()], "md")

    def _repr_html_(self) -> str:
        from ..eval.sheets import fragment

        return fragment(self.sheets())


class Report(Tables, list["ResultRow"]):
    """Rows of one or several benchmarks, as a list of them and as tables, with chance beside.

    A row's figures are percentages with 95 % bootstrap intervals over images: `row.overall.metrics["group"]` has
    `value`, `low` and `high`; `row.by_category` has the same of each category.
    """

    def render(self, fmt: str = "table", by_category: bool = False, drop: str | Iterable[str] = ()) -> str:
        """The tables as text, one for each sample of a benchmark, ending in a newline.

        fmt          table, md, csv, latex or json
        by_category  a column for each category, a table for each metric; csv and json always hold both
        drop         labels of rows to leave out; chance, random, text-only and cosine stay unless named here
        Raises `UnknownName` for a format or a label that is not there.
        """
        from ..eval.report import render

        return render(self, fmt, by_category, listed(drop))

    def sheets(self, by_category: bool = False) -> list[Sheet]:
        """The tables before they have a format (`eval.sheets.Sheet`)."""
        from ..eval.report import sheets
        from ..eval.results import with_chance

        return sheets(with_chance(self), by_category)

    def compare(self, first: str, others: str | Iterable[str] = (), metric: str = "", seed: int = 0) -> Comparisons:
        """Every scored row, or those labelled `others`, against the row labelled `first`, item by item: the difference
        in percentage points with its paired 95 % interval over images, what was gained and lost, p by McNemar, by
        image, and by Holm over all comparisons made here.

        metric  of which metric; each benchmark's headline by default
        Raises `UnknownName` for a label or a metric that is not there, `UsageError` where there is nothing to compare,
        `InputError` for rows whose items differ or are not on this disk.
        """
        from ..eval.compare import compare

        wanted = {*listed(others)}
        for label in sorted(wanted - {row.label for row in self}):
            raise UnknownName.among("row", label, {row.label for row in self})
        kept = [row for row in self if not wanted or row.label in {*wanted, first}]
        return Comparisons(compare(kept, first, metric, seed))

    def html(
        self,
        path: str | os.PathLike[str],
        *,
        items: int = 240,
        align: str | Iterable[str] = (),
        roots: Paths | None = None,
        images: Paths | None = None,
        measure: bool = False,
        title: str = "compal report",
        workspace: Place = None,
        progress: Ticker | None = None,
    ) -> Path:
        """Write the page of `compal view`, one file that needs no network; return its path. A file that is there is
        written anew.

        items    with pictures and maps, at most; every item has its captions and scores
        align    methods, by label, whose alignment to show; the three best that have one by default
        roots, images  benchmark → its files and its photographs, where compal.toml does not say
        measure  measure what a pair costs each method, here: CPU ms
        Raises `InputError` where the extra `report` is not installed or the disk does not take the file.
        """
        from ..eval.viewer import page
        from ..eval.viewer.items import Options
        from ..stores.files import disk_errors
        from ..workspace import write_atomically

        page.check()
        found, path = workspace_of(workspace), Path(path)
        asked = Options(items, tuple(listed(align)), roots=lambda name: _files(name, found, roots or {}, images or {}))
        text = page.render(self.gathered(measure, progress), asked, progress, title)
        with disk_errors(str(path)):
            write_atomically(path, text)
            path.chmod(0o644)  # made to be shown; a temporary file is its owner's alone
        return path

    def plot(
        self,
        chart: str,
        path: str | os.PathLike[str],
        x: str = "",
        y: str = "",
        measure: bool = False,
        progress: Ticker | None = None,
    ) -> Path:
        """Write a chart of the page as a file for a paper; return its path.

        chart  tradeoff, cost, categories, sweep or ladder
        path   ends in .svg, .pdf, .png or .html, and is not there yet
        x, y   axes, as "shapes in_domain group"; of categories y is the table, of sweep x its name
        Raises `UnknownName` for a chart or an axis that is not there, `UsageError` for another kind of file,
        `InputError` for a chart that these rows do not have, a file that is there, and without the extra `plots`.
        """
        from ..eval import picture
        from ..eval.viewer import export

        path = Path(path)
        picture.check(path, "--out")
        export.export(self.gathered(measure or chart == "cost", progress), chart, path, x, y)
        return path

    def gathered(self, measure: bool = False, progress: Ticker | None = None) -> Gathered:
        """What page and charts show: headline figures as columns, methods with their seeds joined."""
        from ..eval.results import with_chance
        from ..eval.viewer.costs import measured
        from ..eval.viewer.gather import gather

        found = gather(with_chance(self), progress)
        return measured(found, progress) if measure else found


class Comparisons(Tables, list["Comparison"]):
    """Paired comparisons, as a list of them and as tables. Of each: `difference` in percentage points (`value`, `low`,
    `high`), `n` items, `gained`, `lost`, and two-sided p: `mcnemar`, `by_image`, `holm`."""

    def render(self, fmt: str = "table", by_category: bool = False, drop: str | Iterable[str] = ()) -> str:
        """The comparisons as text in a format of `Report.render`, without the rows labelled `drop`; they have no
        categories. Raises `UnknownName` for another format."""
        from ..eval.report import compared

        return compared([one for one in self if one.other not in listed(drop)], fmt)

    def sheets(self) -> list[Sheet]:
        """The tables before they have a format (`eval.sheets.Sheet`)."""
        from ..eval.report import compared_sheets

        return compared_sheets(self)


def report(
    what: str | os.PathLike[str] | ResultRow | Iterable[str | os.PathLike[str] | ResultRow] = (),
    *,
    seeds: bool = False,
    ties: str = "lose",
    workspace: Place = None,
) -> Report:
    """Rows as tables: those that `evaluate` returned, or saved ones; no model and no feature is touched.

    what   rows; or folders of scores, or labels of saved rows to keep (the references stay beside them); by default
           all that the workspace has saved
    seeds  one row for all seeds of a recipe: the mean with its standard deviation
    ties   what a tie is worth in saved rows: lose (strict), half (tossed) or win
    Raises `InputError` where there are no scores, `UnknownName` for a label or a rule that is not there,
    `VerificationError` for scores that are not what was written.
    """
    from ..eval.results import ResultRow
    from ..eval.seeds import aggregate

    asked = listed(what, (str, os.PathLike, ResultRow))
    rows = [one for one in asked if isinstance(one, ResultRow)]
    named = [os.fspath(one) for one in asked if not isinstance(one, ResultRow)]
    if named or not rows:
        rows += saved_rows(workspace_of(workspace), named, ties)
    return Report(aggregate(rows) if seeds else rows)


def saved_rows(
    workspace: Workspace, what: Sequence[str] = (), rule: str = "lose", compare: str = ""
) -> list[ResultRow]:
    """The saved rows of the folders named, else the workspace's; of labels named, those, the references beside them
    and the row to compare with. Raises what `report` raises."""
    from ..eval.results import load_results
    from ..eval.ties import check

    check(rule)
    folders = [Path(name) for name in what if Path(name).exists()]
    labels = {name for name in what if not Path(name).exists()}
    here = workspace.path / "scores"
    # A label may hold a slash ("CLIP B/32"); what is no label and looks like a path is told as one.
    paths = sorted(name for name in labels if "/" in name)
    if paths and not folders and not here.is_dir():
        folders.append(Path(paths[0]))
    found = [row for folder in folders or [here] for row in load_results(folder, rule=rule)]
    known = {row.label for row in found}
    for label in sorted(labels - known):
        if label in paths:
            load_results(Path(label))
        raise UnknownName.among("row or folder of scores", label, known)
    if not labels:
        return found
    tables = {row.table for row in found if row.label in labels}
    kept = [row for row in found if row.role != "scorer" or row.label in {*labels, compare}]
    beside = [row for row in kept if row.table in tables]
    return [row for row in beside if row.label in {*labels, compare}] if compare else beside


def _files(name: str, workspace: Workspace, roots: Paths, images: Paths) -> tuple[Path | None, Path | None]:
    """Where a benchmark's files and photographs lie, as far as anybody said."""
    root = Path(roots[name]) if name in roots else workspace.root_for(name)
    return root, Path(images[name]) if name in images else None
