"""Pins: manifests of remote stores that the user has looked at, and what must still be true of them.

`trust.json` in the workspace holds, by the store's URL, a manifest's number and sha256. A pinned store is
read only while that manifest is there unchanged and the newest one descends from it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ...config import from_dict
from ...errors import CompalError, InputError, UsageError, VerificationError
from ...workspace import Remote, write_atomically
from .objects import connect
from .shared import SharedStore


@dataclass(frozen=True)
class Pin:
    """A trusted manifest: its number, the sha256 of its bytes (64 hex digits), and when it was pinned."""

    number: int
    sha256: str
    time: float = 0.0


def pins(file: Path | None) -> dict[str, Pin]:
    """All pins by the store's URL. Raises `InputError` if the file is damaged: no pin is forgotten in silence."""
    if file is None:
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {str(url): from_dict(Pin, pin) for url, pin in data["stores"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CompalError) as error:
        raise InputError(
            f"cannot use {file}: {error}", "Restore it, or delete it and trust the stores again."
        ) from None


def trust(remote: Remote, name: str, number: int | None = None) -> Pin:
    """Pin manifest `number`, the newest by default, of the store `name`, in `remote.trust_file`.

    Raises `UsageError` for a remote without such a file, and what reading the manifest raises.
    """
    if remote.trust_file is None:
        raise UsageError("a pin needs a workspace to lie in", "Use Workspace.find().remote(NAME).")
    shared = SharedStore(connect(remote), name)
    existing = shared.numbers()
    chosen = number or (existing[-1] if existing else 0)
    if chosen not in existing:
        raise InputError(f"{shared.url} has no manifest {chosen or ''}", f"It has {existing or 'none'}.")
    shared.check_chain(0, chosen)
    pin = Pin(chosen, shared.digest(chosen), round(time.time(), 3))
    _write(remote.trust_file, pins(remote.trust_file) | {shared.url: pin})
    return pin


def distrust(remote: Remote, name: str) -> bool:
    """Remove a pin. False: there was none."""
    kept = pins(remote.trust_file)
    url = SharedStore(connect(remote), name).url
    if remote.trust_file is None or kept.pop(url, None) is None:
        return False
    _write(remote.trust_file, kept)
    return True


def check_pin(remote: Remote, shared: SharedStore) -> None:
    """Raises `VerificationError` if the store is pinned to a manifest that it does not hold any more, or that
    its newest one does not descend from."""
    pin = pins(remote.trust_file).get(shared.url)
    if pin is None:
        return
    existing = shared.numbers()
    if pin.number not in existing or shared.digest(pin.number) != pin.sha256:
        raise VerificationError(
            f"{shared.url} no longer holds manifest {pin.number} that you trust ({pin.sha256[:12]}…)",
            "Its history was rewritten: ask its owner; then trust it anew: compal store trust",
        )
    shared.check_chain(pin.number, existing[-1])


def _write(file: Path, kept: dict[str, Pin]) -> None:
    text = json.dumps({"stores": {url: asdict(pin) for url, pin in sorted(kept.items())}}, indent=1)
    write_atomically(file, text + "\n")
