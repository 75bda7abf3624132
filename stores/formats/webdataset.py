"""WebDataset: a folder of tar shards, one for each kind, a JSON and npy members per item.

`images-000000.tar` holds `<key>.json` (key, source, width, height), and what the store keeps of `<key>.pooled.npy`
and `<key>.tokens.npy`; `texts-000000.tar` the same with the caption, its spans and segments. `compal.json` beside
them holds the spec. bfloat16 is stored as its bits (uint16), as in the store.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ...errors import InputError
from ..buffers import Array
from ..rows import is_ragged, token_dim
from ..sizes import part_rows
from ..store import Store
from ._common import (
    BLOCK_BYTES,
    KINDS,
    PLURAL,
    Exported,
    Importer,
    Kind,
    chosen,
    publishing,
    quarantined_in,
    read_notes,
    reading,
    refuse,
    row_tokens,
    runs,
    spec_of,
    write_notes,
)
from ._rows import add_rows, features
from .npz import read_header

SUFFIX = ".wds"
READ_ROWS = 1024
SHARD_BYTES = 1 << 28
LARGEST_NOTE = 1 << 24  # bytes of one JSON
NUMBERED = re.compile(r"(images|texts)-\d{6,}\.tar")


def export(store: Store, path: Path, keys: Sequence[str] | None = None) -> Exported:
    """Write all items, or those of `keys`, to the new folder `path`. Raises `InputError` if it exists."""
    path, tables = Path(path), chosen(store, keys)
    with publishing(path) as staged:
        staged.mkdir()
        write_notes(staged, store, keys)
        for kind in KINDS:
            shards = _Shards(staged, PLURAL[kind])
            try:
                for members in _samples(store, kind, tables[kind].to_pylist()):
                    shards.add(members)
            finally:
                shards.close()
    return Exported.of(path, "webdataset", tables)


class _Shards:
    """Numbered tars of about 256 MiB; a sample never lies across two."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.number, self.size = folder, name, 0, 0
        self.tar: tarfile.TarFile | None = None

    def add(self, members: dict[str, bytes]) -> None:
        """Write one sample: member name → content."""
        if self.tar is None or self.size > SHARD_BYTES:
            self.close()
            path = self.folder / f"{self.name}-{self.number:06}.tar"
            self.tar = tarfile.open(path, "x", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            self.number, self.size = self.number + 1, 0
        for name, content in members.items():
            info = tarfile.TarInfo(name)  # dated 1970: equal stores make equal files
            info.size = len(content)
            self.tar.addfile(info, io.BytesIO(content))
            self.size += len(content) + tarfile.BLOCKSIZE

    def close(self) -> None:
        """End the open shard."""
        if self.tar:
            self.tar.close()


def _samples(store: Store, kind: Kind, rows: list[dict[str, Any]]) -> Iterator[dict[str, bytes]]:
    if not rows:
        return
    tokens, step = token_dim(store.spec, kind), READ_ROWS
    if tokens:
        step = min(step, BLOCK_BYTES // row_tokens(store, kind, [rows[0]["key"]])[0].nbytes)
    for run in runs(len(rows), step):
        keys = [row["key"] for row in rows[run]]
        pooled = store.pooled(kind, keys) if store.spec.pooled_dim else None
        values = row_tokens(store, kind, keys) if tokens else None
        for number, row in enumerate(rows[run]):
            name = quote(row["key"], safe="").replace(".", "%2E")  # a sample's name ends at the first dot
            members = {f"{name}.json": json.dumps(row, ensure_ascii=False).encode()}
            if pooled is not None:
                members[f"{name}.pooled.npy"] = _npy(pooled[number])
            if values is not None:
                members[f"{name}.tokens.npy"] = _npy(values[number])
            yield members


def _npy(values: Array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getvalue()


def load(path: Path, folder: Path, mapping: dict[str, str] | None = None) -> Path:
    """Write what the folder `path` holds as a store below `folder` and return the store's folder.

    Raises `InputError` for what is damaged or does not fit. Nothing is unpacked; others' shards are not read.
    """
    path = Path(path)
    if mapping is not None:
        raise InputError("only shards that compal wrote are imported; they need no mapping", "Extract from the images.")
    with reading(path):
        notes = read_notes(path)
        spec = spec_of(path, notes)
        importer = Importer(path, Path(folder), spec, quarantined_in(path, notes))
        for kind in KINDS:
            shards = sorted(file for file in path.glob(f"{PLURAL[kind]}-*.tar") if NUMBERED.fullmatch(file.name))
            _load_kind(importer, kind, (sample for shard in shards for sample in _read_shard(shard)))
        return importer.finish()


def _read_shard(shard: Path) -> Iterator[dict[str, Any]]:
    """Samples of one tar: {"json": dict, "pooled": array, "tokens": array}."""
    size = shard.stat().st_size
    sample: dict[str, Any] = {}
    current = None
    with reading(shard), tarfile.open(shard, "r:") as tar:
        for member in tar:
            name, _, extension = member.name.partition(".")
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
            if not plain or member.size > size or extension not in ("json", "pooled.npy", "tokens.npy"):
                raise refuse(shard, f"the member {member.name!r} is not one of an export")
            if name != current and sample:
                yield sample
                sample = {}
            current = name
            what = extension.removesuffix(".npy")
            if what in sample:
                raise refuse(shard, f"the member {member.name!r} stands twice")
            file = tar.extractfile(member)
            assert file is not None
            sample[what] = _member(shard, member, file)
    if sample:
        yield sample


def _member(shard: Path, member: tarfile.TarInfo, file: Any) -> Any:
    if member.name.endswith(".json"):
        if member.size > LARGEST_NOTE:
            raise refuse(shard, f"{member.name} has {member.size:,} bytes")
        return json.loads(file.read())
    shape, dtype = read_header(shard, member.name, file, member.size)
    raw = file.read()
    if len(raw) != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise refuse(shard, f"{member.name} does not have the bytes of its shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape)


def _load_kind(importer: Importer, kind: Kind, samples: Iterator[dict[str, Any]]) -> None:
    wanted = {"json", *features(importer, kind)}
    gathered: list[dict[str, Any]] = []
    rows = 0
    for sample in samples:
        if set(sample) != wanted:
            raise refuse(importer.label, f"a sample holds {sorted(sample)} in place of {sorted(wanted)}")
        gathered.append(sample)
        rows = rows or part_rows(sum(sample[name].nbytes for name in wanted - {"json"}))
        if len(gathered) == rows:
            _flush(importer, kind, gathered)
            gathered = []
    if gathered:
        _flush(importer, kind, gathered)


def _flush(importer: Importer, kind: Kind, samples: list[dict[str, Any]]) -> None:
    def joined(name: str) -> Array:
        if len({(sample[name].shape, sample[name].dtype.str) for sample in samples}) > 1:
            raise refuse(importer.label, f"the {name} of its items differ in shape")
        return np.stack([sample[name] for sample in samples])

    tokens: Any = None
    if "tokens" in samples[0]:
        tokens = [sample["tokens"] for sample in samples] if is_ragged(importer.spec, kind) else joined("tokens")
    pooled = joined("pooled") if "pooled" in samples[0] else None
    add_rows(importer, kind, [sample["json"] for sample in samples], (tokens, pooled))
