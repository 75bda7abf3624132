"""Leases on units of work: who encodes what, on a file system that several processes or machines share.

A claim only saves work: publishing a part is idempotent, so a unit that two encode by accident is in the store
once. That is why nothing here waits for a disk, and why a doubt is resolved by taking the unit.

    <store>/.claims/.<token>            one file per process; its mtime is the process's heartbeat
    <store>/.claims/<unit>.<n>          a hard link to the file of the process that holds the unit

All claims of a process share the inode of its own file, so one `utime` every few seconds keeps them all alive. Of
several generations n of a claim the highest counts. A stale one is taken over by linking generation n + 1, which
the file system grants to exactly one: no claim is ever renamed or deleted by anybody but its owner and the
collector, so a slow process cannot take away a claim that another has just won (a race of renames can).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..stores.files import disk_errors

FOLDER = ".claims"
# A heartbeat may be late by a minute on a busy network mount; ten of them lost is a dead process.
STALE_SECONDS = 600.0
CLAIM = re.compile(r"(?P<unit>[A-Za-z0-9][A-Za-z0-9_-]*)\.(?P<number>[0-9]{1,9})")
RECORD_BYTES = 4096


class Claims:
    """The claims of this process in one store. A context manager; leaving it releases all of them.

    stale_seconds  a claim whose owner gave no sign for so long may be taken over. The owner's death is seen at
                   once if it lived on this host. Both clocks are the file server's
    """

    def __init__(self, store: Path, stale_seconds: float = STALE_SECONDS) -> None:
        self.folder, self.stale_seconds = Path(store) / FOLDER, stale_seconds
        self.token = uuid.uuid4().hex
        self._own = self.folder / f".{self.token}"
        self._held: dict[str, Path] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._beating = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        with disk_errors(f"claims in {self.folder}"):
            self._register()
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._beating.is_alive():
            self._beating.join()
        for unit in list(self._held):
            self.release(unit)
        with contextlib.suppress(OSError):
            self._own.unlink()
        with contextlib.suppress(OSError):  # others hold claims, or it is gone
            self.folder.rmdir()

    def take(self, unit: str) -> bool:
        """Whether this process holds the unit now: it was free, its owner is dead, or it was ours."""
        with self._lock, disk_errors(f"claims in {self.folder}"):
            if unit in self._held:
                return True
            newest, path = self._newest(unit)
            before = _read(path) if path else None
            if before and not self._stale(before):
                return False
            mine = self.folder / f"{unit}.{newest + 1}"
            if not self._link(mine):
                return False
            # Between the look and the link the owner may have released it and somebody else claimed it anew.
            now = _read(path) if path else None
            if now and before and now["token"] != before["token"]:
                mine.unlink(missing_ok=True)
                return False
            self._held[unit] = mine
            return True

    def release(self, unit: str) -> None:
        """Give the unit back, with the stale claims below ours; nothing if it is not held."""
        with self._lock:
            mine = self._held.pop(unit, None)
            if mine is None:
                return
            for number, path in sorted(self._generations(unit)):
                if number <= int(mine.suffix[1:]):
                    with contextlib.suppress(OSError):
                        path.unlink()

    def collect(self) -> None:
        """Delete the claims of the dead, and their files."""
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.iterdir()):
                found = _read(path)
                if found and found["token"] != self.token and self._stale(found):
                    path.unlink(missing_ok=True)

    def _register(self) -> None:
        """Write this process's own file. A folder that another has just removed is made again."""
        record = {"token": self.token, "host": _host(), "pid": os.getpid(), "start": started(os.getpid())}
        while not self._own.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                staged = self._own.with_name(f"{self._own.name}.new")
                staged.write_text(json.dumps(record), encoding="utf-8")
                os.rename(staged, self._own)

    def _link(self, path: Path) -> bool:
        for _ in range(2):
            try:
                os.link(self._own, path)
                return True
            except FileExistsError:
                # NFS may do the link and lose the reply: then the name leads to our own inode.
                with contextlib.suppress(FileNotFoundError):
                    return os.path.samestat(os.stat(path), os.stat(self._own))
            except FileNotFoundError:  # somebody deleted our own file: a collector, if we slept for too long
                self._register()
        return False

    def _generations(self, unit: str) -> Iterator[tuple[int, Path]]:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder):
                match = CLAIM.fullmatch(name)
                if match and match["unit"] == unit:
                    yield int(match["number"]), self.folder / name

    def _newest(self, unit: str) -> tuple[int, Path | None]:
        return max(self._generations(unit), default=(0, None))

    def _stale(self, record: dict[str, Any]) -> bool:
        if record["host"] == _host() and not alive(record["pid"], record["start"]):
            return True
        return self._now() - float(record["mtime"]) > self.stale_seconds

    def _now(self) -> float:
        """The file server's clock, which dates the heartbeats."""
        self._touch()
        try:
            return os.stat(self._own).st_mtime
        except FileNotFoundError:
            self._register()
            return os.stat(self._own).st_mtime

    def _touch(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._own)

    def _beat(self) -> None:
        while not self._stop.wait(min(30.0, self.stale_seconds / 10)):
            self._touch()


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a claim; None if it is gone. What cannot be read is an owner that nobody knows, dated by its mtime."""
    try:
        with open(path, "rb") as file:
            raw, mtime = file.read(RECORD_BYTES), os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    try:
        record = json.loads(raw)
        return {
            "token": str(record["token"]),
            "host": str(record["host"]),
            "pid": int(record["pid"]),
            "start": str(record["start"]),
            "mtime": mtime,
        }
    except (ValueError, KeyError, TypeError):
        return {"token": "", "host": "", "pid": 0, "start": "", "mtime": mtime}


def _host() -> str:
    """This host, boot and process namespace: only there does a pid mean what it means here."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


def alive(pid: int, start: str) -> bool:
    """Whether the process lives; a pid that was given to another process since has another start."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    found = started(pid)
    return not (start and found) or found == start


def started(pid: int) -> str:
    """When the process started, ticks since boot; "" where the system does not say, and for a zombie, which is
    as good as dead, "zombie"."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "zombie" if fields[0] in ("Z", "X") else fields[19]
