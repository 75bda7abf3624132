"""What a pair costs a method, measured: CPU milliseconds on one thread, features in memory."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CompalError
from ...stores.store import Store
from .aligned import opened
from .gather import CONTROLS, Gathered, Method

if TYPE_CHECKING:
    from ..results import ResultRow

SIDE = 64  # images and captions of the block that is scored
TIMES = 3


def measured(found: Gathered, progress: Callable[[str, int, int], None] | None = None) -> Gathered:
    """The methods with what a pair costs each: of a block of 64 × 64 at once, the median of three. None where weights
    or features are not here. A scale, not a comparison to a tenth."""
    methods = []
    for number, method in enumerate(found.methods):
        cost = cost_of(method) if method.kind == "cosine" or method.kind not in CONTROLS else None
        methods.append(dataclasses.replace(method, cost=cost))
        if progress:
            progress("costs", number + 1, len(found.methods))
    return dataclasses.replace(found, methods=tuple(methods))


def cost_of(method: Method) -> float | None:
    """CPU milliseconds of one pair."""
    rows = (row for members in method.members.values() for row in members)
    row = next((row for row in rows if row.role == "scorer" or row.label == "cosine"), None)
    try:
        return _measured(row) if row else None
    except (CompalError, OSError):
        return None


def _measured(row: ResultRow) -> float | None:
    import torch

    from ...align.batches import join

    store = Store.open(Path((row.meta.get("store") or {}).get("path", "")))
    scorer: Any = opened(row, store)
    if scorer is None:
        return None
    images, captions = (sorted(store.keys(kind))[:SIDE] for kind in ("image", "text"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            batch = join(store, images, captions, needs=scorer.needs)
            scorer.score(batch)
            spent = []
            for _ in range(TIMES):
                started = time.process_time()
                scorer.score(batch)
                spent.append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    # The clock has steps: what takes less than one still takes something.
    return max(1e3 * statistics.median(spent), 1e-3) / (len(images) * len(captions))
