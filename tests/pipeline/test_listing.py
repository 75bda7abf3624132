"""The key cache: unchanged files are not read again, and nothing that befalls it is fatal."""

import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compal.pipeline import listing
from compal.stores.items import Item


def settle():
    """Wait until what was just written counts as settled."""
    time.sleep(2 * listing.SETTLED_NS / 1e9)


@pytest.fixture
def files(tmp_path):
    """Six files in a folder, written a while ago."""
    paths = [tmp_path / "images" / f"{number}.jpg" for number in range(6)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % number * 100)
    settle()
    return paths


@pytest.fixture
def reads(monkeypatch):
    """The files that were read."""
    seen = []
    read = listing._read_key
    monkeypatch.setattr(listing, "_read_key", lambda place: seen.append(Path(place).name) or read(place))
    return seen


def reference(paths):
    return [Item.image_file(path).key for path in paths]


def test_keys_are_those_of_items(files):
    assert listing.file_keys(files) == reference(files)
    assert listing.file_keys([]) == []


@pytest.mark.parametrize("database", [True, False])
def test_unchanged_files_are_read_once(files, reads, tmp_path, database):
    place = tmp_path / "work" / "listing.sqlite" if database else None
    with listing.use(place, create=True):
        first = listing.file_keys(files)
        assert len(reads) == 6
        assert listing.file_keys(files) == first
        assert len(reads) == 6
    with listing.use(place, create=True):
        assert listing.file_keys(files) == first
    assert len(reads) == (6 if database else 12)


def test_what_changed_is_read_again(files, reads, tmp_path):
    with listing.use(tmp_path / "listing.sqlite"):
        listing.file_keys(files)
        times = os.stat(files[1]).st_mtime_ns
        files[0].write_bytes(b"longer than before" * 99)
        files[1].write_bytes(b"x" * files[1].stat().st_size)
        os.utime(files[1], ns=(times, times))  # the same size, and the time put back
        os.replace(files[3], files[2])
        files[4].unlink()
        settle()
        del reads[:]
        keys = listing.file_keys(files)
    assert sorted(reads) == ["0.jpg", "1.jpg", "2.jpg"]
    assert keys[:3] == reference(files[:3])
    assert keys[3:5] == [None, None]
    assert keys[5] == reference(files[5:])[0]


def test_a_file_that_was_just_written_is_not_trusted(files, reads, tmp_path):
    """The clock of a file ticks every few milliseconds: a second write in the same tick leaves no trace."""
    with listing.use(tmp_path / "listing.sqlite"):
        for content in (b"a", b"b"):
            files[0].write_bytes(content)
            assert listing.file_keys(files[:1]) == reference(files[:1])


def test_what_is_no_file_has_no_key(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    paths = [tmp_path / name for name in ("pipe.jpg", "folder.jpg", "loop.jpg", "none.jpg", "x" * 300)]
    assert listing.file_keys([*paths, Path("a\0b")]) == [None] * 6


def test_nothing_is_written_where_there_is_no_workspace(files, tmp_path):
    with listing.use(tmp_path / "work" / "listing.sqlite"):
        assert listing.file_keys(files) == reference(files)
    assert not (tmp_path / "work").exists()


def test_forgetting(files, reads, tmp_path):
    with listing.use(tmp_path / "listing.sqlite"):
        listing.file_keys(files)
        listing.forget(files[0])
        del reads[:]
        listing.file_keys(files)
        assert reads == ["0.jpg"]


def spoil(place, how):
    data = bytearray(place.read_bytes())
    if how == "garbage":
        data = os.urandom(5000)
    elif how == "truncated":
        data = data[: len(data) // 2]
    elif how == "zeros":
        data[100:] = bytes(len(data) - 100)
    elif how == "empty":
        data = b""
    place.write_bytes(data)


@pytest.mark.parametrize("how", ["garbage", "truncated", "zeros", "empty"])
def test_a_damaged_cache_is_made_anew(files, reads, tmp_path, how):
    place = tmp_path / "listing.sqlite"
    with listing.use(place):
        listing.file_keys(files)
    spoil(place, how)
    for _ in range(2):
        with listing.use(place):
            assert listing.file_keys(files) == reference(files)
    assert len(reads) <= 12, "the second of the two read nothing"


def test_a_flipped_bit_is_not_believed(files, tmp_path):
    """Every byte of every value: the answer is the true key, whatever the cache says."""
    place = tmp_path / "listing.sqlite"
    with listing.use(place):
        listing.file_keys(files)
    whole = place.read_bytes()
    key = bytes.fromhex(reference(files[:1])[0])
    at = whole.index(key)
    for offset in (at, at + 7, at + 15):
        flipped = bytearray(whole)
        flipped[offset] ^= 4
        place.write_bytes(flipped)
        with listing.use(place):
            assert listing.file_keys(files) == reference(files)


def test_a_cache_of_another_layout_is_made_anew(files, tmp_path):
    place = tmp_path / "listing.sqlite"
    database = sqlite3.connect(place)
    database.execute("CREATE TABLE known (name TEXT)")
    database.commit()
    database.close()
    with listing.use(place):
        assert listing.file_keys(files) == reference(files)


def test_a_cache_that_cannot_be_is_gone_without(files, reads, tmp_path):
    (tmp_path / "listing.sqlite").mkdir()
    with listing.use(tmp_path / "listing.sqlite"):
        assert listing.file_keys(files) == reference(files)
        assert listing.file_keys(files) == reference(files)
    assert len(reads) == 6, "in memory instead"


def test_a_cache_that_cannot_be_written_is_still_read(files, reads, tmp_path):
    with listing.use(tmp_path / "listing.sqlite"):
        listing.file_keys(files[:3])
        listing._current._connection().execute("PRAGMA query_only = ON")  # as on a disk that is read-only
        for _ in range(2):
            assert listing.file_keys(files) == reference(files)
    assert len(reads) == 9, "three once, the three that cannot be kept twice"


def test_a_locked_cache_is_gone_without(files, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "WAIT", 0.05)
    place = tmp_path / "listing.sqlite"
    with listing.use(place):
        listing.file_keys(files[:1])
    other = sqlite3.connect(place)
    other.execute("BEGIN EXCLUSIVE")
    with listing.use(place):
        assert listing.file_keys(files) == reference(files)
    other.rollback()
    other.close()
    with listing.use(place):
        assert listing.recall("x", "y") is None
        listing.remember("x", "y", b"z")
        assert listing.recall("x", "y") == b"z"


WORKER = """
import sys
from pathlib import Path
from compal.pipeline import listing
paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
with listing.use(Path(sys.argv[2])):
    for path in paths:
        print(listing.file_keys([path])[0], flush=True)
"""


def test_processes_share_a_cache_and_may_be_killed(tmp_path):
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number:03d}.jpg" for number in range(150)]
    for path in paths:
        path.write_bytes(path.name.encode())
    settle()
    place = tmp_path / "listing.sqlite"
    command = [sys.executable, "-c", WORKER, str(tmp_path / "images"), str(place)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    running[0].stdout.readline()
    running[0].kill()
    expected = reference(paths)
    for process in running[1:]:
        assert process.communicate(timeout=60)[0].split() == expected
        assert process.returncode == 0
    running[0].communicate(timeout=60)
    with listing.use(place):
        assert listing.file_keys(paths) == expected
    with sqlite3.connect(place) as database:
        assert database.execute("SELECT count(*) FROM known").fetchone()[0] == 150
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    database.close()


def test_threads_and_forks(files, tmp_path):
    with listing.use(tmp_path / "listing.sqlite"):
        listing.file_keys(files)
        with ThreadPoolExecutor(4) as pool:
            assert all(keys == reference(files) for keys in pool.map(lambda _: listing.file_keys(files), range(20)))
        cache = listing._current
        cache._pid = -1  # what a forked child sees
        assert listing.file_keys(files) == reference(files)
        assert cache._pid == os.getpid()


def test_uses_nest(files, tmp_path):
    with listing.use(tmp_path / "outer.sqlite"):
        with listing.use(tmp_path / "inner.sqlite"):
            listing.remember("a", "1", b"inner")
        assert listing.recall("a", "1") is None


def test_names_of_any_bytes(tmp_path, reads):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.jpg"))
    path.write_bytes(b"x")
    settle()
    with listing.use(tmp_path / "listing.sqlite"):
        assert [listing.file_keys([path]) for _ in range(2)] == [reference([path])] * 2
    assert len(reads) == 1
