"""The key cache: listing ten thousand images that did not change reads none of them again.

A key is a hash of a whole file, so naming a dataset's images means reading them. What was read once is kept in
a small SQLite database under (path, size, times, inode): keys of files, members of tars, keys of the rows of a
table. It is a cache and nothing else: processes may share it, a killed writer leaves it whole, a damaged one is
made anew, and where it cannot be written, work goes on without it. Decoding checks every image against its key,
so that an entry that is wrong is named and never believed; `forget` drops it.

A network share that is gone for a while is waited for, see `patience.py`: a file that cannot be read then is not
an item for the quarantine.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ..stores.items import content_key
from .patience import Patience

T = TypeVar("T")
# Keys are hashes of whole files: threads hide the latency of the disk.
READERS = 4
# Clocks of files tick every 10 ms at most on Linux: what changed less than two ticks ago may change unseen.
SETTLED_NS = 20_000_000
WAIT = 10.0  # seconds for another process's write, which takes milliseconds
MOST = 500  # names in one query; older SQLites take 999
TABLE = "CREATE TABLE IF NOT EXISTS known (name BLOB PRIMARY KEY, stamp TEXT, value BLOB, crc INTEGER) WITHOUT ROWID"
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
FROZEN = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL}  # it can still be read


@contextmanager
def use(path: Path | None, create: bool = False, patience: Patience | None = None) -> Iterator[None]:
    """Keep the keys in the file `path` meanwhile (a workspace's `listing.sqlite`); None for memory only.

    Its folder is made if `create`; where there is none, nothing is written. `patience` says how long a share may be
    gone; without it, the first error of a share ends the listing.
    """
    global _current, _patience
    before = _current, _patience
    with suppress(OSError):
        if path and create:
            path.parent.mkdir(parents=True, exist_ok=True)
    _current, _patience = _Cache(path if path and path.parent.is_dir() else None), patience or _patience
    try:
        yield
    finally:
        _current.close()
        _current, _patience = before


def patiently(path: Path | str | None, action: Callable[[], T]) -> T:
    """What `action` reads of `path`, tried again while the share that this lies on is gone. Raises `InputError` when
    patience ends, and what else `action` raises: a file that is missing is not waited for."""
    return (_patience or Patience(0)).read(path, action)


def is_dir(path: Path) -> bool:
    """Whether there is such a folder. One that was there before is waited for."""
    try:
        return stat.S_ISDIR(patiently(os.path.join(path, ""), lambda: os.stat(path)).st_mode)
    except (OSError, ValueError):
        return False


def file_keys(paths: Sequence[Path]) -> list[str | None]:
    """The key of each image file, as `Item.image_file` gives it; None for what cannot be read.

    Files that are as they were (size, times, inode) are not read again. Raises `InputError` for a share that stays
    away; what was read until then is remembered.
    """
    cache = _current
    with _readers() as pool:
        places = [os.path.abspath(path) for path in paths]
        step = -(-len(places) // READERS) or 1
        slices = [places[start : start + step] for start in range(0, len(places), step)]
        stamps = [stamp for some in pool.map(_stamps, slices) for stamp in some]
        asked = [(b"file\0" + os.fsencode(place), stamp) for place, stamp in zip(places, stamps, strict=True)]
        known = cache.recall(asked)
        keys = [value.hex() if value else None for value in known]
        unknown = [number for number, (key, stamp) in enumerate(zip(keys, stamps, strict=True)) if stamp and not key]
        fresh = []
        try:
            for number, read in zip(unknown, pool.map(_read_key, [places[number] for number in unknown]), strict=True):
                if read:
                    keys[number], stamp = read
                    if stamp:
                        fresh.append((asked[number][0], stamp, bytes.fromhex(read[0])))
        finally:
            cache.remember(fresh)
    return keys


@contextmanager
def _readers() -> Iterator[ThreadPoolExecutor]:
    """Threads that stop waiting for a share as soon as their caller does, at Ctrl-C for one."""
    with ThreadPoolExecutor(READERS, "read") as pool:
        try:
            yield pool
        except BaseException:
            if _patience:
                _patience.close()
                pool.shutdown(wait=True, cancel_futures=True)
                _patience.open()
            raise


def recall(name: str, stamp: str) -> bytes | None:
    """What was remembered of `name` while it had this `stamp`."""
    return _current.recall([(os.fsencode(name), stamp)])[0] if stamp else None


def remember(name: str, stamp: str, value: bytes) -> None:
    """Keep `value`. An empty stamp, of something that changes while it is read, keeps nothing."""
    if stamp:
        _current.remember([(os.fsencode(name), stamp, value)])


def forget(path: Path) -> None:
    """Drop what is known of a file, and of its members if it is a tar: its content was not what the key says."""
    place = os.fsencode(os.path.abspath(path))
    _current.forget([b"file\0" + place, b"tar\0" + place])


def stamp_of(status: os.stat_result) -> str:
    """What changes when a file does; "" for one that was written a moment ago, which could change unseen."""
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < SETTLED_NS:
        return ""
    return _stamp(status)


def _stamp(status: os.stat_result) -> str:
    # The time of the last change of anything cannot be set: it tells of edits whose times were put back.
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _stamps(places: Iterable[str]) -> list[str]:
    found = []
    for place in places:
        try:
            status = patiently(place, functools.partial(os.stat, place))
            # Opening a pipe that ends in .jpg would wait for ever.
            found.append(_stamp(status) if stat.S_ISREG(status.st_mode) else "")
        except (OSError, ValueError):
            found.append("")
    return found


def _read_key(place: str) -> tuple[str, str] | None:
    """(key, stamp), the stamp "" if the file changed meanwhile."""

    def read() -> tuple[str, str]:
        with open(place, "rb", buffering=0) as file:
            before = _stamp(os.fstat(file.fileno()))
            data = file.readall()
            after = stamp_of(os.fstat(file.fileno()))
        return content_key("image-file", data), after if after == before else ""

    try:
        return patiently(place, read)
    except OSError:
        return None


class _Cache:
    """A table of (name, stamp) → value in a database, or in one of SQLite's own temporary files."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._frozen = path, False
        self._start()

    def _start(self) -> None:
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._database: sqlite3.Connection | None = None

    def recall(self, asked: Sequence[tuple[bytes, str]]) -> list[bytes | None]:
        """The values, None where the stamp is another one."""

        def find(database: sqlite3.Connection) -> list[bytes | None]:
            rows: dict[bytes, tuple[str, bytes, int]] = {}
            for start in range(0, len(asked), MOST):
                names = [name for name, _ in asked[start : start + MOST]]
                marks = ",".join("?" * len(names))
                for row in database.execute(f"SELECT * FROM known WHERE name IN ({marks})", names):
                    rows[row[0]] = row[1:]
            return [_believed(name, stamp, rows.get(name)) for name, stamp in asked]

        return self._run(find, [None] * len(asked))

    def remember(self, rows: Sequence[tuple[bytes, str, bytes]]) -> None:
        """Keep the rows, in one transaction."""
        checked = [(*row, _crc(*row)) for row in rows]
        if checked and not self._frozen:
            self._run(lambda database: database.executemany("REPLACE INTO known VALUES (?, ?, ?, ?)", checked), None)

    def forget(self, names: Sequence[bytes]) -> None:
        """Drop the rows of these names."""
        rows = [(name,) for name in names]
        self._run(lambda database: database.executemany("DELETE FROM known WHERE name = ?", rows), None)

    def close(self) -> None:
        """Let go of the file."""
        if self._database and self._pid == os.getpid():
            self._database.close()
        self._database = None

    def _run(self, action: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """What `action` gives. What fails is tried on a new database, then in memory, then given up."""
        if self._pid != os.getpid():  # a connection and a lock are not to be used across a fork
            self._start()
        with self._lock:
            for _ in range(3):
                try:
                    with self._connection() as database:
                        return action(database)
                except sqlite3.Error as error:
                    if not self._mend(getattr(error, "sqlite_errorcode", 0) & 0xFF):
                        break
        return otherwise

    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(self._path or "", timeout=WAIT, check_same_thread=False)
            # Losing the last entries with the power is cheaper than waiting for the disk each time.
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute(TABLE)
        return self._database

    def _mend(self, code: int) -> bool:
        """Whether to try again: on a database made anew if this one is damaged, else in memory."""
        self._frozen = self._frozen or code in FROZEN
        if code in BUSY or self._frozen or self._path is None:
            return False
        self.close()
        if code in DAMAGED:
            with suppress(OSError):
                for end in ("", "-journal", "-wal", "-shm"):
                    Path(f"{self._path}{end}").unlink(missing_ok=True)
                return True
        self._path = None
        return True


def _believed(name: bytes, stamp: str, row: tuple[str, bytes, int] | None) -> bytes | None:
    """A row's value, if the stamp is this one and no bit of it has changed."""
    if row is None or row[0] != stamp or row[2] != _crc(name, stamp, row[1]):
        return None
    return row[1]


def _crc(name: bytes, stamp: str, value: object) -> int:
    if not isinstance(value, bytes):
        return -1
    return zlib.crc32(value, zlib.crc32(stamp.encode(), zlib.crc32(name)))


_current = _Cache(None)
_patience: Patience | None = None
