"""compal: frozen dual-encoder features, extracted once, aligned in minutes, scored honestly.

The three stages are functions: `compal.extract`, `compal.fit`, `compal.evaluate`, with `compal.open_store` for what is
on disk, `compal.open_scorer` for a head over it and `compal.report` for what was scored. Importing compal loads none
of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "CompalError", "Report", "Workspace", "evaluate", "extract", "fit", "open_scorer", "open_store", "report",
]  # fmt: skip

if TYPE_CHECKING:
    from .api import Report, evaluate, extract, fit, open_scorer, open_store, report
    from .errors import CompalError
    from .workspace import Workspace
else:  # hidden from type checkers, which would let any name pass

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        from importlib import import_module

        room = {"CompalError": "errors", "Workspace": "workspace"}.get(name, "api")
        return getattr(import_module(f"{__name__}.{room}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "annotations"})
