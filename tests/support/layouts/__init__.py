"""Small copies of the benchmarks' official layouts, one file each, found by name.

`tests/support/layouts/NAME.py` defines `write(root)`, which lays out at `root` what benchmark NAME reads, in the
official format: a few rows of every kind, and a painted picture for each name. A benchmark without such a file must
need none.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path(__file__).parents[2] / "data"


def paint(path: Path) -> Path:
    """A picture that differs from every other: 8 × 8 pixels from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.frombuffer(hashlib.sha512(path.name.encode()).digest() * 3, np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """A value as one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def exists(benchmark: str) -> bool:
    """Whether the benchmark has a layout here."""
    return (Path(__file__).parent / f"{benchmark.replace('-', '_')}.py").is_file()


def write(benchmark: str, root: Path) -> None:
    """Lay out at `root` what the benchmark reads."""
    importlib.import_module(f"layouts.{benchmark.replace('-', '_')}").write(root)
