"""Where a row of a table comes from: what was scored, on which features, with which code, by which command."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import registry
from ..config import fingerprint, to_dict
from ..errors import CompalError
from .chance import derived
from .sources import KS, Group, Sources, headline, sample_fingerprint

if TYPE_CHECKING:
    from ..stores.store import Store


def describe(scorer: Any) -> dict[str, Any]:
    """What identifies a scorer: its class, its configuration and a hash of its weights."""
    if scorer is None:
        return {}
    facts: dict[str, Any] = {"class": f"{type(scorer).__module__}.{type(scorer).__qualname__}"}
    config = getattr(scorer, "config", None)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        facts["config"] = dataclasses.asdict(config)
    state = scorer.state_dict() if hasattr(scorer, "state_dict") else {}
    if state:
        digest = hashlib.sha256()
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        facts["weights"] = digest.hexdigest()
    return facts


def recipe_of(checkpoint: Path) -> dict[str, Any]:
    """`recipe_of_run` of the run that a checkpoint is of; {} for a checkpoint without a run."""
    return recipe_of_run(checkpoint.parent.parent) if checkpoint.parent.name == "checkpoints" else {}


def recipe_of_run(run: Path) -> dict[str, Any]:
    """The seed of a run and 16 digits of what else its configuration says beyond the defaults: runs that share those
    are seeds of one recipe, also where one was fitted before an option existed. {} for a folder without a configuration
    and for one with options that are no more."""
    from ..align.ema import EmaConfig
    from ..align.recipe import FitConfig, load_recipe

    file = run / "config.toml"
    if not file.is_file():
        return {}
    try:
        config = load_recipe(str(file))
    except CompalError:
        return {}
    head, loss = {"name": config.head["name"]}, {"name": config.loss["name"]}
    # A loss that learns from a teacher is not complete without one.
    plain = to_dict(FitConfig(head=head, loss=loss, ema=config.ema).complete())
    plain["ema"] = dataclasses.asdict(EmaConfig())
    told = to_dict(config)
    seed = told.pop("seed", None)
    return {"seed": seed, "recipe": fingerprint({"head": head, "loss": loss, **_beyond(told, plain)})[:16]}


def _beyond(told: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """What differs from `plain`, table by table."""
    found: dict[str, Any] = {}
    for key, value in told.items():
        if isinstance(value, dict) and isinstance(plain.get(key), dict):
            found |= {f"{key}.{name}": differs for name, differs in _beyond(value, plain[key]).items()}
        elif value != plain.get(key):
            found[key] = value
    return found


def shared(
    name: str,
    module: ModuleType,
    sources: Sources,
    store: Store,
    groups: list[Group],
    seed: int,
    command: str,
) -> dict[str, Any]:
    """The provenance that all rows of one evaluation share."""
    info = module.INFO
    ks = info.get("ks", (1, 5) if info["metric"] == "classification" else KS)
    return {
        "benchmark": name,
        "split": sources.split or "",
        "title": info["title"],
        "metric": info["metric"],
        "chance": derived(groups, info["metric"], ks) | info["chance"],
        "ks": list(ks),
        "pair_ks": list(info.get("ks", ())) if info["metric"] == "pairs" else [],
        "headline": list(headline(info)),
        "variant": sources.variant or "",
        "revision": info["revision"],
        "tie_rule": info["tie_rule"],
        "pools": {pool: list(members) for pool, members in getattr(module, "POOLS", {}).items()},
        "averages": {average: list(members) for average, members in getattr(module, "AVERAGES", {}).items()},
        "citation": info["citation"],
        "licence": info["licence"],
        "size": info.get("size") if sources.split is None else None,
        "limit": sources.limit,
        "groups": len(groups),
        "sample": sample_fingerprint(groups)[:16],
        "excluded": dict(sources.excluded),
        "notes": list(sources.notes),
        "store": {
            "path": str(store.path),
            "fingerprint": store.spec.fingerprint,
            "manifest": store.manifest,
            "backbone": store.spec.backbone,
            "level": store.spec.level,
            "dtype": store.spec.dtype,
        },
        "seed": seed,
        "command": command or " ".join(sys.argv),
        "commit": commit(),
        "versions": _versions(),
        "written": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("compal", "numpy", "pyarrow", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """The commit of the checkout this code lies in, "+" added if files differ from it; None outside one."""
    if not (registry.ROOT / ".git").exists():
        return None
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(registry.ROOT), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return answers[0] + ("+" if answers[1] else "")
