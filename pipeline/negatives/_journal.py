"""What was asked and answered, a line each: a run that is killed and started again asks nothing twice."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from ...errors import InputError
from ...stores.files import UNSUPPORTED, disk_errors

Key = tuple[str, int]  # caption, attempt


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """The records of a journal by (caption key, attempt). Lines that a killed run left half written are skipped."""
    found: dict[Key, dict[str, Any]] = {}
    if not path.is_file():
        return found
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
                found.setdefault((record["caption"], record["attempt"]), record)
            except (ValueError, KeyError, TypeError):
                continue
    return found


class Journal:
    """An append-only JSON Lines file, held by one process at a time. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def __enter__(self) -> Journal:
        with disk_errors(f"the journal {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                os.close(self._handle)
                raise InputError(f"another run writes {self.path}", "Wait for it, or stop it.") from None
        self.records = read(self.path)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.write(self._handle, b"\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with self._lock:
            os.fsync(self._handle)
            os.close(self._handle)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record with at least `caption` and `attempt`. Raises `InputError` if the disk is full."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock, disk_errors(f"the journal {self.path}"):
            view = memoryview(line)
            while view:
                view = view[os.write(self._handle, view) :]
            self.records[record["caption"], record["attempt"]] = record
