"""What datasets of image files share: photographs with captions, their items and pairs, one-line errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from ...errors import InputError
from ...stores.items import Item, Pair, content_key

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# Keys are hashes of whole files: threads hide the latency of the disk, and chunks bound what is read ahead.
_READERS, _CHUNK = 4, 256


@dataclass(frozen=True)
class Photo:
    """An image file and what is said of it.

    captions  (caption, source) each; a caption may be anything but text, which extraction then quarantines
    """

    path: Path
    source: str
    captions: tuple[tuple[object, str], ...]


def require_folder(dataset: str, root: Path | None) -> Path:
    """The root of a dataset that is a folder. Raises `InputError` if none is given or there is none."""
    if root is None:
        cure = f"Give it as --data {dataset}:FOLDER or under [roots] in compal.toml."
        raise InputError(f"dataset '{dataset}' needs its folder", cure)
    if not root.is_dir():
        raise InputError(f"no folder {root} for dataset '{dataset}'", "Check the path after the colon.")
    return root


def caption_item(caption: object, source: str) -> Item:
    """The item of a caption; what is not text gets a key too, so that it lands in the quarantine."""
    if isinstance(caption, str):
        try:
            return Item.caption(caption, source)
        except UnicodeEncodeError:
            pass
    return Item(content_key("text-unreadable", ascii(caption).encode()), "text", source, caption)  # type: ignore[arg-type]


def photo_items(photos: Iterable[Photo]) -> Iterator[Item]:
    """Each photograph's image, then its captions."""
    for photo, image in _with_images(photos):
        yield image
        for caption, source in photo.captions:
            yield caption_item(caption, source)


def photo_pairs(photos: Iterable[Photo]) -> Iterator[Pair]:
    """Each (image, caption) once."""
    seen: set[tuple[str, str]] = set()
    for photo, image in _with_images(photos):
        for caption, source in photo.captions:
            pair = (image.key, caption_item(caption, source).key)
            if pair not in seen:
                seen.add(pair)
                yield Pair(*pair)


def _with_images(photos: Iterable[Photo]) -> Iterator[tuple[Photo, Item]]:
    remaining = iter(photos)
    with ThreadPoolExecutor(_READERS, "read") as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from zip(chunk, pool.map(_image_item, chunk), strict=True)


def _image_item(photo: Photo) -> Item:
    try:
        status = photo.path.stat()
    except OSError:
        return Item.image_file(photo.path, photo.source)
    return _unchanged_image(photo.path, photo.source, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1 << 20)
def _unchanged_image(path: Path, source: str, mtime_ns: int, size: int) -> Item:
    """Items and pairs are two passes over the same files; the second one reads none of them."""
    return Item.image_file(path, source)
