"""Buffers start on pages, lie as samples lie on disk, and only their own gaps are scratch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from compal.stores.buffers import PAGE, aligned_empty, alignment, rooms, sample_buffer, scratch, whole
from compal.stores.writer import alignment as written_alignment


def test_a_sample_buffer_lies_as_samples_lie_on_disk():
    buffer = sample_buffer(3, (196, 768), np.float16)
    assert buffer.shape == (3, 196, 768)
    assert type(buffer) is np.ndarray
    assert buffer.strides[0] == 303104  # 301,056 bytes, 4 of a crc32c, up to the next page
    assert buffer.ctypes.data % PAGE == 0
    for view in (buffer, buffer[:2], buffer[1:]):
        room = rooms(view)
        assert room.shape == (len(view), 303104)
        assert room.ctypes.data == view.ctypes.data
    assert sample_buffer(3, (64, 96), np.float16).flags.c_contiguous  # 12,288: a page more would be 33 %


def test_the_whole_of_a_sample_buffer():
    buffer = sample_buffer(3, (50, 512), np.float16)
    buffer[:] = np.arange(3)[:, None, None]
    block = whole(buffer)
    assert block.shape == (3, 53248 // 2)
    assert block.flags.c_contiguous
    np.testing.assert_array_equal(block[:, : 50 * 512].reshape(buffer.shape), buffer)
    plain = aligned_empty((3, 4, 2), np.float16)
    assert whole(plain).shape == (3, 8)
    assert np.shares_memory(whole(plain), plain)


def test_only_gaps_that_are_ours_are_rooms():
    assert rooms(aligned_empty((3, 50, 512), np.float16)) is None
    buffer = sample_buffer(4, (50, 512), np.float16)
    assert rooms(buffer[:, :49]) is None
    assert rooms(buffer[::2]) is None
    assert rooms(buffer[:0]) is None
    assert rooms(sample_buffer(4, (64, 96), np.float16)) is None


def test_scratch_is_reused_and_each_threads_own():
    mine = scratch(100)
    assert scratch(1 << 20).ctypes.data == mine.ctypes.data
    assert mine.ctypes.data % PAGE == 0
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(scratch, 100).result()
    assert not np.shares_memory(mine, other)


def test_buffers_and_files_agree_on_the_boundary():
    for size in (8, 12_288, 51_200, 65_532, 301_056, 1 << 20):
        assert alignment(size) == written_alignment(size)
