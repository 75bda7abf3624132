"""What `compal push-hub` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import print_json

if TYPE_CHECKING:
    from ..publish.bundle import Bundle
    from ..publish.hub import Pushed


def show_plan(bundle: Bundle, card: str, repository: str, restricted: Mapping[str, str], as_json: bool) -> None:
    """The files with their bytes, then the card, and whose licence has to be thought of."""
    sizes = bundle.sizes() | {"README.md": len(card.encode())}
    total = sum(sizes.values())
    if as_json:
        told = {"repository": repository, "kind": bundle.kind, "files": sizes, "bytes": total}
        print_json(told | {"restricted": dict(restricted), "card": card})
        return
    print(f"{bundle.kind} {repository}: {len(sizes):,} files, {total:,} bytes")
    for name, size in sizes.items():
        print(f"{size:>15,}  {name}")
    for name, licence in restricted.items():
        print(f"needs --i-may: {name} ({licence})")
    print(f"\nREADME.md\n\n{card}", end="")


def show_pushed(done: Pushed, as_json: bool) -> None:
    """Where it is, and what was sent."""
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    print(f"{done.url}  commit {done.commit[:12]}, {done.files:,} files, {done.bytes:,} bytes")
    if not done.card:
        print("its own README.md was kept")
