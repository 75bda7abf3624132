"""Runs between two ends for one α or several: `compal patch`; what they score is in `sweep_scores`.

BASE and TUNED are two heads (`align.patch`) or two towers (`pipeline.patching`); what lies between is a run like any
other. One that is there with the same ingredients is taken as it is; nothing is overwritten.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import __version__, registry
from .errors import InputError, UsageError, VerificationError
from .workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from .stores.spec import FeatureSpec

INIT = "init"
LEAST, MOST, MANY = Decimal(-1), Decimal(2), 201
Ticker = Callable[[str, int, int], None]
_EXAMPLE = "Examples: 0.6, or 0:1:0.1 (both ends included), or 0,0.4:0.7:0.1,1"


class Ends(Protocol):
    """Two states of one architecture and how a third is written: `align.patch.HeadEnds`, `pipeline.patching.TowerEnds`.

    kind      head | towers            file  of the weights inside a run
    backbone  whose features are read  spec  of the features, or of the architecture
    origin    what α = 0 is called where it is not named
    """

    @property
    def kind(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def backbone(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def spec(self) -> FeatureSpec: ...
    def states(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...
    def write(self, folder: Path, state: dict[str, Tensor], provenance: dict[str, Any], /) -> None: ...


def alphas_of(text: str | float | Sequence[float]) -> list[Decimal]:
    """The α of `0.6`, `0:1:0.1` (START:STOP:STEP, both ends included) or several of these by comma, ascending, each
    once. A number, or a sequence of them, is taken as it is.

    α from −1 to 2 is taken: beyond the ends the formula is task arithmetic (arXiv 2212.04089), which negates or
    exaggerates what was tuned; what is further out is a slip, such as percent. Raises `UsageError`.
    """
    parts = text.split(",") if isinstance(text, str) else [text] if isinstance(text, int | float) else text
    found = sorted({alpha for part in parts for alpha in _range(str(part))})
    if not found or found[0] < LEAST or found[-1] > MOST:
        raise UsageError(f"--alpha {text} goes beyond {LEAST} to {MOST}", "0 is BASE and 1 is TUNED, not percent.")
    return found


def _range(text: str) -> list[Decimal]:
    try:
        numbers = [Decimal(part.strip()) for part in text.split(":")]
    except InvalidOperation:
        raise UsageError(f"--alpha '{text}' is no number and no START:STOP:STEP", _EXAMPLE) from None
    if not all(number.is_finite() for number in numbers) or len(numbers) not in (1, 3):
        raise UsageError(f"--alpha '{text}' is no number and no START:STOP:STEP", _EXAMPLE)
    if len(numbers) == 1:
        return numbers
    start, stop, step = numbers
    if step <= 0 or stop < start:
        raise UsageError(f"--alpha '{text}' goes nowhere: STEP must be above 0 and STOP not below START", _EXAMPLE)
    if (stop - start) / step >= MANY:
        raise UsageError(f"--alpha '{text}' is more than {MANY} weights", "Take a larger step.")
    return [start + step * number for number in range(int((stop - start) / step) + 1)]


def written(alpha: Decimal) -> str:
    """α as a name shows it: 0, 0.6, 1."""
    return format(alpha.normalize() + 0, "f")


@dataclass(frozen=True)
class Patched:
    """A run between the ends. existed: it was there with the same ingredients."""

    alpha: float
    name: str
    path: Path
    existed: bool


@dataclass(frozen=True, eq=False)
class Sweep:
    """Two ends and the α between them; `named` says how runs begin. Open it with `open_sweep`."""

    base: str
    tuned: str
    alphas: tuple[Decimal, ...]
    stem: str
    named: bool
    ends: Ends
    digests: tuple[str, str]
    workspace: Workspace = field(repr=False)

    def runs(self) -> list[Patched]:
        """The runs of all α, in order; nothing is written. Raises `InputError` for a folder that holds another."""
        found = []
        for alpha in self.alphas:
            name = self.stem if self.named and len(self.alphas) == 1 else f"{self.stem}-{written(alpha)}"
            path = self.workspace.runs / name
            found.append(Patched(float(alpha), name, path, self._there(path, float(alpha))))
        return found

    def make(self, progress: Ticker | None = None) -> list[Patched]:
        """Write the runs that are not there, each whole or not at all, and return all of them."""
        from .align.patch import interpolate

        runs, (base, tuned) = self.runs(), self.ends.states()
        for number, run in enumerate(runs):
            if not run.existed:
                with self.workspace.used():
                    self._write(run, interpolate(base, tuned, run.alpha))
            if progress:
                progress("weights", number + 1, len(runs))
        return runs

    def ingredients(self, alpha: float) -> dict[str, Any]:
        """What makes a run the same again, with the names its ends had."""
        ends = zip((self.base, self.tuned), self.digests, strict=True)
        base, tuned = ({"name": name, "weights": digest} for name, digest in ends)
        return {"kind": self.ends.kind, "alpha": alpha, "base": base, "tuned": tuned}

    def _there(self, path: Path, alpha: float) -> bool:
        if not path.exists():
            return False
        wanted = self.ingredients(alpha)
        try:
            about = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
            same = about["patch"] and _bare(about["patch"]) == _bare(wanted)
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise InputError(f"{path} already holds something else", "Choose another --name, or remove that folder.")
        from .pipeline.checkpoints import sha256

        if sha256(path / self.ends.file) != about["sha256"]:
            raise VerificationError(f"{path / self.ends.file} is not what was written", f"Remove {path}; patch again.")
        return True

    def _write(self, run: Patched, state: dict[str, Tensor]) -> None:
        from .pipeline.checkpoints import sha256
        from .stores.files import disk_errors, sync, write_synced

        told = _provenance(self.ingredients(run.alpha), self.ends.spec)
        staged = run.path.with_name(f".{run.name}.{uuid.uuid4().hex}")
        with disk_errors(str(run.path)):
            try:
                self.ends.write(staged, state, told)
                about = told | {"sha256": sha256(staged / self.ends.file)}
                write_synced(staged / "provenance.json", (json.dumps(about, indent=1) + "\n").encode())
                os.rename(staged, run.path)
                sync(run.path.parent)
            finally:
                shutil.rmtree(staged, ignore_errors=True)


def _bare(patch: dict[str, Any]) -> list[Any]:
    """Ingredients without names: a run that was renamed is the same."""
    return [patch["kind"], patch["alpha"], patch["base"]["weights"], patch["tuned"]["weights"]]


def _provenance(patch: dict[str, Any], spec: FeatureSpec) -> dict[str, Any]:
    from .eval.provenance import commit

    libraries = {name: importlib.metadata.version(name) for name in ("torch", "safetensors")}
    return {
        "command": shlex.join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "patch": patch,
        "features": {"backbone": spec.backbone, "level": spec.level, "fingerprint": spec.fingerprint},
        "versions": {"compal": __version__, "python": platform.python_version(), **libraries},
        "commit": commit(),
        "platform": platform.platform(),
    }


def open_sweep(
    base: str,
    tuned: str,
    alpha: str | float | Sequence[float] = 0.6,
    name: str = "",
    workspace: Workspace | None = None,
) -> Sweep:
    """Open both ends and check that they belong together; nothing is written.

    base, tuned  run ids, run folders, checkpoints or `shipped:NAME` of two heads; or backbones of one architecture,
                 `run:ID` among them. base "init": the head as it began, the backbone that the towers were tuned from
    alpha        see `alphas_of`
    name         of the run, or how names begin where there are several α; `<tuned>-patch` by default

    Raises `UsageError` for α, `UnknownName`, and what `align.patch.head_ends` and `pipeline.patching.tower_ends` raise.
    """
    workspace = workspace or Workspace.find()
    alphas = alphas_of(alpha)
    _check_name(name)
    ends = _ends(base, tuned, workspace)
    from .align.patch import digest

    before, after = ends.states()
    stem = name or f"{_short(tuned)}-patch"
    base, both = ends.origin if base == INIT else base, (digest(before), digest(after))
    return Sweep(base, tuned, tuple(alphas), stem, bool(name), ends, both, workspace)


def _ends(base: str, tuned: str, workspace: Workspace) -> Ends:
    after = _as_backbone(tuned, workspace)
    before = INIT if base == INIT else _as_backbone(base, workspace)
    if after and before:
        from .pipeline.patching import tower_ends

        with workspace.used():
            return tower_ends(None if before == INIT else before, after)
    from .api import checkpoint

    if after or (before and before != INIT):
        towers, head = (tuned, base) if after else (base, tuned)
        raise InputError(f"{towers} names towers and {head} a head", "Patch two heads, or two towers.")
    from .align.patch import head_ends

    return head_ends(None if before == INIT else checkpoint(base, workspace), checkpoint(tuned, workspace))


def _as_backbone(name: str, workspace: Workspace) -> str:
    """The backbone that a name stands for, "" if it is that of a head. A run with towers is its towers."""
    if (workspace.runs / name / "towers").is_dir():
        return f"run:{name}"
    if (workspace.runs / name).is_dir():
        return ""
    # A folder that happens to be called as a backbone is not meant.
    return name if registry.split_argument(name)[0] in registry.names("backbones") else ""


def _short(name: str) -> str:
    """What runs between are called after: the last part of a name or a path that says something."""
    path = Path(name.partition(":")[2] if ":" in name else name)
    parts = [part for part in (*path.parts[:-1], path.stem if path.suffix == ".safetensors" else path.name) if part]
    said = [part for part in parts if part not in ("towers", "checkpoints", "best", "last", "/")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", said[-1] if said else name).strip("-.") or "run"


def _check_name(name: str) -> None:
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--name '{name}' is no name of a folder", "Use letters, digits, '.', '-' and '_'.")
