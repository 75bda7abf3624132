"""A local cache of whole files of remote parts: named by their checksums, limited in size, the oldest go first.

One entry is a folder (the array of a part, or its Arrow file) whose name is a hash of the files' checksums, so
two stores, and two versions of one, share what they share. An entry appears by one rename, verified.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...config import canonical
from ...errors import InputError
from ..files import alive, disk_errors

ENTRY = re.compile(r"[0-9a-f]{32}")
ORPHAN = re.compile(r"(?:new|old)\.([0-9]+)\.[0-9a-f]{32}")


class PartCache:
    """Entries below `folder`, at most `limit` bytes of them. Safe for several processes of one host; a file
    that is in use stays readable after its entry is gone, as files do."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit

    def get(self, files: Mapping[str, dict[str, Any]], fill: Callable[[Path], None]) -> Path:
        """The folder that holds `files` (name in the folder → size and checksum).

        If it is not there, `fill(folder)` downloads and verifies them, and what was used longest ago makes
        room. Raises `InputError` if the files alone exceed the limit, and what `fill` raises.
        """
        name = hashlib.sha256(canonical(files)).hexdigest()[:32]
        entry = self.folder / name
        try:
            os.utime(entry)  # used now
            return entry
        except FileNotFoundError:
            pass
        size = sum(int(one["bytes"]) for one in files.values())
        if size > self.limit:
            what = f"{size} bytes of one part do not fit the cache {self.folder} of {self.limit}"
            raise InputError(what, "Give the cache more, read by ranges, or pull the store.")
        with disk_errors(f"the cache {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            fresh = self.folder / f"new.{os.getpid()}.{uuid.uuid4().hex}"
            try:
                fresh.mkdir()
                fill(fresh)
                os.rename(fresh, entry)
            except OSError:
                if not entry.is_dir():  # another process was faster
                    raise
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        return entry

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(_bytes(entry) for entry in self._entries())

    def _entries(self) -> list[Path]:
        """The entries, the one used longest ago first."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if ENTRY.fullmatch(path.name):
                try:
                    found.append((path.stat().st_mtime_ns, path))
                except FileNotFoundError:  # another process made room
                    continue
        return [path for _, path in sorted(found)]

    def _make_room(self, size: int) -> None:
        for path in self.folder.iterdir():
            match = ORPHAN.fullmatch(path.name)
            if match and not alive(int(match[1])):
                shutil.rmtree(path, ignore_errors=True)
        entries = [(entry, _bytes(entry)) for entry in self._entries()]
        held = sum(bytes_ for _, bytes_ in entries)
        for entry, bytes_ in entries:
            if held + size <= self.limit:
                return
            # Renamed first: nobody opens an entry of which half is gone.
            gone = self.folder / f"old.{os.getpid()}.{uuid.uuid4().hex}"
            try:
                os.rename(entry, gone)
            except FileNotFoundError:
                continue
            shutil.rmtree(gone, ignore_errors=True)
            held -= bytes_


def _bytes(entry: Path) -> int:
    total = 0
    for place, _, files in os.walk(entry):
        for file in files:
            try:
                total += os.stat(os.path.join(place, file)).st_size
            except FileNotFoundError:
                continue
    return total
