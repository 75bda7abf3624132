"""The splits of the world: plain scenes to learn from and swap quadruplets to judge by.

Every scene of a split is a function of (split, number), so any process makes any part of it. In-domain
scenes have one to four objects and no held-out combination; each out-of-domain split changes one thing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from .captions import Caption, Mention, exchanged, tell, word_freely
from .scenes import DIAMETER, Group, Scene, arrange, close_up, held_out, relation, sample
from .vocabulary import CATEGORIES, SIZES, TEXTURES

JUDGED = ("in_domain", "unseen_combinations", "unseen_counts", "unseen_templates")
SPLITS = ("train", "validation", "test", *JUDGED[1:])
PLAIN = {"train": 20_000, "validation": 600, "test": 1_000}
QUADS = {"train": 24_000, "validation": 500, "test": 2_500}


@dataclass(frozen=True)
class Quad:
    """Two scenes and two captions that differ by one exchange; caption i tells scene i."""

    category: str
    scenes: tuple[Scene, Scene]
    captions: tuple[Caption, Caption]


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
    twin = _swap(rng, scene, category)
    if twin is None:
        return None
    unseen = sum(held_out(group) for s in (scene, twin) for group in s.groups[:2])
    elsewhere = any(held_out(group) for group in scene.groups[2:])
    if unseen < 2 if loose else (unseen or elsewhere):
        return None
    return _tell_both(rng, category, scene, twin, split == "unseen_templates")


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
                small = [_resized(group, like.size) for group, like in zip(fixed.groups, groups, strict=True)]
                fixed = dataclasses.replace(fixed, groups=tuple(small))
        if fixed is not None:
            return fixed
    return scene


def _resized(group: Group, size: str) -> Group:
    """The group at the same centres in another size."""
    if group.size == size:
        return group
    scale = DIAMETER[size] / DIAMETER[group.size]
    places = tuple((x, y, round(diameter * scale, 4)) for x, y, diameter in group.places)
    return dataclasses.replace(group, size=size, places=places)


def _swap(rng: Random, scene: Scene, category: str) -> Scene | None:
    """The scene with the category's attribute of its first two groups exchanged, all else in place."""
    first, second, *rest = scene.groups
    if category == "colour":
        new = (
            dataclasses.replace(first, colour=second.colour),
            dataclasses.replace(second, colour=first.colour),
        )
    elif category == "material":
        if first.texture == second.texture:
            return None
        new = (
            dataclasses.replace(first, texture=second.texture),
            dataclasses.replace(second, texture=first.texture),
        )
    elif category == "size":
        if {first.size, second.size} != {SIZES[0], SIZES[2]}:
            return None
        new = _resized(first, second.size), _resized(second, first.size)
    elif first.size != second.size:
        return None
    else:  # quantity and relation: the two groups exchange their places
        if category == "relation" and relation(first, second) is None:
            return None
        new = (
            dataclasses.replace(first, places=second.places),
            dataclasses.replace(second, places=first.places),
        )
    return Scene((*new, *rest), scene.background)


def _tell_both(rng: Random, category: str, scene: Scene, twin: Scene, unseen: bool) -> Quad | None:
    """Captions that name every group with at least its colour and the attribute that is exchanged."""
    wording = word_freely(rng, scene, unseen, full=True)
    mentions = tuple(_sparser(rng, mention, category) for mention in wording.mentions)
    wording = dataclasses.replace(wording, mentions=mentions, related=wording.related and category != "size")
    told_twin = wording
    if category == "relation":
        swapped = [m for m in mentions if m.group < 2] + [m for m in mentions if m.group >= 2]
        wording = dataclasses.replace(wording, mentions=tuple(swapped), related=True)
        told_twin = exchanged(wording)
    elif wording.related and relation(*(twin.groups[m.group] for m in mentions[:2])) != relation(
        *(scene.groups[m.group] for m in mentions[:2])
    ):
        wording = told_twin = dataclasses.replace(wording, related=False)
    captions = tell(scene, wording), tell(twin, told_twin)
    if captions[0].text == captions[1].text:
        return None
    return Quad(category, (scene, twin), captions)


def _sparser(rng: Random, mention: Mention, category: str) -> Mention:
    """Half of the captions leave out attributes that the category does not need."""
    if category == "material":  # "striped" and "with stripes" would not be the same words exchanged
        mention = dataclasses.replace(mention, postfix=False)
    if rng.random() < 0.5:
        return mention
    return dataclasses.replace(
        mention,
        texture=category == "material" or rng.random() < 0.3,
        size=category == "size" or rng.random() < 0.3,
    )
