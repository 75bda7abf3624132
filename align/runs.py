"""A run's folder: what was asked, what it came from, what happened.

config.toml       the complete configuration          provenance.json  command, features, versions, seed
metrics.jsonl     one line per logged step            tensorboard/     the same as curves
checkpoints/      best.safetensors and last.safetensors (scorers), state.safetensors (to resume)
result.json       written last: the run is complete
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w

from .. import __version__, registry
from ..config import canonical, fingerprint, from_dict, read_toml, to_dict
from ..errors import InputError, SpecMismatch, UsageError
from ..stores.pairs import read_info
from ..stores.spec import FeatureSpec
from . import loggers
from .checkpoint import write_atomic
from .pairs import PairTable
from .recipe import FitConfig

LIBRARIES = ("torch", "lightning-fabric", "numpy", "safetensors", "pyarrow")


def run_name(recipe: str, config: FitConfig, spec: FeatureSpec, train: str = "") -> str:
    """`<recipe>-<id>`; the id is 8 hex digits of the complete configuration, the features and `train`, which
    says which pairs (dataset and root). The same request has the same folder, so that it can be resumed."""
    stem = Path(recipe).stem if recipe.endswith(".toml") else recipe
    asked = {"config": to_dict(config.complete()), "features": spec.fingerprint, "train": train}
    return f"{stem}-{fingerprint(asked)[:8]}"


def command() -> str:
    """The command line of this process, as a shell takes it."""
    return shlex.join(sys.argv)


def claim(folder: Path, config: FitConfig, spec: FeatureSpec, resume: bool) -> bool:
    """Whether a run is there to be resumed. Raises `InputError` if one is there and `resume` is not asked
    for, `UsageError` if it was configured otherwise, `SpecMismatch` if it used other features."""
    if not (folder / "provenance.json").is_file():
        return False
    if not resume:
        raise InputError(f"{folder} already holds a run", "Continue it with --resume, or remove the folder.")
    kept = to_dict(from_dict(FitConfig, read_toml(folder / "config.toml")))
    asked = to_dict(config)
    differing = sorted(key for key in kept | asked if kept.get(key) != asked.get(key))
    if differing:
        raise UsageError(
            f"{folder} was configured otherwise: {', '.join(differing)}",
            "Resume with the configuration in its config.toml, or start a new run.",
        )
    features = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["features"]
    if features["fingerprint"] != spec.fingerprint:
        raise SpecMismatch(
            f"{folder} was fitted on features of {features['backbone']}, and these are of {spec.backbone}",
            "Resume with its own features, or start a new run.",
        )
    return (folder / "checkpoints" / "state.safetensors").is_file()


def describe(folder: Path, config: FitConfig, facts: dict[str, Any]) -> None:
    """Write config.toml and, after it, provenance.json."""
    header = f"# compal {__version__}; the complete configuration of this run\n"
    write_atomic(folder / "config.toml", (header + tomli_w.dumps(to_dict(config))).encode())
    write_json(folder / "provenance.json", facts)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Indented JSON, written atomically."""
    write_atomic(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def provenance(config: FitConfig, spec: FeatureSpec, tables: dict[str, PairTable]) -> dict[str, Any]:
    """Where a run's numbers come from."""
    return {
        "command": command(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": config.seed,
        "features": {"backbone": spec.backbone, "level": spec.level, "fingerprint": spec.fingerprint},
        "pairs": {
            name: {
                "path": str(table.path),
                "sha256": hashlib.sha256(table.path.read_bytes()).hexdigest(),
                "pairs": len(table),
                "groups": len(table.quads),
                "left_out": table.left_out,
                "said": read_info(table.path),
            }
            for name, table in tables.items()
        },
        "versions": {
            "compal": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        "commit": _commit(),
        "platform": platform.platform(),
    }


def _commit() -> str | None:
    """The checkout's commit, with "-dirty" if files were changed; None outside a checkout."""
    if not (registry.ROOT / ".git").exists():
        return None
    here = ["git", "-C", str(registry.ROOT)]
    command = [*here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class Log:
    """metrics.jsonl and the curves of `loggers`. On resuming, lines after `step` are dropped: those steps run again."""

    def __init__(self, folder: Path, step: int, config: FitConfig, others: Sequence[str] = ()) -> None:
        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= step] if step else []
        write_atomic(path, b"".join(canonical(line) + b"\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._curves = loggers.opened(others, folder, step, to_dict(config))

    def write(self, step: int, **values: Any) -> None:
        """One line, and a curve for every number (numbers inside a dict are named `outer/inner`)."""
        self._file.write(canonical({"step": step, **values}).decode() + "\n")
        self._file.flush()
        flat = {}
        for name, value in values.items():
            for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
                flat[f"{name}/{inner}" if inner else name] = number
        for curves in self._curves:
            curves.add(step, flat)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for curves in self._curves:
            curves.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a run that was killed may have left half a line."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
