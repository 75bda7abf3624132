"""Short measurements before a long run: the batch size to use, and how fast images and captions go."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .forward import Forward, out_of_memory

if TYPE_CHECKING:
    from PIL import Image as Picture

LOG = logging.getLogger("compal")
# Dense peaks in TFLOP/s by what the driver calls the GPU, of float32 outside the tensor cores (as torch computes by
# default) and of half precision on them: NVIDIA's data sheets, without sparsity. The first name that fits counts.
PEAKS = {
    "B200": (75.0, 2250.0),
    "GH200": (67.0, 989.0),
    "H200": (67.0, 989.0),
    "H100 PCIe": (51.0, 756.0),
    "H100": (67.0, 989.0),
    "A100": (19.5, 312.0),
    "L40S": (91.6, 362.0),
    "L4": (30.3, 121.0),
    "A10": (31.2, 125.0),
    "T4": (8.1, 65.0),
    "V100": (15.7, 125.0),
    "RTX 4090": (82.6, 165.2),
    "RTX 3090": (35.6, 71.0),
}
DEFAULT = 64
# Below so many items a probe costs more than it saves.
SMALL_JOB = 512
# What a larger batch must gain in time per image; and the largest. A processor is at its best from 8 or 16 on.
GAIN = 0.03
LARGEST = {"cuda": 1024, "cpu": 64}
SHARE = 0.01  # of the estimated time of the whole job that a probe may take


def batch_size_for(forward: Forward, count: int) -> int:
    """The batch size for a job of `count` items: doubled while the time per image falls by `GAIN` and memory lasts.

    Small jobs, and jobs of no known size, take 64.
    """
    largest = LARGEST.get(forward.device.type, 256)
    if count < SMALL_JOB:
        return min(DEFAULT, largest)
    size = 8 if forward.device.type == "cpu" else 32
    best, spent = (0, float("inf")), 0.0
    while size <= largest:
        seconds = seconds_of_a_batch(forward, size)
        if seconds is None:
            break
        each = seconds / size
        if each > best[1] * (1 - GAIN):
            break
        best, spent = (size, each), spent + 2 * seconds
        size *= 2
        if spent + 4 * seconds > SHARE * each * count:
            break
    LOG.info("batch size %s: %.2f ms an image, found by a probe of %.1f s", best[0] or 1, 1000 * best[1], spent)
    return best[0] or 1


def seconds_of_a_batch(forward: Forward, size: int) -> float | None:
    """One pass over `size` images of zeros, after one that warms up; None if memory is short."""
    try:
        pixels = _zeros(forward, size)
        with forward.passing():
            for _ in range(2):
                started = time.perf_counter()
                features = forward.encoder.encode_images(pixels)
                if forward.device.type == "cuda":
                    torch.cuda.synchronize(forward.device)
                seconds = time.perf_counter() - started
        del features
        return seconds
    except Exception as error:
        if not out_of_memory(error):
            raise
    if forward.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _zeros(forward: Forward, size: int) -> torch.Tensor:
    from PIL import Image

    picture: Picture.Image = Image.new("RGB", (64, 64))
    one = forward.encoder.preprocess(picture)
    return torch.zeros((size, *one.shape), dtype=one.dtype, device=forward.device)


def rates(forward: Forward, captions: Sequence[str]) -> tuple[float, float]:
    """Images and captions a second, from one small batch of each. Decoding and writing are not in it."""
    size = min(8, forward.batch_size)
    seconds = seconds_of_a_batch(forward, size)
    some = list(captions[:size])
    started = time.perf_counter()
    if some:
        with forward.passing():
            forward.encoder.encode_texts(some)
            started = time.perf_counter()
            forward.encoder.encode_texts(some)
            if forward.device.type == "cuda":
                torch.cuda.synchronize(forward.device)
    texts = len(some) / max(time.perf_counter() - started, 1e-9) if some else 0.0
    return (size / seconds if seconds else 0.0), texts


def peak_flops(name: str, precision: str) -> float:
    """FLOP/s that a GPU of this name can do at a precision; 0 where that is not known."""
    for part, (single, half) in PEAKS.items():
        if re.search(rf"\b{re.escape(part)}\b", name):
            return 1e12 * (single if precision == "float32" else half)
    return 0.0


def flops_of_an_image(encoder: object) -> float:
    """FLOPs of one image through the model's image tower, counted on the meta device, where nothing is computed and
    no fused kernel hides its products; 0 for an encoder without such a model."""
    from torch.func import functional_call
    from torch.utils.flop_counter import FlopCounterMode

    visual = getattr(getattr(encoder, "model", None), "visual", None)
    size = getattr(getattr(encoder, "images", None), "image_size", None)
    if not isinstance(visual, torch.nn.Module) or size is None:
        return 0.0
    state = {name: value.to("meta") for name, value in (*visual.named_parameters(), *visual.named_buffers())}
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            functional_call(visual, state, (torch.empty(1, 3, *size, device="meta"),))
    except (RuntimeError, NotImplementedError):  # an operation that the meta device does not know
        return 0.0
    return float(counter.get_total_flops())
