"""Results of others as rows of our tables, saved where ours are.

Items (`answers`) are joined with what was scored here: by id, else by the hashes of their captions, else by their place
within a category. Where all items of a table are found the row stands in that table, under our metrics, with its
interval, and is compared as any other; where nothing was scored yet it stands alone. An aggregate (`published`) is the
number that was published and no more: marked, without an interval, never best.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from .. import registry
from ..config import fingerprint
from ..errors import InputError, UnknownName, UsageError
from ..stores.items import caption_key
from . import provenance, published, results
from .answers import Answers, is_items, read
from .published import Figure
from .references import NAMES
from .results import ResultRow
from .sources import headline

ORDER = 1000
"""Imported rows stand behind those that were scored together."""


def import_results(
    path: Path, label: str, scores: Path, benchmark: str = "", model: str = "", command: str = ""
) -> list[ResultRow]:
    """Save what `path` holds below `scores` as rows named `label`, and return them.

    benchmark  of which benchmark; "" for what the file is of
    model      of an aggregate's models, the peer's own name
    Raises `InputError` naming the row that is wrong, `UnknownName`, `UsageError`.
    """
    if label in ("chance", *NAMES) or not label.strip():
        raise UsageError(f"no row of others is called '{label}'", "Choose another name: --as LABEL.")
    if not path.exists():
        raise InputError(f"no file {path}", "Check the path.")
    if benchmark:
        registry.load("benchmarks", benchmark)
    told = {"label": label, "order": ORDER, "command": command or " ".join(sys.argv)}
    told |= {"written": datetime.now(UTC).isoformat(timespec="microseconds"), "commit": provenance.commit()}
    if is_items(path):
        if model:
            raise UsageError(f"{path} holds the items of one model", "Leave --model out.")
        saved = list(_items(read(path, benchmark), scores, told))
    else:
        saved = list(_aggregates(path, scores, told, benchmark, model))
    return results.with_chance(results.row_of(folder) for folder in saved)


# --- items -----------------------------------------------------------------------------------------------------


def _items(answers: Answers, scores: Path, told: dict[str, Any]) -> Iterator[Path]:
    facts = {"class": "imported", "file": answers.path.name, "sha256": answers.sha256, "items": len(answers.categories)}
    own = told | {"role": "scorer", "store": None, "twins": {}, "scorer": facts}
    alone = True
    for rows, meta in _tables(scores, answers.benchmark):
        places = joined(answers, rows)
        if places is not None:
            alone = False
            notes = [*meta["notes"], *_left_out(answers, places, told["label"], rows.num_rows)]
            yield _save(scores, _table(answers, rows, places), meta | own | {"notes": notes})
    if alone:
        rows, meta = _alone(answers)
        yield _save(scores, rows, meta | own)


def joined(answers: Answers, rows: pa.Table) -> list[int] | None:
    """For each of our rows the place of the answer to it; None where one of them has none."""
    if "captions" not in rows.column_names:
        return None
    found: dict[Any, list[int]] = defaultdict(list)
    for number, key in reversed(list(enumerate(_keys(answers)))):
        found[key].append(number)
    if any(answers.ids):
        wanted: list[Any] = rows["id"].to_pylist()
    elif any(answers.captions):
        captions = [tuple(keys) for keys in rows["captions"].to_pylist()]
        wanted = list(zip(_of(answers, rows["category"].to_pylist()), captions, strict=True))
    else:
        wanted = _of(answers, rows["category"].to_pylist())
        # Without a name or a text only a place is left, and places agree where the counts do.
        counts = {name: wanted.count(name) for name in set(wanted)}
        if any(len(found[name]) != count for name, count in counts.items()):
            return None
    places = [found[key].pop() if found[key] else None for key in wanted]
    return None if None in places else [place for place in places if place is not None]


def _keys(answers: Answers) -> list[Any]:
    if any(answers.ids):
        return answers.ids
    if any(answers.captions):
        texts = [tuple(caption_key(text) for text in one) for one in answers.captions]
        return list(zip(answers.categories, texts, strict=True))
    return answers.categories


def _of(answers: Answers, ours: list[str]) -> list[str]:
    return ours if any(answers.categories) else [""] * len(ours)


def _left_out(answers: Answers, places: list[int], label: str, count: int) -> list[str]:
    """What a reader must know of how the rows were joined."""
    found = []
    rest = sorted(set(range(len(answers.categories))) - set(places))
    if rest:
        first = answers.where(rest[0])
        found.append(f"{label}: {len(rest):,} of {len(answers.categories):,} answers are of no item here ({first})")
    if not any(answers.ids) and not any(answers.captions):
        found.append(f"{label}: joined by place within a category, as {answers.path.name} names no item")
    return found


def _table(answers: Answers, rows: pa.Table, places: list[int]) -> pa.Table:
    kept = ["id", "category", "images", "captions", *(["sets"] if "sets" in rows.column_names else [])]
    columns: dict[str, Any] = {name: rows[name] for name in kept}
    columns["source"] = [answers.where(place) for place in places]
    columns |= {name: pa.array([hits[place] for place in places], pa.bool_()) for name, hits in answers.hits.items()}
    return pa.table(columns)


def _alone(answers: Answers) -> tuple[pa.Table, dict[str, Any]]:
    """Rows that stand by themselves: an image of its own for each whose photograph is not named."""
    count = len(answers.categories)
    names = [answers.ids[number] or str(number) for number in range(count)]
    strings = pa.list_(pa.string())
    images = [[answers.images[number] or f"row {number}"] for number in range(count)]
    columns: dict[str, Any] = {
        "id": names,
        "category": answers.categories,
        "images": pa.array(images, strings),
        "captions": pa.array([[caption_key(text) for text in one] for one in answers.captions], strings),
        "source": [answers.where(number) for number in range(count)],
    }
    columns |= {name: pa.array(hits, pa.bool_()) for name, hits in answers.hits.items()}
    meta = _meta(answers.benchmark, count, fingerprint([answers.categories, answers.captions, names]))
    if not any(answers.images):
        meta["notes"] = ["photographs are not named in the file, so each item is drawn by itself"]
    return pa.table(columns), meta


# --- aggregates --------------------------------------------------------------------------------------------------


def _aggregates(path: Path, scores: Path, told: dict[str, Any], benchmark: str, model: str) -> Iterator[Path]:
    peer = published.form_of(path)
    found = published.figures(peer, path)
    if benchmark:
        here = {one.definition.benchmark for one in found}
        if benchmark not in here:
            raise UnknownName.among(f"benchmark in {path.name}", benchmark, here)
        found = [one for one in found if one.definition.benchmark == benchmark]
    models = sorted({one.model for one in found})
    if len(models) > 1 and not model:
        raise UsageError(
            f"{path} holds {len(models)} models",
            f"Choose one: --model NAME, of {published.some(found, told['label'])}.",
        )
    found = published.chosen(found, model or models[0], "", peer)
    for name in dict.fromkeys(one.definition.benchmark for one in found):
        yield from _aggregate([one for one in found if one.definition.benchmark == name], scores, told, peer)


def _aggregate(found: Sequence[Figure], scores: Path, told: dict[str, Any], peer: str) -> Iterator[Path]:
    plain = [one for one in found if len(one.definition.metrics) == 1]
    if not plain:
        return
    first = plain[0].definition
    rows = pa.table(
        {
            "category": [one.definition.category for one in plain],
            "metric": [one.definition.metrics[0] for one in plain],
            "value": pa.array([one.value for one in plain], pa.float64()),
            "n": pa.array([one.definition.rows for one in plain], pa.int64()),
            "source": [one.source for one in plain],
        }
    )
    facts = {"class": f"published by {peer}", "model": plain[0].model, "file": plain[0].source}
    own = told | {"role": "published", "store": None, "twins": {}, "scorer": facts}
    note = f"{told['label']}: {plain[0].model} in {peer}, ties {first.ties}"
    # A part of a benchmark is no place for a figure of the whole.
    whole = [m for _, m in _tables(scores, first.benchmark) if not (m["limit"] or m["excluded"] or m["split"])]
    counts: dict[str, int] = defaultdict(int)
    for one in plain:
        counts[one.definition.metrics[0]] += one.definition.rows
    for meta in whole or [_meta(first.benchmark, max(counts.values()), "published")]:
        yield _save(scores, rows, meta | own | {"notes": [*meta["notes"], note]})


# --- what both share ---------------------------------------------------------------------------------------------


def _tables(scores: Path, benchmark: str) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
    """Rows and provenance of the newest evaluation of each set of groups that was scored here."""
    newest: dict[tuple[str, ...], tuple[str, Path]] = {}
    name = benchmark.rpartition(".")[2]
    for file in sorted((scores / name).glob(f"[!.]*/{results.META}")):
        try:
            meta = json.loads(file.read_text())
            if meta["store"] is None and meta["label"] != "random":
                continue
            key = (meta["split"], meta.get("variant", ""), meta["sample"])
            newest[key] = max(newest.get(key, ("", file.parent)), (meta["written"], file.parent))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} holds no readable scores: {error}", "Evaluate again.") from None
    for _, folder in newest.values():
        rows, meta = results.read(folder)
        yield rows, {"notes": []} | {key: value for key, value in meta.items() if key not in results.OF_ONE_ROW}


def _meta(benchmark: str, count: int, sample: str) -> dict[str, Any]:
    """The provenance of rows that stand beside none of ours."""
    module = registry.load("benchmarks", benchmark)
    info = module.INFO
    size = info.get("size")
    return {
        "benchmark": benchmark.rpartition(".")[2],
        "split": "",
        "title": info["title"],
        "metric": info["metric"],
        "chance": dict(info["chance"]),
        "ks": list(info.get("ks", ())),
        "pair_ks": [],
        "headline": list(headline(info)),
        "variant": "",
        "revision": "",
        "tie_rule": info["tie_rule"],
        "pools": {pool: list(members) for pool, members in getattr(module, "POOLS", {}).items()},
        "averages": {average: list(members) for average, members in getattr(module, "AVERAGES", {}).items()},
        "citation": info["citation"],
        "licence": info["licence"],
        "size": size if size and count <= size else None,
        "limit": None,
        "groups": count,
        "sample": sample[:16],
        "excluded": {},
        "notes": [],
        "seed": 0,
    }


def _save(scores: Path, rows: pa.Table, meta: dict[str, Any]) -> Path:
    kept = {key: meta[key] for key in ("benchmark", "split", "variant", "sample", "label", "role")}
    slug = re.sub(r"[^a-z0-9]+", "-", meta["label"].lower()).strip("-")[:40]
    return results.save(scores / meta["benchmark"] / f"{slug}-{fingerprint(kept)[:12]}", rows, meta)
