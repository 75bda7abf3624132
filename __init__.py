"""compal: frozen dual-encoder features, extracted once, aligned in minutes, scored honestly.

The three stages are functions: `compal.extract`, `compal.fit`, `compal.evaluate`, with `compal.open_store` for what is
on disk and `compal.report` for what was scored. Importing compal loads none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import evaluate, extract, fit, open_store
    from .workspace import Workspace

__all__ = ["Workspace", "evaluate", "extract", "fit", "open_store"]


def __getattr__(name: str) -> Any:
    if name == "Workspace":
        from .workspace import Workspace

        return Workspace
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
