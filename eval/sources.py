"""What a benchmark is given (`Sources`) and what it gives back (`Group`). Keys only; no model is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import fingerprint
from ..errors import InputError, UnknownName


@dataclass(frozen=True)
class Sources:
    """Where a benchmark's files are and how much of it to take.

    root           folder (or file) of the annotations; None for a benchmark that needs none
    images         folder of the photographs, if they are not below `root`
    allow_missing  leave out items whose image is not there and list them, instead of stopping
    split          which split or subset; None is the benchmark's default
    limit          at most so many groups of every category (a smoke test, never a result to quote)
    excluded       filled while reading: group id → why it was left out
    notes          filled while reading: what a reader of the table must know about the files
    """

    root: Path | None = None
    images: Path | None = None
    allow_missing: bool = False
    split: str | None = None
    limit: int | None = None
    excluded: dict[str, str] = field(default_factory=dict, compare=False)
    notes: dict[str, None] = field(default_factory=dict, compare=False)

    def folder(self, benchmark: str, files: str) -> Path:
        """`root`, which must exist. Raises `InputError` that says which `files` to put where."""
        if self.root is None:
            raise InputError(f"benchmark '{benchmark}' reads files and no --root is given", files)
        if not self.root.exists():
            raise InputError(f"no folder {self.root} for benchmark '{benchmark}'", files)
        return self.root

    def check_split(self, benchmark: str, info: dict[str, Any]) -> None:
        """Refuse a split that the benchmark does not have, before anything is read. An empty `splits` stands for
        names that are in its files."""
        if self.split is None:
            return
        if "splits" not in info:
            raise UnknownName(f"benchmark '{benchmark}' has no splits, so no '{self.split}'", "Leave --split out.")
        if info["splits"] and self.split not in info["splits"]:
            raise UnknownName.among(f"split of {benchmark}", self.split, info["splits"])


@dataclass(frozen=True, slots=True)
class Group:
    """Images and captions that are compared with one another, by key.

    id        unique within the benchmark and its split
    images    I keys
    captions  C keys
    truth     I × C: does the caption describe the image
    category  what is tested (colour, swap_obj, …); "" if the benchmark has none
    source    where it comes from, for people
    """

    id: str
    images: tuple[str, ...]
    captions: tuple[str, ...]
    truth: tuple[tuple[bool, ...], ...]
    category: str = ""
    source: str = ""


METRICS = ("pairs", "quads", "recall")
PAIR_TRUTH = ((True, False),)
"""Truth of one image with its caption and one wrong caption."""
QUAD_TRUTH = ((True, False), (False, True))
"""Truth of two images with two captions, in order."""


def limited(groups: Iterable[Group], limit: int | None) -> Iterator[Group]:
    """The first `limit` groups of every category, in order; all of them for None."""
    seen: dict[str, int] = {}
    for group in groups:
        seen[group.category] = seen.get(group.category, 0) + 1
        if limit is None or seen[group.category] <= limit:
            yield group


def check(groups: list[Group], metric: str) -> list[Group]:
    """The groups, if they fit the metric. Raises `InputError` naming the first that does not."""
    if metric not in METRICS:
        raise UnknownName.among("metric", metric, METRICS)
    if not groups:
        raise InputError("the benchmark has no groups to score", "Check --root, --split and --limit.")
    ids: set[str] = set()
    for group in groups:
        images, captions = len(group.images), len(group.captions)
        if group.id in ids:
            raise InputError(f"two groups have the id '{group.id}'", "Make the ids unique.")
        ids.add(group.id)
        if len(group.truth) != images or any(len(row) != captions for row in group.truth):
            raise InputError(f"group '{group.id}': truth is not {images} images × {captions} captions")
        if metric == "pairs" and (group.truth[0][:2] != PAIR_TRUTH[0] or sum(group.truth[0]) != 1 or images != 1):
            raise InputError(f"group '{group.id}' is not one image × (its caption, wrong captions)")
        if metric == "quads" and group.truth != QUAD_TRUTH:
            raise InputError(f"group '{group.id}' is not two images × their two captions")
    return groups


def sample_fingerprint(groups: Iterable[Group]) -> str:
    """64 hex digits over ids, keys, truth and categories: rows of one table must agree on it."""
    return fingerprint([[g.id, g.images, g.captions, g.truth, g.category] for g in groups])
