"""A folder as a remote: `file://`, a network mount, or the stores of a colleague on the same machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import RemoteError, VerificationError
from ..files import check_relative, checked_path, create_only, replace, staging
from .objects import AGAIN

BLOCK = 1 << 22


def folder_of(url: str) -> Path:
    """The folder of a `file://` URL or of a path."""
    parts = urlsplit(url)
    return Path(unquote(parts.path) if parts.scheme == "file" else url).expanduser()


class LocalObjects:
    """See `Objects`. Paths that leave the folder through `..` or a symbolic link are refused."""

    threads = 2

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = folder.absolute().as_uri()

    def get(self, path: str, limit: int) -> bytes | None:
        """See `Objects.get`."""
        with self._errors(path):
            try:
                with open(self._at(path), "rb") as file:
                    data = file.read(limit + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        if len(data) > limit:
            raise RemoteError(f"{self.url}/{path} has more than {limit} bytes", "It is not what compal writes.")
        return data

    def get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Objects.get_ranges`."""
        with self._errors(path), open(self._at(path), "rb") as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]

    def get_file(self, path: str, local: Path, size: int) -> None:
        """See `Objects.get_file`."""
        with self._errors(path), open(self._at(path), "rb") as source, open(local, "ab") as target:
            actual = os.fstat(source.fileno()).st_size
            if actual != size:
                raise VerificationError(f"{self.url}/{path} has {actual} bytes, its manifest lists {size}", AGAIN)
            source.seek(target.tell())
            shutil.copyfileobj(source, target, BLOCK)

    def create(self, path: str, data: bytes) -> bool:
        """See `Objects.create`."""
        with self._errors(path):
            target = self._at(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            return create_only(self.folder, target, data) or target.read_bytes() == data

    def replace(self, path: str, data: bytes) -> None:
        """See `Objects.replace`."""
        with self._errors(path):
            target = self._at(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            replace(self.folder, target, data)

    def put_file(self, local: Path, path: str) -> None:
        """See `Objects.put_file`."""
        with self._errors(path), staging(self.folder, local.stem) as stage:
            target = self._at(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, stage / "new")
            os.replace(stage / "new", target)

    def names(self, prefix: str) -> list[str]:
        """See `Objects.names`."""
        with self._errors(prefix):
            found = (path for path in self._at(prefix).rglob("*") if path.is_file())
            return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def folders(self) -> list[str]:
        """See `Objects.folders`."""
        with self._errors(""):
            if not self.folder.is_dir():
                return []
            entries = (entry for entry in os.scandir(self.folder) if not entry.name.startswith("."))
            return sorted(entry.name for entry in entries if entry.is_dir())

    def size(self, path: str) -> int | None:
        """See `Objects.size`."""
        with self._errors(path):
            file = self._at(path)
            return file.stat().st_size if file.is_file() else None

    def delete(self, path: str) -> None:
        """See `Objects.delete`."""
        with self._errors(path):
            self._at(path).unlink(missing_ok=True)

    def _at(self, path: str) -> Path:
        check_relative(self.folder, path)
        return checked_path(self.folder, path)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RemoteError(f"{self.url}/{path}: {error.strerror or error}", AGAIN) from None
