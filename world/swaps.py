"""Swaps: a scene and its twin, and the two captions that hold the same words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

from .captions import Caption, Mention, exchanged, tell, word_freely
from .scenes import DIAMETER, Group, Scene
from .vocabulary import FLAT, SIZES, Language

S = TypeVar("S", bound=Scene)


@dataclass(frozen=True)
class Quadruplet(Generic[S]):
    """Two scenes and two captions that differ by one exchange; caption i tells scene i."""

    category: str
    scenes: tuple[S, S]
    captions: tuple[Caption, Caption]


def resized(group: Group, size: str, diameters: Mapping[str, float] = DIAMETER) -> Group:
    """The group at the same centres in another size."""
    if group.size == size:
        return group
    scale = diameters[size] / diameters[group.size]
    places = tuple((x, y, round(diameter * scale, 4), *turn) for x, y, diameter, *turn in group.places)
    return dataclasses.replace(group, size=size, places=places)


def swapped(scene: S, category: str, diameters: Mapping[str, float] = DIAMETER) -> S | None:
    """The scene with the category's attribute of its first two groups exchanged, all else in place; None where that
    would change nothing or is unclear. `diameters` are those of the sizes."""
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
        new = resized(first, second.size, diameters), resized(second, first.size, diameters)
    elif first.size != second.size:
        return None
    else:  # quantity and relation: the two groups exchange their places
        if category == "relation" and scene.relation(0, 1) is None:
            return None
        new = (
            dataclasses.replace(first, places=second.places),
            dataclasses.replace(second, places=first.places),
        )
    return dataclasses.replace(scene, groups=(*new, *rest))


def tell_both(
    rng: Random, category: str, scene: S, twin: S, unseen: bool = False, language: Language = FLAT
) -> Quadruplet[S] | None:
    """Captions that name every group with at least its colour and the attribute that is exchanged; None where both
    would be the same. `unseen`: in the arrangements of words that no training caption has."""
    wording = word_freely(rng, scene, unseen, full=True, language=language)
    mentions = tuple(_sparser(rng, mention, category) for mention in wording.mentions)
    wording = dataclasses.replace(wording, mentions=mentions, related=wording.related and category != "size")
    told_twin = wording
    if category == "relation":
        ahead = [m for m in mentions if m.group < 2] + [m for m in mentions if m.group >= 2]
        wording = dataclasses.replace(wording, mentions=tuple(ahead), related=True)
        told_twin = exchanged(wording)
    elif wording.related and len({one.relation(*(m.group for m in mentions[:2])) for one in (scene, twin)}) > 1:
        wording = told_twin = dataclasses.replace(wording, related=False)
    captions = tell(scene, wording), tell(twin, told_twin)
    if captions[0].text == captions[1].text:
        return None
    return Quadruplet(category, (scene, twin), captions)


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
