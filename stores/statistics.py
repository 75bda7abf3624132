"""Per channel statistics of a part, kept in its done file: what overflow and dead channels look like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .buffers import Array
from .dtypes import from_bfloat16
from .rows import ImageRows, TextRows

# Rows are shuffled by the plan, so a few are a fair sample; all of them would cost more than the write.
STATISTICS_ROWS = 256
STATISTICS_VALUES = 1 << 20


def statistics(rows: ImageRows | TextRows) -> dict[str, Any]:
    """Mean, standard deviation and largest magnitude per channel over evenly spaced rows of the part."""
    count = len(rows.keys)
    size = 1 if rows.tokens is None or not count else max(1, np.size(rows.tokens[0]))
    step = max(1, -(-count // min(STATISTICS_ROWS, max(1, STATISTICS_VALUES // size))))
    chosen = range(0, count, step)
    found: dict[str, Any] = {"rows": len(chosen)}
    with np.errstate(over="ignore", invalid="ignore"):  # the writer refuses what is not finite
        if chosen and np.shape(rows.pooled)[1]:
            found["pooled"] = _rounded(moments([np.asarray(rows.pooled)[::step]]))
        if chosen and rows.tokens is not None:
            found["tokens"] = _rounded(moments([rows.tokens[row] for row in chosen]))
    return found


def moments(blocks: Iterable[Array]) -> tuple[Array, Array, Array]:
    """Mean, standard deviation and largest magnitude (D,) float64 over the rows of blocks (·, D).

    Squares are summed about the first block's mean, so that a large mean does not cost the deviation its
    digits. Block by block: 4 M values at once in float64 cost 30 ms of page faults alone.
    """
    total = squares = largest = about = np.zeros(0)
    count = 0
    for block in blocks:
        values = (from_bfloat16(block) if block.dtype == np.uint16 else block).astype(np.float64)
        if not count:
            about = values.mean(axis=0)
            total, squares, largest = np.zeros_like(about), np.zeros_like(about), np.zeros_like(about)
        largest = np.maximum(largest, np.maximum(values.max(axis=0), -values.min(axis=0)))
        values -= about
        total += values.sum(axis=0)
        squares += np.einsum("ij,ij->j", values, values)
        count += len(values)
    shift = total / max(1, count)
    variance = np.maximum(squares / max(1, count) - shift * shift, 0)
    return about + shift, np.sqrt(variance), largest


def _rounded(found: tuple[Array, Array, Array]) -> dict[str, list[float]]:
    mean, std, absmax = ([float(f"{value:.5g}") for value in column] for column in found)
    return {"mean": mean, "std": std, "absmax": absmax}
