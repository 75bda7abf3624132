"""The solids of `sight` as triangles: smooth where they are round, their upper edges a little rounded.

What stands on the ground has no underside: no light comes there.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .sight import CONE, CUBE, CYLINDER, DOME

BEVEL = 0.07  # radius of rounded edges, in units of half the diameter
AROUND = 96  # faces about the axis
Points = npt.NDArray[np.float64]
Corners = npt.NDArray[np.int32]
Mesh = tuple[Points, Points, Corners]
"""(V, 3) positions, (V, 3) unit normals, (F, 3) corners of the faces, anticlockwise seen from outside."""


def meshes() -> dict[str, Mesh]:
    """A mesh of each solid that the renderer has none of its own for."""
    quarter = np.linspace(0, math.pi / 2, 33)
    arc = np.stack([np.cos(quarter), np.sin(quarter)], axis=1)
    radius, height = CYLINDER
    edge = arc[::4]
    inner = np.array([radius - BEVEL, height - BEVEL])
    side = np.concatenate([[[radius, 0]], inner + BEVEL * edge, [[0, height]]])
    turned = np.concatenate([[[1, 0]], edge, [[0, 1]]])
    slope = np.array([[CONE[1], CONE[0]]]) / math.hypot(*CONE)
    levels = np.linspace(0, 1, 9)[:, None]
    cone = levels * [[0, CONE[1]]] + (1 - levels) * [[CONE[0], 0]]
    return {
        "dome": _lathe(DOME * arc, arc),
        "cylinder": _lathe(side, turned),
        "cone": _lathe(cone, np.repeat(slope, len(cone), axis=0)),
        "cube": _rounded_cube(CUBE),
    }


def _lathe(profile: Points, normals: Points) -> Mesh:
    """Turn (radius, height) points, lowest first, about the axis."""
    angle = np.arange(AROUND + 1) * (2 * math.pi / AROUND)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def turned(points: Points) -> Points:
        flat = points[:, None, :1] * circle[None]
        heights = np.broadcast_to(points[:, None, 1:], (*flat.shape[:2], 1))
        return np.concatenate([flat, heights], axis=2).reshape(-1, 3)

    return turned(profile), turned(normals), _grid(len(profile), AROUND + 1)


def _grid(rows: int, columns: int) -> Corners:
    """The two triangles of every cell of a grid of points."""
    first = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)[None]).reshape(-1)
    lower = np.stack([first, first + 1, first + columns + 1], axis=1)
    upper = np.stack([first, first + columns + 1, first + columns], axis=1)
    return np.concatenate([lower, upper]).astype(np.int32)


def _rounded_cube(half: float) -> Mesh:
    """Points of a cube's five upper faces, each drawn to `BEVEL` from the smaller cube within."""
    line = np.concatenate([np.linspace(-half, BEVEL - half, 7), np.linspace(half - BEVEL, half, 7)])
    across, along = (grid.reshape(-1) for grid in np.meshgrid(line, line))
    out = np.full(across.shape, half)
    faces = [(across, along, out), (out, across, along), (-out, -across, along), (-across, out, along),
             (across, -out, along)]  # fmt: skip
    points, normals, corners = [], [], []
    for number, face in enumerate(faces):
        outer = np.stack(face, axis=1)
        core = outer.clip(BEVEL - half, half - BEVEL)
        normal = outer - core
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        points.append(core + BEVEL * normal + [0, 0, half])
        normals.append(normal)
        corners.append(_grid(len(line), len(line)) + number * len(across))
    return np.concatenate(points), np.concatenate(normals), np.concatenate(corners)


def write_ply(path: Path, mesh: Mesh) -> None:
    """A mesh as a binary PLY file."""
    points, normals, corners = mesh
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{names}"
        f"element face {len(corners)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    vertices = np.concatenate([points, normals], axis=1).astype("<f4").tobytes()
    faces = b"".join(struct.pack("<B3i", 3, *map(int, face)) for face in corners)
    path.write_bytes(header.encode() + vertices + faces)
