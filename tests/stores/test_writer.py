"""Writing: the bytes of a slow and plain writer, by a fast one; what the disk refuses, and what the spec does."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading

import google_crc32c
import numpy as np
import pytest
import tensorstore
import torch
import zarr

from compal.config import canonical
from compal.errors import InputError
from compal.stores import outfile
from compal.stores.buffers import alignment
from compal.stores.dtypes import (
    STORED,
    NotFinite,
    all_finite,
    cast_into,
    first_not_finite,
    from_bfloat16,
    to_bfloat16,
    to_finite,
)
from compal.stores.files import checksum
from compal.stores.manifest import Part, read_done
from compal.stores.outfile import OutFile
from compal.stores.parts import sealed
from compal.stores.statistics import statistics
from compal.stores.store import ImageRows, Store
from compal.stores.writer import write_array

CASES = {  # name: shape, rows per chunk, rows per shard
    "small samples": ((7, 3, 8), 1, 0),
    "one value": ((1, 1), 1, 0),
    "aligned samples": ((3, 50, 512), 1, 0),
    "larger than a block": ((3, 600, 1024), 1, 0),
    "pooled in one chunk": ((9, 6), 1024, 0),
    "pooled with a ragged chunk": ((11, 6), 4, 0),
    "many pooled chunks": ((5000, 33), 64, 0),
    "ragged last shard": ((7, 3, 8), 1, 4),
    "pooled with a ragged last shard": ((11, 6), 2, 8),
}


def draw(shape, dtype):
    values = np.random.default_rng(0).normal(size=shape)
    if dtype == "int8":
        return (values * 40).clip(-127, 127).astype(np.int8)
    return values.astype(np.float32)


def stored(values, dtype):
    """The slow reference of the cast."""
    if dtype == "bfloat16":
        return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return values.astype(STORED[dtype])


def plain_shard(values, chunk_rows, shard_rows):
    """One shard file as the format says, chunk after chunk."""
    content, index = b"", []
    for first in range(0, len(values), chunk_rows):
        chunk = values[first : first + chunk_rows]
        missing = np.zeros((chunk_rows - len(chunk), *values.shape[1:]), values.dtype)
        payload = np.concatenate([chunk, missing]).tobytes()
        index.append((len(content), len(payload) + 4))
        content += payload + google_crc32c.value(payload).to_bytes(4, "little")
        content += bytes(-len(content) % alignment(len(payload)))
    index += [(2**64 - 1, 2**64 - 1)] * (shard_rows // chunk_rows - len(index))
    table = np.array(index, "<u8").tobytes()
    return content + table + google_crc32c.value(table).to_bytes(4, "little")


def check_plain(folder, values, dtype, chunk_rows, shard_rows, written):
    chunk_rows = min(chunk_rows, len(values))
    shard_rows = -(-(shard_rows or len(values)) // chunk_rows) * chunk_rows
    expected = stored(values, dtype)
    shards = sorted(folder.glob("c.*"), key=lambda path: int(path.name.split(".")[1]))
    assert len(shards) == -(-len(values) // shard_rows)
    for number, path in enumerate(shards):
        part = expected[number * shard_rows : (number + 1) * shard_rows]
        assert path.read_bytes() == plain_shard(part, chunk_rows, shard_rows)
    assert written == {path: checksum(path) for path in shards}


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_bytes_of_a_plain_writer(tmp_path, case, dtype):
    shape, chunk_rows, shard_rows = case
    values = draw(shape, dtype)
    written = write_array(tmp_path / "a", values, dtype, chunk_rows, shard_rows=shard_rows)
    check_plain(tmp_path / "a", values, dtype, chunk_rows, shard_rows, written)


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks per file, and O_DIRECT for all of them."""
    monkeypatch.setattr(outfile, "BLOCK", 8192)
    monkeypatch.setattr(outfile, "FIRST", 4096)
    monkeypatch.setattr(outfile, "DIRECT_BYTES", 1)
    outfile._spare.clear()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_same_bytes_past_the_page_cache(tmp_path, small_blocks, case):
    shape, chunk_rows, shard_rows = case
    values = draw(shape, "float16")
    written = write_array(tmp_path / "a", values, "float16", chunk_rows, shard_rows=shard_rows)
    check_plain(tmp_path / "a", values, "float16", chunk_rows, shard_rows, written)


def write_pieces(path, expect=1 << 30):
    """4,321 bytes at a time, by both ways in; what was written."""
    pieces = [os.urandom(4321) for _ in range(40)]
    with OutFile(path, 4321, expect) as file:
        for number, piece in enumerate(pieces):
            assert file.tell() == number * 4321
            if number % 3:
                file.room(4321)[:] = np.frombuffer(piece, np.uint8)
            else:
                file.write(piece)
    assert file.checksum == checksum(path)
    assert path.read_bytes() == b"".join(pieces)


def test_a_file_system_without_o_direct(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(outfile, "_set_direct", lambda handle, on: False)
    write_pieces(tmp_path / "f")


def test_a_system_without_o_direct(tmp_path, small_blocks, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT")
    write_pieces(tmp_path / "f")


def test_a_file_system_that_takes_the_flag_and_refuses_the_write(tmp_path, small_blocks, monkeypatch):
    real, refused = os.pwrite, []

    def pwrite(handle, data, offset):
        import fcntl

        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write_pieces(tmp_path / "f")
    assert 1 <= len(refused) <= outfile.IN_FLIGHT


def test_writes_that_the_kernel_cuts_short(tmp_path, small_blocks, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: real(handle, data[:1000], offset))
    write_pieces(tmp_path / "f")


def test_o_direct_is_what_big_files_are_written_with(tmp_path, small_blocks, monkeypatch):
    """A sample whose every byte goes to the disk by whole pages at page offsets, but for the rest."""
    real, calls = os.pwrite, []

    def pwrite(handle, data, offset):
        calls.append((offset % 4096, len(data) % 4096))
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write_pieces(tmp_path / "f")
    assert len(calls) > 15
    assert calls.count((0, 0)) == len(calls) - 1


def test_a_full_disk_in_a_thread(tmp_path, small_blocks, monkeypatch):
    before = threading.active_count(), os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    real = os.pwrite

    def pwrite(handle, data, offset):
        if offset >= 40_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space"):
        write_pieces(tmp_path / "f")
    after = threading.active_count(), os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    assert (after[0], len(after[1])) == (before[0], len(before[1]))


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "f").write_text("mine")
    with pytest.raises(FileExistsError), OutFile(tmp_path / "f") as file:
        file.write(b"theirs")
    assert (tmp_path / "f").read_text() == "mine"


FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from compal.errors import InputError
from compal.stores import outfile
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store
outfile.BLOCK, outfile.DIRECT_BYTES = 8192, 1
spec = FeatureSpec("random", "seed-0", pooled_dim=4, image_shape=(64, 96))
store = Store.create(Path(sys.argv[1]), spec)
rows = ImageRows(list("abcdefgh"), [""] * 8, [(1, 1)] * 8, np.ones((8, 64, 96)), np.ones((8, 4)))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    store.write_images("i-0", rows)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [20_000, 40_960])
def test_a_disk_that_fills_up_past_the_page_cache(tmp_path, limit):
    """A real short write by O_DIRECT: the process may not make larger files."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "s"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write part i-0" in done.stdout
    assert "Free space" in done.stdout
    assert sorted(path.name for path in (tmp_path / "s").rglob("*")) == [".staging", "spec.json"]


# --- other readers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_zarr_python_and_tensorstore_read_it(tmp_path, case, dtype):
    shape, chunk_rows, shard_rows = case
    values = draw(shape, dtype)
    write_array(tmp_path / "a", values, dtype, chunk_rows, shard_rows=shard_rows)
    expected = stored(values, dtype)
    theirs = zarr.open_array(str(tmp_path / "a"), mode="r")
    assert theirs.dtype == expected.dtype
    assert theirs.attrs.asdict() == ({"compal_dtype": "bfloat16"} if dtype == "bfloat16" else {})
    assert theirs[:].tobytes() == expected.tobytes()
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    assert tensorstore.open(spec, read=True).result().read().result().tobytes() == expected.tobytes()


# --- values ----------------------------------------------------------------------------------------------


def test_bfloat16_rounds_as_torch_does():
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 2**32, 200_000, np.uint32)  # every exponent, subnormals too
    ties = (draw.integers(0, 2**16, 50_000, np.uint32) << 16) | 0x8000
    floats = np.concatenate([bits, ties, ties + 1, ties - 1, [0, 0x80000000, 0x7F7FFFFF]]).astype(np.uint32)
    floats = floats.view(np.float32)
    floats = floats[~np.isnan(floats)]
    np.testing.assert_array_equal(to_bfloat16(floats), stored(floats, "bfloat16"))
    doubles = draw.normal(size=10_000)
    np.testing.assert_array_equal(to_bfloat16(doubles), stored(doubles, "bfloat16"))
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    np.testing.assert_array_equal(to_bfloat16(halves), stored(halves, "bfloat16"))


def test_bfloat16_there_and_back():
    bits = np.arange(2**16, dtype=np.uint16)
    back = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(from_bfloat16(bits), back)
    known = bits[~np.isnan(back)]
    np.testing.assert_array_equal(to_bfloat16(from_bfloat16(known)), known)


@pytest.mark.parametrize("payload", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF])
def test_no_nan_becomes_a_number(payload):
    value = np.array([payload], np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16(to_bfloat16(value))).all()


BAD = [(np.nan, False), (np.inf, False), (-np.inf, False)]


@pytest.mark.parametrize(
    ("dtype", "bad", "overflow"),
    [(dtype, *bad) for dtype in ("float16", "float32", "bfloat16") for bad in BAD]
    + [("float16", 70000.0, True), ("bfloat16", 3.4e38, True), ("float32", 1e39, True)],
)
@pytest.mark.parametrize(("chunk_rows", "shard_rows"), [(1, 0), (4, 0), (1, 2), (2, 4)])
def test_what_the_dtype_cannot_hold_is_refused(tmp_path, dtype, bad, overflow, chunk_rows, shard_rows):
    values = np.zeros((7, 3, 8))
    values[5, 1, 2] = bad
    with pytest.raises(NotFinite) as caught:
        write_array(tmp_path / "a", values, dtype, chunk_rows, shard_rows=shard_rows)
    assert (caught.value.row, caught.value.overflow) == (5, overflow)


def test_a_bad_row_behind_many_blocks(tmp_path):
    values = np.zeros((40, 50, 512), np.float16)
    values[37, 49, 511] = np.nan
    with pytest.raises(NotFinite) as caught:
        write_array(tmp_path / "a", values, "float16")
    assert caught.value.row == 37


def test_bits_of_bfloat16_are_taken_as_they_are(tmp_path):
    bits = np.array([[0x3F80, 0x4000], [0x7F80, 0]], np.uint16)  # 1, 2, inf, 0
    assert to_finite(bits[:1], "bfloat16").tolist() == bits[:1].tolist()
    assert to_finite(bits[:1], "float32").tolist() == [[1, 2]]
    with pytest.raises(NotFinite) as caught:
        to_finite(bits, "bfloat16")
    assert (caught.value.row, caught.value.overflow) == (1, False)


def test_the_largest_values_are_kept():
    edge = np.array([[65504.0, -65504.0, 6e-8]], np.float32)
    assert to_finite(edge, "float16").tolist() == [[65504.0, -65504.0, pytest.approx(6e-8, rel=0.01)]]
    assert to_finite(np.array([[70000.0]]), "float32").tolist() == [[70000.0]]
    largest = np.array([[3.38953139e38]], np.float32)
    assert from_bfloat16(to_finite(largest, "bfloat16")).tolist() == largest.tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_all_finite_is_what_numpy_says(dtype):
    """Every float16 and bfloat16, and as many float32, one by one."""
    bits = np.arange(2**16, dtype=np.uint32)
    wide = (bits << 16 | bits >> 4).view(np.float32)
    values = {"float16": bits.astype(np.uint16).view(np.float16), "float32": wide, "bfloat16": bits.astype(np.uint16)}
    known = np.isfinite(from_bfloat16(values[dtype]) if dtype == "bfloat16" else values[dtype])
    good, bad = values[dtype][known], values[dtype][~known]
    assert all_finite(good, dtype)
    assert len(bad) > 100
    assert not any(all_finite(np.concatenate([good[:5], bad[row : row + 1]]), dtype) for row in range(0, len(bad), 7))
    assert first_not_finite(np.concatenate([good[:9], bad]), np.concatenate([good[:9], bad]), dtype).row == 9


def test_cast_into_says_nothing_of_overflow():
    out = np.empty(2, np.float16)
    cast_into(out, np.array([1e9, 1.0]), "float16")
    assert out.tolist() == [np.inf, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_refused_values_name_the_item(tmp_path, spec, make_images, make_texts, dtype):
    store = Store.create(tmp_path / "b", spec.with_dtype(dtype))
    for rows, write in (
        (make_images("a", "b", "c"), store.write_images),
        (make_texts("a", "b", "c"), store.write_texts),
    ):
        rows.tokens[1][0, 2] = np.nan
        with pytest.raises(InputError, match=r" b \(s/b.*hold NaN or infinity"):
            write("p-0", rows)
        rows.tokens[1][0, 2] = 0
        rows.pooled[2, 1] = 3.4e38
        with pytest.raises(InputError, match=rf" c \(s/c.*hold values too large for {dtype}"):
            write("p-0", rows)
    assert [path.name for path in store.path.iterdir() if path.name != ".staging"] == ["spec.json"]


# --- the record of a part --------------------------------------------------------------------------------


def test_a_done_file_carries_its_digest(filled):
    raw = (filled.path / "done" / "i-0.json").read_bytes()
    done = json.loads(raw)
    digest = done.pop("digest")
    assert digest == hashlib.sha256(canonical(done)).hexdigest()
    assert sealed(done) == raw
    assert done["written"].keys() == {"compal", "python", "platform", "user", "host", "pid", "time", "seconds"}
    record = {key: value for key, value in done.items() if key != "written"}
    assert filled.parts[0].record == hashlib.sha256(canonical(record)).hexdigest()


def test_records_do_not_depend_on_who_wrote_them(tmp_path, spec, make_images):
    parts = []
    for name in ("one", "other"):
        store = Store.create(tmp_path / name, spec)
        store.write_images("i-0", make_images("a", "b"), provenance={"device": name})
        parts.append(Part.of_done(store.path, read_done(store.path, "i-0")))
        assert read_done(store.path, "i-0")["written"]["device"] == name
    assert parts[0] == parts[1]


def test_the_files_of_a_part_are_as_its_record_says(filled):
    for part in filled.parts:
        for path, size in part.files.items():
            assert checksum(filled.path / path) == size


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_statistics_are_those_of_numpy(dtype):
    draw = np.random.default_rng(0)
    tokens = draw.normal(3, [0.01, 1, 100, 0], (700, 5, 4))
    given = to_bfloat16(tokens) if dtype == "bfloat16" else tokens.astype(dtype)
    found = statistics(ImageRows([str(row) for row in range(700)], [""] * 700, [(1, 1)] * 700, given, given[:, 0]))
    chosen = range(0, 700, 3)
    exact = from_bfloat16(given) if dtype == "bfloat16" else given
    for name, values in (("tokens", exact[::3].reshape(-1, 4)), ("pooled", exact[::3, 0])):
        values = values.astype(np.float64)
        np.testing.assert_allclose(found[name]["mean"], values.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(found[name]["std"], values.std(axis=0), rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(found[name]["absmax"], np.abs(values).max(axis=0), rtol=1e-4)
    assert found["rows"] == len(chosen)
