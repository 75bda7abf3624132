"""Dense arrays: the bytes are Zarr's, the values are ours, and no flipped bit is returned as data."""

import json
import os
import struct

import google_crc32c
import numpy as np
import pytest
import zarr

from compal.errors import VerificationError
from compal.stores.buffers import aligned_empty
from compal.stores.dense import ForeignArray, ShardedArray, open_array
from compal.stores.writer import alignment, write_array

CASES = {  # name: shape, dtype, rows per chunk, rows per shard
    "small samples": ((7, 3, 8), "float16", 1, 0),
    "aligned samples": ((3, 50, 512), "float16", 1, 0),
    "float32": ((4, 2, 5), "float32", 1, 0),
    "pooled in one chunk": ((9, 6), "float16", 1024, 0),
    "pooled with a ragged chunk": ((11, 6), "float16", 4, 0),
    "ragged last shard": ((7, 3, 8), "float16", 1, 4),
    "pooled with a ragged last shard": ((11, 6), "float32", 2, 8),
}


def draw(shape, dtype):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def read_all(array):
    out = aligned_empty(array.shape, array.dtype)
    array.read_into(np.arange(array.shape[0]), out, np.arange(array.shape[0]))
    return out


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ours_and_zarr_python_read_the_same(tmp_path, case):
    shape, dtype, chunk_rows, shard_rows = case
    values = draw(shape, dtype)
    write_array(tmp_path / "a", values, dtype, chunk_rows, shard_rows=shard_rows)
    array = open_array(tmp_path / "a")
    assert isinstance(array, ShardedArray)
    np.testing.assert_array_equal(read_all(array), values)
    theirs = zarr.open_array(str(tmp_path / "a"), mode="r")
    np.testing.assert_array_equal(theirs[:], values)
    assert theirs.dtype == values.dtype
    assert theirs[-1].tobytes() == values[-1].tobytes()  # one inner chunk, through the index


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_order_with_duplicates_into_any_position(tmp_path, case):
    shape, dtype, chunk_rows, shard_rows = case
    values = draw(shape, dtype)
    write_array(tmp_path / "a", values, dtype, chunk_rows, shard_rows=shard_rows)
    rows = np.random.default_rng(1).integers(0, len(values), 40)
    positions = np.random.default_rng(2).permutation(41)[:40]
    out = np.full((41, *shape[1:]), 9, dtype)
    open_array(tmp_path / "a").read_into(rows, out, positions)
    np.testing.assert_array_equal(out[positions], values[rows])
    untouched = next(iter(set(range(41)) - set(positions.tolist())))
    assert (out[untouched] == 9).all()


def test_the_bytes_by_hand(tmp_path):
    """Two samples of (1, 2) float16: payload, crc32c, padding to 64, and the index with its own crc32c."""
    values = np.array([[[1, 2]], [[-1, 0.5]]], np.float16)
    write_array(tmp_path / "a", values, "float16")
    raw = (tmp_path / "a" / "c.0.0.0").read_bytes()
    first, second = struct.pack("<2e", 1, 2), struct.pack("<2e", -1, 0.5)
    assert raw[:8] == first + struct.pack("<I", google_crc32c.value(first))
    assert raw[8:64] == bytes(56)
    assert raw[64:72] == second + struct.pack("<I", google_crc32c.value(second))
    index = struct.pack("<4Q", 0, 8, 64, 8)
    assert raw[128:] == index + struct.pack("<I", google_crc32c.value(index))


@pytest.mark.parametrize(
    ("payload", "boundary"),
    [
        (50 * 512 * 2, 4096),  # 51,204 of 53,248: 4.0 % padding
        (196 * 768 * 2, 4096),  # 0.7 %
        (64 * 96 * 2, 64),  # 12,288 would take 16,384: 33 %
        (1024 * 1024, 4096),
        (8, 64),
        (65536 - 4, 4096),  # no padding at all
    ],
)
def test_samples_start_on_a_page_where_that_is_cheap(payload, boundary):
    assert alignment(payload) == boundary


def test_samples_start_where_alignment_says(tmp_path):
    write_array(tmp_path / "a", draw((3, 50, 512), "float16"), "float16")
    shard = open_array(tmp_path / "a")._shard(0)
    assert shard.offsets.tolist() == [0, 53248, 106496]


def test_buffers_start_on_a_page():
    for shape in ((1,), (3, 5), (256, 7, 11)):
        buffer = aligned_empty(shape, np.float16)
        assert buffer.ctypes.data % 4096 == 0
        assert buffer.shape == shape
        assert buffer.flags.c_contiguous


def test_a_row_that_does_not_exist(tmp_path):
    write_array(tmp_path / "a", draw((3, 2, 2), "float16"), "float16")
    with pytest.raises(IndexError):
        open_array(tmp_path / "a").read_into(np.array([3]), np.empty((1, 2, 2), np.float16), np.array([0]))


def test_short_reads_are_continued(tmp_path, monkeypatch):
    """The kernel may return fewer bytes than asked for."""
    values = draw((5, 3, 8), "float16")
    write_array(tmp_path / "a", values, "float16")
    real = os.preadv

    def short(file, buffers, *rest):
        return real(file, [memoryview(buffers[0])[:5]], *rest)

    monkeypatch.setattr(os, "preadv", short)
    np.testing.assert_array_equal(read_all(open_array(tmp_path / "a")), values)


# --- foreign arrays --------------------------------------------------------------------------------------

FOREIGN = {
    "compressed": {"compressors": zarr.codecs.ZstdCodec(level=1), "shards": (8, 3, 8), "chunks": (1, 3, 8)},
    "not sharded": {"compressors": None, "chunks": (2, 3, 8)},
    "cut along channels": {"compressors": None, "shards": (8, 3, 8), "chunks": (1, 3, 4)},
}


@pytest.mark.parametrize("options", FOREIGN.values(), ids=FOREIGN)
def test_foreign_arrays_fall_back_to_zarr_python(tmp_path, options):
    values = draw((7, 3, 8), "float16")
    zarr.create_array(str(tmp_path / "a"), shape=values.shape, dtype="float16", **options)[:] = values
    array = open_array(tmp_path / "a")
    assert isinstance(array, ForeignArray)
    rows = np.array([6, 0, 6, 3])
    out = np.zeros((4, 3, 8), np.float16)
    array.read_into(rows, out, np.array([3, 2, 1, 0]))
    np.testing.assert_array_equal(out[::-1], values[rows])


def test_what_zarr_python_writes_the_fast_path_reads(tmp_path):
    """Same codecs from another writer: chunks in another order, all-zero chunks left out."""
    values = draw((7, 3, 8), "float16")
    values[2] = 0
    zarr.create_array(
        str(tmp_path / "a"),
        shape=values.shape,
        dtype="float16",
        shards=(8, 3, 8),
        chunks=(1, 3, 8),
        compressors=zarr.codecs.Crc32cCodec(),
        config={"write_empty_chunks": False},
    )[:] = values
    array = open_array(tmp_path / "a")
    assert isinstance(array, ShardedArray)
    assert (array._shard(0).offsets < 0).sum() == 2  # the zeros, and the row past the end
    np.testing.assert_array_equal(read_all(array), values)


# --- damage ----------------------------------------------------------------------------------------------


def damage(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("case", ["aligned samples", "pooled with a ragged chunk"])
@pytest.mark.parametrize("where", ["payload", "crc", "index", "index crc"])
def test_a_flipped_bit_is_an_error_at_read(tmp_path, case, where):
    shape, dtype, chunk_rows, _ = CASES[case]
    write_array(tmp_path / "a", draw(shape, dtype), dtype, chunk_rows)
    path = next((tmp_path / "a").glob("c.*"))
    chunk_bytes = chunk_rows * np.prod(shape[1:]) * 2
    position = {"payload": 5, "crc": chunk_bytes + 1, "index": -20, "index crc": -1}[where]
    damage(path, position)
    with pytest.raises(VerificationError, match=r"c\.0\.0.*crc32c|c\.0\.0.*index"):
        read_all(open_array(tmp_path / "a"))


def test_the_other_samples_stay_readable(tmp_path):
    values = draw((4, 3, 8), "float16")
    write_array(tmp_path / "a", values, "float16")
    damage(tmp_path / "a" / "c.0.0.0", 64 + 3)  # in row 1
    array = open_array(tmp_path / "a")
    out = np.empty((3, 3, 8), np.float16)
    array.read_into(np.array([0, 2, 3]), out, np.arange(3))
    np.testing.assert_array_equal(out, values[[0, 2, 3]])
    with pytest.raises(VerificationError, match="chunk 1"):
        array.read_into(np.array([1]), out, np.array([0]))


@pytest.mark.parametrize("keep", [0, 3, 20, 100, -1])
def test_a_truncated_shard_is_an_error(tmp_path, keep):
    write_array(tmp_path / "a", draw((4, 3, 8), "float16"), "float16")
    path = tmp_path / "a" / "c.0.0.0"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(VerificationError):
        read_all(open_array(tmp_path / "a"))


def test_a_shard_cut_off_while_open(tmp_path):
    write_array(tmp_path / "a", draw((4, 3, 8), "float16"), "float16")
    array = open_array(tmp_path / "a")
    array._shard(0)
    path = tmp_path / "a" / "c.0.0.0"
    with open(path, "r+b") as file:
        file.truncate(70)
    with pytest.raises(VerificationError, match="ends early"):
        read_all(array)


def test_a_missing_shard(tmp_path):
    write_array(tmp_path / "a", draw((4, 3, 8), "float16"), "float16")
    (tmp_path / "a" / "c.0.0.0").unlink()
    with pytest.raises(VerificationError, match="cannot be opened"):
        read_all(open_array(tmp_path / "a"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"zarr_format": 3}', b"\xff\xfe", b"null"])
def test_a_damaged_description(tmp_path, content):
    write_array(tmp_path / "a", draw((4, 3, 8), "float16"), "float16")
    (tmp_path / "a" / "zarr.json").write_bytes(content)
    with pytest.raises(VerificationError):
        open_array(tmp_path / "a")


def test_an_index_that_points_outside(tmp_path):
    """A forged index with a right checksum still cannot read past the file."""
    write_array(tmp_path / "a", draw((1, 3, 8), "float16"), "float16")
    path = tmp_path / "a" / "c.0.0.0"
    index = struct.pack("<2Q", 1 << 40, 52)
    path.write_bytes(path.read_bytes()[:-20] + index + struct.pack("<I", google_crc32c.value(index)))
    with pytest.raises(VerificationError, match="outside"):
        read_all(open_array(tmp_path / "a"))


# --- values ----------------------------------------------------------------------------------------------


def test_big_endian_and_strided_input(tmp_path):
    values = np.arange(48, dtype=">f4").reshape(4, 3, 4)[:, :, ::2]
    write_array(tmp_path / "a", values, "float16")
    np.testing.assert_array_equal(read_all(open_array(tmp_path / "a")), values)


def test_the_description_names_its_axes(tmp_path):
    write_array(tmp_path / "a", draw((2, 3, 8), "float16"), "float16", names=("sample", "token", "channel"))
    metadata = json.loads((tmp_path / "a" / "zarr.json").read_text())
    assert metadata["dimension_names"] == ["sample", "token", "channel"]
    assert metadata["chunk_key_encoding"]["configuration"]["separator"] == "."
