"""Every other remote through fsspec: `sftp://` and `ssh://` (paramiko), `hf://` (read only).

Objects are uploaded beside their place and renamed into it. A create-only put is a rename that must not
overwrite: OpenSSH's server does it by link(2), so of two writers one wins.
"""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from ...errors import CompalError, InputError, RemoteError, VerificationError
from ...workspace import Remote
from ..files import STAGING, check_relative
from .objects import AGAIN

T = TypeVar("T")
ATTEMPTS = 4
BACKOFF = 0.2  # seconds
BLOCK = 1 << 22
EXTRAS = {"sftp": "ssh", "ssh": "ssh", "hf": "hf"}
LOGIN = "Log in first: ssh keys or an agent for sftp://, HF_TOKEN or `hf auth login` for hf://."
PUBLISH = "Publish it in one commit: compal push-hub STORE ORG/NAME; pull reads it."


class GenericObjects:
    """See `Objects`."""

    threads = 1  # one connection: paramiko's channels share it

    def __init__(self, remote: Remote) -> None:
        self.url = remote.url
        parts = urlsplit(remote.url)
        self.scheme = parts.scheme
        self._attempts = min(ATTEMPTS, int(remote.options.get("retries", ATTEMPTS)) + 1)
        try:
            if self.scheme in ("sftp", "ssh"):
                self.fs: Any = _sftp(remote)
                self.base = unquote(parts.path).rstrip("/")
            else:
                import fsspec

                self.fs = fsspec.filesystem(self.scheme)
                self.base = (parts.netloc + unquote(parts.path)).rstrip("/")
        except ImportError as error:
            cure = f'Install it: pip install "compal[{EXTRAS.get(self.scheme, "interop")}]"'
            raise InputError(f"{self.url} needs a library that is not installed ({error.name})", cure) from None
        except CompalError:
            raise
        except Exception as error:  # paramiko, sockets and fsspec share no base class
            raise RemoteError(f"{self.url} cannot be reached: {_line(error)}", LOGIN) from None

    def get(self, path: str, limit: int) -> bytes | None:
        """See `Objects.get`."""

        def work() -> bytes:
            with self.fs.open(self._at(path), "rb") as file:
                data = bytes(file.read(limit + 1))
            if len(data) > limit:
                raise RemoteError(f"{self.url}/{path} has more than {limit} bytes", "It is not what compal writes.")
            return data

        return self._try(path, work, None)

    def get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Objects.get_ranges`."""
        place = self._at(path)
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        found = self._try(
            path, lambda: self.fs.cat_ranges([place] * len(ranges), starts, stops, on_error="raise"), None
        )
        if found is None:
            raise RemoteError(f"{self.url}/{path} is not there", AGAIN)
        return [bytes(block) for block in found]

    def get_file(self, path: str, local: Path, size: int) -> None:
        """See `Objects.get_file`."""
        actual = self.size(path)
        if actual is None:
            raise RemoteError(f"{self.url}/{path} is not there", AGAIN)
        if actual != size:
            raise VerificationError(f"{self.url}/{path} has {actual} bytes, its manifest lists {size}", AGAIN)

        def work() -> None:
            with open(local, "ab") as target, self.fs.open(self._at(path), "rb", block_size=BLOCK) as source:
                source.seek(target.tell())
                while target.tell() < size and (block := source.read(min(BLOCK, size - target.tell()))):
                    target.write(block)
                if target.tell() != size:
                    raise OSError(f"{target.tell()} of {size} bytes arrived")

        self._try(path, work, None)

    def create(self, path: str, data: bytes) -> bool:
        """See `Objects.create`."""
        self._writable()

        def work() -> bool:
            place, temporary = self._at(path), self._temporary()
            if self.fs.exists(place):
                return self.get(path, len(data)) == data if self.size(path) == len(data) else False
            self._parent(temporary)
            self._parent(place)
            self.fs.pipe_file(temporary, data)
            return self._rename_new(temporary, place) or self.get(path, 1 << 30) == data

        return bool(self._try(path, work, False))

    def replace(self, path: str, data: bytes) -> None:
        """See `Objects.replace`."""
        self._put(path, lambda temporary: self.fs.pipe_file(temporary, data))

    def put_file(self, local: Path, path: str) -> None:
        """See `Objects.put_file`."""
        self._put(path, lambda temporary: self.fs.put_file(str(local), temporary))

    def names(self, prefix: str) -> list[str]:
        """See `Objects.names`."""

        def work() -> list[str]:
            self.fs.invalidate_cache()
            start = self._at("").strip("/") + "/"
            return sorted(str(found).strip("/").removeprefix(start) for found in self.fs.find(self._at(prefix)))

        return self._try(prefix, work, []) or []

    def folders(self) -> list[str]:
        """See `Objects.folders`."""

        def work() -> list[str]:
            self.fs.invalidate_cache()
            found = self.fs.ls(self._at(""), detail=True)
            paths = (str(one["name"]).rstrip("/") for one in found if one["type"] == "directory")
            return sorted(name for name in (path.rpartition("/")[2] for path in paths) if not name.startswith("."))

        return self._try("", work, []) or []

    def size(self, path: str) -> int | None:
        """See `Objects.size`."""

        def work() -> int:
            self.fs.invalidate_cache()
            return int(self.fs.info(self._at(path))["size"])

        return self._try(path, work, None)

    def delete(self, path: str) -> None:
        """See `Objects.delete`."""
        self._writable()
        self._try(path, lambda: self.fs.rm_file(self._at(path)), None)

    def _at(self, path: str) -> str:
        if path:
            check_relative(Path(self.url), path)
        return f"{self.base}/{path}".rstrip("/")

    def _temporary(self) -> str:
        return f"{self.base}/{STAGING}/{uuid.uuid4().hex}"

    def _parent(self, place: str) -> None:
        self.fs.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _put(self, path: str, write: Callable[[str], Any]) -> None:
        self._writable()

        def work() -> bool:
            temporary = self._temporary()
            self._parent(temporary)
            self._parent(self._at(path))
            write(temporary)
            if self.scheme in ("sftp", "ssh"):
                self.fs.ftp.posix_rename(temporary, self._at(path))
            else:
                self.fs.mv(temporary, self._at(path))
            return True

        self._try(path, work, False)

    def _rename_new(self, temporary: str, place: str) -> bool:
        """Rename, unless the new name is taken."""
        if self.scheme not in ("sftp", "ssh"):  # memory:// of one process
            self.fs.mv(temporary, place)
            return True
        try:
            self.fs.ftp.rename(temporary, place)
            return True
        except OSError:
            if not self.fs.exists(place):
                raise
            self.fs.rm_file(temporary)
            return False

    def _writable(self) -> None:
        if self.scheme == "hf":
            raise RemoteError(f"{self.url} is read only here: the Hub counts commits, not files", PUBLISH)

    def _try(self, path: str, work: Callable[[], T], absent: T | None) -> T | None:
        where = f"{self.url}/{path}".rstrip("/")
        last = ""
        for attempt in range(self._attempts):
            try:
                return work()
            except FileNotFoundError:
                return absent
            except CompalError:
                raise
            except PermissionError as error:
                raise RemoteError(f"{where} refuses access: {_line(error)}", LOGIN) from None
            except Exception as error:  # paramiko, httpx and fsspec share no base class
                if getattr(error, "errno", None) == errno.ENOENT:
                    return absent
                last = _line(error)
                if attempt + 1 < self._attempts:
                    time.sleep(BACKOFF * 2**attempt)
                    self._reconnect()
        raise RemoteError(f"{where} does not answer rightly: {last}", AGAIN)

    def _reconnect(self) -> None:
        transport = self.fs.client.get_transport() if self.scheme in ("sftp", "ssh") else None
        if transport is not None and not transport.is_active():
            try:
                self.fs._connect()
            except Exception as error:  # paramiko and sockets share no base class
                raise RemoteError(f"{self.url} cannot be reached again: {_line(error)}", AGAIN) from None


def _sftp(remote: Remote) -> Any:
    """fsspec's file system with two changes: a host key must be known, and a silent server is given up."""
    import paramiko
    from fsspec.implementations.sftp import SFTPFileSystem

    options, parts = remote.options, urlsplit(remote.url)
    if not parts.hostname:
        raise RemoteError(f"{remote.url} names no host", "Write sftp://HOST/absolute/folder.")
    wait = float(options.get("timeout", 60))

    class Checked(SFTPFileSystem):  # type: ignore[misc,unused-ignore]
        cachable = False

        def _connect(self) -> None:
            self.client = paramiko.SSHClient()
            self.client.load_system_host_keys()
            if options.get("known_hosts"):
                self.client.load_host_keys(str(Path(str(options["known_hosts"])).expanduser()))
            self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
            self.client.connect(self.host, **self.ssh_kwargs)
            self.ftp = self.client.open_sftp()
            self.ftp.get_channel().settimeout(wait)

    given: dict[str, Any] = {"timeout": wait, "port": int(options.get("port", parts.port or 22))}
    if username := options.get("username", parts.username):
        given["username"] = username
    if options.get("key_file"):
        given["key_filename"] = str(Path(str(options["key_file"])).expanduser())
    return Checked(parts.hostname, **given)


def _line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
    return text if len(text) <= 200 else text[:199] + "…"
