"""A loaded encoder made faster: compiled blocks, convolutions whose channels come last. Values change by rounding."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from ..errors import InputError
from .dual_encoder import DualEncoder


def optimise(
    encoder: DualEncoder,
    compile: bool = False,  # noqa: A002 - torch's name, and the option's
    channels_last: bool = False,
    backend: str = "inductor",
) -> DualEncoder:
    """The same encoder, changed in place.

    compile        run the towers through torch.compile: block by block, as uniform blocks share what is compiled
    channels_last  lay the weights of two-dimensional convolutions out as the fastest kernels of GPUs read them; for
                   towers of convolutions (ConvNeXt, FastViT, ResNet)

    Compiling happens at the first batch of each new shape, so errors in the model's code come up there. Raises
    `InputError` if there is no C++ compiler, which the backend "inductor" needs.
    """
    if channels_last:
        encoder.model.to(memory_format=torch.channels_last)
    if compile:
        if backend == "inductor" and _compiler() is None:
            cure = "Install g++ or set CXX to one; or leave --compile out."
            raise InputError("torch.compile finds no C++ compiler", cure)
        for module in (*_image_modules(encoder), *_text_modules(encoder)):
            module.compile(backend=backend)
    return encoder


def _compiler() -> str | None:
    candidates = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return next((found for name in candidates if (found := shutil.which(name))), None)


def _image_modules(encoder: DualEncoder) -> list[Any]:
    """Uniform blocks; of a hierarchical tower its stages, which are called one after the other."""
    if encoder.images.blocks:
        return list(getattr(encoder.images, "modules", ()))
    visual = encoder.model.visual
    return list(getattr(visual, "trunk", visual).children())


def _text_modules(encoder: DualEncoder) -> list[Any]:
    """Blocks, also where a tower cannot be entered at them; a Hugging Face tower of open_clip is called as a whole."""
    whole = getattr(getattr(encoder.texts, "text", None), "transformer", None)
    blocks = list(getattr(encoder.texts, "modules", ()))
    return [whole] if type(encoder.texts).__name__ == "HubTexts" else blocks
