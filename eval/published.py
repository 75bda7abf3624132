"""What other evaluators publish: their numbers, read from their own files, and which of our figures each number is.

`assets/references/definitions.toml` says it for every number: our benchmark, metric and average, what a tie is worth to
them, how many rows they count, and what saved scores cannot settle. Files of these forms are read, none of them a
pickle; a value that is no share or percentage is an error that names its row:

    clip_benchmark   the JSON of a run (dataset, model, pretrained, metrics), a folder of them, the CSV of its `build`
    mteb             results/<model>/<revision>/<Task>.json, a folder of them, or {model: {task: {"scores": …}}}
    openclip         docs/openclip_results.csv and docs/openclip_retrieval_results.csv of the repository
    vl_compo         individual_results.csv of the repository
"""

from __future__ import annotations

import csv
import difflib
import functools
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import registry
from ..config import read_toml
from ..errors import InputError, UnknownName

FOLDER = registry.ROOT / "assets" / "references"
ARGMAX = "argmax"
PERCENT = ("vl_compo",)
"""Peers that write percentages; the others write shares."""
QUICK = "-quickgelu"


@dataclass(frozen=True)
class Definition:
    """A number of a peer, and ours that it is.

    theirs    (task or dataset, metric), or (column,)
    category  of it alone; "" for the whole benchmark
    metrics   ours; of several, their mean
    ties      lose, win, half, or argmax: the first of equals wins, whichever is right
    variant   of ours whose rows theirs has; "" for our default
    rows      how many theirs counts
    causes    what may part the two and cannot be told from scores, name → sentence
    """

    peer: str
    theirs: tuple[str, ...]
    benchmark: str
    category: str
    metrics: tuple[str, ...]
    ties: str
    variant: str
    rows: int
    causes: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return " ".join(self.theirs)


@dataclass(frozen=True)
class Figure:
    """A published number: percent, of a model under the peer's own name for it, and the file and row it stands in."""

    definition: Definition
    model: str
    value: float
    source: str


@functools.cache
def peers() -> dict[str, dict[str, Any]]:
    """The peers of definitions.toml by name: title, url, licence, ships (files), of (what to give)."""
    return dict(read_toml(FOLDER / "definitions.toml")["peers"])


@functools.cache
def definitions(peer: str) -> tuple[Definition, ...]:
    """What a peer publishes of benchmarks that compal has. Raises `UnknownName`."""
    if peer not in peers():
        raise UnknownName.among("evaluator", peer, peers())
    told = read_toml(FOLDER / "definitions.toml")["causes"]
    return tuple(_definition(peer, row, told) for row in peers()[peer]["figures"])


def _definition(peer: str, row: dict[str, Any], told: dict[str, str]) -> Definition:
    theirs, metrics = row["theirs"], row["metric"]
    return Definition(
        peer=peer,
        theirs=(theirs,) if isinstance(theirs, str) else tuple(theirs),
        benchmark=row["benchmark"],
        category=row.get("category", ""),
        metrics=(metrics,) if isinstance(metrics, str) else tuple(metrics),
        ties=row["ties"],
        variant=row.get("variant", ""),
        rows=row["rows"],
        causes=tuple((name, told[name]) for name in row["causes"]),
    )


def named(text: str) -> tuple[str, Path | None]:
    """PEER, PEER:FILE or FILE → the peer and its file; None where the shipped figures are meant. Raises `UnknownName`
    and `InputError`, also for a peer of which none are shipped."""
    peer, _, rest = text.partition(":")
    if peer in peers():
        if not rest and not peers()[peer]["ships"]:
            told = peers()[peer]
            what = f"the figures of {peer} are not shipped ({told['url']}; licence: {told['licence']})"
            raise InputError(what, f"Give {told['of']}: {peer}:FILE.")
        return peer, Path(rest).expanduser() if rest else None
    path = Path(text).expanduser()
    if not path.exists():
        raise UnknownName.among("evaluator or file", text, peers())
    return form_of(path), path


def form_of(path: Path) -> str:
    """Whose file it is, by what is in it. Raises `InputError` for one of nobody known."""
    for content in _contents(path):
        for peer, looks in LOOKS.items():
            if looks(content.rows):
                return peer
    known = "; ".join(f"{name}: {told['of']}" for name, told in peers().items())
    raise InputError(f"{path} is no results file of an evaluator that is known", f"Known: {known}.")


def figures(peer: str, path: Path | None = None) -> list[Figure]:
    """The numbers of a peer, of its file or of those shipped, in the order of the file. Raises `UnknownName`, and
    `InputError` naming the row of what is no number, or a file that holds none of them."""
    by_name = {one.theirs: one for one in definitions(peer)}
    found = []
    for given in [path] if path else [FOLDER / name for name in peers()[peer]["ships"]]:
        for content in _contents(given):
            if LOOKS[peer](content.rows):
                found += list(_figures(peer, content, by_name))
    if not found:
        where = path or peer
        raise InputError(f"{where} holds no number of {peer} that compal has a benchmark for", _wanted(peer))
    return found


def _wanted(peer: str) -> str:
    return f"It reads {peers()[peer]['of']}."


def chosen(found: list[Figure], model: str, backbone: str, peer: str) -> list[Figure]:
    """The figures of one model: of the peer's name for it if given, else of the names `backbone` goes by. Raises
    `UnknownName` for a model that it has not; [] where no name of the backbone is there."""
    known = {one.model for one in found}
    if model:
        if model not in known:
            raise UnknownName(f"no model of {peer} '{model}'", f"It has {some(found, model)}.")
        return [one for one in found if one.model == model]
    name = next((name for name in aliases(backbone) if name in known), None)
    return [one for one in found if one.model == name]


def some(found: list[Figure], near: str, count: int = 5) -> str:
    """The models of figures, the nearest in name to `near` first; how many more there are."""
    known = sorted({one.model for one in found})
    first = difflib.get_close_matches(near, known, n=count, cutoff=0.0)
    more = len(known) - len(first)
    return ", ".join(first) + (f" and {more:,} more" if more else "")


def aliases(backbone: str) -> list[str]:
    """What others call the weights of a backbone, nearest first: open_clip's MODEL/TAG, the same without -quickgelu
    (the name it had while that activation was forced), the Hub's ORG/NAME."""
    hub = read_toml(FOLDER / "definitions.toml")["hub"]
    kind, _, name = backbone.partition(":")
    found = [name.partition("@")[0] if kind == "hf" else name]
    if kind == "hf":
        found += [ours for ours, theirs in hub.items() if theirs == found[0]]
    found += [one.replace(QUICK, "") for one in found if QUICK in one]
    return list(dict.fromkeys([*found, *(hub[one] for one in found if one in hub)]))


# --- files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """One file: rows of a table, or objects; where each stands."""

    path: Path
    rows: list[dict[str, Any]]

    def where(self, number: int) -> str:
        return f"{self.path} row {number}" if self.path.suffix == ".csv" else str(self.path)


def _contents(path: Path) -> Iterator[Content]:
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no .json", "Name the folder that an evaluator wrote.")
    for file in files:
        if file.name == "model_meta.json":
            continue
        text = read_text(file)
        if file.suffix == ".csv":
            yield Content(file, table(text, file))
            continue
        try:
            content = json.loads(text)
        except ValueError as error:
            raise InputError(f"{file} is neither CSV nor valid JSON: {error}", "Name it .csv or .json.") from None
        yield Content(file, [content] if isinstance(content, dict) else [])


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises `InputError` naming it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "Check the path.") from None


def table(text: str, path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV. Raises `InputError` for a row of more or fewer cells than the first line names."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, Any]] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise InputError(f"{path} row {len(rows)} has not the {columns} cells of its first line")
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path} row {len(rows)} is no CSV: {error}") from None
    return rows


def _has(*names: str) -> Any:
    return lambda rows: bool(rows) and all(name in rows[0] for name in names)


def _mteb(rows: list[dict[str, Any]]) -> bool:
    if _has("task_name", "scores")(rows) or _has("mteb_dataset_name", "scores")(rows):
        return True
    first = next(iter(rows[0].values()), None) if rows else None
    return isinstance(first, dict) and all(isinstance(one, dict) and "scores" in one for one in first.values())


def _clip_benchmark(rows: list[dict[str, Any]]) -> bool:
    return bool(_has("dataset", "model", "pretrained")(rows))


LOOKS = {
    "clip_benchmark": _clip_benchmark,
    "mteb": _mteb,
    "openclip": _has("name", "pretrained"),
    "vl_compo": _has("arch", "pretrained", "family"),
}


def _figures(peer: str, content: Content, by_name: dict[tuple[str, ...], Definition]) -> Iterator[Figure]:
    for number, row in enumerate(content.rows):
        where = content.where(number)
        for model, theirs, value in _cells(peer, row, content.path, where):
            if theirs in by_name and value not in ("", None):
                yield Figure(by_name[theirs], model, _percent(value, peer, f"{where}: '{' '.join(theirs)}'"), where)


def _cells(peer: str, row: dict[str, Any], path: Path, where: str) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """(model, their name of the number, value) of a row."""
    if peer == "mteb":
        if "scores" in row:
            yield from _task(_model(path), str(row.get("task_name") or row["mteb_dataset_name"]), row["scores"], where)
            return
        for model, tasks in row.items():
            if not isinstance(tasks, dict):
                raise InputError(f"{where}: '{model}' is not an object of tasks")
            for task, result in tasks.items():
                scores = result.get("scores") if isinstance(result, dict) else None
                yield from _task(model.replace("__", "/"), task, scores, f"{where}: {model}")
        return
    name = row.get({"clip_benchmark": "model", "openclip": "name"}.get(peer, "arch"))
    model = f"{name}/{row['pretrained']}"
    if peer == "clip_benchmark":
        metrics = row.get("metrics", row)
        if not isinstance(metrics, dict):
            raise InputError(f"{where}: 'metrics' is not an object")
        yield from ((model, (str(row["dataset"]), metric), value) for metric, value in metrics.items())
    else:
        yield from ((model, (column,), value) for column, value in row.items())


def _task(model: str, task: str, scores: Any, where: str) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """mteb has {metric: value}, or {split: [{metric: value}]} with a row for each language."""
    if not isinstance(scores, dict):
        raise InputError(f"{where}: the scores of '{task}' are not an object")
    listed = scores.get("test")
    if isinstance(listed, list):
        if len(listed) != 1 or not isinstance(listed[0], dict):
            raise InputError(f"{where}: '{task}' has {len(listed)} rows of scores for its test split, not one")
        scores = listed[0]
    yield from ((model, (task, metric), value) for metric, value in scores.items())


def _model(path: Path) -> str:
    """Of results/<model>/<revision>/<Task>.json: as model_meta.json says, else by the folder."""
    meta = path.parent / "model_meta.json"
    if meta.is_file():
        try:
            name = json.loads(read_text(meta)).get("name")
        except (ValueError, AttributeError):
            name = None
        if isinstance(name, str):
            return name
    return path.resolve().parent.parent.name.replace("__", "/")


def _percent(value: Any, peer: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where} is '{value}', which is no number") from None
    top = 100.0 if peer in PERCENT else 1.0
    if not math.isfinite(number) or not 0.0 <= number <= top:
        raise InputError(f"{where} is {number:g}, which is not between 0 and {top:g}")
    return number * 100.0 / top
