"""Many files by one pattern: numbers and alternatives in braces, wildcards, folders."""

from __future__ import annotations

import errno
import glob
import itertools
import math
import os
import re
from functools import partial
from pathlib import Path

from ...errors import InputError
from ...stores.files import TRANSIENT
from .. import listing
from ._places import below

MOST = 1_000_000  # files that one pattern may name; LAION-2B has 231,349


def braces(pattern: str) -> list[str]:
    """`a{0..2}{x,y}` → a0x, a0y, a1x, …; zeros in front are kept, as in a shell. A pair of braces with neither
    a range nor a comma is itself. Raises `InputError` for braces in braces and for too many names."""
    pieces: list[list[str]] = []
    for text, inside in re.findall(r"([^{}]*)(?:\{([^{}]*)\})?", pattern):
        pieces += [[text], _choices(inside)] if inside else [[text]]
    if "".join(re.sub(r"\{[^{}]*\}", "", pattern)).count("{") or re.sub(r"\{[^{}]*\}", "", pattern).count("}"):
        raise InputError(f"braces in braces, or one that is not closed: {pattern}", "Write one pair after the other.")
    if math.prod(map(len, pieces)) > MOST:
        raise InputError(f"{pattern} names more than {MOST:,} files", "Narrow the range, or give the folder.")
    return ["".join(parts) for parts in itertools.product(*pieces)]


def _choices(inside: str) -> list[str]:
    span = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", inside, re.ASCII)
    if span:
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= MOST:
            raise InputError(f"{{{inside}}} names more than {MOST:,} files", "Narrow the range, or give the folder.")
        padded = any(len(number) > 1 and number.startswith("0") for number in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        step = 1 if last >= first else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def find_files(dataset: str, root: Path, suffixes: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """(folder, files): the files of a folder with these endings, a file, or those of a pattern.
    Raises `InputError` if there are none, or if one that a pattern spells out is missing."""
    if root.is_dir():
        found = below(root, suffixes)
        if not found:
            raise InputError(f"no {' or '.join(suffixes)} in {root} for dataset '{dataset}'", "Check the folder.")
        return root, found
    if root.is_file():
        return root.parent, [root]
    found, missing = [], []
    for name in braces(str(root)):
        if glob.has_magic(name):
            found += listing.patiently(name, partial(_matching, name))
        elif Path(name).is_file():
            found.append(Path(name))
        else:
            missing.append(name)
    if missing:
        what = f"no file {missing[0]}" + (f" and {len(missing) - 1:,} others" if missing[1:] else "")
        raise InputError(f"{what} for dataset '{dataset}'", "Narrow the range, or use a wildcard for what is there.")
    if not found:
        raise InputError(f"nothing matches {root} for dataset '{dataset}'", "Check the path after the colon.")
    return found[0].parent, found


def _matching(pattern: str) -> list[Path]:
    """The files that a wildcard matches. Raises `OSError` where their share is gone, which `glob` passes over."""
    found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    for folder in dict.fromkeys([Path(*parts), *(path.parent for path in found)]):
        try:
            os.scandir(folder).close()
        except OSError as error:
            if error.errno in TRANSIENT:
                raise
    if found != [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), pattern)
    return found
