"""Where pairs come from: dataset, split, licence, revision and citation, for the table of pairs to say."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from .. import registry
from ..errors import InputError
from . import listing
from .datasets._shards import open_shard


def describe(data: str, split: str, limit: int | None = None) -> dict[str, str]:
    """What `write_pairs` keeps of a split of `NAME[:ROOT]`: `dataset`, `split`, `limit` ("" for none), `licence`,
    `revision` and `citation`, from the dataset's INFO, and from what the dataset says where it has `about` or `files`.

    The revision of files is a sha256 of their contents; of tars, of their members' names and image keys. Nothing
    names a place of this machine. Raises `InputError` for files that cannot be read.
    """
    name, argument = registry.split_argument(data)
    dataset, root = registry.load("datasets", name), Path(argument) if argument else None
    inside = root / "annotations" if root else None
    info = {key: str(dataset.INFO.get(key) or "unknown") for key in ("licence", "revision", "citation")}
    if hasattr(dataset, "files"):
        info["revision"] = _revision(listing.patiently(inside, lambda: dataset.files(root, split))) or info["revision"]
    if hasattr(dataset, "about"):
        info |= listing.patiently(inside, lambda: dataset.about(root, split))
    return {"dataset": name, "split": split, "limit": "" if limit is None else str(limit), **info}


def _revision(files: Sequence[Path]) -> str:
    """One line for the contents of files: `sha256:HEX NAME`, or of the list of such lines."""
    lines = [f"sha256:{_digest(file)} {file.name}" for file in files]
    if len(lines) < 2:
        return "".join(lines)
    return f"sha256:{hashlib.sha256(_bytes(chr(10).join(lines))).hexdigest()} of {len(lines)} files"


def _digest(file: Path) -> str:
    """The sha256 of a file, remembered for as long as it stays as it is."""
    if file.suffix == ".tar":
        shard = open_shard(file)
        members = "\n".join(f"{member.name} {member.size} {member.key}" for member in shard.members)
        return hashlib.sha256(_bytes(f"{members}\n{shard.damage}")).hexdigest()

    def read() -> bytes:
        with open(file, "rb") as opened:
            stamp = listing.stamp_of(os.fstat(opened.fileno()))
            name = f"sha256\0{os.path.abspath(file)}"
            known = listing.recall(name, stamp)
            if known is None:
                known = hashlib.file_digest(opened, "sha256").digest()
                listing.remember(name, stamp, known)
        return known

    try:
        return listing.patiently(file, read).hex()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}", "Check the file.") from None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
