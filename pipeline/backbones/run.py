"""run:ID or run:/PATH/TO/TOWERS: towers that compal tuned; ID is a run of the workspace that holds `towers/`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, UnknownName
from ...stores.spec import FeatureSpec
from ...workspace import Workspace

if TYPE_CHECKING:
    from ..dual_encoder import DualEncoder

TOWERS = "towers"


def spec(argument: str, level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of a run's towers: the base's shapes, preprocessing and tokenizer, the tuned weights' hash.

    Raises `UnknownName` for a run that has no towers, `InputError` for a folder that is damaged.
    """
    from .. import tuned

    folder, name = _find(argument)
    return tuned.spec_of(tuned.read(folder), f"run:{name}", level, dtype)


def load(spec: FeatureSpec, device: str = "cpu") -> DualEncoder:
    """The encoder of a spec. Raises `InputError` if its base cannot be built or the weights do not fit it."""
    from .. import tuned

    folder, _ = _find(spec.backbone.partition(":")[2])
    return tuned.load(folder, spec, device)


def untrained(spec: FeatureSpec, device: str = "cpu") -> DualEncoder:
    """The architecture of a run's towers, for towers tuned from them."""
    from .. import tuned

    folder, _ = _find(spec.backbone.partition(":")[2])
    return tuned.untrained(tuned.read(folder), device)


def _find(argument: str) -> tuple[Path, str]:
    """The folder of the towers and what to call them again: by the run's ID inside the workspace, else the
    absolute path."""
    runs = Workspace.in_use().runs
    if not argument:
        raise InputError("backbone run needs a run", "Example: run:ID, or run:/path/to/towers")
    if os.sep in argument or argument in (".", ".."):
        folder = Path(os.path.abspath(Path(argument).expanduser()))
        if folder.name == TOWERS and folder.parent.parent == runs:
            return folder, folder.parent.name
        return folder, str(folder)
    folder = runs / argument / TOWERS
    if not folder.is_dir():
        known = [path.parent.name for path in runs.glob(f"*/{TOWERS}") if path.is_dir()]
        raise UnknownName.among("run with towers", argument, known, f"Runs lie in {runs}.")
    return folder, argument
