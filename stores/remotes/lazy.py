"""A store read where it lies: descriptions and tables come at once, samples by ranged GETs when they are asked for.

What is fetched whole (captions, regions, and every array with `whole`) lies in a part cache of limited size.
All bytes are checked before use: files by xxh3_128, chunks read by ranges by their crc32c.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError, RemoteError, VerificationError
from ...workspace import Remote
from ..dense import DenseArray
from ..dtypes import STORED
from ..files import checksum, disk_errors, read_json
from ..manifest import Manifest, Part, done_path
from ..reading import Reading
from ..rows import Quarantined
from ..shard import Layout
from ..store import Store
from .cache import PartCache
from .inspect import check_arrays, table_keys
from .objects import connect
from .ranges import RemoteArray
from .shared import DAMAGED, SharedStore
from .trust import check_pin

CACHE_BYTES = 20 << 30


@dataclass(frozen=True)
class Lazy:
    """How a remote store is read.

    cache_bytes  the limit of the part cache
    reading      how cached parts are read and checked
    whole        fetch whole arrays into the cache instead of samples by ranges: for what is read many times
    """

    cache_bytes: int = CACHE_BYTES
    whole: bool = False
    reading: Reading = field(default_factory=Reading)


def open_remote(
    remote: Remote, name: str, cache: Path, lazy: Lazy | None = None, manifest: int | None = None
) -> RemoteStore:
    """The store `name` of `remote` for reading: its newest manifest, or the one of a given number.

    `cache` is a folder for tables and parts; several stores and processes may share it. Raises `RemoteError`,
    `VerificationError` for what a pin or a checksum forbids.
    """
    shared = SharedStore(connect(remote), name)
    if not shared.exists:
        raise RemoteError(f"there is no store {shared.url}", "See what there is: compal ls --remote")
    check_pin(remote, shared)
    chosen = shared.newest() if manifest is None else shared.manifest(manifest)
    return RemoteStore(remote, shared, Path(cache), lazy or Lazy(), chosen)


class RemoteStore(Store):
    """A `Store` that is read over the network; writing raises `InputError`. Build it with `open_remote`."""

    def __init__(self, remote: Remote, shared: SharedStore, cache: Path, lazy: Lazy, manifest: Manifest | None) -> None:
        self.remote, self.shared, self.cache, self.lazy = remote, shared, cache, lazy
        self._parts_cache = PartCache(cache / "parts", lazy.cache_bytes)
        self._arrays: dict[str, RemoteArray] = {}
        # Two remotes may hold stores of one name.
        place = f"{shared.name}-{hashlib.sha256(shared.url.encode()).hexdigest()[:8]}"
        super().__init__(cache / "stores" / place, shared.spec, manifest, lazy.reading)
        tables = [(part, f"tables/{part.name}.parquet") for part in self.parts]
        with ThreadPoolExecutor(2 * shared.objects.threads, "tables") as pool:
            list(pool.map(lambda one: self._small(*one), tables))

    def _present(self, manifest: Manifest) -> tuple[Part, ...]:
        return manifest.parts

    def __reduce__(self) -> tuple[Any, ...]:
        return open_remote, (self.remote, self.shared.name, self.cache, self.lazy, self.manifest or None)

    def info(self) -> dict[str, Any]:
        """See `Store.info`; the path is the URL."""
        return super().info() | {"path": self.shared.url, "manifests": len(self.shared.numbers())}

    def quarantined(self) -> list[Quarantined]:
        """See `Store.quarantined`."""
        for part in self.parts:
            if part.quarantined:
                self._keep(done_path(self.path, part.name), self.shared.done(part)[1])
        return super().quarantined()

    def uncommitted(self) -> list[str]:
        """None: what is not committed is not seen."""
        return []

    def write_images(self, *_: Any, **__: Any) -> None:
        """Raises `InputError`."""
        raise self._read_only()

    def write_texts(self, *_: Any, **__: Any) -> None:
        """Raises `InputError`."""
        raise self._read_only()

    def commit(self, parts: Iterable[str]) -> int:
        """Raises `InputError`."""
        raise self._read_only()

    def _read_only(self) -> InputError:
        return InputError(f"{self.shared.url} is open for reading", "Pull it, add to your copy, and push that.")

    def _dense(self, part: Part, array: str) -> DenseArray:
        folder = f"images/{part.name}/{array}"
        if self.lazy.whole or f"{folder}/zarr.json" not in part.files or self.spec.dtype == "int8":
            return super()._dense(part, array)
        with self._lock:
            if folder not in self._arrays:
                found = self._by_ranges(part, folder)
                inner = self.spec.image_shape if array == "tokens" else (self.spec.pooled_dim,)
                if (found.shape, found.dtype) != ((part.rows, *inner), STORED[self.spec.dtype]):
                    what = f"{self.shared.url}/{folder} holds {found.dtype} {found.shape}"
                    raise VerificationError(what, DAMAGED)
                self._arrays[folder] = found
            return self._arrays[folder]

    def _by_ranges(self, part: Part, folder: str) -> RemoteArray:
        layout = Layout.parse(read_json(self._small(part, f"{folder}/zarr.json")))
        if layout is None:
            raise VerificationError(f"{self.shared.url}/{folder} is not an array that compal writes", DAMAGED)
        sizes = {path: int(size["bytes"]) for path, size in part.files.items()}
        return RemoteArray(self.shared, folder, layout, sizes)

    def _checked(self, part: Part, prefix: str) -> Path:
        """The file or folder `prefix` of a part on local disk, fetched and verified if it was not there."""
        if prefix.startswith("tables/"):
            return self._small(part, prefix)
        single = prefix in part.files
        below = prefix.rpartition("/")[0] if single else prefix
        files = {
            path[len(below) + 1 :]: size
            for path, size in part.files.items()
            if path == prefix or path.startswith(f"{prefix}/")
        }
        if not files:
            raise VerificationError(f"{self.shared.url}: the manifest lists no {prefix}", DAMAGED)

        def fill(folder: Path) -> None:
            for name, size in files.items():
                self.shared.fetch(f"{below}/{name}", size, folder / name)
                check_arrays(folder / name, part, f"{below}/{name}")

        entry = self._parts_cache.get(files, fill)
        return entry / prefix[len(below) + 1 :] if single else entry

    def _small(self, part: Part, path: str) -> Path:
        """A table or a `zarr.json`, kept beside the cache and checked once when it is opened."""
        size, place = part.files.get(path), self.path / path
        if size is None:
            raise VerificationError(f"{self.shared.url}: part {part.name} lists no {path}", DAMAGED)
        if place.is_file() and checksum(place) == size:
            return place
        with disk_errors(f"the cache {self.cache}"):
            fresh = self.path / f".new.{uuid.uuid4().hex}" / place.name
            self.shared.fetch(path, size, fresh)
            if path.startswith("tables/"):
                table_keys(fresh, part)
            check_arrays(fresh, part, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(fresh, place)
            fresh.parent.rmdir()
        return place

    def _keep(self, place: Path, raw: bytes) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{uuid.uuid4().hex}")
        fresh.write_bytes(raw)
        os.replace(fresh, place)
