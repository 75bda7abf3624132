"""Scenes to sentences, with the character span of every phrase.

A caption is a function of a scene and a `Wording`: which groups are mentioned in which order, which
attributes, which synonyms, which template. The same wording over a scene and its twin gives two captions
that differ in the swapped words alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from .scenes import Group
from .vocabulary import FLAT, NUMBERS, SHAPES, Language

Segment = tuple[int, int, str]
POSTFIX = {"striped": "with stripes", "dotted": "with dots", "checked": "with checks"}


class Told(Protocol):
    """A scene of any world, as far as sentences need it."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """What is in it."""

    def relation(self, first: int, second: int) -> str | None:
        """How group `first` stands to group `second`, a key of the language's synonyms; None if unclear."""


@dataclass(frozen=True)
class Caption:
    """A sentence and its segments (start, end, kind): "object" phrases and "relation" clauses."""

    text: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Mention:
    """How one group is named. `order` is that of the adjectives; `postfix` says "with stripes" behind the noun."""

    group: int
    colour: bool = True
    texture: bool = True
    size: bool = True
    order: tuple[str, ...] = ("size", "texture", "colour")
    postfix: bool = False


@dataclass(frozen=True)
class Wording:
    """How a scene is told. `related`: the first two mentions are joined by their spatial relation."""

    mentions: tuple[Mention, ...]
    template: str
    joint: tuple[str, str]
    synonyms: dict[str, str]
    related: bool = False
    stop: bool = False
    nouns: dict[str, tuple[str, str]] = field(default_factory=lambda: SHAPES)


def word_freely(
    rng: Random, scene: Told, unseen: bool = False, full: bool = False, language: Language = FLAT
) -> Wording:
    """A wording for the scene: all of it or, unless `full`, parts of it and of its attributes."""
    groups = list(range(len(scene.groups)))
    rng.shuffle(groups)
    if not full and rng.random() < 0.35:
        groups = groups[: 1 + int(rng.random() * len(groups))]
    rich = full or rng.random() < 0.5
    mentions = tuple(_mention(rng, group, rich, language.orders) for group in groups)
    related = len(groups) > 1 and _relatable(scene, mentions) and rng.random() < 0.4
    return Wording(
        mentions,
        rng.choice(language.unseen_templates if unseen else language.templates),
        rng.choice(language.unseen_joints if unseen else language.joints),
        {value: rng.choice(words) for value, words in language.synonyms.items()},
        related,
        rng.random() < 0.25,
        language.nouns,
    )


def _mention(rng: Random, group: int, rich: bool, orders: tuple[tuple[str, ...], ...]) -> Mention:
    return Mention(
        group,
        colour=rich or rng.random() < 0.75,
        texture=rich or rng.random() < 0.5,
        size=rich or rng.random() < 0.4,
        order=rng.choice(orders),
        postfix=rng.random() < 0.25,
    )


def _relatable(scene: Told, mentions: tuple[Mention, ...]) -> bool:
    first, second = mentions[0].group, mentions[1].group
    single = scene.groups[first].count == scene.groups[second].count == 1
    return single and scene.relation(first, second) is not None


def name(group: Group, mention: Mention, wording: Wording) -> str:
    """The noun phrase: "two small striped red stars", "a red star with stripes"."""
    say = {
        "size": group.size if mention.size else "",
        "texture": group.texture if mention.texture else "",
        "colour": group.colour if mention.colour else "",
    }
    tail = ""
    if mention.postfix and say["texture"] in POSTFIX:
        tail = " " + POSTFIX[say["texture"]]
        say["texture"] = ""
    adjectives = [wording.synonyms.get(say[kind], say[kind]) for kind in mention.order if say[kind]]
    noun = wording.nouns[group.shape][group.count > 1]
    words = [*adjectives, noun]
    one = "an" if words[0][0] in "aeio" else "a"
    article = one if group.count == 1 else NUMBERS[group.count]
    return " ".join([article, *words]) + tail


def tell(scene: Told, wording: Wording) -> Caption:
    """The caption of a scene in a wording, with its segments."""
    groups = [scene.groups[mention.group] for mention in wording.mentions]
    before, after = wording.template.split("{0}")
    text, segments = before, []
    for index, (group, mention) in enumerate(zip(groups, wording.mentions, strict=True)):
        if index == 1 and wording.related:
            side = scene.relation(wording.mentions[0].group, wording.mentions[1].group)
            if side is None:
                raise ValueError("a related wording needs a scene whose first two mentions have a clear relation")
            text += f" {wording.synonyms[side]} "
        elif index:
            text += wording.joint[index == len(groups) - 1]
        start = len(text)
        text += name(group, mention, wording)
        segments.append((start, len(text), "object"))
    if wording.related:
        segments.append((segments[0][0], segments[1][1], "relation"))
    text += after + ("." if wording.stop else "")
    return Caption(text, tuple(segments))


def exchanged(wording: Wording) -> Wording:
    """The same wording with the first two mentions' places exchanged: how a relation is swapped."""
    first, second, *rest = wording.mentions
    return dataclasses.replace(wording, mentions=(second, first, *rest))
