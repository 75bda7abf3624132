"""Towers that compal tuned: a base's architecture with other weights, in a folder of two files.

    base.json          format, the base's spec at the level tokens, how deep it can be entered, the weights' sha256,
                       and where they come from (the command that made them)
    model.safetensors  the state dict of the base's model, complete

The folder is written whole or not at all and never overwritten. Loading it needs the base's configuration and
tokenizer, not its weights. Nothing in it is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import registry
from ..errors import CompalError, InputError, SpecMismatch
from ..stores.files import disk_errors, sync, write_synced
from ..stores.spec import FeatureSpec
from . import checkpoints
from .dense import reads_or_why
from .dual_encoder import DualEncoder
from .encoder import at_level, resolve

FORMAT = "compal-towers-1"
BASE, WEIGHTS = "base.json", "model.safetensors"
_AGAIN = "Save the towers again, or restore the folder from a copy."


class Tuned(NamedTuple):
    """What base.json says. spec: the base's, at the level tokens; blocks: how deep both towers can be entered; dense:
    as `encoder.at_level` takes it."""

    folder: Path
    spec: FeatureSpec
    blocks: int
    sha256: str
    provenance: dict[str, Any]
    dense: str = ""


def save_towers(folder: Path, encoder: DualEncoder, base_spec: FeatureSpec, provenance: Mapping[str, Any]) -> Path:
    """Write the towers of `encoder`, whose architecture, preprocessing and tokenizer are those of `base_spec` (at
    any level), into a new `folder`, and return it.

    provenance  what can be said in JSON of where the weights come from: at least {"command": …}

    Raises `InputError` if `folder` exists or cannot be written, or if the encoder has no towers (`random`);
    `SpecMismatch` if the base is no longer what the spec says; `UnknownName` if it is a module outside of compal.
    """
    import safetensors.torch

    if not isinstance(encoder, DualEncoder):
        raise InputError(f"{base_spec.backbone} has no towers to save", "Tune a backbone whose model has weights.")
    if folder.exists():
        raise InputError(f"{folder} already exists", "Name another folder, or remove this one.")
    registry.path("backbones", registry.split_argument(base_spec.backbone)[0])  # as loading them does
    full = resolve(base_spec.backbone, "tokens")
    if full.weights != base_spec.weights:
        raise SpecMismatch(f"the weights of {full.backbone} changed since they were tuned", "Restore them.")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.model.state_dict().items()}
    staged = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    with disk_errors(str(folder)):
        try:
            staged.mkdir(parents=True)
            # Names that share memory are written each: a file has no ties.
            safetensors.torch.save_file({name: value.clone() for name, value in state.items()}, staged / WEIGHTS)
            sync(staged / WEIGHTS)
            about = {
                "format": FORMAT,
                "backbone": full.backbone,
                "weights": full.weights,
                "blocks": min(encoder.images.blocks, encoder.texts.blocks),
                "dense": reads_or_why(encoder.images),
                "sha256": checkpoints.sha256(staged / WEIGHTS),
                "provenance": dict(provenance),
                "spec": dataclasses.asdict(full),
            }
            write_synced(staged / BASE, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
            os.rename(staged, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return folder


def read(folder: Path) -> Tuned:
    """What the base.json of a folder says. Raises `InputError` if a file is missing or damaged."""
    for name in (BASE, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no towers: it has no {name}", "Name the folder that a run wrote.")
    try:
        about = json.loads((folder / BASE).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise InputError(f"{folder / BASE} is of the format {about['format']!r}, not {FORMAT}", _AGAIN)
        spec = FeatureSpec.from_json(about["spec"])
        dense = str(about.get("dense", "its run was written before there was one; fit it again"))
        tuned = Tuned(folder, spec, int(about["blocks"]), str(about["sha256"]), dict(about["provenance"]), dense)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / BASE} cannot be read: {error!r}", _AGAIN) from None
    except CompalError as error:
        raise InputError(f"{folder / BASE}: {error.what}", error.cure or _AGAIN) from None
    if spec.level != "tokens":
        raise InputError(f"{folder / BASE} holds a spec of the level {spec.level}, not tokens", _AGAIN)
    return tuned


def spec_of(tuned: Tuned, name: str, level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of tuned towers as the backbone `name`: the base's with other weights, and which base that was.

    Raises `InputError` if the weights are not those that were written, or if the base lacks the level.
    """
    found = checkpoints.sha256(tuned.folder / WEIGHTS)
    if found != tuned.sha256:
        raise InputError(f"{tuned.folder / WEIGHTS} is not what {BASE} says was written", _AGAIN)
    base = {"base": f"{tuned.spec.backbone} {tuned.spec.weights}"}
    full = dataclasses.replace(tuned.spec, backbone=name, weights=found, extra={**tuned.spec.extra, **base})
    return at_level(full, level, dtype, tuned.blocks, tuned.dense)


def load(folder: Path, spec: FeatureSpec | None = None, device: str = "cpu") -> DualEncoder:
    """The encoder of tuned towers; `spec` is as `spec_of` gave it, at the level tokens by default.

    Raises `InputError` if the base's configuration or tokenizer cannot be had, or if the weights are damaged or of
    another architecture.
    """
    tuned = read(Path(folder))
    spec = spec or spec_of(tuned, f"run:{os.path.abspath(folder)}")
    encoder = untrained(tuned, device)
    encoder.spec = spec
    load_weights(encoder.model, tuned.folder / WEIGHTS, tuned.spec.backbone)
    encoder.check()
    return encoder


def untrained(tuned: Tuned, device: str = "cpu") -> DualEncoder:
    """The base's architecture, preprocessing and tokenizer; with its weights only where the backbone cannot do
    without. Raises `UnknownName` for a base that is not in compal's folder of backbones."""
    name = registry.split_argument(tuned.spec.backbone)[0]
    registry.path("backbones", name)  # a dotted name would run whatever module a stranger's base.json says
    module = registry.load("backbones", name)
    build = getattr(module, "untrained", module.load)
    encoder = build(tuned.spec, device=device)
    if not isinstance(encoder, DualEncoder):
        raise InputError(f"{tuned.spec.backbone}, the base of {tuned.folder}, has no towers", _AGAIN)
    return encoder


def load_weights(model: Any, path: Path, name: str) -> None:
    """Load a complete state dict strictly. Raises `InputError` if it is damaged or does not fit `name`."""
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        model.load_state_dict(safetensors.torch.load_file(path), strict=True)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}", _AGAIN) from None
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = lines[min(1, len(lines) - 1)][:200]
        raise InputError(f"{path} does not fit {name}: {reason}", _AGAIN) from None
