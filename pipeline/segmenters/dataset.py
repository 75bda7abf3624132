"""The segments that the dataset gives its captions, as they are; the others have none."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError
from ...stores.items import Segment


def version(argument: str = "") -> str:
    """Nothing is computed, so nothing has a version. Raises `UsageError` for an argument: there is none."""
    if argument:
        raise UsageError(f"segmenter 'dataset' takes no argument, not '{argument}'", "Say --segments dataset.")
    return ""


def segment(captions: Sequence[str], argument: str = "") -> list[tuple[Segment, ...]]:
    """None for any caption: what a dataset knows is in its items."""
    return [() for _ in captions]
