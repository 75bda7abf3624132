"""A .jsonl, .json, .csv or .parquet file with a column of image paths and one of captions.

    --data table:captions.csv                            columns found by name
    --data 'table:pairs.parquet?image=path&caption=alt'  or given, several with commas between

Image paths are relative to the table's folder, or to the folder that the option `images` gives. A caption cell
may be a list. A column `negatives`, if there is one, holds captions that do not describe the image, one or a
list. A column `id`, if there is one, must not repeat; a column `split`, if there is one, names the splits, and
without it the table is the split `train`. The option `holdout=0.2` makes a fifth of the images, chosen by name, the
split `val` and the others `train`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ...stores import holdout
from ...stores.items import Item, Pair
from ._files import Photo, first, photo_items, photo_pairs, require_root, split_options
from ._tables import Table, open_table

INFO: dict[str, Any] = {
    "licence": "that of your files",
    "revision": "the table given",
    "citation": "",
    "splits": ("train", "val", "test"),
}

COLUMNS = {
    "image": ("image", "image_path", "filepath", "filename"),
    "caption": ("caption", "text", "captions"),
    "negatives": ("negatives", "negative_captions", "negative_caption"),
    "id": ("id",),
    "split": ("split",),
}
REQUIRED = ("image", "caption")


def items(root: Path | None, split: str, limit: int | None = None) -> Iterator[Item]:
    """The rows of the first `limit` images, each row's image followed by its captions. Raises `InputError`
    and `UnknownName`, some of them only when the row at fault is reached."""
    return photo_items(first(_photos(*_open(root), split, _share(root)), limit))


def pairs(root: Path | None, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The (image, caption) pairs of `items`, with the row's negatives."""
    return photo_pairs(first(_photos(*_open(root), split, _share(root)), limit))


def splits(root: Path | None) -> list[str]:
    """The values of the column `split`; `train` where there is none, and `val` too where some are held out."""
    table, _ = _open(root)
    if _share(root):
        return [holdout.FITTED, holdout.HELD]
    if "split" not in table.columns:
        return ["train"]
    return sorted({str(table.cell(row, "split")) for _, row in table.rows()})


def files(root: Path | None, split: str) -> list[Path]:
    """The files that say what the dataset holds."""
    return list(_open(root)[0].files)


def _options(root: Path | None) -> tuple[Path, dict[str, str]]:
    return split_options("table", require_root("table", root, "FILE"), (*COLUMNS, "images", holdout.OPTION))


def _share(root: Path | None) -> float:
    """The share of the images that is held out. Raises `UsageError`."""
    given = _options(root)[1]
    return holdout.share_of(given[holdout.OPTION]) if holdout.OPTION in given else 0.0


def _open(root: Path | None) -> tuple[Table, Path]:
    """The table and the folder of its images."""
    file, given = _options(root)
    given.pop(holdout.OPTION, None)
    if not file.is_file():
        raise InputError(f"no file {file} for dataset 'table'", "Check the path after the colon.")
    folder = Path(given.pop("images", file.parent)).expanduser()
    return open_table("table", [file], COLUMNS, REQUIRED, given), folder


def _photos(table: Table, folder: Path, split: str, share: float) -> Iterator[Photo]:
    numbers: dict[str, str] = {}
    seen: set[str] = set()
    for where, row in table.rows():
        _check_id(table, where, row, numbers)
        image = _image(table, where, row) if share else ""
        name = str(table.cell(row, "split")) if "split" in table.columns else "train"
        name = holdout.split_of(image, share) if share else name
        seen.add(name)
        if name == split:
            image = image or _image(table, where, row)
            yield Photo(folder / image, f"{table.files[0].name}/{image}", table.told(where, row))
    if split not in seen:
        raise UnknownName.among("split", split, seen, f"A column 'split' in {table.files[0]} names the splits.")


def _check_id(table: Table, where: str, row: dict[str, Any], numbers: dict[str, str]) -> None:
    number = table.cell(row, "id")
    if number is None or number == "":
        return
    if str(number) in numbers:
        what = f"{table.files[0]}: id {number} stands in {numbers[str(number)]} and in {where}"
        raise InputError(what, "Make the ids differ, or rename the column if it is none.")
    numbers[str(number)] = where


def _image(table: Table, where: str, row: dict[str, Any]) -> str:
    image = table.cell(row, "image")
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        column = table.columns["image"][0]
        what = f"{table.files[0].parent / where}: column '{column}' holds {image!r:.60}, not a path"
        raise InputError(what, "Correct the row.")
    return image
