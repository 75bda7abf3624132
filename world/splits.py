"""The splits of the world: plain scenes to learn from and swap quadruplets to judge by.

Every scene of a split is a function of (split, number), so any process makes any part of it. In-domain
scenes have one to four objects and no held-out combination; each out-of-domain split changes one thing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from random import Random

from .captions import Caption, tell, word_freely
from .scenes import Scene, arrange, close_up, held_out, sample
from .swaps import Quadruplet, resized, swapped, tell_both
from .vocabulary import CATEGORIES, SIZES, TEXTURES

JUDGED = ("in_domain", "unseen_combinations", "unseen_counts", "unseen_templates")
SPLITS = ("train", "validation", "test", *JUDGED[1:])
PLAIN = {"train": 20_000, "validation": 600, "test": 1_000}
QUADS = {"train": 24_000, "validation": 500, "test": 2_500}


Quad = Quadruplet[Scene]


def seeded(*names: object) -> Random:
    return Random("/".join(map(str, names)))  # a str seed goes through sha512: the same in every process


def plain(split: str, number: int, captions: int = 2) -> tuple[Scene, tuple[Caption, ...]]:
    """Scene `number` of a split and its captions; the first caption tells everything.

    A third of the scenes hold a single object, half of those as a close-up: crops and short phrases are
    then in distribution, as they are for encoders that learnt from the web.
    """
    rng = seeded("plain", split, number)
    if rng.random() < 1 / 3:
        scene = close_up(rng) if rng.random() < 0.5 else sample(rng, [1])
    else:
        scene = sample(rng, _counts(rng, 2 + int(rng.random() * 3)))
    told = [tell(scene, word_freely(rng, scene, full=True))]
    told += [tell(scene, word_freely(rng, scene)) for _ in range(captions - 1)]
    return scene, tuple(told)


def _counts(rng: Random, objects: int, at_least: int = 1, single: float = 0.75) -> list[int]:
    """Split a number of objects into groups: of one with probability `single`, else of two or three."""
    counts: list[int] = []
    while objects:
        most = objects - max(0, at_least - len(counts) - 1)
        count = min(most, 1 if rng.random() < single else 2 + int(rng.random() * 2))
        counts.append(count)
        objects -= count
    return counts


def quad(split: str, number: int) -> Quad:
    """Quadruplet `number` of a split. Categories take turns, so any prefix is balanced."""
    category = CATEGORIES[number % len(CATEGORIES)]
    rng = seeded("quad", split, number)
    while True:
        made = _attempt(rng, category, split)
        if made is not None:
            return made


def quads(split: str, limit: int | None = None) -> Iterator[Quad]:
    """The first `limit` quadruplets of a split (all 500 per category of a judged one by default)."""
    for number in range(QUADS.get(split, 2_500) if limit is None else limit):
        yield quad(split, number)


def _objects(rng: Random, category: str, split: str) -> int:
    if split == "unseen_counts":
        return 5
    if category == "quantity":
        return 3 + int(rng.random() * 2)
    return 2 if rng.random() < 0.2 else 3 + int(rng.random() * 2)  # like nature: mostly more than a pair


def _attempt(rng: Random, category: str, split: str) -> Quad | None:
    objects = _objects(rng, category, split)
    if category == "quantity":
        uneven = [(1, 2), (1, 3), (2, 1), (3, 1)] if objects > 3 else [(1, 2), (2, 1)]
        if objects > 4:
            uneven += [(2, 3), (3, 2), (1, 4), (4, 1)]
        pair = rng.choice(uneven)
        counts = [*pair, *_counts(rng, objects - sum(pair))]
    elif category == "relation":
        counts = [1, 1, *_counts(rng, objects - 2, single=0.85)]
    else:
        counts = _counts(rng, objects, at_least=2, single=0.85)
    loose = split == "unseen_combinations"
    scene = sample(rng, counts, (lambda group: True) if loose else None)
    scene = _distinguish(rng, scene, category)
    twin = swapped(scene, category)
    if twin is None:
        return None
    unseen = sum(held_out(group) for s in (scene, twin) for group in s.groups[:2])
    elsewhere = any(held_out(group) for group in scene.groups[2:])
    if unseen < 2 if loose else (unseen or elsewhere):
        return None
    return tell_both(rng, category, scene, twin, split == "unseen_templates")


def _distinguish(rng: Random, scene: Scene, category: str) -> Scene:
    """Make the first two groups differ in what the category exchanges."""
    first, second, *rest = scene.groups
    if category == "material" and first.texture == second.texture:
        other = rng.choice([texture for texture in TEXTURES if texture != first.texture])
        second = dataclasses.replace(second, texture=other)
    if category == "size":
        sizes = (SIZES[0], SIZES[2]) if rng.random() < 0.5 else (SIZES[2], SIZES[0])
        first, second = (dataclasses.replace(g, size=s) for g, s in zip((first, second), sizes, strict=True))
    elif category in ("quantity", "relation"):
        second = dataclasses.replace(second, size=first.size)
    groups = (first, second, *rest)
    for _ in range(8):
        if category != "size":
            fixed = arrange(rng, [(group, group.count) for group in groups], scene.background)
        else:  # room for the larger of the two sizes at both places, so that the twin fits there too
            roomy = [dataclasses.replace(group, size=SIZES[2]) for group in groups[:2]] + rest
            fixed = arrange(rng, [(group, group.count) for group in roomy], scene.background)
            if fixed is not None:
                small = [resized(group, like.size) for group, like in zip(fixed.groups, groups, strict=True)]
                fixed = dataclasses.replace(fixed, groups=tuple(small))
        if fixed is not None:
            return fixed
    return scene
