"""Items: keys by content, and images that lie inside of other files."""

from __future__ import annotations

import io
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from compal.stores.items import FileSlice, Item

PICTURES = {"a.jpg": b"first picture" * 9, "b.jpg": b"second", "c.jpg": b""}


@pytest.fixture
def shard(tmp_path):
    """A tar, and where its members lie."""
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in PICTURES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return {member.name: FileSlice(path, member.offset_data, member.size) for member in tar}


def test_a_slice_reads_its_bytes_again_and_again(shard):
    assert {name: one.read() for name, one in shard.items()} == PICTURES
    with ThreadPoolExecutor(4) as pool:
        again = pool.map(FileSlice.read, [shard["a.jpg"], shard["b.jpg"]] * 20)
    assert list(again) == [PICTURES["a.jpg"], PICTURES["b.jpg"]] * 20


def test_a_slice_travels_to_other_processes(shard):
    assert pickle.loads(pickle.dumps(shard["b.jpg"])).read() == PICTURES["b.jpg"]


@pytest.mark.parametrize(("offset", "size"), [(0, 1 << 50), (1 << 50, 1), (-1, 2), (5, -2)])
def test_bytes_that_the_file_lacks_are_an_error_before_memory_is_taken(shard, offset, size):
    with pytest.raises(OSError, match="in a file of"):
        FileSlice(shard["a.jpg"].path, offset, size).read()


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileSlice(tmp_path / "none.tar", 0, 1).read()


def test_equal_files_have_equal_keys_wherever_they_lie(shard, tmp_path):
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)
        boxes = ((0.0, 0.0, 0.5, 1.0),)
        inside = Item.image_bytes(shard[name].read(), shard[name], f"shard/{name}", boxes)
        assert inside.key == Item.image_file(tmp_path / name).key
        assert (inside.kind, inside.source, inside.boxes) == ("image", f"shard/{name}", boxes)
        assert inside.content.read() == data
