"""Every mode of reading gives zarr-python's values, under every order, buffer and check; after forks, in threads."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from compal.errors import InputError, UsageError, VerificationError
from compal.stores import reading as reading_module
from compal.stores.buffers import PAGE, aligned_empty, sample_buffer
from compal.stores.dense import ForeignArray, ShardedArray, open_array, read_batch
from compal.stores.reading import Reading, allows_direct, available_memory, spread
from compal.stores.writer import write_array

MODES = ("map", "pread", "direct")
CHECKS = ("first", "always", "sampled", "never")
CASES = {  # name: shape, dtype, rows per chunk, rows per shard
    "small samples, unaligned": ((23, 3, 8), "float16", 1, 0),
    "samples of a page and a bit": ((9, 64, 96), "float16", 1, 0),
    "samples on pages": ((12, 50, 512), "float16", 1, 0),
    "samples on pages, ragged last shard": ((11, 50, 512), "float16", 1, 4),
    "float32, ragged last shard": ((7, 2, 5), "float32", 1, 3),
    "rows in chunks, ragged last shard": ((11, 6), "float16", 2, 8),
    "a single row": ((1, 6), "float32", 1, 0),
}
BUFFERS = {
    "contiguous": lambda count, inner, dtype: np.full((count, *inner), 9, dtype),
    "aligned": lambda count, inner, dtype: aligned_empty((count, *inner), dtype),
    "samples": sample_buffer,
    "every second": lambda count, inner, dtype: sample_buffer(2 * count, inner, dtype)[::2],
    "part of wider rows": lambda count, inner, dtype: np.zeros((count, inner[0] + 1, *inner[1:]), dtype)[:, :-1],
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def written(request, tmp_path):
    """A folder with one array, and zarr-python's values of it."""
    shape, dtype, chunk_rows, shard_rows = request.param
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    write_array(tmp_path / "a", values, dtype, chunk_rows, shard_rows=shard_rows)
    return tmp_path / "a", zarr.open_array(str(tmp_path / "a"), mode="r")[:]


@pytest.mark.parametrize("buffer", BUFFERS.values(), ids=BUFFERS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_reads_what_zarr_python_reads(written, mode, buffer):
    folder, expected = written
    array = open_array(folder, Reading(mode, threads=3))
    assert isinstance(array, ShardedArray)
    draw = np.random.default_rng(1)
    out = buffer(41, expected.shape[1:], expected.dtype)
    for rows in (np.arange(len(expected)), draw.integers(0, len(expected), 40), draw.integers(0, len(expected), 1)):
        out[:] = 7
        positions = draw.permutation(41)[: len(rows)]
        array.read_into(rows, out, positions)
        np.testing.assert_array_equal(out[positions], expected[rows])
        assert (np.delete(out, positions, axis=0) == 7).all()


@pytest.mark.parametrize("mode", MODES)
def test_what_lies_between_the_rows_of_other_buffers_is_left(tmp_path, mode):
    """Only the gaps of a `sample_buffer` of this very shape are scratch; these belong to somebody."""
    values = np.random.default_rng(0).normal(size=(6, 50, 512)).astype(np.float16)
    write_array(tmp_path / "a", values, "float16")
    array, wider = open_array(tmp_path / "a", Reading(mode)), sample_buffer(6, (51, 512), np.float16)
    wider[:] = 7
    array.read_into(np.arange(6), wider[:, :50], np.arange(6))
    np.testing.assert_array_equal(wider[:, :50], values)
    assert (wider[:, 50] == 7).all()
    doubled = sample_buffer(12, (50, 512), np.float16)
    doubled[:] = 7
    array.read_into(np.arange(6), doubled[1::2], np.arange(6))
    np.testing.assert_array_equal(doubled[1::2], values)
    assert (doubled[::2] == 7).all()


@pytest.mark.parametrize("mode", MODES)
def test_empty_requests_touch_nothing(written, mode):
    folder, expected = written
    for path in folder.glob("c.*"):
        path.unlink()
    none = np.zeros(0, np.int64)
    out = np.full((2, *expected.shape[1:]), 7, expected.dtype)
    open_array(folder, Reading(mode)).read_into(none, out, none)
    open_array(folder, Reading(mode)).read_into(none, out[:0], none)
    read_batch([], out)
    assert (out == 7).all()


@pytest.mark.parametrize("mode", MODES)
def test_chunks_in_another_order_and_absent_ones(tmp_path, mode):
    """What zarr-python writes: chunks along a curve, tight against each other, all-zero ones left out."""
    values = np.random.default_rng(0).normal(size=(7, 3, 8)).astype(np.float16)
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
    array = open_array(tmp_path / "a", Reading(mode))
    assert isinstance(array, ShardedArray)
    rows = np.array([6, 2, 0, 2, 5, 6])
    for make in BUFFERS.values():
        out = make(6, (3, 8), np.dtype(np.float16))
        out[:] = 7
        array.read_into(rows, out, np.arange(6))
        np.testing.assert_array_equal(out, values[rows])


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_over_many_arrays(tmp_path, mode):
    """Sharded and foreign arrays in one batch; every array's rows land where they are asked for."""
    values = np.random.default_rng(0).normal(size=(5, 4, 50, 512)).astype(np.float16)
    arrays = []
    for number, part in enumerate(values):
        if number == 3:
            zarr.create_array(str(tmp_path / "3"), shape=part.shape, dtype="float16", compressors=None)[:] = part
        else:
            write_array(tmp_path / str(number), part, "float16")
        arrays.append(open_array(tmp_path / str(number), Reading(mode)))
    assert isinstance(arrays[3], ForeignArray)
    order = np.random.default_rng(1).permutation(20)
    requests = [
        (array, order[order // 4 == number] % 4, np.flatnonzero(order // 4 == number))
        for number, array in enumerate(arrays)
    ]
    out = sample_buffer(20, (50, 512), np.float16)
    read_batch(requests, out)
    np.testing.assert_array_equal(out, values.reshape(20, 50, 512)[order])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("rows", "positions", "shape", "dtype", "error"),
    [
        ([3], [0], (1, 2, 2), "float16", IndexError),
        ([-1], [0], (1, 2, 2), "float16", IndexError),
        ([0], [1], (1, 2, 2), "float16", IndexError),
        ([0], [-1], (1, 2, 2), "float16", IndexError),
        ([0], [0], (1, 2, 3), "float16", InputError),
        ([0], [0], (1, 2, 2), "float32", InputError),
        ([0, 1], [0], (1, 2, 2), "float16", InputError),
    ],
)
def test_requests_that_do_not_fit(tmp_path, mode, rows, positions, shape, dtype, error):
    write_array(tmp_path / "a", np.zeros((3, 2, 2)), "float16")
    array = open_array(tmp_path / "a", Reading(mode))
    with pytest.raises(error):
        array.read_into(np.array(rows), np.zeros(shape, dtype), np.array(positions))


def test_rows_of_a_buffer_must_be_contiguous(tmp_path):
    write_array(tmp_path / "a", np.zeros((3, 2, 2)), "float16")
    out = np.zeros((3, 2, 4), np.float16)[:, :, ::2]
    with pytest.raises(InputError, match="contiguous"):
        open_array(tmp_path / "a").read_into(np.arange(3), out, np.arange(3))


# --- disks and file systems --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_short_reads_are_continued(tmp_path, monkeypatch, mode):
    """The kernel may return less than asked for; past the page cache, whole pages less."""
    values = np.random.default_rng(0).normal(size=(5, 50, 512)).astype(np.float16)
    write_array(tmp_path / "a", values, "float16")
    real = os.preadv

    def short(file, buffers, offset, *flags):
        view = memoryview(buffers[0])
        return real(file, [view[: max(PAGE, len(view) // 3 // PAGE * PAGE)]], offset, *flags)

    array = open_array(tmp_path / "a", Reading(mode))
    monkeypatch.setattr(os, "preadv", short)
    for out in (aligned_empty((5, 50, 512), np.float16), sample_buffer(5, (50, 512), np.float16)):
        array.read_into(np.arange(5), out, np.arange(5))
        np.testing.assert_array_equal(out, values)


def test_a_disk_that_fails(tmp_path, monkeypatch):
    write_array(tmp_path / "a", np.zeros((5, 50, 512)), "float16")
    out = sample_buffer(5, (50, 512), np.float16)
    for mode in ("pread", "direct"):
        array = open_array(tmp_path / "a", Reading(mode))
        array.read_into(np.arange(1), out, np.arange(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", failing)
            with pytest.raises(VerificationError, match="Input/output error"):
                array.read_into(np.arange(5), out, np.arange(5))


def failing(handle, buffers, offset, *flags):
    raise OSError(5, "Input/output error")


def test_a_file_system_without_direct_reads(tmp_path, monkeypatch):
    """One that takes the flag and refuses the read: the same bytes through the page cache."""
    import fcntl

    values = np.random.default_rng(0).normal(size=(5, 50, 512)).astype(np.float16)
    write_array(tmp_path / "a", values, "float16")
    real = os.preadv

    def refusing(handle, buffers, offset, *flags):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(handle, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", refusing)
    assert not allows_direct(tmp_path / "a")
    out = sample_buffer(5, (50, 512), np.float16)
    open_array(tmp_path / "a", Reading("direct")).read_into(np.arange(5), out, np.arange(5))
    np.testing.assert_array_equal(out, values)


def test_direct_reads_pass_the_page_cache_and_land_in_place(tmp_path, monkeypatch):
    if not allows_direct(Path.cwd()):
        pytest.skip("the file system has no O_DIRECT")
    import fcntl

    values = np.random.default_rng(0).normal(size=(8, 50, 512)).astype(np.float16)
    write_array(tmp_path / "a", values, "float16")
    array, out = open_array(tmp_path / "a", Reading("direct")), sample_buffer(8, (50, 512), np.float16)
    array.read_into(np.array([0]), out, np.array([0]))
    handle = array._shard(0).handle
    if not fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
        pytest.skip("the temporary folder has no O_DIRECT")
    monkeypatch.setattr("compal.stores.requests._read_by_scratch", None)  # would raise
    array.read_into(np.arange(8), out, np.arange(8))
    np.testing.assert_array_equal(out, values)


# --- threads and forks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["small samples, unaligned", "samples on pages, ragged last shard"])
def test_many_threads_on_one_array(tmp_path, mode, name):
    shape, dtype, chunk_rows, shard_rows = CASES[name]
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    write_array(tmp_path / "a", values, dtype, chunk_rows, shard_rows=shard_rows)
    array = open_array(tmp_path / "a", Reading(mode, "always", threads=4))

    def work(seed):
        draw = np.random.default_rng(seed)
        out = (sample_buffer if seed % 2 else BUFFERS["contiguous"])(16, shape[1:], dtype)
        for _ in range(15):
            rows = draw.integers(0, shape[0], 16)
            array.read_into(rows, out, np.arange(16))
            np.testing.assert_array_equal(out, values[rows])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("mode", [*MODES, "foreign"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 warns of forks beside threads
def test_reading_goes_on_after_a_fork(tmp_path, mode):
    """Data loaders fork while the parent's threads read. The child has no threads but its own."""
    values = np.random.default_rng(0).normal(size=(9, 50, 512)).astype(np.float16)
    if mode == "foreign":
        zarr.create_array(str(tmp_path / "a"), shape=values.shape, dtype="float16", compressors=None)[:] = values
        array = open_array(tmp_path / "a")
    else:
        write_array(tmp_path / "a", values, "float16")
        array = open_array(tmp_path / "a", Reading(mode, "always", threads=4))
    out = sample_buffer(9, (50, 512), np.float16)
    stop = threading.Event()

    def parent():
        own = sample_buffer(9, (50, 512), np.float16)
        while not stop.is_set():
            array.read_into(np.arange(9), own, np.arange(9))

    busy = threading.Thread(target=parent)
    busy.start()
    try:
        for _ in range(3):
            array.read_into(np.arange(9), out, np.arange(9))
            child = os.fork()
            if child == 0:
                try:
                    out[:] = 0
                    for _ in range(3):
                        array.read_into(np.arange(9)[::-1], out, np.arange(9))
                    os._exit(0 if (out == values[::-1]).all() else 1)
                finally:
                    os._exit(2)
            assert ended(child) == 0
    finally:
        stop.set()
        busy.join()


def ended(child):
    for _ in range(1000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"


def test_spread_waits_for_all_before_it_raises():
    """No thread may write into a buffer whose owner has it back."""
    started, finished = [], []

    def work(job):
        started.append(job)
        if job == 1:
            raise ValueError("job 1")
        time.sleep(0.05)
        finished.append(job)

    with pytest.raises(ValueError, match="job 1"):
        spread(work, range(100), 4)
    assert sorted(started) == sorted([*finished, 1])
    assert len(started) < 100


def test_spread_does_each_job_once():
    done = []
    spread(done.append, range(1000), 8)
    spread(done.append, [1000], 8)
    spread(done.append, [], 8)
    assert sorted(done) == list(range(1001))


# --- choosing --------------------------------------------------------------------------------------------


def test_auto_chooses_by_the_memory(tmp_path, monkeypatch):
    (tmp_path / "spec.json").write_bytes(bytes(PAGE))
    monkeypatch.setattr(reading_module, "available_memory", lambda: 1000)
    monkeypatch.setattr(reading_module, "allows_direct", lambda folder: True)
    chosen = [Reading(check="always").resolve(size, tmp_path) for size in (0, 500, 501, 1000, 1001)]
    assert [one.mode for one in chosen] == ["map", "map", "pread", "pread", "direct"]
    assert {one.check for one in chosen} == {"always"}
    monkeypatch.setattr(reading_module, "allows_direct", lambda folder: False)
    assert Reading().resolve(1001, tmp_path).mode == "pread"
    assert Reading("direct").resolve(0, tmp_path).mode == "direct"


def test_the_memory_that_is_there():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= total


def test_direct_needs_a_file_to_try(tmp_path):
    assert not allows_direct(tmp_path)
    assert not allows_direct(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "mmap"}, "mode 'mmap'.*pread"),
        ({"check": "all"}, "always"),
        ({"threads": 0}, "at least"),
        ({"sample": 0}, "at least"),
    ],
)
def test_settings_that_do_not_exist(options, match):
    with pytest.raises(UsageError, match=match):
        Reading(**options)
