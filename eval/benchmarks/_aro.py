"""What ARO's two tests on Visual Genome share: the crop of a box, with a true and a false caption.

The official figure is the mean over relations, or over pairs of attributes, and leaves some out; which ones there are
is known once the file is read, so a test's AVERAGES are filled then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..sources import PAIR_TRUTH, Group, Sources
from ._crops import CroppedImages, crop_name
from ._files import FolderImages, present, read_rows, text_of

BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
CITATION = (
    "Yuksekgonul et al., When and why vision-language models behave like bags-of-words, and what to do about it?, "
    "ICLR 2023, arXiv:2210.01936"
)
URL = "https://github.com/mertyg/vision-language-models-are-bows"
REVISION = "mertyg/vision-language-models-are-bows 81fdd20dc5b6"
MACRO = "macro"


def cropped(
    sources: Sources, benchmark: str, info: dict[str, Any], table: str, kind_of: Callable[[dict[str, Any], str], str]
) -> tuple[list[Group], CroppedImages]:
    """All rows of `table`, categories by `kind_of(row, where)`, and their crops. Raises `InputError` naming file and
    row for what lacks or breaks."""
    root = sources.folder(benchmark, str(info["files"]))
    path = root if root.is_file() else next((p for p in (root / table, root / "data" / table) if p.is_file()), None)
    if path is None:
        raise InputError(f"{info['title']}: {root} lacks {table}", str(info["files"]))
    rows = [_group(path, number, row, kind_of) for number, row in enumerate(read_rows(path))]
    given = [sources.images] if sources.images else []
    images = FolderImages(benchmark, [*given, path.parent / "images", path.parent])
    return rows, CroppedImages(images)


def _group(path: Path, number: int, row: dict[str, Any], kind_of: Callable[[dict[str, Any], str], str]) -> Group:
    where = f"{path} row {number}"
    captions = (text_of(row, "true_caption", where), text_of(row, "false_caption", where))
    image = crop_name(text_of(row, "image_path", where), row, BOX, where)
    return Group(str(number), (image,), captions, PAIR_TRUTH, kind_of(row, where), where)


def at_least(groups: list[Group], count: int) -> tuple[str, ...]:
    """Categories with so many rows or more, in order of appearance."""
    found = Counter(group.category for group in groups)
    return tuple(name for name, number in found.items() if number >= count)


def there(sources: Sources, info: dict[str, Any], groups: list[Group], images: CroppedImages) -> list[Group]:
    """The groups whose images are there, see `present`."""
    return present(sources, groups, images, str(info["title"]), str(info["files"]))
