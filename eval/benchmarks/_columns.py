"""Rows and images inside Parquet and Arrow files, as Hugging Face datasets are passed on.

An image is named `<file>#<chunk>#<row>#<column>`. Nothing is kept but a few columns of a few chunks, so that an item
costs no memory until it is decoded.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item, content_key

SUFFIXES = (".parquet", ".arrow")


class ColumnImages:
    """Images inside shards of `folder`, as raw bytes or as structs that hold them as `bytes`."""

    def __init__(self, benchmark: str, folder: Path) -> None:
        self.benchmark = benchmark
        self.folder = folder
        self.where = f"the shards in {folder}"

    def has(self, name: str) -> bool:
        return _image_bytes(self.folder, name) is not None

    def item(self, name: str) -> Item:
        key = content_key("image-file", _image_bytes(self.folder, name) or b"")
        return Item(key, "image", f"{self.benchmark}/{name}", functools.partial(_render, self.folder, name))


def rows(
    shards: Sequence[Path], texts: Sequence[str], images: Sequence[str], cure: str, optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of `shards`: where it stands, and the columns `texts`, those of `optional` that are there, and for
    each column of `images` the name of the image. Raises `InputError` for files that are not readable or lack one."""
    number = 0
    for path in shards:
        for chunk, table in enumerate(_chunks(path, texts, images, optional, cure)):
            for index, row in enumerate(table.to_pylist()):
                names = {column: f"{path.name}#{chunk}#{index}#{column}" for column in images}
                yield f"{path} row {number}", row | names
                number += 1


def names(path: Path) -> list[str]:
    """The columns of a Parquet file that is readable."""
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def _chunks(
    path: Path, texts: Sequence[str], images: Sequence[str], optional: Sequence[str], cure: str
) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".arrow":
            whole = _stream(path)
            known, chunks = whole.schema.names, len(whole.to_batches())
        else:
            with pq.ParquetFile(path) as file:
                known, chunks = file.schema_arrow.names, file.num_row_groups
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is not a readable {path.suffix[1:]} file: {error}", cure) from None
    lacking = [name for name in (*texts, *images) if name not in known]
    if lacking:
        raise InputError(f"{path} lacks the columns {', '.join(lacking)}", cure)
    wanted = [*texts, *(name for name in optional if name in known)]
    for chunk in range(chunks):
        yield _read(path, chunk, tuple(wanted))


def _read(path: Path, chunk: int, columns: tuple[str, ...]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".arrow":
        return pa.Table.from_batches([_stream(path).to_batches()[chunk]]).select(list(columns))
    with pq.ParquetFile(path) as file:
        return file.read_row_group(chunk, columns=list(columns))


@functools.lru_cache(maxsize=4)
def _stream(path: Path) -> Any:
    """A file that `datasets` saved to disk: a memory-mapped Arrow stream."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


@functools.lru_cache(maxsize=4)
def _column(path: Path, chunk: int, column: str) -> Any:
    return _read(path, chunk, (column,)).column(column)


def _image_bytes(folder: Path, name: str) -> bytes | None:
    shard, chunk, row, column = name.split("#")
    value = _column(folder / shard, int(chunk), column)[int(row)].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) and content else None


def _render(folder: Path, name: str) -> Any:
    """The image as (H, W, 3) uint8."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(_image_bytes(folder, name) or b"")) as image:
        return np.asarray(image.convert("RGB"))
