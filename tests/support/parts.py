"""What contract tests run over: every part of the project, or the parts of one's own that $COMPAL_PARTS names.

    COMPAL_PARTS="mine.lowrank" python -m pytest tests/contracts/test_heads.py

Names stand as the command line takes them, spaces between: a dotted module, with its root or argument after a colon
where it has one (`mine.spots:/data/few`), a recipe as the path of its file.
"""

from __future__ import annotations

import os

from compal import registry

OWN = os.environ.get("COMPAL_PARTS", "").split()


def names(kind: str) -> list[str]:
    """The parts of `kind` to test."""
    return OWN or registry.names(kind)


def summary(kind: str, name: str) -> str:
    """The first line of a part's docstring, wherever the part lies."""
    if name in OWN:
        return (registry.load(kind, registry.split_argument(name)[0]).__doc__ or "").strip().split("\n")[0]
    return registry.summary(kind, name)
