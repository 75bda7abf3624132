"""A plan as a file: what any process on any machine needs to do a unit of it, and nothing that runs.

    items.arrow    an Arrow IPC file, one record batch a unit, zstd
    plan.json      the job and, of each unit, its parts and where its batch lies, with xxh3; written last

A reader parses the index and then only the batches of the units that it does. Contents travel as data: a caption,
a path, a slice of a file, why there is none. What only the dataset can make again (rendered pictures, rows of a table)
travels as its key: the reader lists the dataset again and finds it there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ..config import canonical
from ..errors import InputError, VerificationError
from ..stores.files import disk_errors, read_json, sync, write_synced
from ..stores.items import FileSlice, Item
from . import listing as listings
from .datasets._files import Lost
from .decode import Unreadable, read_caption
from .job import Job
from .plan import PlannedPart, Unit

if TYPE_CHECKING:
    import pyarrow as pa

Reader = Callable[[int, int], bytes]
VERSION = 1
ITEMS, INDEX = "items.arrow", "plan.json"
TEXT, PATH, SLICE, RELIST, UNREADABLE = range(5)
AGAIN = "Start the extraction again: what is complete is kept."


@dataclass(frozen=True)
class UnitEntry:
    """A unit as the index knows it, without its items.

    name   of the unit
    kind   "image" or "text"
    rows   how many items
    parts  by level the names of its parts and their rows
    span   (offset, bytes, xxh3_128) of its record batch
    """

    name: str
    kind: Any
    rows: int
    parts: Mapping[str, tuple[tuple[str, int], ...]]
    span: tuple[int, int, str]


class PlanFile:
    """A plan that was written by `write`. Build it with `PlanFile.open`.

    folder   where it lies
    job      whose plan it is
    entries  the units, by name, in the order of the plan
    """

    def __init__(self, folder: Path, job: Job, entries: Mapping[str, UnitEntry], read: Reader | None = None) -> None:
        self.folder, self.job, self.entries = folder, job, entries
        self._read = read or self._read_here
        self._listed: dict[str, Item] | None = None

    @classmethod
    def open(cls, folder: Path, read: Reader | None = None) -> PlanFile:
        """`read(offset, size)` gives bytes of the items' file, which lies in `folder` if it is not given.

        Raises `InputError` if the plan is gone (its job has ended), `VerificationError` if it is damaged."""
        if not (folder / INDEX).is_file():
            raise InputError(f"there is no plan {folder}: its job has ended", AGAIN)
        data = read_json(folder / INDEX)
        if data.get("format") != VERSION or data.pop("digest", None) != _digest(data):
            raise VerificationError(f"{folder / INDEX} is damaged or of another version of compal", AGAIN)
        try:
            entries = {entry["name"]: _entry(entry) for entry in data["units"]}
            return cls(folder, Job.from_json(data["job"]), entries, read)
        except (KeyError, TypeError, ValueError) as error:
            raise VerificationError(f"{folder / INDEX} is damaged: {error!r}", AGAIN) from None

    def unit(self, name: str) -> Unit:
        """Load a unit with its items. Raises `VerificationError` if its bytes are not what was written,
        `InputError` if the dataset no longer has one of its items."""
        entry = self.entries[name]
        items = tuple(self._item(entry, row) for row in _rows(self._batch(entry)))
        return Unit(name, entry.kind, items, {level: _parts(entry, level, items) for level in entry.parts})

    def _listing(self) -> Iterator[Item]:
        """The items again, by the key cache of the workspace that the stores lie in, if it has one."""
        kept = self.job.folders[0].parent.parent / "listing.sqlite"
        found = self.job.listing
        patience = found.patience(self.job.config) if found else None
        with listings.use(kept if kept.is_file() else None, patience=patience):
            yield from found.items() if found else ()

    def _batch(self, entry: UnitEntry) -> pa.RecordBatch:
        import pyarrow as pa

        offset, size, digest = entry.span
        path, raw = self.folder / ITEMS, self._read(offset, size)
        if len(raw) != size or xxhash.xxh3_128_hexdigest(raw) != digest:
            raise VerificationError(f"{path} is damaged where unit {entry.name} lies", AGAIN)
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(raw), _schema())
        if batch.num_rows != entry.rows:
            raise VerificationError(f"{path} holds another number of items of unit {entry.name}", AGAIN)
        return batch

    def _read_here(self, offset: int, size: int) -> bytes:
        try:
            with open(self.folder / ITEMS, "rb") as file:
                return os.pread(file.fileno(), size, offset)
        except FileNotFoundError:
            raise InputError(f"there is no plan {self.folder}: its job has ended", AGAIN) from None

    def _item(self, entry: UnitEntry, row: dict[str, Any]) -> Item:
        content, key = row["content"], row["key"]
        if content == RELIST:
            if self._listed is None:
                self._listed = {item.key: item for item in self._listing()}
            if key not in self._listed:
                raise InputError(f"the dataset no longer lists {_text(row['source'])} ({key})", AGAIN)
            return self._listed[key]
        made: str | Path | FileSlice | Lost
        made = _text(row["data"]) if content == TEXT else Path(os.fsdecode(row["data"]))
        if content == SLICE:
            made = FileSlice(Path(os.fsdecode(row["data"])), row["offset"], row["size"])
        elif content == UNREADABLE:
            made = Lost(_text(row["data"]))
        segments = tuple((one["start"], one["end"], one["kind"]) for one in row["segments"])
        boxes = tuple((box[0], box[1], box[2], box[3]) for box in row["boxes"])
        return Item(key, entry.kind, _text(row["source"]), made, segments, boxes)


def write(job: Job, units: Sequence[Unit], folder: Path) -> Path:
    """Write the plan of `units` into `folder` and return that. Its index appears last and whole.

    Raises `InputError` for items that no other process can make again, and if the disk is full."""
    here = dataclasses.replace(job, folders=tuple(Path(os.path.abspath(path)) for path in job.folders))
    with disk_errors(f"the plan {folder}"):
        data = {"format": VERSION, "job": here.to_json(), "units": list(_write_items(job, units, folder / ITEMS))}
        sync(folder / ITEMS)
        write_synced(folder / f"{INDEX}.new", canonical({**data, "digest": _digest(data)}))
        os.rename(folder / f"{INDEX}.new", folder / INDEX)
        sync(folder)
    return folder


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(data)).hexdigest()


def _entry(data: Mapping[str, Any]) -> UnitEntry:
    parts = {level: tuple((str(name), int(rows)) for name, rows in named) for level, named in data["parts"].items()}
    offset, size, digest = data["span"]
    return UnitEntry(data["name"], data["kind"], int(data["rows"]), parts, (int(offset), int(size), str(digest)))


def _parts(entry: UnitEntry, level: str, items: tuple[Item, ...]) -> tuple[PlannedPart, ...]:
    found, start = [], 0
    for name, rows in entry.parts[level]:
        found.append(PlannedPart(name, entry.kind, items[start : start + rows]))
        start += rows
    return tuple(found)


# --- items as columns ------------------------------------------------------------------------------------


def _schema() -> pa.Schema:
    import pyarrow as pa

    segment = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string())])
    return pa.schema(
        [
            ("key", pa.string()),
            ("source", pa.binary()),  # names of files need not be UTF-8
            ("content", pa.int8()),
            ("data", pa.binary()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            ("segments", pa.list_(segment)),
            ("boxes", pa.list_(pa.list_(pa.float64(), 4))),
        ]
    )


def _write_items(job: Job, units: Sequence[Unit], path: Path) -> Iterator[dict[str, Any]]:
    """Write the batches; yields the index's entry of each unit."""
    import pyarrow as pa

    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _schema(), options=options) as writer:
        writer.write_batch(_columns([], job))  # the schema is written with the first batch
        spans = []
        for unit in units:
            start = sink.tell()
            writer.write_batch(_columns(unit.items, job))
            spans.append((start, sink.tell() - start))
    with open(path, "rb") as file:
        for unit, (start, size) in zip(units, spans, strict=True):
            raw = os.pread(file.fileno(), size, start)
            yield {
                "name": unit.name,
                "kind": unit.kind,
                "rows": len(unit.items),
                "parts": {level: [[part.name, len(part.items)] for part in own] for level, own in unit.parts.items()},
                "span": [start, size, xxhash.xxh3_128_hexdigest(raw)],
            }


def _columns(items: Sequence[Item], job: Job) -> pa.RecordBatch:
    import pyarrow as pa

    contents = [_content(item, job) for item in items]
    columns = [
        [item.key for item in items],
        [_bytes(item.source) for item in items],
        *([content[column] for content in contents] for column in range(4)),
        [[{"start": start, "end": end, "kind": kind} for start, end, kind in item.segments] for item in items],
        [[list(box) for box in item.boxes] for item in items],
    ]
    schema = _schema()
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _content(item: Item, job: Job) -> tuple[int, bytes, int, int]:
    """(kind, data, offset, size) of a content. Paths become absolute: a worker may stand elsewhere."""
    content = item.content
    if isinstance(content, str):
        return TEXT, _bytes(content), 0, 0
    if isinstance(content, Path):
        return PATH, os.fsencode(os.path.abspath(content)), 0, 0
    if isinstance(content, FileSlice):
        return SLICE, os.fsencode(os.path.abspath(content.path)), content.offset, content.size
    if isinstance(content, Lost):
        return UNREADABLE, _bytes(content.reason), 0, 0
    if item.kind == "text" and not callable(getattr(content, "read", None)):
        try:
            read_caption(item)
        except Unreadable as error:
            return UNREADABLE, _bytes(str(error)), 0, 0
    if job.listing is None:
        what = f"{item.kind} {item.source} is made by a function, which cannot be sent to another process"
        raise InputError(what, "Extract a dataset by its name, or use --engine local.")
    return RELIST, b"", 0, 0


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
