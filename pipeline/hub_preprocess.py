"""The image processor of a transformers model as the strings of a spec, exactly or not at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..hub import quietly
from . import preprocess

# PIL's numbers.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
_KINDS = ("CLIPImageProcessor", "ChineseCLIPImageProcessor", "SiglipImageProcessor", "Siglip2ImageProcessor")


def describe(folder: Path, size: int, patch: int, flexible: bool) -> tuple[dict[str, str], int]:
    """The preprocessing of the model in `folder`, and its rows of patches if the tower is `flexible` (NaFlex).

    size  what the tower takes, in pixels; ignored if it is flexible

    A flexible tower is given one square grid of the processor's `max_num_patches`; a picture that is not square
    is squashed, where transformers would choose a grid of its shape. Raises `InputError` for a processor that
    resizes or crops otherwise than the strings can say.
    """
    processor = _load(folder)
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    if kind not in _KINDS:
        raise _refusal(folder, f"is a {kind}", f"Known: {', '.join(_KINDS)}.")
    if not getattr(processor, "do_resize", True) or getattr(processor, "do_pad", None):
        raise _refusal(folder, "does not resize, or pads")
    resample = _RESAMPLE.get(int(processor.resample))
    if resample is None:
        raise _refusal(folder, f"resamples by PIL's filter {int(processor.resample)}", "2 and 3 can be said.")
    if flexible:
        size, resize = _grid(folder, processor, patch) * patch, "squash"
    else:
        resize = _resize(folder, processor, size)
    mean, std = _scale(folder, processor)
    described = preprocess.describe((size, size), resize, resample, mean, std)
    if resize == "shortest":
        described["crop"] = "floor"
    return described, size // patch if flexible else 0


def _load(folder: Path) -> Any:
    import transformers

    kinds: Any = transformers.AutoImageProcessor
    try:
        with quietly():
            return kinds.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a strange file makes transformers raise
        reason = str(error).strip().split("\n", 1)[0][:160] or type(error).__name__
        raise _refusal(folder, f"cannot be loaded: {reason}") from None


def _resize(folder: Path, processor: Any, size: int) -> str:
    """shortest | squash. Numbers of old files ("size": 224) are the shorter edge, as transformers reads them."""
    given = {key: value for key, value in dict(processor.size).items() if value}
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", None) else {}
    edge, square = given.get("shortest_edge"), (given.get("height"), given.get("width"))
    if crop and (crop.get("height"), crop.get("width")) != (size, size):
        raise _refusal(folder, f"crops to {crop.get('height')} x {crop.get('width')}, the tower takes {size} x {size}")
    if edge == size and len(given) == 1 and crop:
        return "shortest"
    if square == (size, size) and len(given) == 2:
        return "squash"
    how = f"resizes to {given} and {'crops' if crop else 'does not crop'}"
    raise _refusal(folder, f"{how}, the tower takes {size} x {size}")


def _grid(folder: Path, processor: Any, patch: int) -> int:
    count = int(processor.max_num_patches)
    if int(processor.patch_size) != patch:
        raise _refusal(folder, f"cuts patches of {processor.patch_size} px, the tower takes {patch}")
    if math.isqrt(count) ** 2 != count or not count:
        raise _refusal(folder, f"asks for {count} patches, no square grid", 'Set "max_num_patches" to a square.')
    return math.isqrt(count)


def _scale(folder: Path, processor: Any) -> tuple[list[float], list[float]]:
    factor = float(processor.rescale_factor)
    if not processor.do_rescale or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise _refusal(folder, "does not scale pixels by 1/255")
    if not processor.do_normalize:
        return [0.0] * 3, [1.0] * 3
    mean, std = list(processor.image_mean), list(processor.image_std)
    if len(mean) != 3 or len(std) != 3:
        raise _refusal(folder, "has no mean and deviation of three channels")
    return mean, std


def _refusal(folder: Path, what: str, cure: str = "") -> InputError:
    said = "Only resizing and a centre crop to what the tower takes can be said exactly."
    return InputError(f"the image processor of {folder} {what}", cure or said)
