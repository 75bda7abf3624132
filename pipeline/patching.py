"""The two ends that towers have: backbones of one architecture, between whose weights new towers lie.

What lies between is written as `towers/` of a run, so that `--backbone run:NAME` extracts above it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError, SpecMismatch
from ..stores.spec import FeatureSpec
from .dual_encoder import DualEncoder
from .encoder import load_encoder, resolve
from .tuned import WEIGHTS, save_towers

if TYPE_CHECKING:
    from torch import Tensor

    States = dict[str, Tensor]

_FREE = ("backbone", "weights")  # in which two ends may differ


@dataclass(frozen=True, eq=False)
class TowerEnds:
    """The weights of two backbones of one architecture.

    backbone  the tuned one's name; origin: the other's
    spec      of the backbone that names the architecture, at the level tokens
    """

    kind: ClassVar[str] = "towers"
    file: ClassVar[str] = f"towers/{WEIGHTS}"
    base: States
    tuned: States
    backbone: str
    origin: str
    spec: FeatureSpec
    _encoder: DualEncoder

    def states(self) -> tuple[States, States]:
        """The tensors of both ends."""
        return self.base, self.tuned

    def write(self, folder: Path, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Write towers with these tensors as `folder` / "towers"."""
        self._encoder.model.load_state_dict(dict(state), strict=True)
        save_towers(folder / "towers", self._encoder, self.spec, provenance)


def tower_ends(base: str | None, tuned: str) -> TowerEnds:
    """The ends of two backbones by name; `base` None: what `tuned`, a `run:ID`, says it was tuned from.

    Raises `SpecMismatch` if they differ in anything but weights, or if the weights that `tuned` was tuned from are not
    there any more; `InputError` for a backbone without towers, or if it was not tuned by compal and no base is named.
    """
    after = resolve(tuned)
    origin = _origin(after)
    if base is None and origin is None:
        raise InputError(f"{tuned} does not say what it was tuned from", "Name the base: compal patch BASE TUNED")
    before = resolve(base) if base else origin
    assert before is not None
    _check_alike(before, after)
    encoder = _towers(after)
    start, end = _state(_towers(before)), _state(encoder)
    return TowerEnds(start, end, after.backbone, before.backbone, origin or _origin(before) or before, encoder)


def _origin(spec: FeatureSpec) -> FeatureSpec | None:
    """The spec of the backbone that a run's towers were tuned from; None for a backbone that is no run."""
    name, _, weights = spec.extra.get("base", "").rpartition(" ")
    if not name:
        return None
    origin = resolve(name)
    if origin.weights != weights:
        raise SpecMismatch(f"the weights of {name} changed since {spec.backbone} was tuned from them", "Restore them.")
    return origin


def _check_alike(before: FeatureSpec, after: FeatureSpec) -> None:
    one, other = _plain(before), _plain(after)
    differing = [name for name in one if one[name] != other[name]]
    if differing:
        what = f"{before.backbone} and {after.backbone} differ in {', '.join(differing)}"
        raise SpecMismatch(what, "Patch two backbones of one architecture, preprocessing and tokenizer.")


def _plain(spec: FeatureSpec) -> dict[str, Any]:
    """All of a spec that two ends share."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name not in _FREE}
    return fields | {"extra": {name: value for name, value in spec.extra.items() if name != "base"}}


def _towers(spec: FeatureSpec) -> DualEncoder:
    encoder = load_encoder(spec)
    if not isinstance(encoder, DualEncoder):
        raise InputError(f"{spec.backbone} has no towers to patch", "Choose a backbone whose model has weights.")
    return encoder


def _state(encoder: DualEncoder) -> States:
    return {name: tensor.detach().cpu().clone() for name, tensor in encoder.model.state_dict().items()}
