"""Blocks of bytes inside an HTML file: gzip, then base64, each in an element of its own, counted against a budget."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

MOST = 15_000_000
"""Bytes of a report."""


class Blocks:
    """Blocks by name, as the text that stands in the file. A "-" before it says that it is not compressed."""

    def __init__(self, budget: int = MOST) -> None:
        self.budget, self.size = budget, 0
        self.texts: dict[str, str] = {}

    def add(self, name: str, data: bytes, pack: bool = True) -> int:
        """Add a block, compressed where asked; how many bytes of the file it takes."""
        text = base64.b64encode(gzip.compress(data, 9, mtime=0) if pack else data).decode()
        self.texts[name] = text if pack else f"-{text}"
        taken = len(self.texts[name]) + len(name) + 60  # the element around it
        self.size += taken
        return taken

    def add_json(self, name: str, data: Any) -> int:
        """Add JSON data."""
        return self.add(name, json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode())

    @property
    def full(self) -> bool:
        """Whether the budget is spent, but for room that the page itself takes."""
        return self.size > 0.93 * self.budget
