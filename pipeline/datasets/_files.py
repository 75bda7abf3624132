"""What datasets share: photographs with captions, their items and pairs, options, one-line errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ... import registry
from ...errors import InputError, UnknownName
from ...stores.items import Item, Pair, Readable, content_key
from .. import listing

# How many photographs are looked up, or read, at a time.
_CHUNK = 1024


class Told(NamedTuple):
    """What is said of an image: a caption, where it stands, and captions that do not describe the image.

    Text and negatives may be anything but text, which extraction then quarantines.
    """

    text: object
    source: str
    negatives: tuple[object, ...] = ()


@dataclass(frozen=True)
class Photo:
    """An image and what is said of it.

    image     a file, or what `read`s the file's bytes
    key       of an image that is not a file of its own; "" else
    group     two photographs of one swap quadruplet share a group, see `Pair`
    category  of the group
    """

    image: Path | Readable
    source: str
    captions: tuple[Told, ...]
    key: str = ""
    group: str = ""
    category: str = ""


@dataclass(frozen=True)
class Lost:
    """An image that is known to be there and cannot be had; reading it says why."""

    reason: str

    def read(self) -> bytes:
        """Raises `OSError`."""
        raise OSError(self.reason)


def lost_photo(source: str, reason: str, captions: tuple[Told, ...] = ()) -> Photo:
    """A photograph for the quarantine."""
    return Photo(Lost(reason), source, captions, unreadable_key(source))


def unreadable_key(source: str) -> str:
    """The key of an image whose bytes cannot be had, as `Item.image_file` makes it."""
    return content_key("image-unreadable", printable(source).encode())


def require_folder(dataset: str, root: Path | None) -> Path:
    """The root of a dataset that is a folder. Raises `InputError` if none is given or there is none."""
    root = require_root(dataset, root, "FOLDER")
    if not listing.is_dir(root):
        raise InputError(f"no folder {root} for dataset '{dataset}'", "Check the path after the colon.")
    return root


def require_root(dataset: str, root: Path | None, what: str) -> Path:
    """The root of a dataset that needs one. Raises `InputError` if none is given."""
    if root is None:
        cure = f"Give it as --data {dataset}:{what} or under [roots] in compal.toml."
        raise InputError(f"dataset '{dataset}' needs its {what.lower()}", cure)
    return root


def split_options(dataset: str, root: Path, known: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """`registry.split_options`. Raises `UnknownName` for an option that is not `known`."""
    place, options = registry.split_options(root)
    for option in options:
        if option not in known:
            raise UnknownName.among(f"{dataset} option", option, known, f"Example: '{dataset}:ROOT?{known[0]}=VALUE'.")
    return place, options


def check_split(split: str, known: Iterable[str], where: object) -> None:
    """Raises `UnknownName` unless `split` is known."""
    known = list(known)
    if split not in known:
        raise UnknownName.among("split", split, known, f"Looked in {where}.")


def printable(text: str) -> str:
    """The text without what cannot be written: bytes that are not UTF-8 become \\udcXX."""
    return text.encode("utf-8", "backslashreplace").decode()


def decoded(data: bytes) -> str:
    """Bytes as text; those that are not UTF-8 stay as lone surrogates, which the quarantine names."""
    return data.decode("utf-8-sig", "surrogateescape")


def read_json(file: Path) -> Any:
    """A JSON file, with captions that are not UTF-8 kept for the quarantine. Raises `InputError`."""
    try:
        return json.loads(decoded(listing.patiently(file, file.read_bytes)))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file} is not a JSON file: {error}", "Download it again.") from None


def caption_item(caption: object, source: str) -> Item:
    """The item of a caption; what is not text gets a key too, so that it lands in the quarantine."""
    if isinstance(caption, str):
        try:
            return Item.caption(caption, source)
        except UnicodeEncodeError:
            pass
    return Item(content_key("text-unreadable", ascii(caption).encode()), "text", source, caption)  # type: ignore[arg-type]


def photo_items(photos: Iterable[Photo]) -> Iterator[Item]:
    """Each photograph's image, then its captions, each followed by its negatives."""
    for photo, image in _with_images(photos):
        yield image
        for told in photo.captions:
            source = printable(told.source)
            yield caption_item(told.text, source)
            for number, negative in enumerate(told.negatives, 1):
                yield caption_item(negative, f"{source}, negative {number}")


def photo_pairs(photos: Iterable[Photo]) -> Iterator[Pair]:
    """Each (image, caption) with its negatives once."""
    seen: set[Pair] = set()
    for photo, image in _with_images(photos):
        for told in photo.captions:
            caption = caption_item(told.text, "").key
            others = dict.fromkeys(caption_item(negative, "").key for negative in told.negatives)
            others.pop(caption, None)
            pair = Pair(image.key, caption, tuple(others), photo.group, photo.category)
            if pair not in seen:
                seen.add(pair)
                yield pair


def first(photos: Iterable[Photo], limit: int | None) -> Iterator[Photo]:
    """The photographs of the first `limit` images."""
    if limit is None:
        yield from photos
        return
    seen: set[object] = set()
    for photo in photos:
        seen.add(photo.image)
        if len(seen) > limit:
            return
        yield photo


def merged(photos: Iterable[Photo]) -> list[Photo]:
    """One photograph per image file, one caption per text: what several rows say of them is joined."""
    images: dict[object, Photo] = {}
    captions: dict[object, dict[str, tuple[Told, dict[str, object]]]] = {}
    for photo in photos:
        images.setdefault(photo.image, photo)
        own = captions.setdefault(photo.image, {})
        for told in photo.captions:
            _, negatives = own.setdefault(ascii(told.text), (told, {}))
            negatives.update((ascii(negative), negative) for negative in told.negatives)
    return [
        Photo(
            photo.image,
            photo.source,
            tuple(Told(told.text, told.source, tuple(others.values())) for told, others in captions[image].values()),
            photo.key,
        )
        for image, photo in images.items()
    ]


def _with_images(photos: Iterable[Photo]) -> Iterator[tuple[Photo, Item]]:
    remaining = iter(photos)
    while chunk := list(islice(remaining, _CHUNK)):
        keys = iter(listing.file_keys([photo.image for photo in chunk if isinstance(photo.image, Path)]))
        for photo in chunk:
            source = printable(photo.source)
            key = next(keys) if isinstance(photo.image, Path) else photo.key
            yield (photo, Item(key or unreadable_key(source), "image", source, photo.image))
