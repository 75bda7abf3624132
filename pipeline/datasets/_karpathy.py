"""The Karpathy JSON: images with `filename`, `filepath`, `split` and `sentences`, of COCO and of Flickr30k."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import InputError
from ._files import Photo, Told, check_split, read_json, split_options
from ._places import image_folders, locate


@dataclass(frozen=True)
class Source:
    """The annotation file of a dataset and the folders of its images."""

    dataset: str
    file: Path
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Entry:
    """One image: its file and folder as the JSON names them, its split and what is said of it."""

    file: str
    folder: str
    split: str
    captions: tuple[tuple[object, object], ...]


def find(dataset: str, root: Path, names: Iterable[str], labels: Iterable[str] = ()) -> Source:
    """The annotation file: `root` itself, or the first of `names` in it. Raises `InputError`."""
    root, given = split_options(dataset, root, ("images",))
    base = root if root.is_dir() else root.parent
    places = [base / folder / name for name in names for folder in (".", "annotations", "karpathy")]
    file = root if root.is_file() else next((place for place in places if place.is_file()), None)
    if file is None:
        cure = f"Point --data {dataset}:FOLDER at the folder that holds it, or at the file itself."
        raise InputError(f"no {' or '.join(names)} in {root}", cure)
    images = Path(given["images"]).expanduser() if "images" in given else base
    return Source(dataset, file, tuple(image_folders(images, labels)))


def entries(source: Source) -> tuple[Entry, ...]:
    """All images of the file. Raises `InputError` for a file of another format."""
    return _read(source.file, source.file.stat().st_mtime_ns)


def splits(found: Iterable[Entry]) -> list[str]:
    """The splits that the images name."""
    return sorted({entry.split for entry in found})


def photos(source: Source, found: Iterable[Entry], split: str, limit: int | None) -> list[Photo]:
    """The first `limit` images of a split; `train+restval` is both, train first as in the file."""
    found, wanted = list(found), split.split("+")
    for part in wanted:
        check_split(part, splits(found), source.file)
    return [_photo(source, entry) for entry in found if entry.split in wanted][:limit]


def _photo(source: Source, entry: Entry) -> Photo:
    folders = [*(folder / entry.folder for folder in source.folders if entry.folder), *source.folders]
    name = f"{source.dataset}/{entry.split}/{entry.file}"
    captions = tuple(Told(text, f"{source.dataset}/{entry.split}/sentence {number}") for number, text in entry.captions)
    return Photo(locate(folders, entry.file), name, captions)


@lru_cache(maxsize=2)
def _read(file: Path, mtime_ns: int) -> tuple[Entry, ...]:
    data = read_json(file)
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list):
        raise InputError(f"{file} has no list 'images'", "It must be in the format of Karpathy's splits.")
    return tuple(_entry(file, number, image) for number, image in enumerate(images))


def _entry(file: Path, number: int, image: Any) -> Entry:
    lacking = [key for key in ("filename", "split") if not isinstance(image, dict) or not _is_name(image.get(key))]
    if lacking:
        raise InputError(f"{file}: images[{number}] has no {', '.join(lacking)}", "Add what is missing.")
    return Entry(
        image["filename"],
        image["filepath"] if _is_name(image.get("filepath")) else "",
        image["split"],
        tuple(_sentences(image.get("sentences"))),
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _sentences(sentences: object) -> Iterator[tuple[object, object]]:
    """(number, text); what has no text is kept for the quarantine."""
    for place, sentence in enumerate(sentences if isinstance(sentences, list) else [sentences]):
        known = sentence if isinstance(sentence, dict) else {}
        yield known.get("sentid", place), known.get("raw", sentence)
