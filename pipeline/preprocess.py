"""Image preprocessing as a spec's strings, and back to open_clip's inference transform.

The strings are the truth: whatever opens a spec preprocesses as the spec says, not as a library's defaults
say today.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def describe(
    size: tuple[int, int], resize: str, interpolation: str, mean: Any, std: Any, fill: int = 0
) -> dict[str, str]:
    """The strings of a preprocessing: `size` (height, width) in pixels; `resize` shortest | longest | squash;
    `interpolation` bicubic | bilinear; `mean` and `std` of each channel of pixels in [0, 1]."""

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
    """An RGB image → (3, H, W) float32: open_clip's inference transform (`open_clip.transform`)."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    height, width = map(int, described["size"].split("x"))
    config = PreprocessCfg(
        size=(height, width),
        mean=tuple(map(float, described["mean"].split(","))),
        std=tuple(map(float, described["std"].split(","))),
        interpolation=described["interpolation"],
        resize_mode=described["resize"],
        fill_color=int(described.get("fill", "0")),
    )
    return cast("Callable[[Image.Image], Tensor]", image_transform_v2(config, is_train=False))
