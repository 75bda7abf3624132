"""Small durable files: staged, synced, published whole; read back with suspicion.

Every writer works in `<store>/.staging/<label>.<host>.<pid>.<uuid>` and publishes by `link` (create-only)
or `replace` (atomic), so a reader never meets half a file, and what a killed writer leaves is recognisable.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from ..errors import InputError, VerificationError

STAGING = ".staging"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# Lustre without -o flock and some FUSE mounts have no locks, some network mounts no fsync of folders.
UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}
# What NFS, SMB and FUSE mounts answer while the server is away; it says nothing about the file.
_AWAY = ("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EREMOTEIO", "EHOSTUNREACH", "ENETUNREACH")
TRANSIENT = frozenset(getattr(errno, name) for name in _AWAY if hasattr(errno, name))
RESTORE = "Restore the file from a copy; see what else is damaged with: compal store verify"


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` while writing `what` into an `InputError` of one line with its cure."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            cure = "Free space or choose another workspace, then run again: complete parts are kept."
        elif error.errno in FORBIDDEN:
            cure = "Make the folder writable, or choose another workspace."
        elif error.errno in {errno.ENOTDIR, errno.EEXIST}:
            cure = "A file is where a folder must be: choose another folder."
        else:
            cure = "Run again: complete parts are kept."
        raise InputError(f"cannot write {what}: {error.strerror or error}", cure) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `VerificationError` if it is missing, truncated or not an object, caused by
    the `OSError` where it cannot be read: a network share may be gone for a while."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise VerificationError(f"{path} is missing", RESTORE) from None
    except OSError as error:
        raise VerificationError(f"{path} cannot be read as JSON: {error}", RESTORE) from error
    return parse_json(raw, path)


def parse_json(raw: bytes, place: Path | str, cure: str = RESTORE) -> dict[str, Any]:
    """A JSON object that was read from `place`. Raises `VerificationError` if it is truncated or not an object."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{place} cannot be read as JSON: {error}", cure) from None
    if not isinstance(data, dict):
        raise VerificationError(f"{place} does not hold a JSON object", cure)
    return data


def check_relative(root: Path | str, relative: str) -> None:
    """Raises `VerificationError` unless `relative` is written as a plain path below `root`."""
    pure = PurePosixPath(relative)
    plain = pure.parts and not pure.is_absolute() and ".." not in pure.parts and str(pure) == relative
    if not plain or "\\" in relative or "\0" in relative:
        raise VerificationError(f"{root} lists the path {relative!r}, which is not inside the store", RESTORE)


def checked_path(root: Path, relative: str) -> Path:
    """`root / relative` for a path that comes out of a file. Raises `VerificationError` for an absolute path,
    for `..`, and for a path that leaves the store through a symbolic link."""
    check_relative(root, relative)
    path = root / relative
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside:
        raise VerificationError(f"{path} leads out of the store through a symbolic link", RESTORE)
    return path


def checksum(path: Path) -> dict[str, Any]:
    """`{"bytes": size, "xxh3_128": 32 hex digits}` of a file; 15 GB per CPU-second."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "xxh3_128": digest.hexdigest()}


def sync(path: Path) -> None:
    """fsync a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, and `folder`."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and fsync it."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def staging(root: Path, label: str) -> Iterator[Path]:
    """A private folder on the store's file system, removed on the way out whatever happens."""
    folder = root / STAGING / f"{label}.{_host()}.{os.getpid()}.{uuid.uuid4().hex}"
    try:
        with disk_errors(str(root)):
            folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def abandoned(root: Path) -> list[Path]:
    """What killed writers of this host left in the staging folder; other hosts' cannot be judged here."""
    pattern = re.compile(rf".*\.{re.escape(_host())}\.(\d+)\.[0-9a-f]{{32}}")
    found = []
    for path in sorted((root / STAGING).glob("*")):
        match = pattern.fullmatch(path.name)
        if match and not alive(int(match[1])):
            found.append(path)
    return found


def elsewhere(root: Path) -> list[Path]:
    """Staging folders that writers on other hosts made; whether these live cannot be seen from here."""
    pattern = re.compile(r".*\.([A-Za-z0-9-]+)\.\d+\.[0-9a-f]{32}")
    named = ((path, pattern.fullmatch(path.name)) for path in sorted((root / STAGING).glob("*")))
    return [path for path, match in named if match and match[1] != _host()]


def sweep(root: Path) -> None:
    """Delete what killed writers left. A store that cannot be written is left as it is."""
    for path in abandoned(root):
        shutil.rmtree(path, ignore_errors=True)


def create_only(root: Path, path: Path, data: bytes) -> bool:
    """Publish a file that must not exist yet, whole or not at all. False: somebody was first."""
    with staging(root, path.stem) as folder:
        write_synced(folder / "new", data)
        path.parent.mkdir(parents=True, exist_ok=True)
        won = link(folder / "new", path)
    sync(path.parent)
    return won


def link(staged: Path, path: Path) -> bool:
    """Hard-link a staged file to its final name. False if the name is taken."""
    try:
        os.link(staged, path)
    except FileExistsError:
        return os.stat(staged).st_nlink == 2  # NFS may do the link and lose the reply
    return True


def replace(root: Path, path: Path, data: bytes) -> None:
    """Write or overwrite a file atomically."""
    with staging(root, path.stem) as folder:
        write_synced(folder / "new", data)
        os.replace(folder / "new", path)
    sync(path.parent)


@contextmanager
def lock(root: Path) -> Iterator[bool]:
    """One publisher, committer or collector at a time; the kernel releases the lock of a killed process. Not to
    be taken twice by one thread. Gives False on a file system without locks, where two writers that publish one
    part at the same moment may mix their files, which `verify` reports."""
    with locked(os.open(root / "spec.json", os.O_RDWR)) as held:  # NFS gives such locks to writable handles only
        yield held


@contextmanager
def locked(handle: int) -> Iterator[bool]:
    """Hold the exclusive lock of an open file, and close it. Gives False on a file system without locks."""
    held = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            held = False
        yield held
    finally:
        os.close(handle)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"


def alive(pid: int) -> bool:
    """Whether a process of this host runs, as far as can be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
