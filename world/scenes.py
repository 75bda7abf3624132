"""Scenes as values: groups of objects at places, and the swaps that turn a scene into its twin."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .vocabulary import COLOURS, HELD_OUT_COLOURS, HELD_OUT_TEXTURES, SHAPES, SIZES, TEXTURES

RENDERER = 1  # raised whenever the same scene would give other pixels: it is part of every image's key
DIAMETER = {"small": 0.18, "medium": 0.26, "large": 0.37}  # of the picture's width; 11.5, 16.6, 23.7 px at 64
Place = tuple[float, ...]  # centre x, centre y, diameter, as fractions of the picture's width; `scenes3d` adds a turn


@dataclass(frozen=True)
class Group:
    """`len(places)` equal objects. `size` is "" for a close-up, where nothing gives the scale."""

    shape: str
    colour: str
    texture: str
    size: str
    places: tuple[Place, ...]

    @property
    def count(self) -> int:
        return len(self.places)

    @property
    def centre(self) -> tuple[float, float]:
        return (sum(p[0] for p in self.places) / self.count, sum(p[1] for p in self.places) / self.count)


@dataclass(frozen=True)
class Scene:
    """What is in a picture. `background` seeds the backdrop; even seeds are clean, odd ones cluttered."""

    groups: tuple[Group, ...]
    background: int

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)

    def relation(self, first: int, second: int) -> str | None:
        """How one group stands to another, by their numbers; see `relation`."""
        return relation(self.groups[first], self.groups[second])

    def recipe(self) -> bytes:
        """Canonical bytes that determine the pixels: the content key of the picture is a hash of them."""
        return json.dumps([RENDERER, dataclasses.asdict(self)], sort_keys=True, separators=(",", ":")).encode()

    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        """(x0, y0, x1, y1) of every object, in fractions, group by group."""
        return tuple(
            (max(x - d / 2, 0.0), max(y - d / 2, 0.0), min(x + d / 2, 1.0), min(y + d / 2, 1.0))
            for group in self.groups
            for x, y, d in group.places
        )


def held_out(group: Group) -> bool:
    """Whether the group pairs its shape with a colour or texture that no training scene pairs it with."""
    return (group.shape, group.colour) in HELD_OUT_COLOURS or (
        group.shape,
        group.texture,
    ) in HELD_OUT_TEXTURES


def place_objects(rng: Random, diameters: list[float]) -> list[Place] | None:
    """Places without overlap, or None when 60 tries did not find them. Largest first, order kept."""
    placed: dict[int, Place] = {}
    for index in sorted(range(len(diameters)), key=lambda i: -diameters[i]):
        diameter = diameters[index]
        for _ in range(60):
            x = diameter / 2 + 0.01 + rng.random() * (0.98 - diameter)
            y = diameter / 2 + 0.01 + rng.random() * (0.98 - diameter)
            if all(max(abs(x - ox), abs(y - oy)) > (diameter + other) / 2 + 0.012 for ox, oy, other in placed.values()):
                placed[index] = (round(x, 4), round(y, 4), round(diameter, 4))
                break
        else:
            return None
    return [placed[index] for index in range(len(diameters))]


def _kinds(rng: Random, number: int, allowed: Callable[[Group], bool]) -> list[Group]:
    """Groups without places. Shapes and colours of one scene are all different, so that every
    exchange between two groups makes another scene and no phrase fits two groups by accident."""
    shapes = rng.sample(sorted(SHAPES), number)
    colours = rng.sample(sorted(COLOURS), number)
    groups = []
    for shape, colour in zip(shapes, colours, strict=True):
        texture = "solid" if rng.random() < 0.3 else TEXTURES[1 + int(rng.random() * 3)]
        groups.append(Group(shape, colour, texture, SIZES[int(rng.random() * 3)], ()))
    if all(map(allowed, groups)):
        return groups
    return _kinds(rng, number, allowed)


def close_up(rng: Random) -> Scene:
    """One object that fills a good part of the picture; nothing gives its size."""
    while True:
        (kind,) = _kinds(rng, 1, lambda group: not held_out(group))
        diameter = 0.42 + rng.random() * 0.5
        spare = max(0.0, 0.99 - diameter)
        x = diameter / 2 + rng.random() * spare
        y = diameter / 2 + rng.random() * spare
        place = (round(x, 4), round(y, 4), round(diameter, 4))
        return Scene((dataclasses.replace(kind, size="", places=(place,)),), rng.getrandbits(20))


def sample(rng: Random, counts: list[int], allowed: Callable[[Group], bool] | None = None) -> Scene:
    """A scene whose groups have the given counts. `allowed` says which kinds of group may appear."""
    allowed = allowed or (lambda group: not held_out(group))
    while True:
        kinds = _kinds(rng, len(counts), allowed)
        scene = arrange(rng, [(kind, count) for kind, count in zip(kinds, counts, strict=True)], rng.getrandbits(20))
        if scene is not None:
            return scene


def arrange(rng: Random, kinds: list[tuple[Group, int]], background: int) -> Scene | None:
    """Give every object a place, each within 6 % of its size's diameter; None when they do not fit."""
    diameters = [DIAMETER[kind.size] * (0.94 + 0.12 * rng.random()) for kind, count in kinds for _ in range(count)]
    places = place_objects(rng, diameters)
    if places is None:
        return None
    groups, start = [], 0
    for kind, count in kinds:
        groups.append(dataclasses.replace(kind, places=tuple(places[start : start + count])))
        start += count
    return Scene(tuple(groups), background)


def relation(first: Group, second: Group) -> str | None:
    """left, right, above or below, if the first stands clearly so to the second; None when it is unclear."""
    return direction(first.centre, second.centre, 0.2, ("left", "right", "above", "below"))


Point = tuple[float, float]


def direction(first: Point, second: Point, least: float, names: tuple[str, str, str, str]) -> str | None:
    """Where the first point lies as seen from the second: before or behind it along x, before or behind it along y,
    by `names`; None where it is nearer than `least` or both axes would do."""
    dx, dy = second[0] - first[0], second[1] - first[1]
    if max(abs(dx), abs(dy)) < least or min(abs(dx), abs(dy)) > 0.7 * max(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return names[0] if dx > 0 else names[1]
    return names[2] if dy > 0 else names[3]
