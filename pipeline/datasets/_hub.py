"""Rows of Hugging Face datasets, memory-mapped: parquet and arrow files, saved datasets, and the hub.

Nothing of a dataset is executed: files are parquet or arrow, and the hub's scripts are not run.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ...errors import CompalError, InputError
from ...stores.items import content_key
from .. import listing
from ._files import Lost, Photo, Told, lost_photo
from ._patterns import find_files
from ._places import by_split
from ._tables import Table

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FILES = (".parquet", ".arrow")
ROWS = 64  # images read at a time when their keys are taken; 64 of 5 MB are 320 MB
BLOCK = 4096  # rows whose keys are remembered together: 64 KiB
NONE = bytes(16)  # in place of the key of a row that has no bytes


@dataclass(frozen=True)
class Loaded:
    """A dataset by split, where its image paths start (None: nowhere), and what its card says."""

    splits: dict[str, Any]
    label: str
    folder: Path | None
    files: tuple[Path, ...]
    licence: str = ""
    revision: str = ""
    citation: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """The image in one row of a column, as the bytes of its file."""

    images: Any
    number: int
    column: str

    def read(self) -> bytes:
        """Raises `OSError` if the row has none."""
        data = _cell_bytes(self.images[self.number][self.column])
        if data is None:
            raise OSError(f"row {self.number} has no image in '{self.column}'")
        return data


def load(dataset: str, root: Path, revision: str = "", config: str = "") -> Loaded:
    """The dataset of a folder, a file, a pattern, or `org/name` of the hub. Raises `InputError`."""
    if not root.exists() and HUB_NAME.fullmatch(str(root)) and root.suffix not in FILES:
        return _from_hub(str(root), revision, config)
    saved = _saved(root)
    if saved:
        return _from_disk(root, _stamp(saved))
    folder, files = find_files(dataset, root, FILES)
    return _from_files(folder, tuple(files), _stamp(files))


def _saved(root: Path) -> list[Path]:
    """The state files of a dataset that `save_to_disk` wrote."""
    marks = [root / "dataset_dict.json", root / "state.json"]
    return [mark for mark in marks if mark.is_file()]


def _stamp(files: list[Path]) -> str:
    return " ".join(f"{file}:{listing.patiently(file, file.stat).st_mtime_ns}" for file in files)


@lru_cache(maxsize=4)
def _from_disk(root: Path, stamp: str) -> Loaded:
    library = _library()
    with _failing(str(root), library):
        data = library.load_from_disk(str(root))
    splits = dict(data) if isinstance(data, dict) else {"train": data}
    return _loaded(splits, root.name, root, tuple(sorted(root.rglob("*.arrow"))))


@lru_cache(maxsize=4)
def _from_files(folder: Path, files: tuple[Path, ...], stamp: str) -> Loaded:
    library = _library()
    splits = {}
    for split, some in by_split(files, folder).items():
        with _failing(str(folder), library):
            if all(file.suffix == ".arrow" for file in some):
                parts = [library.Dataset.from_file(str(file)) for file in some]
                splits[split] = library.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
            else:
                names = [str(file) for file in some if file.suffix == ".parquet"]
                splits[split] = library.load_dataset("parquet", data_files={split: names}, split=split)
    return _loaded(splits, folder.name, folder, files)


@lru_cache(maxsize=4)
def _from_hub(name: str, revision: str, config: str) -> Loaded:
    """A dataset of the hub at one commit: the branch or tag is resolved first, and the commit is what is recorded."""
    library = _library()
    licence = ""
    with _failing(name, library):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            info = HfApi().dataset_info(name, revision=revision or None)
            revision, card = info.sha or revision, info.card_data
            licence = str(card.get("license") or "") if card else ""
        except Exception as error:  # the errors of the hub's HTTP client, httpx, are no OSErrors
            known = isinstance(error, OfflineModeIsEnabled | OSError)
            if not known and type(error).__module__.partition(".")[0] not in ("httpx", "httpcore"):
                raise
            # The copy in the cache may do; `load_dataset` says so if it does not.
        data = library.load_dataset(name, config or None, revision=revision or None)
    return _loaded(dict(data), name, None, (), licence, revision)


def _loaded(
    splits: dict[str, Any],
    label: str,
    folder: Path | None,
    files: tuple[Path, ...],
    licence: str = "",
    revision: str = "",
) -> Loaded:
    info = next(iter(splits.values())).info
    return Loaded(splits, label, folder, files, licence or info.license, revision, info.citation)


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        cure = 'Install it: pip install "compal[interop]"'
        raise InputError("Hugging Face datasets need the library 'datasets'", cure) from None


@contextmanager
def _failing(name: str, library: Any) -> Iterator[None]:
    """Without the library's bars of progress, and with its errors as one line."""
    shown = not library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    except CompalError:
        raise
    except Exception as error:  # the library, pyarrow and the hub raise whatever they like
        what = f"cannot load the dataset {name}: {str(error) or type(error).__name__:.300}"
        cause = error if isinstance(error, OSError) else None  # a share may come back
        raise InputError(what, "Check the name, the revision and the files.") from cause
    finally:
        if shown:
            library.enable_progress_bars()


def row_photos(loaded: Loaded, split: str, columns: Mapping[str, tuple[str, ...]]) -> Iterator[Photo]:
    """One photograph a row, in order: column `image`, captions of the columns `caption` and their `negatives`."""
    data, image = loaded.splits[split], columns["image"][0]
    table = Table("huggingface", (), dict(columns))
    names = [name for role in ("caption", "negatives") for name in columns.get(role, ())]
    label = loaded.label if len(loaded.splits) == 1 else f"{loaded.label}/{split}"
    images = image_rows(loaded, split, image)
    for number, (row, found) in enumerate(zip(text_rows(data, names), images, strict=True)):
        told = table.told(f"{label} row {number}", row)
        yield image_photo(found, f"{label}/{number}", told)


def text_rows(data: Any, names: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of some columns, which hold no images."""
    texts = data.select_columns(names).with_format(None)
    for start in range(0, len(texts), 1024):
        block = texts[start : start + 1024]
        yield from (
            dict(zip(names, cells, strict=True)) for cells in zip(*(block[name] for name in names), strict=True)
        )


Found = tuple[Row | Path | Lost, str]


def image_photo(found: Found, source: str, told: tuple[Told, ...]) -> Photo:
    """The photograph of what `image_rows` found."""
    image, key = found
    if isinstance(image, Lost):
        return lost_photo(source, image.reason, told)
    return Photo(image, source, told, key)


def image_rows(loaded: Loaded, split: str, column: str) -> Iterator[Found]:
    """(image, key) of each row: bytes in the row, or the file that it names, whose key is asked later."""
    images = _undecoded(loaded.splits[split], column)
    for number, key in enumerate(_keys(images, column)):
        if key:
            yield Row(images, number, column), key
            continue
        cell = images[number][column]
        path = cell.get("path") if isinstance(cell, dict) else cell
        if isinstance(path, str) and path and "\0" not in path and loaded.folder is not None:
            yield loaded.folder / path, ""
        else:  # a dataset of the hub cannot name files of this machine
            yield Lost(f"row {number} has no image in '{column}'"), ""


def _undecoded(data: Any, column: str) -> Any:
    library = _library()
    images = data.select_columns([column]).with_format(None)
    if isinstance(data.features[column], library.Image):
        images = images.cast_column(column, library.Image(decode=False))
    return images


def _cell_bytes(cell: Any) -> bytes | None:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else None


def _keys(images: Any, column: str) -> Iterator[str]:
    """The key of each row's bytes, "" where there are none; remembered for as long as the files stay as they are."""
    files = [os.path.abspath(entry["filename"]) for entry in images.cache_files]
    stamps = [listing.stamp_of(listing.patiently(file, partial(os.stat, file))) for file in files]
    # The fingerprint tells of selections and orders of rows, the files' stamps of what lies in them.
    parts = [column, str(len(images)), images._fingerprint if not files else _order(images), *files, *stamps]
    stamp = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest() if all(stamps) else ""
    # Blocks, as whoever wants the first ten rows must not read a million.
    for first in range(0, len(images), BLOCK):
        numbers = range(first, min(first + BLOCK, len(images)))
        name = f"rows\0{first}\0{stamp}"
        known = listing.recall(name, stamp)
        if known is not None and len(known) == len(NONE) * len(numbers):
            yield from (_hex(known[start : start + len(NONE)]) for start in range(0, len(known), len(NONE)))
            continue
        taken = []
        for key in _take_keys(images, column, numbers):
            taken.append(key)
            yield _hex(key)
        listing.remember(name, stamp, b"".join(taken))


def _hex(key: bytes) -> str:
    return "" if key == NONE else key.hex()


def _order(images: Any) -> str:
    """A name for which rows of the files there are: "" for all of them as they lie."""
    if images._indices is None:
        return ""
    return hashlib.sha256(repr(images._indices.column(0).to_pylist()).encode()).hexdigest()


def _take_keys(images: Any, column: str, numbers: range) -> Iterator[bytes]:
    with ThreadPoolExecutor(listing.READERS, "read") as pool:
        for start in range(numbers.start, numbers.stop, ROWS):
            yield from pool.map(_key_of, images[start : min(start + ROWS, numbers.stop)][column])


def _key_of(cell: Any) -> bytes:
    data = _cell_bytes(cell)
    return NONE if data is None else bytes.fromhex(content_key("image-file", data))
