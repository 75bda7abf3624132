"""Crops of photographs as items: the box of a row is cut out before the image is preprocessed.

A crop is named `file#left,top,right,bottom` in pixels. Its key comes from the bytes of the file and the box, so that
planning decodes nothing and an equal crop has one key wherever the file lies.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import Item
from ._files import FolderImages

Corners = tuple[int, int, int, int]


def crop_name(file: str, row: dict[str, Any], fields: tuple[str, str, str, str], where: str) -> str:
    """The name of the crop of `file` that the x, y, width and height `fields` of `row` give, rounded to pixels as
    Pillow rounds. Raises `InputError` naming `where`, for a box that is no number or holds no pixel."""
    values = []
    for field in fields:
        try:
            values.append(float(row[field]))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{where} has no number '{field}'", f"It has: {', '.join(map(str, row))}.") from None
    x, y, width, height = values
    if not all(map(math.isfinite, values)) or round(x + width) <= round(x) or round(y + height) <= round(y):
        raise InputError(f"{where}: the box of {width:g} x {height:g} pixels at {x:g}, {y:g} is empty")
    return f"{file}#{round(x)},{round(y)},{round(x + width)},{round(y + height)}"


class CroppedImages:
    """Crops of images that lie in folders."""

    def __init__(self, images: FolderImages) -> None:
        self.images = images
        self.where = images.where
        # A file has several crops and is looked for once, read once.
        self._path = functools.cache(images.path)
        self._digest = functools.cache(lambda file: images.item(file).key)

    def has(self, name: str) -> bool:
        return self._path(name.rpartition("#")[0]) is not None

    def item(self, name: str) -> Item:
        file, _, corners = name.rpartition("#")
        path = self._path(file)
        if path is None:
            raise InputError(f"no image '{file}' in {self.where}")
        left, top, right, bottom = (int(corner) for corner in corners.split(","))
        recipe = f"crop {corners} of {self._digest(file)}".encode()
        render = functools.partial(cut, path, (left, top, right, bottom))
        return Item.rendered(recipe, render, f"{self.images.benchmark}/{name}")


def cut(path: Path, corners: Corners) -> Any:
    """The crop as (H, W, 3) uint8; what lies outside the image is black, as Pillow makes it and the official scripts
    leave it. Raises `OSError` for a file that is no whole image."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").crop(corners))
    except (OSError, MemoryError):
        raise
    # Pillow's plugins raise almost anything for malformed bytes.
    except Exception as error:
        raise OSError(f"damaged image: {error or type(error).__name__}") from None
