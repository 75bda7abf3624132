"""A store on a remote, read with suspicion: its spec, manifests, done files and files, each checked before use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...errors import CompalError, RemoteError, VerificationError
from ...workspace import Remote
from ..files import checksum, parse_json
from ..manifest import Manifest, Part, done_digest
from ..spec import FORMAT_VERSION, FeatureSpec
from .objects import Objects, connect

T = TypeVar("T")
# The largest objects that are read into memory: a thousand times what compal writes for a million items.
SPEC_BYTES, MANIFEST_BYTES, DONE_BYTES = 1 << 20, 1 << 28, 1 << 26
TRIES = 3  # a body that was cut looks like damage; damage stays
DAMAGED = "Do not use this remote before its owner has looked; push the store again from a copy that verifies."
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")


class SharedStore:
    """The store `name` among `objects`. Nothing is read before it is asked for; manifests are kept, as they
    never change. All methods raise `RemoteError` (no answer) and `VerificationError` (a wrong one)."""

    def __init__(self, objects: Objects, name: str, named: bool = True) -> None:
        self.objects, self.name, self.named = objects, name, named
        self.url = f"{objects.url}/{name}"
        self._spec: FeatureSpec | None = None
        self._manifests: dict[int, tuple[Manifest, bytes]] = {}

    def at(self, path: str) -> str:
        """The path of one of the store's files on the remote."""
        return f"{self.name}/{path}"

    @property
    def exists(self) -> bool:
        """Whether there is such a store."""
        return self._spec is not None or self.objects.size(self.at("spec.json")) is not None

    @property
    def spec(self) -> FeatureSpec:
        """What shaped the features. Raises `VerificationError` if its fingerprint is not the folder's name."""
        if self._spec is None:
            self._spec = self._read("spec.json", SPEC_BYTES, self._parse_spec)
        return self._spec

    def _parse_spec(self, raw: bytes) -> FeatureSpec:
        data = parse_json(raw, f"{self.url}/spec.json", DAMAGED)
        if data.get("format_version") != FORMAT_VERSION:
            what = f"{self.url} has format {data.get('format_version')!r}, this version reads {FORMAT_VERSION}"
            raise VerificationError(what, "Upgrade compal.")
        try:
            spec = FeatureSpec.from_json(data)
            wrong = spec.to_json() != raw or (self.named and spec.folder != self.name)
        except (CompalError, TypeError, ValueError, AttributeError) as error:
            raise VerificationError(f"{self.url}/spec.json is damaged: {error}", DAMAGED) from None
        if wrong:
            raise VerificationError(f"{self.url}/spec.json is not the spec that the folder's name stands for", DAMAGED)
        return spec

    def numbers(self) -> list[int]:
        """The numbers of the manifests on the remote now, ascending."""
        found = (path.rpartition("/")[2] for path in self.objects.names(self.at("manifests")))
        return sorted(int(name[:-5]) for name in found if re.fullmatch(r"[1-9][0-9]{0,8}\.json", name))

    def manifest(self, number: int) -> Manifest:
        """Manifest `number`, checked."""
        return self._manifest(number)[0]

    def raw(self, number: int) -> bytes:
        """The bytes of manifest `number`."""
        return self._manifest(number)[1]

    def digest(self, number: int) -> str:
        """sha256 of manifest `number`."""
        return hashlib.sha256(self.raw(number)).hexdigest()

    def newest(self) -> Manifest | None:
        """The newest manifest now, None before the first commit."""
        numbers = self.numbers()
        return self.manifest(numbers[-1]) if numbers else None

    def check_chain(self, first: int, last: int) -> None:
        """Raises `VerificationError` unless each manifest after `first` up to `last` names the one before."""
        for number in range(first + 1, last + 1):
            parent = self.digest(number - 1) if number > 1 else ""
            if self.manifest(number).parent != parent:
                raise VerificationError(f"{self.url}: manifest {number} does not continue {number - 1}", DAMAGED)

    def _manifest(self, number: int) -> tuple[Manifest, bytes]:
        if number not in self._manifests:
            path = f"manifests/{number}.json"

            def parse(raw: bytes) -> tuple[Manifest, bytes]:
                latest = self._manifests.get(max(self._manifests, default=0))
                known = {part.name: part for part in latest[0].parts} if latest else {}
                manifest = Manifest.parse(self.url, parse_json(raw, f"{self.url}/{path}", DAMAGED), known)
                if manifest.number != number or manifest.spec != self.spec.fingerprint:
                    raise VerificationError(f"{self.url}/{path} is of another number or spec", DAMAGED)
                return manifest, raw

            self._manifests[number] = self._read(path, MANIFEST_BYTES, parse)
        return self._manifests[number]

    def done(self, part: Part) -> tuple[dict[str, Any], bytes]:
        """The done file of a part, parsed and raw, the one that the manifest lists."""
        path = f"done/{part.name}.json"

        def parse(raw: bytes) -> tuple[dict[str, Any], bytes]:
            done = parse_json(raw, f"{self.url}/{path}", DAMAGED)
            sound = done.get("digest", done_digest(done)) == done_digest(done)
            same = Part.of_done(self.url, done) == part and done.get("spec") == self.spec.fingerprint
            if not (sound and same):
                raise VerificationError(f"{self.url}/{path} is not what the manifest lists", DAMAGED)
            return done, raw

        return self._read(path, DONE_BYTES, parse)

    def published(self, name: str) -> Part | None:
        """A part that is complete on the remote, listed or not; None if there is none."""
        path = f"done/{name}.json"
        if self.objects.size(self.at(path)) is None:
            return None
        return self._read(
            path, DONE_BYTES, lambda raw: Part.of_done(self.url, parse_json(raw, f"{self.url}/{path}", DAMAGED))
        )

    def fetch(self, path: str, size: dict[str, Any], local: Path) -> int:
        """Download a file that the manifest lists to `local`, going on where a killed run ended, and verify
        it. Returns how many bytes travelled."""
        local.parent.mkdir(parents=True, exist_ok=True)
        travelled = 0
        wrong = VerificationError(f"{self.url}/{path} is not what its manifest lists (xxh3_128)", DAMAGED)
        for _ in range(TRIES):
            there = local.stat().st_size if local.is_file() else 0
            if there > size["bytes"]:
                local.unlink()
                there = 0
            if there < size["bytes"] or not local.exists():
                try:
                    self.objects.get_file(self.at(path), local, size["bytes"])
                except VerificationError as error:
                    wrong = VerificationError(error.what, DAMAGED)
                    continue
                travelled += size["bytes"] - there
            if checksum(local) == size:
                return travelled
            local.unlink()
        raise wrong

    def _read(self, path: str, limit: int, parse: Callable[[bytes], T]) -> T:
        error: VerificationError | None = None
        for _ in range(TRIES):
            raw = self.objects.get(self.at(path), limit)
            if raw is None:
                raise VerificationError(f"{self.url}/{path} is missing", DAMAGED)
            try:
                return parse(raw)
            except VerificationError as wrong:
                error = wrong
        assert error
        raise VerificationError(error.what, error.cure if "Upgrade" in error.cure else DAMAGED)


@dataclass(frozen=True)
class RemoteStoreInfo:
    """A store on a remote, for `ls --remote`.

    problem  why it cannot be used; the counts are zero then
    """

    remote: str
    url: str
    name: str
    backbone: str = ""
    level: str = ""
    dtype: str = ""
    images: int = 0
    texts: int = 0
    parts: int = 0
    bytes: int = 0
    manifest: int = 0
    problem: str = ""


def remote_stores(remote: Remote) -> list[RemoteStoreInfo]:
    """The stores on a remote, by name. A damaged one is listed with its problem. Raises `RemoteError`."""
    objects = connect(remote)
    found = []
    for name in objects.folders():
        shared = SharedStore(objects, name)
        if NAME.fullmatch(name) and shared.exists:
            try:
                found.append(_info(remote.name, shared))
            except (VerificationError, RemoteError) as error:
                found.append(RemoteStoreInfo(remote.name, shared.url, name, problem=str(error)))
    return found


def _info(remote: str, shared: SharedStore) -> RemoteStoreInfo:
    spec, newest = shared.spec, shared.newest()
    parts = newest.parts if newest else ()
    rows = {kind: sum(part.rows for part in parts if part.kind == kind) for kind in ("image", "text")}
    size = sum(part.bytes for part in parts)
    number = newest.number if newest else 0
    return RemoteStoreInfo(
        remote, shared.url, shared.name, spec.backbone, spec.level, spec.dtype, rows["image"], rows["text"],
        len(parts), size, number,
    )  # fmt: skip
