"""Figures of a saved row, kept beside it in `estimates.json`: a table of hundreds of rows resamples nothing anew.

The file is a copy of what `summary.summarise` says, digit for digit, and never its source. It is found by the content
of `scores.json` (which holds the checksum of the rows), by the rule of ties and by the code that makes figures of rows.
One that is absent, damaged or of other content is ignored and written again; deleting it loses nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import CompalError
from ..workspace import write_atomically
from .summary import Estimate, Summary

FILE = "estimates.json"
CODE = ("estimates", "intervals", "metrics", "outcomes", "seeds", "sources", "summary", "ties")
"""The modules of this folder that figures depend on."""
ENTRIES = 6
"""Of a file: for each rule of ties the row's own, and those of the seeds that it stands for."""
MOST = 4 << 20
"""Bytes above which a file is not written."""

Summaries = tuple[Summary, dict[str, Summary]]


def remembered(folder: Path, told: Sequence[bytes], rule: str, compute: Callable[[], Summaries]) -> Summaries:
    """The figures of a row, or of rows joined, whose `scores.json` hold these bytes: as kept in `folder`, else computed
    and kept there."""
    wanted = key(told, rule)
    found = kept(folder, wanted)
    if found is None:
        found = compute()
        keep(folder, wanted, found)
    return found


def key(told: Sequence[bytes], rule: str) -> str:
    """What figures are found by: the bytes of every `scores.json`, the rule of ties, the code and numpy's version."""
    return xxhash.xxh3_128_hexdigest(b"\0".join([*told, rule.encode(), _code().encode()]))


@functools.cache
def _code() -> str:
    digest = xxhash.xxh3_128(np.__version__.encode())
    for name in CODE:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()


def kept(folder: Path, wanted: str) -> Summaries | None:
    """The summary and those by category that `keep` wrote for this key; None where there are none to rely on."""
    with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError):
        told = _entries(folder)[wanted]
        return _summary(told[0]), {name: _summary(one) for name, one in told[1].items()}
    return None


def keep(folder: Path, wanted: str, found: Summaries) -> None:
    """Add figures to the row's file. A folder that cannot be written keeps none, and that is no error."""
    plain = [dataclasses.asdict(found[0]), {name: dataclasses.asdict(one) for name, one in found[1].items()}]
    others = list(_entries(folder).items())[-(ENTRIES - 1) :]
    entries = {name: one for name, one in others if name != wanted} | {wanted: plain}
    with contextlib.suppress(ValueError, CompalError):
        figures = _text(entries)
        text = f'{{"xxh3_128": "{_checksum(figures)}", "figures": {figures}}}\n'
        if len(text) <= MOST:
            write_atomically(folder / FILE, text)


def _entries(folder: Path) -> dict[str, Any]:
    """What the file holds, {} for one that is not there or not what was written."""
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        figures = told["figures"]
        if isinstance(figures, dict) and told["xxh3_128"] == _checksum(_text(figures)):
            return figures
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _text(figures: dict[str, Any]) -> str:
    return json.dumps(figures, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _checksum(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _summary(told: dict[str, Any]) -> Summary:
    estimates = {name: Estimate(**one) for name, one in told["metrics"].items()}
    return Summary(**{**told, "metrics": estimates})
