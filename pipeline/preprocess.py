"""Image preprocessing as a spec's strings, and back: resizing on the CPU, scaling to floats on the device.

The strings are the truth: whatever opens a spec preprocesses as the spec says, not as a library's defaults
say today.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def describe(
    size: tuple[int, int], resize: str, interpolation: str, mean: Any, std: Any, fill: int = 0
) -> dict[str, str]:
    """The strings of a preprocessing: `size` (height, width) in pixels; `resize` shortest | longest | squash;
    `interpolation` bicubic | bilinear; `mean` and `std` of each channel of pixels in [0, 1].

    Beside these there may be `crop`: "floor" for transformers' centre crop (`hub_preprocess.py`)."""

    def numbers(values: Any) -> str:
        return ",".join(repr(float(value)) for value in values)

    described = {
        "size": f"{size[0]}x{size[1]}",
        "resize": resize,
        "interpolation": interpolation,
        "mean": numbers(mean),
        "std": numbers(std),
    }
    return {**described, "fill": str(fill)} if resize == "longest" else described


def transform(described: Mapping[str, str]) -> Callable[[Image.Image], Tensor]:
    """An RGB image → (3, H, W) uint8: open_clip's inference transform (`open_clip.transform`) up to its last two
    steps, scaling and normalising, which `scaling` does."""
    import numpy as np
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import CenterCrop, Normalize, ToTensor

    height, width = map(int, described["size"].split("x"))
    config = PreprocessCfg(
        size=(height, width),
        interpolation=described["interpolation"],
        resize_mode=described["resize"],
        fill_color=int(described.get("fill", "0")),
    )
    *resizing, to_tensor, normalize = image_transform_v2(config, is_train=False).transforms
    if not isinstance(to_tensor, ToTensor) or not isinstance(normalize, Normalize):
        raise RuntimeError("open_clip's transform no longer ends in scaling and normalising: adapt preprocess.py")
    if described.get("crop") == "floor":
        resizing = [_floor_crop(height, width) if isinstance(step, CenterCrop) else step for step in resizing]

    def resized(image: Image.Image) -> Tensor:
        for step in resizing:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    return resized


def _floor_crop(height: int, width: int) -> Callable[[Image.Image], Image.Image]:
    """transformers' centre crop: where the margin is odd the smaller half comes first; torchvision's, which open_clip
    takes, rounds halves to even."""

    def crop(image: Image.Image) -> Image.Image:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    return crop


def scaling(described: Mapping[str, str], device: Any = "cpu") -> Callable[[Tensor], Tensor]:
    """(B, 3, H, W) uint8 on `device` → float32, bit for bit what torchvision's ToTensor and Normalize give on a
    CPU. float32 is taken as scaled and normalised already and returned as it is."""
    import torch

    def channels(name: str) -> Tensor:
        return torch.tensor([float(value) for value in described[name].split(",")], device=device)[:, None, None]

    mean, std = channels("mean"), channels("std")
    # A tensor, as CUDA multiplies by the reciprocal of a number, which rounds otherwise.
    whole = torch.tensor(255.0, device=device)

    def scaled(pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8:
            return pixels
        return pixels.to(torch.float32).div_(whole).sub_(mean).div_(std)

    return scaled


def to_rows(pixels: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) → (B, H, 3·W): each row of pixels, red, green and blue of each in turn."""
    return pixels.permute(0, 2, 3, 1).flatten(2)


def from_rows(rows: Tensor) -> Tensor:
    """The inverse of `to_rows`."""
    return rows.reshape(*rows.shape[:2], -1, 3).permute(0, 3, 1, 2)
