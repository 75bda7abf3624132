"""Images with one label each, and what zero-shot classification makes of them: every class a set of prompts."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...registry import ROOT
from ..sources import Group, Matches, Sources
from ._files import Images, present, read_text

ASSETS = ROOT / "assets" / "zeroshot"
ONE_PROMPT = ("a photo of a {c}.",)
VARIANTS = {
    "one-prompt": "'a photo of a {c}.' alone in place of the set's ensemble of prompts",
    "names-apart": "classes of one name counted apart, as published: their prompts are equal, so all of them tie",
}


@dataclass(frozen=True)
class Labelled:
    """Images and their classes.

    images   where they lie
    rows     (name of the image, number of its class, where that stands)
    classes  what each class is called
    """

    images: Images
    rows: tuple[tuple[str, int, str], ...]
    classes: tuple[str, ...]


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, Any]]:
    """The sets that compal knows, by name: `assets/zeroshot/sets.toml`, whose head says what stands in it."""
    return tomllib.loads((ASSETS / "sets.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def templates() -> dict[str, list[str]]:
    """The prompts of each set, of CLIP_benchmark, `{c}` standing for the class."""
    shipped: dict[str, list[str]] = json.loads((ASSETS / "templates.json").read_text(encoding="utf-8"))
    return shipped


@lru_cache(maxsize=1)
def class_names() -> dict[str, list[str]]:
    """The names of the classes of sets whose files have none, of CLIP_benchmark, in the order of the labels."""
    shipped: dict[str, list[str]] = json.loads((ASSETS / "classnames.json").read_text(encoding="utf-8"))
    return shipped


def lines_of(path: Path) -> list[str]:
    """The lines of a file that hold something, without the space around them. Raises `InputError` naming it."""
    found = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not found:
        raise InputError(f"{path} is empty")
    return found


def prompts_in(folder: Path) -> list[str] | None:
    """The prompts that a file beside the images gives, one a line, `{c}` or `{}` standing for the class; None without
    such a file. Raises `InputError` for a line without the place."""
    for name in ("zeroshot_classification_templates.txt", "templates.txt"):
        if (folder / name).is_file():
            lines = [line.replace("{}", "{c}") for line in lines_of(folder / name)]
            for number, line in enumerate(lines, start=1):
                if "{c}" not in line:
                    raise InputError(f"{folder / name} line {number} has no {{c}} where the class goes: '{line}'")
            return lines
    return None


def one_group(
    sources: Sources, name: str, title: str, cure: str, found: Labelled, ensemble: Iterable[str]
) -> tuple[Group, Images]:
    """The images that are there × the classes, as one group of names and prompts; at most `sources.limit` images of
    every class. Classes of one name are one answer, each right for the images of all, unless the variant
    "names-apart" asks for them apart. Raises `InputError` as `present` does."""
    each = (Group(f"{name}/{image}", (image,), (), (), str(label), where) for image, label, where in found.rows)
    kept = present(sources, each, found.images, title, cure)
    wordings = ONE_PROMPT if sources.variant == "one-prompt" else tuple(ensemble)
    prompts = [wording.replace("{c}", known) for known in found.classes for wording in wordings]
    alike: dict[str, list[int]] = {}
    for number, known in enumerate(found.classes):
        alike.setdefault(known, []).append(number)
    apart = sources.variant == "names-apart"
    right = [tuple([label] if apart else alike[found.classes[label]]) for label in (int(g.category) for g in kept)]
    group = Group(
        name,
        tuple(group.images[0] for group in kept),
        tuple(prompts),
        Matches(tuple(right), len(found.classes)),
        source=title,
        classes=tuple(number for number in range(len(found.classes)) for _ in wordings),
    )
    return group, found.images


def compare_with(sources: Sources, title: str, row: dict[str, Any], found: Labelled) -> None:
    """Note what differs from the published test split in number: figures of the two are not comparable."""
    for what, have, published in (
        ("images", len(found.rows), row["rows"]),
        ("classes", len(found.classes), row["classes"]),
    ):
        if have != published:
            sources.notes[f"{title}: {have:,} {what}, the published test split has {published:,}"] = None


def with_names(found: Labelled, names: Iterable[str], where: str) -> Labelled:
    """The same images under other names of the classes. Raises `InputError` if there are not as many."""
    given = tuple(names)
    if len(given) != len(found.classes):
        raise InputError(f"{where} names {len(given):,} classes, and the images are of {len(found.classes):,}")
    return dataclasses.replace(found, classes=given)
