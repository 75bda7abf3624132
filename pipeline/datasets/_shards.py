"""WebDataset shards: uncompressed tars whose members belong together by name, read where they lie.

Nothing is unpacked, and a member's name is only ever a name: `../../etc/passwd` is a label like any other.
The format: https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import InputError
from ...stores.files import TRANSIENT
from ...stores.items import FileSlice, content_key
from ...workspace import PICTURES
from .. import listing
from ._files import Lost, Photo, Told, decoded, lost_photo

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
BLOCK = 512
MAX_TEXT = 1 << 24  # bytes of a caption's file, img2dataset's take 2 KB


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name, where its bytes lie, and the content key if it is an image, else ""."""

    name: str
    offset: int
    size: int
    key: str = ""


@dataclass(frozen=True)
class Shard:
    """The members of a tar, as many as are whole, and what is wrong with the rest, "" if nothing."""

    path: Path
    members: tuple[Member, ...]
    damage: str = ""


@dataclass
class Sample:
    """Members that share a name up to the first dot: images, and others by what follows the dot."""

    images: list[Member] = field(default_factory=list)
    others: dict[str, Member] = field(default_factory=dict)


def open_shard(path: Path) -> Shard:
    """The members of a tar with the keys of its images; read once, then remembered as long as the tar stays as
    it is. Raises `InputError` for what is compressed or no tar."""
    try:
        return listing.patiently(path, lambda: _open_shard(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", "Check the file.") from None


def _open_shard(path: Path) -> Shard:
    name = f"tar\0{os.path.abspath(path)}"
    with open(path, "rb") as file:
        before = listing.stamp_of(os.fstat(file.fileno()))
        known = listing.recall(name, before)
        if known:
            rows, damage = json.loads(zlib.decompress(known))
            return Shard(path, tuple(Member(*row) for row in rows), damage)
        members, damage = _with_keys(file, *scan(path, file))
        after = listing.stamp_of(os.fstat(file.fileno()))
    rows = [[member.name, member.offset, member.size, member.key] for member in members]
    listing.remember(name, after if after == before else "", zlib.compress(json.dumps([rows, damage]).encode()))
    return Shard(path, tuple(members), damage)


def scan(path: Path, file: BinaryIO) -> tuple[list[Member], str]:
    """The whole members that are files, and what ends the tar before its end mark, if anything does."""
    held = os.fstat(file.fileno()).st_size
    _refuse_compressed(path, file)
    if held < BLOCK:
        return [], f"ends early: it has {held} bytes"
    first = file.read(BLOCK)
    file.seek(0)
    if not any(first):  # a tar of nothing
        return [], ""
    try:
        tarfile.TarInfo.frombuf(first, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise InputError(f"{path} is not a tar: {error}", "Check the file, or download it again.") from None
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            return _walk(archive, file, held)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        return [], f"ends early: {error}"


def _walk(archive: tarfile.TarFile, file: BinaryIO, held: int) -> tuple[list[Member], str]:
    found: list[Member] = []
    latest = -1
    while True:
        try:
            info = archive.next()
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            if getattr(error, "errno", None) in TRANSIENT:  # of the share, not of the tar
                raise
            return found, _after(found, f"ends early: {error}")
        if info is None:
            return found, _after(found, _ending(file, archive.offset, held))
        if info.offset <= latest or info.size < 0:  # a size below zero leads back to where one has been
            return found, _after(found, "has a header that makes no sense")
        latest = info.offset
        if info.isreg() and not info.issparse():
            if info.offset_data + info.size > held:
                return found, _after(found, f"ends early, within {info.name}")
            found.append(Member(info.name, info.offset_data, info.size))


def _ending(file: BinaryIO, offset: int, held: int) -> str:
    """What is wrong with where the members end: a tar ends in a block of zeros."""
    if offset >= held:
        return "ends early, without an end mark"
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        return "ends early, within a header"
    return "is damaged: what follows is no header" if any(block) else ""


def _after(found: Sequence[Member], damage: str) -> str:
    return f"{damage}, after {found[-1].name}" if damage and found else damage


def _refuse_compressed(path: Path, file: BinaryIO) -> None:
    start = file.read(6)
    file.seek(0)
    for magic, tool in COMPRESSED.items():
        if start.startswith(magic):
            cure = f"Unpack it once: {tool} {path.name}; images are read where they lie, which compression prevents."
            raise InputError(f"{path} is a compressed tar", cure)


def _with_keys(file: BinaryIO, members: list[Member], damage: str) -> tuple[list[Member], str]:
    handle = file.fileno()

    def keyed(member: Member) -> Member:
        if not _is_image(member.name):
            return member
        key = content_key("image-file", os.pread(handle, member.size, member.offset))
        return Member(member.name, member.offset, member.size, key)

    with ThreadPoolExecutor(listing.READERS, "read") as pool:
        return list(pool.map(keyed, members)), damage


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PICTURES


def samples(members: Iterable[Member]) -> list[Sample]:
    """Members by what stands before the first dot of the file's name, folders included, in the tar's order."""
    found: dict[str, Sample] = {}
    for member in members:
        match = re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]+)", member.name, re.DOTALL)
        if not match:
            continue
        sample = found.setdefault(match[1], Sample())
        if _is_image(member.name):
            sample.images.append(member)
        else:
            sample.others[match[2].lower()] = member
    return list(found.values())


def shard_photos(paths: Iterable[Path], wanted: Sequence[str]) -> Iterator[Photo]:
    """The photographs of shards. `wanted` names captions: endings of members, or keys of the .json member; where
    it is empty, .txt, else .caption, else the key `caption`. What a tar lost is a photograph for the quarantine."""
    for path in paths:
        shard = open_shard(path)
        with listing.patiently(path, lambda: open(path, "rb")) as file:  # noqa: B023
            for sample in samples(shard.members):
                if not sample.images:
                    continue
                captions = tuple(_captions(path, file, sample, wanted))
                for image in sample.images:
                    place = FileSlice(path, image.offset, image.size)
                    yield Photo(place, f"{path.name}/{image.name}", captions, image.key)
        if shard.damage:
            yield lost_photo(f"{path.name} {shard.damage}", f"{path.name} {shard.damage}")


def _captions(path: Path, file: BinaryIO, sample: Sample, wanted: Sequence[str]) -> Iterator[Told]:
    usual = [ending for ending in ("txt", "caption") if ending in sample.others][:1] or ["caption"]
    parsed: Any = None
    for name in wanted or usual:
        member = sample.others.get(name, sample.others.get("json"))
        if member is None:
            continue
        source = f"{path.name}/{member.name}"
        if name in sample.others and name != "json":
            text = _text(path, file, member, source)
            yield Told(text.strip() if isinstance(text, str) else text, source)
            continue
        if parsed is None:
            parsed = _json(path, file, member, source)
        if isinstance(parsed, Lost):
            yield Told(parsed, source)
            return
        value = parsed.get(name) if isinstance(parsed, dict) else None
        listed = value if isinstance(value, list) else [value]
        yield from (Told(text, f"{source}, {name}") for text in listed if text is not None)


def _text(path: Path, file: BinaryIO, member: Member, source: str) -> str | Lost:
    if member.size > MAX_TEXT:
        return Lost(f"{source} has {member.size:,} bytes, too many for a caption")
    try:
        return decoded(os.pread(file.fileno(), member.size, member.offset))
    except OSError:  # a file that was opened before its share went is not to be read after
        return decoded(listing.patiently(path, FileSlice(path, member.offset, member.size).read))


def _json(path: Path, file: BinaryIO, member: Member, source: str) -> Any:
    text = _text(path, file, member, source)
    if isinstance(text, Lost):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return Lost(f"{source} is not JSON: {error}")
