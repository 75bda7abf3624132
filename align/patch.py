"""Weights between two ends, w(α) = (1 − α) w_BASE + α w_TUNED over every tensor; and the two ends that heads have.

WiSE-FT (Wortsman et al., arXiv 2109.01903: weight-space ensembles of the zero-shot and the fine-tuned model) and model
patching (Ilharco et al., arXiv 2208.05592), as CLoVe patches with α = 0.6 what it tuned for composition (arXiv
2402.15021). Beyond the ends it is task arithmetic (arXiv 2212.04089): α < 0 negates what was tuned, α > 1 exaggerates.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import from_dict, read_toml
from ..errors import InputError, SpecMismatch
from ..stores.spec import FeatureSpec
from .checkpoint import fitted_spec, load_scorer, save_scorer
from .recipe import FitConfig
from .scorer import Scorer, build_head, options_of

States = dict[str, Tensor]


def interpolate(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> States:
    """(1 − `alpha`) `base` + `alpha` `tuned` for every tensor, computed in float64 and rounded once to its dtype.

    α = 0 and α = 1 give the ends bit for bit. Integers and booleans have no middle and must be equal.

    Raises `SpecMismatch` for tensors that only one end has, or whose shapes, dtypes or integers differ; `InputError`
    where the result is no finite number although both ends are, and where it is NaN.
    """
    alone = sorted(base.keys() ^ tuned.keys())
    if alone:
        raise SpecMismatch(f"only one of the two has '{alone[0]}' ({len(alone)} such tensors)", _LIKE)
    return {name: _between(name, base[name], tuned[name], alpha) for name in tuned}


_LIKE = "Both ends must be of one architecture."


def _between(name: str, base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    if (base.shape, base.dtype) != (tuned.shape, tuned.dtype):
        shapes = f"{tuple(base.shape)} {base.dtype} and {tuple(tuned.shape)} {tuned.dtype}"
        raise SpecMismatch(f"'{name}' is {shapes}", _LIKE)
    if not base.is_floating_point():
        if not torch.equal(base, tuned):
            raise SpecMismatch(f"'{name}' holds integers that differ, and between integers is nothing", _LIKE)
        return tuned.clone()
    # What has no weight is left out rather than multiplied by 0: 0 · inf is NaN, and −0 + 0 is not −0.
    first, *others = [share * end.double() for share, end in ((1 - alpha, base), (alpha, tuned)) if share]
    mixed = sum(others, start=first).to(base.dtype)
    mixed = torch.where(base.isinf() & (base == tuned), base, mixed)  # a mask that both share, beyond the ends too
    finite = base.isfinite() & tuned.isfinite()
    if (mixed.isnan() | (mixed.isinf() & finite)).any():
        raise InputError(f"'{name}' is not finite at alpha = {alpha:g}", "Fit again; weights must be numbers.")
    return mixed


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes, dtypes and bits: 64 hex digits, whatever file the tensors came from."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class HeadEnds:
    """Two scorers of one head, its options, sizes and features. spec: of the features both were fitted on."""

    kind: ClassVar[str] = "head"
    file: ClassVar[str] = "checkpoints/best.safetensors"
    base: Scorer
    tuned: Scorer
    spec: FeatureSpec

    @property
    def origin(self) -> str:
        """What α = 0 is called where it is not named."""
        return "init"

    @property
    def backbone(self) -> str:
        """Whose features both read."""
        return self.spec.backbone

    def states(self) -> tuple[States, States]:
        """The tensors of both ends."""
        return self.base.state_dict(), self.tuned.state_dict()

    def write(self, folder: Path, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Write a scorer with these tensors as `folder` / `file`; where it comes from stands beside it."""
        scorer = _again(self.tuned)
        scorer.load_state_dict(dict(state))
        save_scorer(folder / self.file, scorer, self.spec)


def head_ends(base: Path | None, tuned: Path) -> HeadEnds:
    """The ends of two checkpoints; `base` None: the head of `tuned` as it began.

    Raises `SpecMismatch` if head, options, sizes or features differ, `InputError` for a file that is no checkpoint and
    where it is not known how the head began. Random generators are left as they were.
    """
    spec = fitted_spec(tuned)
    with torch.random.fork_rng(devices=[]):  # building a head draws
        end = load_scorer(tuned, spec)
        start = beginning(tuned, spec) if base is None else load_scorer(base, spec)
    if start.head != end.head:
        raise SpecMismatch(f"{base} is a '{start.head}', {tuned} a '{end.head}'", "Patch two of one head.")
    ours, theirs = options_of(start), options_of(end)
    differing = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if differing or start.dims != end.dims:
        what = ", ".join(differing) or "sizes"
        raise SpecMismatch(f"the heads of {base} and {tuned} differ in {what}", "Patch two of one [head] table.")
    return HeadEnds(start, end, spec)


def beginning(tuned: Path, spec: FeatureSpec) -> Scorer:
    """The scorer of a checkpoint as it was before its first step: what its run's config.toml starts from (`init`), or
    else the initialisation by its seed. A head that begins alike at every seed needs no config.toml.

    Raises `InputError` if the run's configuration is not there and would be needed, or if `init` is gone.
    """
    scorer = load_scorer(tuned, spec)
    file = tuned.parent.parent / "config.toml"
    if tuned.parent.name == "checkpoints" and file.is_file():
        config = from_dict(FitConfig, read_toml(file))
        return load_scorer(Path(config.init), spec) if config.init else _again(scorer, config.seed)
    start, other = _again(scorer, 0), _again(scorer, 1)
    if digest(start.state_dict()) != digest(other.state_dict()):
        what = f"{tuned} comes without the config.toml that says how its '{scorer.head}' began"
        raise InputError(what, "Name the other end instead of init.")
    return start


def _again(scorer: Scorer, seed: int = 0) -> Scorer:
    """The same head, newly initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build_head(scorer.head, options_of(scorer), dataclasses.replace(scorer.dims)).eval()
