"""What a remote must do: whole objects, ranges, create-only puts; and which medium does it for which URL.

Layout on a remote = the store's own layout below `<url>/<store folder>/`. An object appears whole or not at all.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from ...errors import RemoteError, UnknownName, UsageError
from ...workspace import Remote

CLOUD = ("s3", "gs", "az")
GENERIC = ("sftp", "ssh", "hf", "memory")
# Proof that the remote honours create-only puts: it can be created once only, so finding it is the proof.
PROOF = ".compal-create-only"
OPTIONS = {
    "endpoint": "URL of a server that is not the provider's own",
    "region": "of the bucket",
    "allow_http": "true for a server without TLS",
    "anonymous": "true for a public bucket",
    "virtual_hosted": "true where the bucket is part of the host name",
    "account": "of az://",
    "timeout": "seconds without an answer before a request is tried again",
    "retries": "how often a request is tried again",
    "single_writer": "true if nobody else ever pushes: allows a remote without create-only puts",
    "port": "of sftp://",
    "username": "of sftp://",
    "key_file": "path of the private key for sftp://",
    "known_hosts": "path of a file with the host keys of sftp://, besides the user's own",
}
AGAIN = "Check the network and the remote, then run again: what was transferred is kept."


class Objects(Protocol):
    """Objects below one URL, by relative POSIX paths. Every method may raise `RemoteError`.

    url      of the remote
    threads  how many transfers at once serve it well
    """

    url: str
    threads: int

    def get(self, path: str, limit: int) -> bytes | None:
        """A whole object, None if there is none. Raises `RemoteError` if it has more than `limit` bytes."""

    def get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several (start, stop) of one object, one request each."""

    def get_file(self, path: str, local: Path, size: int) -> None:
        """Download `size` bytes, going on where the file `local` ends. Raises
        `VerificationError` if the object has another size. The caller verifies the bytes and syncs."""

    def create(self, path: str, data: bytes) -> bool:
        """Put an object that must not exist yet. False: it exists (with other bytes)."""

    def replace(self, path: str, data: bytes) -> None:
        """Put or overwrite an object."""

    def put_file(self, local: Path, path: str) -> None:
        """Upload a file whole, or overwrite."""

    def names(self, prefix: str) -> list[str]:
        """The paths of the objects below the folder `prefix`, sorted."""

    def folders(self) -> list[str]:
        """The names of the top folders, sorted, without hidden ones."""

    def size(self, path: str) -> int | None:
        """Bytes of an object, None if there is none."""

    def delete(self, path: str) -> None:
        """Delete an object; nothing if there is none."""


def connect(remote: Remote) -> Objects:
    """The objects of a remote. Nothing is asked of it yet, except by `sftp`, which logs in.

    Raises `UsageError` for a scheme nobody serves, `UnknownName` for an option nobody reads.
    """
    for option in remote.options:
        if option not in OPTIONS:
            raise UnknownName.among("option of a remote", option, OPTIONS)
    parts = urlsplit(remote.url)
    if parts.scheme in ("", "file"):
        from .local import LocalObjects, folder_of

        return LocalObjects(folder_of(remote.url))
    if parts.scheme in CLOUD:
        from .cloud import CloudObjects

        return CloudObjects(remote)
    if parts.scheme in GENERIC:
        from .generic import GenericObjects

        return GenericObjects(remote)
    known = ", ".join(f"{scheme}://" for scheme in ("file", *CLOUD, *GENERIC) if scheme != "memory")
    raise UsageError(f"no remote can be reached by {parts.scheme}://", f"Known: {known}.")


def prove_create_only(objects: Objects, remote: Remote) -> None:
    """Refuse a remote that lets one writer overwrite another's commit. One request, two the first time.

    Stores that ignore conditional puts exist, and lose commits in silence. Raises `RemoteError`, unless the
    remote's options declare a single writer.
    """
    if objects.create(PROOF, uuid.uuid4().bytes):
        second = objects.create(PROOF, uuid.uuid4().bytes)
        if second and not remote.options.get("single_writer"):
            objects.delete(PROOF)
            raise RemoteError(
                f"{objects.url} ignores create-only puts: two who push at once would lose a commit",
                f"Use another remote, or declare that nobody else pushes: "
                f"[remote_options.{remote.name}] single_writer = true",
            )
        if second:
            objects.delete(PROOF)
