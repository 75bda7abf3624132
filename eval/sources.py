"""What a benchmark is given (`Sources`) and what it gives back (`Group`). Keys only; no model is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    variant        which known erratum or rival form to read (a name of INFO["variants"]); None is the corrected default
    excluded       filled while reading: group id → why it was left out
    notes          filled while reading: what a reader of the table must know about the files
    """

    root: Path | None = None
    images: Path | None = None
    allow_missing: bool = False
    split: str | None = None
    limit: int | None = None
    variant: str | None = None
    excluded: dict[str, str] = field(default_factory=dict, compare=False)
    notes: dict[str, None] = field(default_factory=dict, compare=False)

    def folder(self, benchmark: str, files: str) -> Path:
        """`root`, which must exist. Raises `InputError` that says which `files` to put where."""
        if self.root is None:
            raise InputError(f"benchmark '{benchmark}' reads files and no --root is given", files)
        if not self.root.exists():
            raise InputError(f"no folder {self.root} for benchmark '{benchmark}'", files)
        return self.root

    def check_choices(self, benchmark: str, info: dict[str, Any]) -> None:
        """Refuse a split or a variant that the benchmark does not have, before anything is read. An empty `splits`
        stands for names that are in its files."""
        if self.split is not None:
            if "splits" not in info:
                raise UnknownName(f"benchmark '{benchmark}' has no splits, so no '{self.split}'", "Leave --split out.")
            if info["splits"] and self.split not in info["splits"]:
                raise UnknownName.among(f"split of {benchmark}", self.split, info["splits"])
        if self.variant is not None:
            known = info.get("variants", {})
            if not known:
                what = f"benchmark '{benchmark}' has no variants, so no '{self.variant}'"
                raise UnknownName(what, "Leave --variant out.")
            if self.variant not in known:
                raise UnknownName.among(f"variant of {benchmark}", self.variant, known)


@dataclass(frozen=True, slots=True)
class Matches:
    """Truth of many images and captions, sparse: the positions of what is right for each image, of `width` in all."""

    rows: tuple[tuple[int, ...], ...]
    width: int


Truth = tuple[tuple[bool, ...], ...] | Matches


@dataclass(frozen=True, slots=True)
class Group:
    """Images and captions that are compared with one another, by key.

    id        unique within the benchmark and its split
    images    I keys
    captions  C keys
    truth     I × C: does the caption describe the image; `Matches` where that is large
    category  what is tested (colour, swap_obj, …); "" if the benchmark has none
    source    where it comes from, for people
    classes   of `classification` alone: the class of each caption, 0 … K-1, the captions of a class being its prompts;
              `truth` is I × K then
    sets      items that count together under a metric's name, as ("pair", "mug on table"): such a metric is hit where
              all items of the set are; of `pairs` alone
    """

    id: str
    images: tuple[str, ...]
    captions: tuple[str, ...]
    truth: Truth
    category: str = ""
    source: str = ""
    classes: tuple[int, ...] = ()
    sets: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> int:
        """C, or K where captions are prompts of classes."""
        return max(self.classes) + 1 if self.classes else len(self.captions)

    def column_keys(self) -> tuple[str, ...]:
        """A key a column: of captions, or of the first prompt of each class."""
        if not self.classes:
            return self.captions
        first: dict[int, str] = {}
        for number, key in zip(self.classes, self.captions, strict=True):
            first.setdefault(number, key)
        return tuple(first[number] for number in range(len(first)))

    def right(self) -> NDArray[np.bool_]:
        """`truth` as (I, C) bool, or (I, K)."""
        if not isinstance(self.truth, Matches):
            return np.array(self.truth, bool).reshape(len(self.images), -1)
        found = np.zeros((len(self.truth.rows), self.truth.width), bool)
        for row, places in enumerate(self.truth.rows):
            found[row, list(places)] = True
        return found


METRICS = ("pairs", "quads", "positives", "recall", "classification")
KS = (1, 5, 10)
TIE_RULES = ("lose", "half", "win")
HEADLINES = {
    "pairs": ("accuracy",),
    "quads": ("group",),
    "positives": ("itt",),
    "classification": ("top1",),
}
PAIR_TRUTH = ((True, False),)
"""Truth of one image with its caption and one wrong caption."""
QUAD_TRUTH = ((True, False), (False, True))
"""Truth of two images with two captions, in order."""
POSITIVES_TRUTH = ((True, True, False),)
"""Truth of one image with two captions and one wrong caption."""


def headline(info: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics to quote first, of a benchmark's INFO or of a row's `scores.json`: its `headline`, else the
    strictest there is, for retrieval recall at the smallest k both ways."""
    named = info.get("headline")
    if named:
        return (named,) if isinstance(named, str) else tuple(named)
    if info["metric"] == "recall":
        return tuple(f"{way}_r@{min(info.get('ks', KS))}" for way in ("i2t", "t2i"))
    return HEADLINES[info["metric"]]


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
        if group.id in ids:
            raise InputError(f"two groups have the id '{group.id}'", "Make the ids unique.")
        ids.add(group.id)
        _check_shape(group)
        wrong = _misfit(group, metric)
        if wrong:
            raise InputError(f"group '{group.id}' is not {wrong}")
    return groups


def _check_shape(group: Group) -> None:
    images, columns = len(group.images), group.columns
    words = "classes" if group.classes else "captions"
    if isinstance(group.truth, Matches):
        fits = len(group.truth.rows) == images and group.truth.width == columns
        fits = fits and all(0 <= place < columns for row in group.truth.rows for place in row)
    else:
        fits = len(group.truth) == images and all(len(row) == columns for row in group.truth)
    if not fits:
        raise InputError(f"group '{group.id}': truth is not {images} images × {columns} {words}")
    if group.classes and (len(group.classes) != len(group.captions) or set(group.classes) != set(range(columns))):
        raise InputError(f"group '{group.id}': classes are not 0 to {columns - 1}, one for each caption")


def _misfit(group: Group, metric: str) -> str:
    """What the group should be and is not; "" if it fits."""
    if bool(group.classes) != (metric == "classification"):
        return "images × the prompts of classes" if metric == "classification" else "without classes"
    if group.sets and metric != "pairs":
        return "without sets"
    if metric == "pairs":
        cells = group.right()
        one = 1 in cells.shape and cells.size > 1 and cells.sum() == 1 and cells.flat[0]
        return "" if one else "one image × (its caption, wrong captions), or one caption × (its image, wrong images)"
    if metric == "quads":
        return "" if group.truth == QUAD_TRUTH else "two images × their two captions"
    if metric == "positives":
        return "" if group.truth == POSITIVES_TRUTH else "one image × (two captions, a wrong one)"
    return ""


def sample_fingerprint(groups: Iterable[Group]) -> str:
    """64 hex digits over ids, keys, truth and categories: rows of one table must agree on it."""
    return fingerprint([_identity(group) for group in groups])


def _identity(group: Group) -> list[Any]:
    truth: Any = group.truth
    if isinstance(truth, Matches):
        truth = [truth.width, truth.rows]
    # What older groups have not adds nothing, so that the fingerprints of saved rows stay what they were.
    more = [part for part in (group.classes, group.sets) if part]
    return [group.id, group.images, group.captions, truth, group.category, *more]
