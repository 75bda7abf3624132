"""Scenes of solids on a ground as values: what stands where, from where it is seen, how it is lit.

Ground coordinates: x to the right of the camera, y away from it, z up; about 5 × 5 units are in view. The camera
stands at x = 0 and looks along y, so left and right, front and behind are those of the axes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from random import Random

from .scenes import Group, Place, Scene, direction
from .vocabulary import SYNONYMS, Language

RENDERER = 1  # raised whenever the same scene would give other pixels: it is part of every image's key
SIDE = 224  # pixels of a picture's width and height
SMALL = 0.8  # diameter of a small object, ground units
Vector = tuple[float, float, float]

SOLIDS: dict[str, tuple[str, str]] = {  # name: (singular, plural)
    "cube": ("cube", "cubes"),
    "sphere": ("sphere", "spheres"),
    "cylinder": ("cylinder", "cylinders"),
    "cone": ("cone", "cones"),
    "dome": ("dome", "domes"),
}
# No word may begin with a vowel: "an" for "a" would make captions of a quadruplet differ in more than an exchange.
HUES = ("red", "green", "blue", "yellow", "purple", "brown", "gray", "cyan")
MATERIALS = ("rubber", "metal")
SIDES = ("left", "right", "front", "behind")

SPATIAL = Language(
    nouns=SOLIDS,
    synonyms={
        **{value: SYNONYMS[value] for value in ("purple", "gray", "small", "large", "left", "right")},
        "rubber": ("rubber", "matte"),
        "metal": ("metal", "metallic", "shiny"),
        "front": ("in front of",),
        "behind": ("behind",),
    },
    templates=("{0}", "a picture of {0}", "an image with {0}", "a rendering of {0}", "this picture shows {0}"),
    unseen_templates=("in this image there is {0}",),
    joints=((", ", " and "), (" and ", " and "), (", ", " with ")),
    unseen_joints=((" with ", " with "),),
    orders=(("size", "colour", "texture"),),
)
"""The words of the solids: those of the flat world where it has them."""


@dataclass(frozen=True)
class Difficulty:
    """What makes a scene hard; each field alone, or together.

    told      least and most groups that captions mention, the two that are exchanged among them
    clutter   least and most single objects that no caption mentions; their colours are those of no group told
    hidden    least and most of the object that is hidden most, as a share of its own picture
    contrast  diameter of a large object over that of a small one
    numbers   pairs of counts that quantity exchanges
    camera    how far height, distance and lens stray, 0 to 1
    light     how far lights, their tint and the ground stray, 0 to 1
    """

    told: tuple[int, int] = (2, 3)
    clutter: tuple[int, int] = (0, 0)
    hidden: tuple[float, float] = (0.0, 0.08)
    contrast: float = 2.0
    numbers: tuple[tuple[int, int], ...] = ((2, 3), (2, 4))
    camera: float = 0.15
    light: float = 0.25

    @property
    def diameters(self) -> dict[str, float]:
        """Ground units of each size."""
        return {"small": SMALL, "large": round(SMALL * self.contrast, 4)}


@dataclass(frozen=True)
class Light:
    """A square lamp that faces the origin: `place` and `width` in ground units, `power` RGB radiance."""

    place: Vector
    width: float
    power: Vector


@dataclass(frozen=True)
class Scene3D(Scene):
    """Groups of solids on a ground. A group's `texture` is its material; a place is (x, y, diameter, turn), the turn
    about the vertical as the tangent of half its angle.

    background  seeds the tone of the ground
    eye         of the camera, ground units
    target      what it looks at
    lens        half the picture's width at distance 1
    lights      key, fill and back
    sky         radiance of what is above, the same everywhere
    ground      reflectance, RGB
    """

    eye: Vector
    target: Vector
    lens: float
    lights: tuple[Light, ...]
    sky: float
    ground: Vector

    def relation(self, first: int, second: int) -> str | None:
        """left, right, front or behind; None when it is unclear."""
        one, other = self.groups[first], self.groups[second]
        return direction(one.centre, other.centre, 1.0, ("left", "right", "front", "behind"))

    def recipe(self) -> bytes:
        """Canonical bytes that determine the pixels: the content key of the picture is a hash of them."""
        content = ["solids", RENDERER, SIDE, dataclasses.asdict(self)]
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        """(x0, y0, x1, y1) of what is seen of every object, in fractions, group by group."""
        from .sight import seen

        return seen(self).boxes

    @property
    def objects(self) -> list[tuple[Group, Place]]:
        """Every object as (its group, its place), group by group."""
        return [(group, place) for group in self.groups for place in group.places]


def stage(rng: Random, difficulty: Difficulty) -> Scene3D:
    """An empty scene: a camera and lights that stray as `difficulty` says."""

    def stray(middle: float, least: float, most: float, much: float) -> float:
        there = rng.random()
        return round(middle + much * (least - middle + there * (most - least)), 4)

    camera, light = difficulty.camera, difficulty.light
    height, distance = stray(5.2, 4.2, 7.2, camera), stray(7.6, 6.9, 8.2, camera)
    aim = (0.0, stray(0.1, -0.1, 0.4, camera), 0.35)
    side = 1 if light < 0.5 or rng.random() < 0.5 else -1
    lamps = (
        _lamp(rng, (-4.2 * side, -3.6, 7.5), 4.0, stray(7.0, 5.0, 9.0, light), light),
        _lamp(rng, (7.0 * side, -4.0, 3.6), 4.5, stray(2.0, 1.0, 3.5, light), light),
        _lamp(rng, (-1.5 * side, 9.0, 7.4), 7.0, stray(1.6, 0.8, 2.4, light), light),
    )
    background = rng.getrandbits(20)
    tone = Random(background)
    shade = 0.68 + light * (tone.random() * 0.5 - 0.35)
    ground = tuple(round(shade * (1 + light * (tone.random() * 0.3 - 0.15)), 4) for _ in range(3))
    return Scene3D(
        (),
        background,
        (0.0, -distance, height),
        aim,
        stray(0.345, 0.33, 0.385, camera),
        lamps,
        stray(0.26, 0.16, 0.36, light),
        (ground[0], ground[1], ground[2]),
    )


def _lamp(rng: Random, place: Vector, width: float, power: float, stray: float) -> Light:
    x, y, z = (round(value + stray * (rng.random() * 5 - 2.5) * (0.4 if axis == 2 else 1), 4)
               for axis, value in enumerate(place))  # fmt: skip
    warmth = stray * (rng.random() * 0.3 - 0.15)
    tint = (round(power * (1 + warmth), 4), round(power, 4), round(power * (1 - warmth), 4))
    return Light((x, y, z), round(width * (1 + stray * (rng.random() - 0.5)), 4), tint)
