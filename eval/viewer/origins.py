"""Where every figure comes from: the runs behind the methods, as facts for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report import source_of
from ..results import ResultRow
from .gather import Gathered, Method, run_of, told_of

Facts = list[tuple[str, str]]


def runs(found: Gathered) -> list[dict[str, Any]]:
    """A label a method with the facts of its fits and of its scorings, equal ones once."""
    told = []
    for method in found.methods:
        parts = _parts(method)
        if parts:
            seeds = f", {method.seeds} seeds" if method.seeds > 1 else ""
            about = f"{method.backbone}{seeds} · {len(method.members)} tables".lstrip(" ·")
            told.append({"label": method.label, "about": about, "parts": parts})
    return told


def _parts(method: Method) -> list[Facts]:
    fits: dict[str, Facts] = {}
    scored: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for table, rows in method.members.items():
        for row in rows:
            run = run_of(row)
            if run is not None and str(run) not in fits:
                fits[str(run)] = fit_of(run)
            where = " ".join(part for part in table[:3] if part)
            scored.setdefault(tuple(_scoring(row)), []).append(where)
    made = [facts for facts in fits.values() if facts]
    for facts, places in scored.items():
        made.append([("scored on", ", ".join(dict.fromkeys(places))), *facts])
    return made


def fit_of(run: Path) -> Facts:
    """The command, commit, features, seed and machine of a run; [] where its folder is not here."""
    told, result = told_of(run), told_of(run, "result.json")
    if not told:
        return []
    features = told.get("features") or {}
    facts = {
        "run": run.name,
        "fit with": told.get("command", ""),
        "commit": told.get("commit", ""),
        "seed": told.get("seed", ""),
        "features": " ".join(part for part in (features.get("backbone", ""), features.get("level", "")) if part),
        "store": str(features.get("fingerprint", ""))[:16],
        "machine": ", ".join(str(told[name]) for name in ("device", "platform") if told.get(name)),
        "versions": ", ".join(f"{name} {value}" for name, value in (told.get("versions") or {}).items()),
        "begun": told.get("started", ""),
        "took": f"{result['seconds']:,.0f} s, {result['steps']:,} steps"
        if "seconds" in result and "steps" in result
        else "",
        "parameters": f"{told['parameters']:,}" if isinstance(told.get("parameters"), int) else "",
    }
    return [(name, str(value)) for name, value in facts.items() if value != ""]


def _scoring(row: ResultRow) -> Facts:
    source = source_of(row)
    named = {"command": "command", "commit": "commit", "store": "store", "manifest": "manifest", "weights": "weights",
             "revision": "benchmark"}  # fmt: skip
    facts = [(told, str(source[name])) for name, told in named.items() if source.get(name, "") != ""]
    return [*facts, ("label", row.label)] if "label" not in dict(facts) else facts
