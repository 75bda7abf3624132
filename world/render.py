"""Scenes to pixels: anti-aliased, and the same bytes in every process.

Shapes are drawn once per process as high-resolution stencils; an object samples its stencil and its texture
at 4 × 4 points a pixel. Only IEEE +, −, ×, ÷, comparisons and integer arithmetic reach a pixel, so no
platform's sine or thread count can change one.
"""

from __future__ import annotations

from functools import cache
from random import Random

import numpy as np
import numpy.typing as npt

from .scenes import Group, Place, Scene
from .vocabulary import COLOURS

SUPER = 4
STENCIL = 256
Points = tuple[tuple[float, float], ...]

_C30, _C18, _S18, _C54, _S54 = 0.8660254, 0.9510565, 0.3090170, 0.5877853, 0.8090170

POLYGONS: dict[str, Points] = {  # in [-1, 1]², y down
    "square": ((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": ((0, -0.95), (0.98, 0.86), (-0.98, 0.86)),
    "pentagon": ((0, -1), (_C18, -_S18), (_C54, _S54), (-_C54, _S54), (-_C18, -_S18)),
    "hexagon": ((1, 0), (0.5, _C30), (-0.5, _C30), (-1, 0), (-0.5, -_C30), (0.5, -_C30)),
    "star": (
        (0, -1), (0.2245, -0.3090), (_C18, -_S18), (0.3633, 0.1180), (_C54, _S54),
        (0, 0.3820), (-_C54, _S54), (-0.3633, 0.1180), (-_C18, -_S18), (-0.2245, -0.3090),
    ),
    "cross": (
        (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
        (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32),
    ),
    "diamond": ((0, -1), (0.72, 0), (0, 1), (-0.72, 0)),
    "arrow": ((-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)),
    "bar": ((-0.36, -1), (0.36, -1), (0.36, 1), (-0.36, 1)),
    "trapezoid": ((-0.5, -0.72), (0.5, -0.72), (1, 0.72), (-1, 0.72)),
    "corner": ((-0.9, -0.9), (-0.2, -0.9), (-0.2, 0.2), (0.9, 0.2), (0.9, 0.9), (-0.9, 0.9)),
    "bolt": ((0.35, -1), (-0.7, 0.15), (-0.05, 0.15), (-0.35, 1), (0.7, -0.25), (0.05, -0.25)),
    "house": ((0, -1), (0.95, -0.1), (0.65, -0.1), (0.65, 0.95), (-0.65, 0.95), (-0.65, -0.1), (-0.95, -0.1)),
    "hourglass": ((-0.8, -0.95), (0.8, -0.95), (0.12, 0), (0.8, 0.95), (-0.8, 0.95), (-0.12, 0)),
}  # fmt: skip

Grid = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def _polygon(points: Points, x: Grid, y: Grid) -> Mask:
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _disc(x: Grid, y: Grid, radius: float, cx: float = 0.0, cy: float = 0.0) -> Mask:
    return (x - cx) * (x - cx) + (y - cy) * (y - cy) <= radius * radius


def _curved(shape: str, x: Grid, y: Grid) -> Mask:
    if shape == "circle":
        return _disc(x, y, 0.95)
    if shape == "ring":
        return _disc(x, y, 1.0) & ~_disc(x, y, 0.52)
    if shape == "crescent":
        return _disc(x, y, 0.98) & ~_disc(x, y, 0.86, 0.48, 0.0)
    if shape == "oval":
        return x * x + (y / 0.58) * (y / 0.58) <= 1
    if shape == "dome":
        return _disc(x, y, 1.0, 0.0, 0.45) & (y <= 0.45)
    if shape == "drop":
        return _disc(x, y, 0.6, 0.0, 0.38) | _polygon(((0, -1), (0.55, 0.15), (-0.55, 0.15)), x, y)
    if shape == "heart":
        lobes = _disc(x, y, 0.52, -0.46, -0.4) | _disc(x, y, 0.52, 0.46, -0.4)
        return lobes | _polygon(((-0.92, -0.16), (0, -0.5), (0.92, -0.16), (0, 0.98)), x, y)
    if shape == "flower":
        petals = _disc(x, y, 0.42, 0.0, -0.56) | _disc(x, y, 0.42, 0.0, 0.56)
        return petals | _disc(x, y, 0.42, -0.56, 0.0) | _disc(x, y, 0.42, 0.56, 0.0) | _disc(x, y, 0.4)
    if shape == "frame":
        return (np.maximum(abs(x), abs(y)) <= 0.9) & (np.maximum(abs(x), abs(y)) >= 0.5)
    body = ((x + 0.2) / 0.78) * ((x + 0.2) / 0.78) + (y / 0.5) * (y / 0.5) <= 1  # fish
    return body | _polygon(((0.3, 0.0), (1.0, -0.62), (1.0, 0.62)), x, y)


@cache
def _stencil(shape: str) -> Mask:
    line = (np.arange(STENCIL, dtype=np.float64) + 0.5) * (2.0 / STENCIL) - 1.0
    x, y = np.broadcast_to(line, (STENCIL, STENCIL)), np.broadcast_to(line[:, None], (STENCIL, STENCIL))
    return _polygon(POLYGONS[shape], x, y) if shape in POLYGONS else _curved(shape, x, y)


@cache
def _texture(texture: str) -> Mask:
    """Where the second tone lies on the stencil's grid: three periods across the object."""
    line = np.arange(STENCIL)
    if texture == "solid":
        return np.zeros((STENCIL, STENCIL), bool)
    if texture == "striped":
        diagonal = line[:, None] + line[None, :]
        return np.asarray(diagonal * 6 // (2 * STENCIL) % 2 == 1)
    if texture == "checked":
        cell = line * 4 // STENCIL
        return np.asarray((cell[:, None] + cell[None, :]) % 2 == 1)
    offset = (line * 3 % STENCIL) / STENCIL - 0.5
    return np.asarray(offset[:, None] * offset[:, None] + offset[None, :] * offset[None, :] <= 0.085)


def tones(colour: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The colour and the second tone of its textures: towards black on light colours, towards white on dark."""
    first = np.array(COLOURS[colour], np.float64)
    light = first @ np.array([0.299, 0.587, 0.114]) >= 90
    return first, first * 0.3 if light else first * 0.4 + 255 * 0.6


def _backdrop(seed: int, pixels: int) -> npt.NDArray[np.float64]:
    rng = Random(seed)
    base = 196 + 40 * np.array([rng.random(), rng.random(), rng.random()])
    canvas = np.broadcast_to(base, (pixels, pixels, 3)).copy()
    if seed % 2 == 0:
        return canvas
    slope = np.arange(pixels) / pixels - 0.5
    canvas += (slope[:, None, None] * (rng.random() - 0.5) + slope[None, :, None] * (rng.random() - 0.5)) * 60
    for _ in range(6):
        x0, y0 = int(rng.random() * pixels), int(rng.random() * pixels)
        w, h = 1 + int(rng.random() * pixels / 3), 1 + int(rng.random() * pixels / 3)
        canvas[y0 : y0 + h, x0 : x0 + w] += (np.array([rng.random(), rng.random(), rng.random()]) - 0.5) * 44
    return canvas


def _draw(canvas: npt.NDArray[np.float64], group: Group, place: Place) -> None:
    pixels = canvas.shape[0]
    x, y, diameter = (value * pixels for value in place)
    x0, x1 = max(int(x - diameter / 2), 0), min(int(x + diameter / 2) + 1, pixels)
    y0, y1 = max(int(y - diameter / 2), 0), min(int(y + diameter / 2) + 1, pixels)

    def line(start: int, stop: int, centre: float) -> npt.NDArray[np.int64]:
        points = start + (np.arange((stop - start) * SUPER) + 0.5) / SUPER
        return np.asarray(np.floor((points - centre + diameter / 2) * (STENCIL / diameter)), np.int64)

    rows, columns = line(y0, y1, y), line(x0, x1, x)
    inside = ((rows >= 0) & (rows < STENCIL))[:, None] & ((columns >= 0) & (columns < STENCIL))[None, :]
    index = np.ix_(rows.clip(0, STENCIL - 1), columns.clip(0, STENCIL - 1))
    shape = _stencil(group.shape)[index] & inside
    second = shape & _texture(group.texture)[index]

    def coverage(mask: Mask) -> npt.NDArray[np.float64]:
        cells = mask.reshape(y1 - y0, SUPER, x1 - x0, SUPER)
        return np.asarray(cells.sum(axis=(1, 3), dtype=np.int64) / (SUPER * SUPER))[..., None]

    full, tone = coverage(shape), coverage(second)
    first_colour, second_colour = tones(group.colour)
    window = canvas[y0:y1, x0:x1]
    window *= 1 - full
    window += (full - tone) * first_colour + tone * second_colour


def render(scene: Scene, pixels: int = 64) -> npt.NDArray[np.uint8]:
    """The scene as (pixels, pixels, 3) uint8 RGB."""
    canvas = _backdrop(scene.background, pixels)
    for group in scene.groups:
        for place in group.places:
            _draw(canvas, group, place)
    return np.floor(canvas.clip(0, 255) + 0.5).astype(np.uint8)
