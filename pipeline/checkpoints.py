"""Weights of dual encoders: their hash, what their file says of itself, and loading without unpickling."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_TENSORS_ONLY = "Save its state dict alone: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."

Shapes = dict[str, tuple[int, ...]]


def sha256(path: Path) -> str:
    """sha256 of a file, 64 hex digits; remembered while size and time stay. Raises `InputError`."""
    try:
        stat = path.stat()
        return _sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {error.strerror}", "Check the path.") from None


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_path(path: Path) -> None:
    """Raises `InputError` unless `path` is a file of a kind that can be loaded as tensors alone."""
    if not path.is_file():
        raise InputError(f"no weights file {path}", "Check the path.")
    if path.suffix not in SUFFIXES:
        raise InputError(f"weights {path} are no {', '.join(SUFFIXES)} file", _TENSORS_ONLY)


def configuration(path: Path) -> dict[str, Any]:
    """The `open_clip_config.json` beside a checkpoint ({"model_cfg", "preprocess_cfg"}); {} if there is none.

    Raises `InputError` if it cannot be read.
    """
    beside = path.parent / "open_clip_config.json"
    if not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{beside} cannot be read: {error}", "Repair or remove it.") from None
    return found if isinstance(found, dict) else {}


def metadata(path: Path) -> dict[str, str]:
    """The text metadata in a safetensors file's header; {} for other files."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}", "Download or save it again.") from None


def shapes(path: Path) -> Shapes:
    """The shape of every tensor in a checkpoint, read from the header where the format has one."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        metadata(path)  # raises for a damaged file
        with safe_open(path, framework="np") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    else:
        found = {name: tuple(value.shape) for name, value in _unpickled(path).items() if hasattr(value, "shape")}
    return {name.removeprefix("module."): shape for name, shape in found.items()}


def _unpickled(path: Path) -> dict[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols: they load or they do not
            # Memory-mapped where the file allows, so that reading shapes does not read the weights.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0][:120]
        raise InputError(f"{path} cannot be loaded as tensors alone: {reason}", _TENSORS_ONLY) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no state dict but {type(found).__name__}", _TENSORS_ONLY)
    return found


def load_into(model: Any, path: Path, name: str) -> None:
    """Load a checkpoint strictly into an open_clip model. Raises `InputError` if it does not fit `name`."""
    from open_clip import load_checkpoint

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_checkpoint(model, str(path), strict=True, weights_only=True)
    except (RuntimeError, KeyError, AssertionError, pickle.UnpicklingError, StopIteration) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        reason = lines[min(1, len(lines) - 1)][:200]
        raise InputError(f"{path} does not fit {name}: {reason}", "Name the model it was trained as.") from None
