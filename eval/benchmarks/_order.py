"""What ARO's two order tests share: a photograph, its caption, and four orders of the caption's words.

The official code shuffles anew at every run, with whatever spaCy is installed, so no two papers need have the same
negatives. Here they are read from one frozen file, whose hash every row of a table carries.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..sources import Group, Sources
from ._files import FolderImages, present, read_rows, text_of

SHUFFLES = 4
IDENTICAL = "with-identical"
VARIANTS = {IDENTICAL: "with shuffles that equal their caption, as published: a strict comparison cannot win there"}
CURE = "Make it once: python -m compal.pipeline.order ROOT/{0}"


def read(sources: Sources, benchmark: str, info: dict[str, Any], table: str, annotation: str) -> list[Group]:
    """All rows of the frozen `table`, made of `annotation`. Shuffles that equal their caption are no negatives and are
    left out, unless the variant wants them. Raises `InputError` naming file and row for what lacks or breaks."""
    root = sources.folder(benchmark, str(info["files"]))
    path = root if root.is_file() else root / table
    if not path.is_file():
        raise InputError(f"{info['title']}: {root} lacks {table}", f"{info['files']} {CURE.format(annotation)}")
    rows = read_rows(path)
    made = rows.pop(0) if rows and "caption_options" not in rows[0] else {}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    by = f"{made.get('tagger', 'an unnamed tagger')}, seed {made.get('seed', 'unknown')}"
    sources.notes[f"negatives: {path.name}, sha256 {digest}, made with {by}"] = None
    first = 1 if made else 0
    found = [_group(path, number, row, sources.variant == IDENTICAL) for number, row in enumerate(rows, start=first)]
    for group in found:
        if len(group.captions) == 1:
            sources.excluded[group.id] = "all shuffles equal the caption"
    return [group for group in found if len(group.captions) > 1]


def _group(path: Path, number: int, row: dict[str, Any], identical: bool) -> Group:
    where = f"{path} row {number}"
    options = row.get("caption_options")
    if not isinstance(options, list) or len(options) != 1 + SHUFFLES or not all(map(_told, options)):
        raise InputError(f"{where}: 'caption_options' is not a caption and {SHUFFLES} orders of its words")
    caption, shuffles = options[0], options[1:]
    kept = [text for text in shuffles if identical or text != caption]
    truth = ((True, *[False] * len(kept)),)
    return Group(str(number), (text_of(row, "image", where),), (caption, *kept), truth, "", where)


def _told(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())


def there(
    sources: Sources, benchmark: str, info: dict[str, Any], groups: list[Group]
) -> tuple[list[Group], FolderImages]:
    """The groups whose images are there, and these."""
    root = sources.root or Path()
    folder = root.parent if root.is_file() else root
    given = [sources.images] if sources.images else []
    images = FolderImages(benchmark, [*given, folder, folder / "images"])
    return present(sources, groups, images, str(info["title"]), str(info["files"])), images
