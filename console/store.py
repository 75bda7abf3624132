"""What people see of stores: versions, differences, what an operation did."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import print_json

if TYPE_CHECKING:
    from ..stores.diff import Difference
    from ..stores.history import LogEntry


def show_fact(facts: dict[str, Any], as_json: bool) -> None:
    """A few named facts."""
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<18} {_shown(name, value)}")


def show_result(result: Any, as_json: bool) -> None:
    """What an operation did: a frozen dataclass."""
    show_fact({field.name: getattr(result, field.name) for field in dataclasses.fields(result)}, as_json)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown('', inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, Sequence):
        listed = ", ".join(_shown("", inner) for inner in value[:5])
        return (listed + (f", … {len(value) - 5} more" if len(value) > 5 else "")) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:,.4g}"
    if "bytes" in name:
        return f"{value:,} ({value / 2**20:,.1f} MiB)"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_log(entries: Sequence[LogEntry], as_json: bool) -> None:
    """The versions of a store, newest first."""
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in entries])
        return
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.time)) if entry.time else "–"
        gone = f"  -{entry.parts_dropped:,} parts, {entry.rows_dropped:,} rows" if entry.parts_dropped else ""
        came = f"+{entry.parts_added:,} parts, {entry.rows_added:,} rows, {entry.bytes_added / 2**20:,.1f} MiB"
        state = "" if entry.restorable else "  (collected: cannot be restored)"
        note = f"  {entry.note}" if entry.note else ""
        print(f"{entry.number:>5}  {when}  {entry.who or '–':<16} {entry.operation:<8} {came}{gone}{note}{state}")
    if not entries:
        print("nothing was committed yet")


def show_difference(found: Difference, as_json: bool) -> None:
    """How two stores differ."""
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    for one in found.spec:
        print(f"spec    {one.name}: {one.here!r} here, {one.there!r} there")
    for keys in found.keys:
        print(
            f"keys    {keys.kind}: {keys.common:,} common, {keys.only_here:,} only here, {keys.only_there:,} only there"
        )
    for value in found.values:
        judged = f"{value.different:,} differ" if value.different else "none differs"
        worst = f", at most by {value.max_abs:.3g} (cosine {value.min_cosine:.6f})" if value.max_abs else ""
        said = f"{value.equal:,} in equal parts, {value.compared:,} compared: {judged}{worst}"
        print(f"values  {value.kind} {value.what}: {value.note or said}")
    print(f"{found.here} and {found.there} {'are equal' if found.equal else 'differ'}")


def show_remote(stores: Sequence[dict[str, Any]], as_json: bool) -> None:
    """The stores on remotes."""
    if as_json:
        print_json(list(stores))
        return
    for one in stores:
        size = (
            f"{one.get('images', 0):,} images, {one.get('texts', 0):,} captions, {one.get('bytes', 0) / 2**20:,.1f} MiB"
        )
        print(f"{one['remote']:<10} {one['name'] or one['url']:<44} {one['problem'] or size}")
    if not stores:
        print('no store on a remote; compal.toml names them: [remotes] team = "s3://bucket/prefix"')
