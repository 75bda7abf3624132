"""What the shell completes: names of parts, runs, stores, remotes, splits. Called while somebody types, so each reads
names from disk and imports nothing heavy; whatever goes wrong completes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from .. import registry
from ..align.loggers import LOGGERS
from ..workspace import TABLES, Workspace

Complete = Callable[[str], list[str]]


def _safe(find: Callable[[], Iterable[str]]) -> Complete:
    def complete(incomplete: str) -> list[str]:
        try:
            return sorted(name for name in dict.fromkeys(find()) if name.startswith(incomplete))
        except Exception:  # a broken compal.toml says so when the command is run, and not amid a line that is typed
            return []

    return complete


def _workspace() -> Workspace:
    return Workspace.find()


def parts(*kinds: str) -> Complete:
    """The names of parts of these kinds."""
    return _safe(lambda: (name for kind in kinds for name in registry.names(kind)))


def _runs() -> Iterable[str]:
    yield from (path.name for path in _workspace().list_runs())


def _shipped() -> Iterable[str]:
    yield from (f"shipped:{path.stem}" for path in (registry.ROOT / "assets" / "heads").glob("*.safetensors"))


def _tuned() -> Iterable[str]:
    """Towers that runs tuned are backbones."""
    yield from (f"run:{path.name}" for path in _workspace().list_runs() if (path / "towers").is_dir())


def _stores() -> Iterable[str]:
    yield from (path.name for path in _workspace().list_stores())


def _tables() -> Iterable[str]:
    """Tables and folders of the current folder, which are datasets by their path."""
    yield from (path.name for path in Path.cwd().iterdir() if path.suffix in TABLES)


def _levels() -> Iterable[str]:
    yield from ("pooled", "tokens", "block:-1", "block:-2", "pixels", "regions", "regions:grid", "regions:roi")


benchmarks, heads, engines = parts("benchmarks"), parts("heads"), parts("engines")
segmenters, formats = parts("segmenters"), parts("formats")
runs = _safe(lambda: [*_runs(), *_shipped()])
stores = _safe(_stores)
remotes = _safe(lambda: _workspace().settings.remotes)
backbones = _safe(lambda: [*registry.names("backbones"), *_tuned()])
datasets = _safe(lambda: [*registry.names("datasets"), *_tables()])
recipes = _safe(lambda: ["all", *registry.names("recipes"), *registry.names("setups")])
levels = _safe(_levels)
kinds = _safe(lambda: [*registry.KINDS, "stores", "runs"])
dtypes = _safe(lambda: ["float16", "bfloat16", "float32"])
loggers = _safe(lambda: LOGGERS)
