"""Which implementation runs: by device, by the caller's word, or by the environment."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

from torch import Tensor

from ...errors import UsageError

Backend = Literal["auto", "reference", "cpu", "triton"]
VARIABLE = "COMPAL_KERNELS"


def choose(backend: str, tensor: Tensor, available: tuple[str, ...] = ("reference", "cpu", "triton")) -> str:
    """The implementation for `tensor`, one of `available`.

    "auto" is the variable COMPAL_KERNELS where it is set, else Triton on a GPU, the chunked path on a CPU, and
    the reference where neither can run. Raises `UsageError` for a name that is not known and for an explicit choice
    that cannot run here; only "auto" falls back.
    """
    explicit = backend if backend != "auto" else os.environ.get(VARIABLE, "auto")
    if explicit != "auto":
        if explicit not in available:
            raise UsageError(f"no backend '{explicit}'", f"Choose one of auto, {', '.join(available)}.")
        refused = _refusal(explicit, tensor)
        if refused:
            raise UsageError(f"backend '{explicit}' cannot run here: {refused}", 'Use backend="auto".')
        return explicit
    preferred = {"cuda": "triton", "cpu": "cpu"}.get(tensor.device.type, "reference")
    return preferred if preferred in available and not _refusal(preferred, tensor) else "reference"


def choose_tiles(backend: str, tensor: Tensor) -> str:
    """`choose` for a kernel whose tiles are written in torch's operations and run on every device: "tiles" on a CPU,
    and in the place of a reference that nobody asked for; else "triton" or "reference"."""
    asked = backend if backend != "auto" else os.environ.get(VARIABLE, "auto")
    chosen = choose(backend, tensor)
    return "tiles" if chosen == "cpu" or (chosen == "reference" and asked != "reference") else chosen


def _refusal(backend: str, tensor: Tensor) -> str:
    """Why a backend cannot take this tensor, "" if it can."""
    device = tensor.device.type
    if backend == "cpu" and device != "cpu":
        return f"the tensors are on {device}"
    if backend == "triton":
        if not has_triton():
            return "triton is not installed"
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "the tensors are on the CPU, and TRITON_INTERPRET=1 is not set"
        if device not in ("cpu", "cuda"):
            return f"the tensors are on {device}"
        if str(tensor.dtype) == "torch.float64":
            return "it computes in float32 and below"
    return ""


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported; it is not imported."""
    return importlib.util.find_spec("triton") is not None
