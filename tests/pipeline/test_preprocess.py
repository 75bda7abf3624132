"""uint8 pictures scaled on the device are bit for bit what open_clip's own transform gives."""

import io

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from compal.pipeline import preprocess

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
RAW = ((0.0,) * 3, (1.0,) * 3)


def photograph(seed, size, kind):
    """A smooth picture with noise, through a file of the format."""
    random = np.random.RandomState(seed)
    coarse = Image.fromarray(random.randint(0, 256, (5, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(coarse).astype(int) + random.randint(-20, 21, (size[1], size[0], 3)), 0, 255)
    data = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(data, kind)
    return Image.open(data).convert("RGB")


@pytest.mark.parametrize("statistics", [CLIP, HALF, RAW])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("resize", "size"),
    [("shortest", (64, 64)), ("squash", (48, 48)), ("longest", (48, 48)), ("shortest", (48, 32)), ("squash", (32, 48))],
)
def test_pictures_are_open_clips_own(statistics, interpolation, resize, size):
    described = preprocess.describe(size, resize, interpolation, *statistics, fill=3)
    config = PreprocessCfg(
        size=size, mean=statistics[0], std=statistics[1], interpolation=interpolation, resize_mode=resize, fill_color=3
    )
    own, ours = image_transform_v2(config, is_train=False), preprocess.transform(described)
    scaled = preprocess.scaling(described)
    for seed, (shape, kind) in enumerate([((90, 70), "PNG"), ((70, 133), "JPEG"), ((20, 30), "PNG"), (size, "JPEG")]):
        image = photograph(seed, shape, kind)
        picture = ours(image)
        assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (3, *size))
        assert torch.equal(scaled(picture[None])[0], own(image))


def test_every_value_is_scaled_as_torchvision_does():
    described = preprocess.describe((16, 16), "squash", "bicubic", *CLIP)
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    own = image_transform_v2(PreprocessCfg(size=16, mean=CLIP[0], std=CLIP[1], resize_mode="squash"), is_train=False)
    assert torch.equal(preprocess.scaling(described)(preprocess.transform(described)(ramp)), own(ramp))


def test_floats_are_taken_as_scaled_and_integers_are_not_changed():
    scaled = preprocess.scaling(preprocess.describe((4, 4), "squash", "bicubic", *CLIP))
    floats = torch.rand(1, 3, 4, 4)
    assert scaled(floats) is floats
    pixels = torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)
    scaled(pixels)
    assert torch.equal(pixels, torch.full((1, 3, 4, 4), 7, dtype=torch.uint8))


def test_rows_of_pixels_are_the_picture_and_come_back():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    rows = preprocess.to_rows(pixels)
    assert tuple(rows.shape) == (2, 4, 15)
    assert rows[1, 2, 3 * 4 + 1] == pixels[1, 1, 2, 4]
    assert torch.equal(preprocess.from_rows(rows), pixels)
