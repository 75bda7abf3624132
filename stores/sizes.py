"""How many rows a full part holds: extraction, compaction and imports cut alike."""

from __future__ import annotations

PART_BYTES = 256 * 2**20
# Below 64 rows a part is not worth its six files.
MIN_PART_ROWS, MAX_PART_ROWS = 64, 8192


def part_rows(row_bytes: float, part_bytes: int = PART_BYTES, most: int = MAX_PART_ROWS) -> int:
    """The power of two nearest, by ratio, to the rows of `row_bytes` that `part_bytes` hold, from 64 to `most`."""
    ideal = max(1, round(part_bytes / max(1.0, row_bytes)))
    below = 1 << (ideal.bit_length() - 1)
    nearest = below if ideal * ideal <= 2 * below * below else 2 * below
    return min(max(nearest, MIN_PART_ROWS), most)
