"""Scorers and training states as safetensors: tensors and a header of texts, written atomically, no pickle.

A scorer file is complete: head, its options, the sizes it was built for and the spec of the features it was
fitted on stand in the header. It refuses features of another spec.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import canonical, from_dict
from ..errors import InputError, SpecMismatch
from ..stores.files import disk_errors, sync
from ..stores.spec import FeatureSpec
from .batches import Device
from .scorer import Dims, Scorer, build_head, options_of

FORMAT = "compal-scorer-1"
STATE_FORMAT = "compal-fit-state-1"


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside, sync, rename: a reader meets the old file or the new one. Raises `InputError`."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(staged, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
        sync(path.parent)


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """A safetensors file with a header of texts."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, header))


def read_tensors(path: Path, form: str, device: Device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file of one of our formats. Raises `InputError` if it is anything else."""
    if not path.is_file():
        raise InputError(f"no checkpoint {path}", "Check the path; compal ls runs lists the runs.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("format") != form:
                raise InputError(f"{path} is no {form} file: its format is '{header.get('format', '')}'")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}", "Fit it again.") from None


def save_scorer(path: Path, scorer: Scorer, spec: FeatureSpec) -> None:
    """Write a scorer that `build_head` made, for features of `spec`."""
    header = {
        "format": FORMAT,
        "head": scorer.head,
        "config": canonical(options_of(scorer)).decode(),
        "dims": canonical(dataclasses.asdict(scorer.dims)).decode(),
        "fingerprint": spec.fingerprint,
        "spec": spec.to_json().decode(),
    }
    save_tensors(path, scorer.state_dict(), header)


def load_scorer(
    path: Path, spec: FeatureSpec, device: Device = "cpu", towers: Callable[[], Any] | None = None
) -> Scorer:
    """The scorer of a checkpoint, in evaluation mode, for features of `spec`; `towers` as of `build_head`.

    Raises `SpecMismatch` if it was fitted on features of another spec, `InputError` if the file is no
    checkpoint or does not fit its own head.
    """
    path = Path(path)
    tensors, header = read_tensors(path, FORMAT, device)
    if header["fingerprint"] != spec.fingerprint:
        raise _mismatch(path, FeatureSpec.from_json(json.loads(header["spec"])), spec)
    dims = from_dict(Dims, json.loads(header["dims"]), "dims")
    scorer = build_head(header["head"], json.loads(header["config"]), dims, towers).to(device)
    try:
        scorer.load_state_dict(tensors)
    except RuntimeError as error:
        what = f"{path} does not fit the head '{header['head']}': {error}"
        raise InputError(what, "Fit it again.") from None
    return scorer.eval()


def fitted_spec(path: Path) -> FeatureSpec:
    """The spec of the features that a checkpoint was fitted on. Raises `InputError`."""
    with_header = read_tensors(Path(path), FORMAT)[1]
    return FeatureSpec.from_json(json.loads(with_header["spec"]))


def _mismatch(path: Path, fitted: FeatureSpec, given: FeatureSpec) -> SpecMismatch:
    fields = [field.name for field in dataclasses.fields(FeatureSpec)]
    differing = [name for name in fields if getattr(fitted, name) != getattr(given, name)]
    return SpecMismatch(
        f"{path} was fitted on features of {fitted.backbone} ({fitted.fingerprint[:16]}), and these are of"
        f" {given.backbone} ({given.fingerprint[:16]}); they differ in {', '.join(differing)}",
        f"Extract with --backbone {fitted.backbone} --level {fitted.level} --dtype {fitted.dtype}, or fit the"
        f" head on features of {given.backbone}.",
    )


def save_state(
    path: Path,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    extra: dict[str, Tensor] | None = None,
) -> None:
    """All that a run needs to go on exactly: weights, optimiser state, random generators, `facts` (JSON), `extra`."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"extra.{name}": tensor for name, tensor in (extra or {}).items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    save_tensors(path, tensors, {"format": STATE_FORMAT, "facts": canonical(facts).decode()})


def load_state(
    path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore what `save_state` wrote; its facts and `extra`. Raises `InputError` if the file does not fit."""
    tensors, header = read_tensors(path, STATE_FORMAT)
    states: dict[int, dict[str, Tensor]] = {}
    weights = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "module":
            weights[rest] = tensor
        elif kind == "optimizer":
            index, _, key = rest.partition(".")
            states.setdefault(int(index), {})[key] = tensor
    try:
        module.load_state_dict(weights)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} does not fit this run: {error}", "Start a new run.") from None
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    extra = {name.removeprefix("extra."): tensor for name, tensor in tensors.items() if name.startswith("extra.")}
    return json.loads(header["facts"]), extra
