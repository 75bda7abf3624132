"""Scenes of solids to pixels, by the path tracer Mitsuba 3 (extra `render`), imported when something is rendered.

The scalar variant traces every ray by itself in a fixed order of random numbers, and a box filter keeps each pixel's
samples to itself: the same scene has the same bytes in every process and with any number of threads. Another CPU may
round an elementary function otherwise; then single samples differ. Pictures are kept in a folder by their content
key, so that none is rendered twice.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..stores.items import content_key
from .meshes import meshes, write_ply
from .scenes import Group, Place
from .scenes3d import SIDE, Light, Scene3D
from .vocabulary import COLOURS

SAMPLES = 36  # a pixel; a square
DEPTH = 4  # of paths: a lamp shows in a metal that shows in another
_lock = threading.Lock()  # the renderer's variant and its threads belong to the process


def kept(scene: Scene3D, folder: Path) -> npt.NDArray[np.uint8]:
    """The scene as (224, 224, 3) uint8 RGB: read from `folder` if it is there, else rendered and kept there.

    Raises `InputError` where it must be rendered and Mitsuba is not installed, or where `folder` cannot be written.
    """
    key = content_key("image-recipe", scene.recipe())
    file = folder / key[:2] / f"{key}.png"
    found = _read(file)
    if found is None:
        found = render(scene)
        _keep(file, found)
    return found


def render(scene: Scene3D, side: int = SIDE, samples: int = SAMPLES) -> npt.NDArray[np.uint8]:
    """The scene as (side, side, 3) uint8 sRGB. Raises `InputError` if Mitsuba is not installed."""
    with _lock:  # around the import too: a second thread would be given the module half made
        mi = _mitsuba()
        mi.set_variant("scalar_rgb")
        loaded = load(description(scene, side, samples))
        light = np.array(mi.render(loaded, seed=0), np.float64)[..., :3]
    return encoded(calmed(light))


def load(described: dict[str, Any]) -> Any:
    """Mitsuba's scene. Its objects keep their order: merged or loaded at once they stand by addresses in memory, and
    random numbers fall otherwise in every process."""
    import mitsuba as mi

    return mi.load_dict(described, parallel=False, optimize=False)


def calmed(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """No channel of a pixel brighter than the second brightest of its eight neighbours: single paths that met a lamp
    by way of a metal, which so few samples cannot average. Highlights of two pixels and more stay."""
    height, width, _ = light.shape
    padded = np.pad(light, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    return np.asarray(np.minimum(light, np.sort(np.stack(around), axis=0)[-2]))


def encoded(light: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Linear RGB to 8-bit sRGB; lights above 1 are clipped."""
    light = light.clip(0, 1)
    curved = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.floor(curved * 255 + 0.5).astype(np.uint8)


def _mitsuba() -> Any:
    if importlib.util.find_spec("mitsuba") is None:
        raise InputError(
            "scenes of solids are rendered with mitsuba, which is not installed", "pip install 'compal[render]'"
        )
    import mitsuba

    return mitsuba


def description(scene: Scene3D, side: int, samples: int) -> dict[str, Any]:
    """What Mitsuba loads; its variant is set."""
    import mitsuba as mi

    look = mi.ScalarTransform4f().look_at
    film = {
        "type": "hdrfilm",
        "width": side,
        "height": side,
        "rfilter": {"type": "box"},
        "pixel_format": "rgb",
        "component_format": "float32",
    }
    found: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": DEPTH},
        "sensor": {
            "type": "perspective",
            "fov": math.degrees(2 * math.atan(scene.lens)),
            "to_world": look(origin=list(scene.eye), target=list(scene.target), up=[0, 0, 1]),
            "film": film,
            "sampler": {"type": "multijitter", "sample_count": samples},
        },
        "sky": {"type": "constant", "radiance": {"type": "rgb", "value": [scene.sky] * 3}},
        "ground": {
            "type": "rectangle",
            "to_world": mi.ScalarTransform4f().scale([200, 200, 1]),
            "bsdf": {"type": "diffuse", "reflectance": {"type": "rgb", "value": list(scene.ground)}},
        },
    }
    found |= {f"lamp{number}": _lamp(lamp) for number, lamp in enumerate(scene.lights)}
    found |= {f"object{number}": _object(*one) for number, one in enumerate(scene.objects)}
    return found


def _lamp(lamp: Light) -> dict[str, Any]:
    import mitsuba as mi

    place = mi.ScalarTransform4f().look_at(origin=list(lamp.place), target=[0, 0, 0], up=[0, 0, 1])
    return {
        "type": "rectangle",
        "to_world": place @ mi.ScalarTransform4f().scale([lamp.width / 2, lamp.width / 2, 1]),
        "emitter": {"type": "area", "radiance": {"type": "rgb", "value": list(lamp.power)}},
    }


def _object(group: Group, place: Place) -> dict[str, Any]:
    import mitsuba as mi

    x, y, diameter, turn = place
    T = mi.ScalarTransform4f
    if group.shape == "sphere":
        return {"type": "sphere", "center": [x, y, diameter / 2], "radius": diameter / 2, "bsdf": _surface(group)}
    to_world = T().translate([x, y, 0]) @ T().rotate([0, 0, 1], math.degrees(2 * math.atan(turn)))
    return {
        "type": "ply",
        "filename": str(_meshes() / f"{group.shape}.ply"),
        "to_world": to_world @ T().scale(diameter / 2),
        "bsdf": _surface(group),
    }


def _surface(group: Group) -> dict[str, Any]:
    colour = np.array(COLOURS[group.colour]) / 255
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    if group.texture == "metal":
        # A little white in the tint: a metal of a deep colour would show nothing but its lamps.
        tint = {"type": "rgb", "value": (0.9 * linear + 0.04).tolist()}
        return {"type": "roughconductor", "material": "none", "specular_reflectance": tint, "alpha": 0.1}
    tint = {"type": "rgb", "value": (0.85 * linear + 0.005).tolist()}
    return {"type": "principled", "base_color": tint, "roughness": 0.7, "specular": 0.25}


def _read(file: Path) -> npt.NDArray[np.uint8] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (FileNotFoundError, UnidentifiedImageError, OSError, SyntaxError):
        return None  # damaged ones are rendered again
    return pixels if pixels.shape == (SIDE, SIDE, 3) else None


def _keep(file: Path, pixels: npt.NDArray[np.uint8]) -> None:
    from PIL import Image

    from ..stores.files import disk_errors

    with disk_errors(str(file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".png")
        try:
            with open(handle, "wb") as stream:
                Image.fromarray(pixels).save(stream, format="PNG")
            os.replace(temporary, file)
        finally:
            Path(temporary).unlink(missing_ok=True)


_kept: list[tempfile.TemporaryDirectory[str]] = []  # of this process, removed when it ends


@cache
def _meshes() -> Path:
    """A folder with a mesh of every solid."""
    folder = tempfile.TemporaryDirectory(prefix="compal-solids-")
    _kept.append(folder)
    for name, mesh in meshes().items():
        write_ply(Path(folder.name) / f"{name}.ply", mesh)
    return Path(folder.name)
