"""What the alignment viewer is given: every item of every table with its scores, and of some items pictures and maps.

Everything is a block of bytes under a name, read when it is first looked at. What is large is bounded: scores of
methods and items with pictures are added until their budget is spent, and `notes` say what is not there.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import CompalError
from .. import results
from ..sources import headline
from . import aligned, pictures
from .gather import Column, Gathered, Method, Table
from .pack import Blocks

ITEMWISE = ("pairs", "quads", "positives")
SCORES_SHARE = 0.35  # of the budget that scores of items may take
CHUNK = 32  # items whose maps are made at once
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """items     with pictures and maps, at most; every item has its captions and scores
    aligned   labels of the methods whose maps are shown; the best ones that have maps if none are named
    most      of them where none are named
    roots     benchmark → where its files and photographs lie
    """

    items: int = 240
    aligned: tuple[str, ...] = ()
    most: int = 3
    roots: pictures.Roots = lambda name: (None, None)


@dataclass(eq=False)
class Shown:
    """A table of items. key: `t0`, …; rows: of the first method; numbers: of the methods' blocks of scores;
    hits: by label, whether an item is right."""

    key: str
    column: Column
    rows: pa.Table
    meta: dict[str, Any]
    methods: dict[str, Method] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    hits: dict[str, list[bool]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As links have it: `shapes/in_domain`."""
        return "/".join(part for part in self.column.table[:3] if part)

    def keys(self, number: int) -> tuple[list[str], list[str]]:
        """The images and captions of an item."""
        return self.rows["images"][number].as_py(), self.rows["captions"][number].as_py()


def build(found: Gathered, blocks: Blocks, options: Options, progress: Progress | None = None) -> dict[str, Any]:
    """Add the viewer's blocks; what the page must know of them at once. Raises what `results.read` raises."""
    shown = [table for column in _columns(found) if (table := _open(found, column))]
    shown = _numbered(shown)
    notes = _scores(shown, blocks)
    wanted = {key for table in shown for one in table.rows["captions"].to_pylist() for key in one}
    told = pictures.captions(_stores(shown), wanted)
    aligners = _aligners(shown, options)
    names = _index(shown, told, blocks)
    notes += _heavy(shown, aligners, told, names, blocks, options, progress)
    if len(told) < len(wanted):
        notes.append(f"{len(wanted) - len(told):,} captions are in no store that is here: they show as keys")
    rows = [
        {"key": one.key, "name": one.name, "n": one.rows.num_rows, "metric": one.meta["metric"],
         "headline": one.column.metric, "methods": list(one.methods),
         "numbers": one.numbers}
        for one in shown
    ]  # fmt: skip
    return {"tables": rows, "aligned": [one.label for one in aligners], "notes": notes}


def _columns(found: Gathered) -> list[Column]:
    """One column a table."""
    return list({column.table: column for column in reversed(found.columns)}.values())[::-1]


def _open(found: Gathered, column: Column) -> Shown | None:
    """The items of a table, None for retrieval and classes, whose rows are queries."""
    there = [method for method in found.methods if method.first(column.table)]
    for method in there:
        row = method.first(column.table)
        if row is None or not row.folder or row.meta.get("metric") not in ITEMWISE:
            continue
        rows, meta = results.read(Path(row.folder))
        table = Shown("", column, rows, meta)
        table.methods = {_unique(table, one): one for one in there if one.kind not in ("chance", "published")}
        return table
    return None


def _unique(table: Shown, method: Method) -> str:
    return method.label if method.label not in table.methods else f"{method.label} ({method.backbone})"


def _numbered(tables: list[Shown]) -> list[Shown]:
    for number, table in enumerate(tables):
        table.key = f"t{number}"
    return tables


def _scores(shown: Sequence[Shown], blocks: Blocks) -> list[str]:
    """Add the similarities of methods, float32 end to end, the best methods first, until their share is spent."""
    share, left = SCORES_SHARE * blocks.budget, []
    spent = 0
    for table in shown:
        ranked = sorted(table.methods, key=lambda name: _rank(table, name))
        kept = {}
        for number, name in enumerate(ranked):
            row = table.methods[name].first(table.column.table)
            assert row is not None
            rows, _ = results.read(Path(row.folder))
            values = rows["similarities"].combine_chunks().flatten().to_numpy().astype("<f4")
            if len(values) != _count(table.rows):
                continue
            if spent > share:
                left.append(f"{name} on {table.name}")
                continue
            spent += blocks.add(f"s/{table.key}/{number}", values.tobytes())
            kept[name] = table.methods[name]
            table.numbers.append(number)
            table.hits[name] = rows[headline(table.meta)[0]].to_pylist()
        table.methods = kept
    return [f"item scores of {len(left):,} rows are left out for size: {', '.join(left[:4])}, …"] if left else []


def _count(rows: pa.Table) -> int:
    return len(rows["similarities"].combine_chunks().flatten())


def _rank(table: Shown, name: str) -> tuple[int, float]:
    method = table.methods[name]
    estimate = method.estimate(table.column)
    value = estimate.value if estimate and estimate.value is not None else 0.0
    return (0 if method.kind == "cosine" else 1 if method.kind != "control" else 2, -value)


def _stores(shown: Sequence[Shown]) -> list[Path]:
    """Where features of the tables' rows lie, stores of tokens first: they know where tokens stand."""
    found: dict[str, str] = {}
    for table in shown:
        for method in table.methods.values():
            for row in method.members.get(table.column.table, ()):
                stored = row.meta.get("store") or {}
                if stored.get("path"):
                    found.setdefault(stored["path"], str(stored.get("level", "")))
    return [Path(path) for path in sorted(found, key=lambda one: found[one] != "tokens")]


def _aligners(shown: Sequence[Shown], options: Options) -> list[aligned.Aligner]:
    """The heads whose maps are shown, the best first."""
    if not shown:
        return []
    table = shown[0]
    names = options.aligned or sorted(table.methods, key=lambda name: _rank(table, name)[1])
    found: list[aligned.Aligner] = []
    for name in names:
        method = table.methods.get(name)
        row = method.first(table.column.table) if method else None
        if row is None or method is None or (method.kind not in ("tokens",) and not options.aligned):
            continue
        opened = aligned.Aligner.open(row)
        if opened and opened.shows(*table.keys(0)):
            found.append(aligned.Aligner(name, opened.scorer, opened.store, opened.grid))
        if len(found) == options.most and not options.aligned:
            break
    return found


def _index(shown: Sequence[Shown], told: dict[str, pictures.Told], blocks: Blocks) -> dict[str, dict[str, int]]:
    """Add the texts of captions, and of every table its items; numbers of images and captions by key."""
    images: dict[str, int] = {}
    captions: dict[str, int] = {}
    for table in shown:
        columns = {name: table.rows[name].to_pylist() for name in ("id", "category", "images", "captions", "truth")}
        categories = {name: number for number, name in enumerate(dict.fromkeys(columns["category"]))}
        blocks.add_json(
            f"t/{table.key}",
            {
                "ids": columns["id"],
                "categories": list(categories),
                "category": [categories[name] for name in columns["category"]],
                "images": [[images.setdefault(key, len(images)) for key in one] for one in columns["images"]],
                "captions": [[captions.setdefault(key, len(captions)) for key in one] for one in columns["captions"]],
                "truth": ["".join("1" if one else "0" for one in truth) for truth in columns["truth"]],
            },
        )
    texts = [told[key].text if key in told else key for key in captions]
    blocks.add_json("captions", texts)
    return {"image": images, "text": captions}


def order(shown: Sequence[Shown], best: str) -> list[tuple[Shown, int]]:
    """Items in the order in which they get pictures: tables and categories in turn, and of each in turn one that the
    best aligned method has right and the cosine wrong, and any other."""
    queues = []
    for table in shown:
        right, wrong = (table.hits.get(name, [False] * table.rows.num_rows) for name in (best, "cosine"))
        categories: dict[str, list[int]] = {}
        for number, name in enumerate(table.rows["category"].to_pylist()):
            categories.setdefault(name, []).append(number)
        for numbers in categories.values():
            told = [number for number in numbers if right[number] and not wrong[number]]
            rest = [number for number in numbers if number not in set(told)]
            queues.append([(table, number) for number in _alternate(told, rest)])
    return [
        one for place in range(max(map(len, queues), default=0)) for one in (q[place] for q in queues if place < len(q))
    ]


def _alternate(one: list[int], other: list[int]) -> list[int]:
    both = [number for pair in zip(one, other, strict=False) for number in pair]
    least = min(len(one), len(other))
    return both + one[least:] + other[least:]


def _heavy(
    shown: Sequence[Shown],
    aligners: Sequence[aligned.Aligner],
    told: dict[str, pictures.Told],
    names: dict[str, dict[str, int]],
    blocks: Blocks,
    options: Options,
    progress: Progress | None,
) -> list[str]:
    """Add pictures and maps of items until there are enough or the budget is spent."""
    chosen = order(shown, aligners[0].label if aligners else "")[: options.items]
    total = sum(table.rows.num_rows for table in shown)
    found = {table.key: pictures.listed(table.meta, _images(table, chosen), options.roots) for table in shown}
    added, without = 0, 0
    for some in pictures.batches(chosen, CHUNK):
        maps = _maps(some, aligners)
        for (table, number), own in zip(some, maps, strict=True):
            if blocks.full:
                break
            seen = [_picture(key, found[table.key], names, blocks) for key in table.keys(number)[0]]
            without += not all(seen)
            blocks.add(f"i/{table.key}/{number}", _item(table, number, own, told, aligners))
            added += 1
        if progress:
            progress("items", added, len(chosen))
        if blocks.full:
            break
    notes = []
    if added < total:
        notes.append(f"pictures and maps of {added:,} of {total:,} items are in this file; captions and scores of all")
    if without:
        notes.append(f"{without:,} of them are without a picture, whose file is not here")
    if aligners and not all(method.label in {one.label for one in aligners} for method in _of_tokens(shown)):
        notes.append(f"maps are of {', '.join(one.label for one in aligners)}; others: --align LABEL")
    return notes


def _of_tokens(shown: Sequence[Shown]) -> list[Method]:
    return [method for method in shown[0].methods.values() if method.kind == "tokens"] if shown else []


def _images(table: Shown, chosen: Sequence[tuple[Shown, int]]) -> set[str]:
    return {key for one, number in chosen if one is table for key in table.keys(number)[0]}


def _maps(
    some: Sequence[tuple[Shown, int]], aligners: Sequence[aligned.Aligner]
) -> list[list[tuple[aligned.Aligner, aligned.Maps]]]:
    items = [table.keys(number) for table, number in some]
    found: list[list[tuple[aligned.Aligner, aligned.Maps]]] = [[] for _ in some]
    for aligner in aligners:
        try:
            made = list(aligner.maps(items))
        except CompalError:
            continue
        for place, one in enumerate(made):
            if one:
                found[place].append((aligner, one))
    return found


def _picture(key: str, items: dict[str, Any], names: dict[str, dict[str, int]], blocks: Blocks) -> bool:
    """Add an image once; whether it is there."""
    name = f"p/{names['image'][key]}"
    if name in blocks.texts:
        return True
    made = pictures.picture(items[key]) if key in items else None
    if made is None:
        return False
    head = {"w": made.width, "h": made.height, "boxes": [[round(edge, 4) for edge in box] for box in made.boxes]}
    blocks.add(name, _framed(head, made.data), pack=False)
    return True


def _item(
    table: Shown,
    number: int,
    own: Sequence[tuple[aligned.Aligner, aligned.Maps]],
    told: dict[str, pictures.Told],
    aligners: Sequence[aligned.Aligner],
) -> bytes:
    _, captions = table.keys(number)
    texts = [told.get(key, pictures.Told(key)) for key in captions]
    head: dict[str, Any] = {
        "spans": [text.spans for text in texts],
        "segments": [text.segments for text in texts],
        "maps": [
            {"method": aligner.label, "grid": aligner.grid, "kind": maps.kind, "whole": maps.whole, "rows": maps.rows,
             "low": [round(value, 6) for value in maps.low], "high": [round(value, 6) for value in maps.high],
             "resize": aligner.store.spec.preprocess.get("resize", "shortest")}
            for aligner, maps in own
        ],
    }  # fmt: skip
    return _framed(head, b"".join(maps.data for _, maps in own))


def _framed(head: dict[str, Any], data: bytes) -> bytes:
    """The length of a JSON head, the head, the bytes."""
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    return struct.pack("<I", len(text)) + text + data


def tables_of(found: Gathered) -> list[Table]:
    """The tables whose items can be looked at."""
    return [column.table for column in _columns(found)]
