"""What of each solid is seen, without a renderer: one exact ray through the middle of every pixel.

Each solid is convex: the common part of half-spaces and at most one quadric, so a ray crosses it in one interval.
Only IEEE +, −, ×, ÷, square roots and comparisons are used, element by element: which scene is drawn, and the boxes
of its objects, are the same on every machine. The renderer's meshes are the same solids with rounded edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .scenes import Place
from .scenes3d import SIDE, Scene3D, Vector

Grid = npt.NDArray[np.float64]
Rays = tuple[Grid, Grid, Grid]
FAR = 1e9
MARGIN = 0.02  # between objects and the picture's edges, of its width

# Solids stand on z = 0; x and y in units of half the diameter.
CUBE = 0.8  # half the side
CYLINDER = (0.85, 1.6)  # radius, height
CONE = (1.0, 1.9)
DOME = 1.1  # radius
HEIGHT = {"cube": 2 * CUBE, "sphere": 2.0, "cylinder": CYLINDER[1], "cone": CONE[1], "dome": DOME}
REACH = {"cube": CUBE, "sphere": 1.0, "cylinder": CYLINDER[0], "cone": CONE[0], "dome": DOME}


@dataclass(frozen=True)
class Camera:
    """A pinhole at `eye`; axes to the right, up and forward, unit vectors; `lens` is half the width at distance 1."""

    eye: Vector
    right: Vector
    up: Vector
    forward: Vector
    lens: float

    @classmethod
    def of(cls, scene: Scene3D) -> Camera:
        forward = _unit(tuple(b - a for a, b in zip(scene.eye, scene.target, strict=True)))
        right = _unit((forward[1], -forward[0], 0.0))
        up = _cross(right, forward)
        return cls(scene.eye, right, up, forward, scene.lens)

    def project(self, point: Vector) -> tuple[float, float]:
        """Where a point is in the picture, in fractions of its width, y down."""
        to = (point[0] - self.eye[0], point[1] - self.eye[1], point[2] - self.eye[2])
        depth = _dot(to, self.forward) * self.lens
        return 0.5 + _dot(to, self.right) / depth / 2, 0.5 - _dot(to, self.up) / depth / 2

    def before(self, point: Vector) -> bool:
        """Whether a point is before the camera."""
        return _dot((point[0] - self.eye[0], point[1] - self.eye[1], point[2] - self.eye[2]), self.forward) > 0

    def rays(self, rows: range, columns: range, pixels: int) -> Rays:
        """Directions, not of unit length, through the pixels of a window; three grids."""
        x = ((np.arange(columns.start, columns.stop) + 0.5) * (2 / pixels) - 1)[None, :] * self.lens
        y = (1 - (np.arange(rows.start, rows.stop) + 0.5) * (2 / pixels))[:, None] * self.lens
        first, second, third = (self.forward[axis] + x * self.right[axis] + y * self.up[axis] for axis in range(3))
        return first, second, third


@dataclass(frozen=True)
class Seen:
    """What is seen of the objects of a scene.

    ids     (S, S) int: the object at each pixel, group by group, -1 for the ground
    pixels  how many each object has
    alone   how many it would have if it stood alone
    boxes   around what is seen of it, in fractions; around nothing (0, 0, 0, 0)
    inside  whether all objects lie in the picture with a margin
    """

    ids: npt.NDArray[np.int16]
    pixels: tuple[int, ...]
    alone: tuple[int, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    inside: bool

    @property
    def hidden(self) -> float:
        """The share of the object that is hidden most."""
        return max(1 - seen / alone if alone else 1.0 for seen, alone in zip(self.pixels, self.alone, strict=True))


def framed(around: tuple[float, float, float, float]) -> bool:
    """Whether a box lies in the picture, `MARGIN` from its edges."""
    x0, y0, x1, y1 = around
    return min(x0, y0) >= MARGIN and max(x1, y1) <= 1 - MARGIN


def seen(scene: Scene3D, side: int = SIDE) -> Seen:
    """Look at a scene in `side` × `side` pixels."""
    camera = Camera.of(scene)
    depth = np.full((side, side), FAR)
    ids = np.full((side, side), -1, np.int16)
    alone, inside = [], True
    for number, (group, place) in enumerate(scene.objects):
        x0, y0, x1, y1 = outline(camera, group.shape, place)
        inside = inside and framed((x0, y0, x1, y1))
        rows, columns = _window(y0, y1, side), _window(x0, x1, side)
        near, far = crossing(camera, group.shape, place, camera.rays(rows, columns, side))
        hit = (near < far) & (near > 0)
        alone.append(int(hit.sum()))
        where = np.s_[rows.start : rows.stop, columns.start : columns.stop]
        closer = hit & (near < depth[where])
        depth[where][closer] = near[closer]
        ids[where][closer] = number
    counts = np.bincount(ids[ids >= 0], minlength=len(alone))
    boxes = tuple(_box(ids == number) for number in range(len(alone)))
    return Seen(ids, tuple(map(int, counts)), tuple(alone), boxes, inside)


def lamps_outside(scene: Scene3D) -> bool:
    """Whether the picture shows no lamp: each within the cube of its width, what of it is before the camera is out of
    the frame."""
    camera = Camera.of(scene)
    for lamp in scene.lights:
        half = lamp.width / 2
        corners = [
            (lamp.place[0] + dx, lamp.place[1] + dy, lamp.place[2] + dz)
            for dx in (-half, half) for dy in (-half, half) for dz in (-half, half)
        ]  # fmt: skip
        ahead = [camera.project(corner) for corner in corners if camera.before(corner)]
        if ahead:
            across, down = zip(*ahead, strict=True)
            if max(across) > 0 and min(across) < 1 and max(down) > 0 and min(down) < 1:
                return False
    return True


def outline(camera: Camera, shape: str, place: Place) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) around the projection of the box that the solid stands in, in fractions; may lie outside."""
    x, y, diameter, turn = place
    cosine, sine = _turned(turn)
    scale = diameter / 2
    reach = REACH[shape] * scale
    points = []
    for dx in (-reach, reach):
        for dy in (-reach, reach):
            ground = x + cosine * dx - sine * dy, y + sine * dx + cosine * dy
            points += [camera.project((*ground, z)) for z in (0.0, HEIGHT[shape] * scale)]
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


def crossing(camera: Camera, shape: str, place: Place, rays: Rays) -> tuple[Grid, Grid]:
    """Where rays from the eye enter and leave a solid, in units of their directions; enter ≥ leave where they miss."""
    x, y, diameter, turn = place
    cosine, sine = _turned(turn)
    scale = 2 / diameter
    ex, ey = (camera.eye[0] - x) * scale, (camera.eye[1] - y) * scale
    origin = (cosine * ex + sine * ey, cosine * ey - sine * ex, camera.eye[2] * scale)
    dx, dy, dz = rays
    way = ((cosine * dx + sine * dy) * scale, (cosine * dy - sine * dx) * scale, dz * scale)
    near, far = np.full(dx.shape, -FAR), np.full(dx.shape, FAR)
    for normal, offset in _half_spaces(shape):
        near, far = _cut(near, far, _dot(normal, origin) - offset, _along(normal, way))
    return _quadric(shape, origin, way, near, far)


def _half_spaces(shape: str) -> list[tuple[Vector, float]]:
    """(normal, offset): where normal · p ≤ offset."""
    floor = ((0.0, 0.0, -1.0), 0.0)
    if shape == "sphere":
        return []
    if shape == "dome":
        return [floor]
    lid = ((0.0, 0.0, 1.0), HEIGHT[shape])
    if shape in ("cylinder", "cone"):
        return [floor, lid]
    return [floor, lid, *(((x, y, 0.0), CUBE) for x, y in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)))]


def _quadric(shape: str, origin: Vector, way: Rays, near: Grid, far: Grid) -> tuple[Grid, Grid]:
    """The interval cut by the shape's quadric x² + y² + k (z - c)² ≤ r², if it has one."""
    if shape == "cube":
        return near, far
    k, centre, radius = {
        "sphere": (1.0, 1.0, 1.0),
        "dome": (1.0, 0.0, DOME),
        "cylinder": (0.0, 0.0, CYLINDER[0]),
        "cone": (-(CONE[0] / CONE[1]) * (CONE[0] / CONE[1]), CONE[1], 0.0),
    }[shape]
    ox, oy, oz = origin[0], origin[1], origin[2] - centre
    dx, dy, dz = way
    a = dx * dx + dy * dy + k * (dz * dz)
    b = dx * ox + dy * oy + k * (dz * oz)
    c = ox * ox + oy * oy + k * (oz * oz) - radius * radius
    root = b * b - a * c
    misses = root < 0
    root = np.sqrt(np.where(misses, 0.0, root))
    one, other = (-b - root) / a, (-b + root) / a
    # Where a < 0 the ray runs steeper than the cone's side: coming from above it is inside from its last crossing on.
    low, high = np.where(a > 0, one, np.where(dz < 0, one, -FAR)), np.where(a > 0, other, np.where(dz < 0, FAR, other))
    misses = misses & (a > 0)
    return np.maximum(near, np.where(misses, FAR, low)), np.minimum(far, np.where(misses, -FAR, high))


def _cut(near: Grid, far: Grid, start: float, slope: Grid) -> tuple[Grid, Grid]:
    """The interval cut by start + t · slope ≤ 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -start / slope
    near = np.where(slope < 0, np.maximum(near, at), near)
    far = np.where(slope > 0, np.minimum(far, at), far)
    return near, np.where((slope == 0) & (start > 0), -FAR, far)


def _along(normal: Vector, way: Rays) -> Grid:
    return np.asarray(normal[0] * way[0] + normal[1] * way[1] + normal[2] * way[2])


def _window(start: float, stop: float, side: int) -> range:
    first = min(max(math.floor(start * side), 0), side)
    return range(first, min(max(math.ceil(stop * side), first), side))


def _box(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0.0, 0.0, 0.0, 0.0
    side = mask.shape[0]
    x0, x1, y0, y1 = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
    return x0 / side, y0 / side, x1 / side, y1 / side


def _turned(turn: float) -> tuple[float, float]:
    """Cosine and sine of the angle whose half has the tangent `turn`."""
    square = turn * turn
    return (1 - square) / (1 + square), 2 * turn / (1 + square)


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _unit(vector: tuple[float, ...]) -> Vector:
    x, y, z = vector
    length = math.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length
