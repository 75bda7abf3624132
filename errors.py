"""The errors a user can meet. Each is one line: what, where, the cure.

CompalError                exit 1
├── InputError             exit 1   an input can be fixed: a name, a path, a file's content
│   ├── UnknownName                 no part, store or run of that name; suggests the nearest
│   ├── MissingFeatures             the cache lacks what is asked; names the command that adds it
│   └── SpecMismatch                two things that must share a fingerprint do not
├── UsageError             exit 2   the command line or the configuration is wrong
├── VerificationError      exit 3   bytes on disk are not what was written
└── RemoteError            exit 4   a remote store cannot be reached or answered wrongly
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompalError(Exception):
    """`what` happened and where, and the `cure`. `str(error)` is one line of both. `relayed`: another process of the
    same run shows it."""

    exit_code = 1
    relayed = False

    def __init__(self, what: str, cure: str = "") -> None:
        self.what = " ".join(what.split())
        self.cure = " ".join(cure.split())
        super().__init__(f"{self.what.rstrip('.')}. {self.cure}".strip() if self.cure else self.what)


class InputError(CompalError):
    """An input that the user can fix."""


class UnknownName(InputError):
    """Nothing has this name. Build it with `UnknownName.among`."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], cure: str = "") -> UnknownName:
        """Name the nearest of `known`, list them all, then say `cure`."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f"Did you mean '{near[0]}'? " if near else ""
        listing = f"Known: {', '.join(known)}. " if known else ""
        return cls(f"no {kind} '{name}'", f"{guess}{listing}{cure}")


class MissingFeatures(InputError):
    """The cache does not hold what was asked for."""


class SpecMismatch(InputError):
    """Features, checkpoints or stores that do not belong together."""


class UsageError(CompalError):
    """The command line or a configuration is wrong."""

    exit_code = 2


class VerificationError(CompalError):
    """Bytes on disk differ from what was written."""

    exit_code = 3


class RemoteError(CompalError):
    """A remote store failed."""

    exit_code = 4
