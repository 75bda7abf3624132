"""The splits of the scenes of solids: swap quadruplets, each split with its own difficulties.

Every quadruplet is a function of (split, number). What could be guessed without binding is balanced by the number:
which of the two exchanged groups is told first stands left or right, near or far, and has the larger size or count,
each in exactly half of any eight quadruplets of a category.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from random import Random

from .scenes import Group, Place
from .scenes3d import HUES, MATERIALS, SIDE, SIDES, SOLIDS, SPATIAL, Difficulty, Scene3D, stage
from .sight import Camera, Seen, framed, lamps_outside, outline, seen
from .splits import seeded
from .swaps import Quadruplet, resized, swapped, tell_both
from .vocabulary import CATEGORIES

PER_CATEGORY = 40
LEVELS = {
    "plain": Difficulty(),
    "many": Difficulty(told=(4, 4), hidden=(0.0, 0.15)),
    "cluttered": Difficulty(clutter=(3, 4), hidden=(0.0, 0.2)),
    "occluded": Difficulty(hidden=(0.2, 0.6)),
    "varied": Difficulty(camera=1.0, light=1.0),
    "close": Difficulty(contrast=1.4, numbers=((3, 4),)),
    "hard": Difficulty((3, 4), (2, 3), (0.15, 0.6), 1.5, ((2, 3), (3, 4)), 1.0, 1.0),
}
SPLITS3D = ("train", "validation", *LEVELS)
PIXELS = 140  # of the smallest object that counts as visible, at 224 px
LARGER = 1.1  # how much wider the larger object of a size swap must look, at least
Quad3D = Quadruplet[Scene3D]


def level(split: str) -> Difficulty:
    """The difficulty of a split; what is learnt from is plain."""
    return LEVELS.get(split, LEVELS["plain"])


@lru_cache(4096)
def quad(split: str, number: int) -> Quad3D:
    """Quadruplet `number` of a split. Categories take turns, so any prefix is balanced."""
    return made(level(split), split, number)


def made(difficulty: Difficulty, name: str, number: int) -> Quad3D:
    """Quadruplet `number` of a set called `name`, which seeds it, at any difficulty. One that cannot be met, as four
    groups that hide nothing before a lens that shows little, is tried for ever."""
    category = CATEGORIES[number % len(CATEGORIES)]
    rng = seeded("solids", name, number)
    while True:
        found = _attempt(rng, category, difficulty)
        if found and _balanced(found, number // len(CATEGORIES)) and _clear(found, difficulty):
            return found


def quads(split: str, limit: int | None = None) -> Iterator[Quad3D]:
    """The first `limit` quadruplets of a split; by default 40 of each category, of train 400."""
    size = len(CATEGORIES) * PER_CATEGORY * (10 if split == "train" else 1)
    for number in range(size if limit is None else limit):
        yield quad(split, number)


def _between(rng: Random, bounds: tuple[int, int]) -> int:
    return bounds[0] + int(rng.random() * (bounds[1] - bounds[0] + 1))


def _attempt(rng: Random, category: str, difficulty: Difficulty) -> Quad3D | None:
    told, clutter = _between(rng, difficulty.told), _between(rng, difficulty.clutter)
    kinds = _kinds(rng, told, clutter, category)
    counts = [1] * len(kinds)
    if category == "quantity":
        pair = rng.choice(difficulty.numbers)
        counts[:2] = pair if rng.random() < 0.5 else pair[::-1]
    elif category != "relation":
        counts[:told] = [2 if rng.random() < 0.15 else 1 for _ in range(told)]
    empty = stage(rng, difficulty)
    if not lamps_outside(empty):
        return None
    groups = _placed(rng, empty, kinds, counts, category == "size", difficulty)
    if groups is None:
        return None
    scene = dataclasses.replace(empty, groups=groups)
    twin = swapped(scene, category, difficulty.diameters)
    if twin is None:
        return None
    # Captions see the groups that are told alone. "A left of B and C" could mean that A is left of C: relations are
    # told of two groups only.
    told = 2 if category == "relation" else told
    view, other = (dataclasses.replace(one, groups=one.groups[:told]) for one in (scene, twin))
    spoken = tell_both(rng, category, view, other, language=SPATIAL)
    if spoken is None or (told > 2 and any(kind == "relation" for _, _, kind in spoken.captions[0].segments)):
        return None
    return Quadruplet(category, (scene, twin), spoken.captions)


def _kinds(rng: Random, told: int, clutter: int, category: str) -> list[Group]:
    """Groups without places: told ones differ in shape, and all in colour, so no phrase fits two by accident."""
    shapes = rng.sample(sorted(SOLIDS), told) + [rng.choice(sorted(SOLIDS)) for _ in range(clutter)]
    colours = rng.sample(sorted(HUES), told + clutter)
    kinds = [
        Group(shape, colour, rng.choice(MATERIALS), rng.choice(("small", "large")), ())
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    first, second = kinds[:2]
    if category == "material" and first.texture == second.texture:
        kinds[1] = dataclasses.replace(second, texture=MATERIALS[first.texture == MATERIALS[0]])
    if category == "size":
        kinds[1] = dataclasses.replace(second, size="large" if first.size == "small" else "small")
    if category in ("quantity", "relation"):
        kinds[1] = dataclasses.replace(second, size=first.size)
    return kinds


def _placed(
    rng: Random, empty: Scene3D, kinds: list[Group], counts: list[int], roomy: bool, difficulty: Difficulty
) -> tuple[Group, ...] | None:
    """The groups at places in view; where sizes are exchanged (`roomy`) either has room for the larger."""
    diameters = difficulty.diameters
    sizes = ["large" if roomy and number < 2 else kind.size for number, kind in enumerate(kinds)]
    wanted = [diameters[size] for size, count in zip(sizes, counts, strict=True) for _ in range(count)]
    places = place_on_ground(rng, empty, wanted, difficulty.hidden[0] > 0)
    if places is None:
        return None
    groups, start = [], 0
    for kind, size, count in zip(kinds, sizes, counts, strict=True):
        group = dataclasses.replace(kind, size=size, places=tuple(places[start : start + count]))
        groups.append(resized(group, kind.size, diameters))
        start += count
    return tuple(groups)


def place_on_ground(rng: Random, empty: Scene3D, diameters: list[float], crowded: bool) -> list[Place] | None:
    """A place for each diameter so that all are in the picture and none touch; None when 60 tries did not find one.
    Largest first, order kept. `crowded`: half of them stand close behind another."""
    camera = Camera.of(empty)
    placed: dict[int, Place] = {}
    for index in sorted(range(len(diameters)), key=lambda i: -diameters[i]):
        diameter = diameters[index]
        for _ in range(60):
            x, y = rng.random() * 5.0 - 2.5, rng.random() * 5.4 - 2.4
            if crowded and placed and rng.random() < 0.5:
                before = placed[rng.choice(sorted(placed))]
                apart = (before[2] + diameter) / 2
                x, y = before[0] + (rng.random() - 0.5) * apart * 1.2, before[1] + apart * (1.1 + 0.4 * rng.random())
            place = (round(x, 4), round(y, 4), diameter, round(rng.random() * 2 - 1, 4))
            clear = all(_apart(place, one, (diameter + one[2]) / 2 + 0.1) for one in placed.values())
            if clear and framed(outline(camera, "sphere", place)):
                placed[index] = place
                break
        else:
            return None
    return [placed[index] for index in range(len(diameters))]


def _apart(place: Place, other: Place, least: float) -> bool:
    dx, dy = place[0] - other[0], place[1] - other[1]
    return dx * dx + dy * dy > least * least


def told_first(made: Quad3D) -> int:
    """Which of the two exchanged groups the first caption names first, 0 or 1."""
    text = made.captions[0].text
    return int(text.find(made.scenes[0].groups[1].shape) < text.find(made.scenes[0].groups[0].shape))


def _balanced(made: Quad3D, turn: int) -> bool:
    """Whether the quadruplet has what its turn asks for: the bits of its number within the category."""
    scene = made.scenes[0]
    which = told_first(made)
    first, second = scene.groups[which], scene.groups[1 - which]
    if made.category == "relation":
        return scene.relation(which, 1 - which) == SIDES[turn % len(SIDES)]
    (x, y), (ox, oy) = first.centre, second.centre
    if abs(x - ox) < 0.3 or abs(y - oy) < 0.3:
        return False
    facts = [x < ox, y < oy]
    if made.category == "size":
        facts.append(first.size == "large")
    elif made.category == "quantity":
        facts.append(first.count > second.count)
    elif made.category == "material":
        facts.append(first.texture == "metal")
    return all(fact == bool(turn >> bit & 1) for bit, fact in enumerate(facts))


def _clear(made: Quad3D, difficulty: Difficulty) -> bool:
    """Whether every object of both pictures is seen well enough, and hidden as much as is asked."""
    for scene in made.scenes:
        look = seen(scene)
        least, most = difficulty.hidden
        if not look.inside or min(look.pixels) < PIXELS or not least <= look.hidden <= most:
            return False
        if made.category == "size" and not _looks_larger(scene, look):
            return False
    return True


def _looks_larger(scene: Scene3D, look: Seen) -> bool:
    first, second = scene.groups[:2]
    widths = [round((x1 - x0) * SIDE) for x0, _, x1, _ in look.boxes]
    one, other = widths[: first.count], widths[first.count : first.count + second.count]
    large, small = (one, other) if first.size == "large" else (other, one)
    return min(large) >= LARGER * max(small)
