"""What a head computes, through torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import InputError
from .scorer import Scorer

BACKEND = "inductor"
CURE = "Install g++ or set CXX to one; or leave compile out."


def compile_modules(scorers: Iterable[Scorer | None], device: torch.device) -> None:
    """Compile the modules that heads are made of, in place: names of weights, and so checkpoints, stay as they are.

    They are a head's children, and the members of a child that is a `ModuleList`, as far as they are called as
    modules. What stands between them (`score`, tiles of pairs of similar length) decides by what a batch holds, and
    stays as it is. Shapes are dynamic, so that a caption of another length compiles nothing again; random numbers are
    torch's own, so that dropout is what it was, and the same in both passes of `optim.chunk`.

    Compiling happens at the first step. Raises `InputError` if there is no C++ compiler, or on CUDA no Triton.
    """
    if BACKEND == "inductor" and _compiler() is None:
        raise InputError("compile = true, and torch.compile finds no C++ compiler", CURE)
    if BACKEND == "inductor" and device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError("compile = true, and torch.compile finds no Triton", "Install triton; or leave compile out.")
    options: dict[str, str | int | bool] | None = {"fallback_random": True} if BACKEND == "inductor" else None
    for child in [child for scorer in scorers if scorer is not None for child in scorer.children()]:
        for module in child if isinstance(child, nn.ModuleList) else [child]:
            module.compile(dynamic=True, backend=BACKEND, options=options)


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """What torch.compile meets at the first step is one line: a broken compiler, a module it cannot take."""
    if not wanted:
        yield
        return
    try:
        with warnings.catch_warnings():
            # torch.compile looks whether a module's inputs have gradients, and torch warns it that they have none.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise InputError(f"torch.compile: {' '.join(lines[:2])[:200]}", "Leave compile out.") from error


def _compiler() -> str | None:
    candidates = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return next((found for name in candidates if (found := shutil.which(name))), None)
