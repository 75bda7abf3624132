"""The first six official rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from . import DATA, paint, write_json


def rows() -> list[list[str]]:
    """All 210 official rows."""
    return json.loads(gzip.decompress((DATA / "cola.json.gz").read_bytes()))


def write(root: Path) -> None:
    few = rows()[:6]
    write_json(root / "data" / "COLA_multiobjects_matching_benchmark.json", few)
    for row in few:
        for address in (row[0], row[2]):
            paint(root / "images" / address.rpartition("/")[2])
