"""Flipped bits under each policy of checking, in every mode: found when they should be."""

import os

import numpy as np
import pytest

from compal.errors import VerificationError
from compal.stores.buffers import sample_buffer
from compal.stores.dense import open_array
from compal.stores.reading import Checks, Reading
from compal.stores.writer import write_array

MODES = ("map", "pread", "direct")
SHAPES = {  # name: shape, dtype, rows per chunk
    "small samples, unaligned": ((23, 3, 8), "float16", 1),
    "samples on pages": ((12, 50, 512), "float16", 1),
    "rows in chunks": ((11, 6), "float16", 2),
}


def contiguous(count, inner, dtype):
    return np.empty((count, *inner), dtype)


@pytest.fixture
def flip(tmp_path):
    """`flip(case)`: an array of the case with a bit flipped in row 2, and the position to flip it back."""

    def make(name="samples on pages"):
        shape, dtype, chunk_rows = SHAPES[name]
        values = np.random.default_rng(0).normal(size=shape).astype(dtype)
        write_array(tmp_path / "a", values, dtype, chunk_rows)
        path = next((tmp_path / "a").glob("c.*"))
        position = path.read_bytes().index(values[2].tobytes()) + 5
        toggle(path, position)
        return tmp_path / "a", values, lambda: toggle(path, position)

    return make


def toggle(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0] ^ 1
        file.seek(position)
        file.write(bytes([byte]))


@pytest.mark.parametrize("make", [sample_buffer, contiguous])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("check", ["first", "always"])
@pytest.mark.parametrize("mode", MODES)
def test_a_flipped_bit_is_found_at_first_touch(flip, mode, check, name, make):
    folder, values, back = flip(name)
    array = open_array(folder, Reading(mode, check))
    out = make(5, values.shape[1:], values.dtype)
    with pytest.raises(VerificationError, match="crc32c of chunk"):
        array.read_into(np.array([4, 2, 4, 3, 1]), out, np.arange(5))
    with pytest.raises(VerificationError, match="crc32c of chunk"):  # and at every touch after it
        array.read_into(np.array([2]), out, np.array([0]))
    back()
    array.read_into(np.array([4, 2, 4, 3, 1]), out, np.arange(5))
    np.testing.assert_array_equal(out, values[[4, 2, 4, 3, 1]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("check", "found"), [("first", False), ("always", True), ("never", False)])
def test_a_bit_that_flips_after_the_first_touch(flip, mode, check, found):
    folder, values, toggle_bit = flip()
    toggle_bit()
    array = open_array(folder, Reading(mode, check))
    out = sample_buffer(12, values.shape[1:], values.dtype)
    array.read_into(np.arange(12), out, np.arange(12))
    toggle_bit()
    if found:
        with pytest.raises(VerificationError, match="chunk 2"):
            array.read_into(np.arange(12), out, np.arange(12))
    else:
        array.read_into(np.arange(12), out, np.arange(12))
        assert (out[2] != values[2]).sum() == 1


@pytest.mark.parametrize("mode", MODES)
def test_unchecked_reads_return_what_is_there(flip, mode):
    folder, values, _ = flip()
    out = sample_buffer(1, values.shape[1:], values.dtype)
    open_array(folder, Reading(mode, "never")).read_into(np.array([2]), out, np.array([0]))
    assert (out[0] != values[2]).sum() == 1


@pytest.mark.parametrize("mode", MODES)
def test_sampled_checks_find_a_flipped_bit_in_time(flip, mode):
    folder, values, _ = flip("small samples, unaligned")
    array = open_array(folder, Reading(mode, "sampled", sample=8))
    out = sample_buffer(1, values.shape[1:], values.dtype)
    reads = [array.read_into] * 400  # all miss it with probability (7/8)^400 = 10^-23
    with pytest.raises(VerificationError, match="chunk 2"):
        [read(np.array([2]), out, np.array([0])) for read in reads]


def test_how_often_each_policy_checks():
    rows = np.arange(1000)
    assert sum(Checks(Reading(check="always"), 1000).due(rows)) == 1000
    assert sum(Checks(Reading(check="never"), 1000).due(rows)) == 0
    assert sum(Checks(Reading(check="sampled", sample=1), 1000).due(rows)) == 1000
    assert 60 <= sum(Checks(Reading(check="sampled", sample=10), 1000).due(rows)) <= 150
    first = Checks(Reading(), 1000)
    assert sum(first.due(rows)) == 1000
    for row in range(990):
        first.passed(row)
    assert sum(first.due(rows)) == 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["samples on pages", "rows in chunks"])
def test_a_file_cut_off_while_open(flip, mode, name):
    """Not SIGBUS: the size is compared before a map is touched."""
    folder, values, back = flip(name)
    back()
    array = open_array(folder, Reading(mode))
    out = sample_buffer(2, values.shape[1:], values.dtype)
    array.read_into(np.array([0, 1]), out, np.arange(2))
    path = next(folder.glob("c.*"))
    os.truncate(path, path.stat().st_size // 3)
    with pytest.raises(VerificationError, match="ends early"):
        array.read_into(np.array([len(values) - 1, len(values) - 2]), out, np.arange(2))
