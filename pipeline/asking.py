"""What the remotes hold of what is wanted is pulled instead of computed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import CompalError
from ..stores.store import Store
from ..workspace import Remote
from .plan import PlannedPart

if TYPE_CHECKING:
    from .extract import Progress

LOG = logging.getLogger("compal")


@dataclass
class Asked:
    """What the remotes gave; the fields are those of the summary."""

    pulled: int = 0
    saved_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def ask(remotes: Sequence[Remote], todo: Sequence[PlannedPart], store: Store, progress: Progress | None) -> Asked:
    """Pull the parts that hold items of `todo` from remotes that have a store of this spec."""
    asked, left = Asked(), {item.key for part in todo for item in part.items}
    for remote in remotes if left else ():
        from ..stores.remotes.transfer import offers, pull

        try:
            if not offers(remote, store.spec.folder):
                LOG.info("remote '%s' was asked: it has no store %s", remote.name, store.spec.folder)
                continue
            LOG.info("remote '%s' has the store %s: asked for %s items", remote.name, store.spec.folder, len(left))
            pulled = pull(remote, store.spec.folder, store.path, left, progress)
        except CompalError as error:
            asked.notes.append(f"remote '{remote.name}' was not used: {error}")
            pulled = None
        here = Store.open(store.path)
        if pulled is None:  # what had come whole before the remote failed is used
            here.commit(here.uncommitted())
        keys = list(left)
        there = set(itertools.compress(keys, here.has("image", keys) | here.has("text", keys)))
        asked.pulled += len(there)
        asked.saved_seconds += pulled.saved_seconds if pulled else 0.0
        left -= there | {item.key for item in here.quarantined()}
        if not left:
            break
    return asked
