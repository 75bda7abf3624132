"""Ragged rows: exact values, zeros behind them, and no flipped bit returned as data."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from compal.errors import InputError, VerificationError
from compal.stores.dtypes import NotFinite
from compal.stores.ragged import RaggedFile
from compal.stores.ragged_writer import write_ragged
from compal.stores.reading import Reading

F2 = np.dtype("<f2")


@pytest.fixture
def rows():
    tokens = [np.array([[1, 2]]), np.array([[3, 4], [5, 6], [7, 8]]), np.array([[9, 10], [11, 12]])]
    return tokens, np.array([[0.5], [1.5], [2.5]])


@pytest.fixture
def path(tmp_path, rows):
    write_ragged(tmp_path / "t.arrow", *rows, "float16", 2)
    return tmp_path / "t.arrow"


def test_rows_are_what_was_written(path, rows):
    file = RaggedFile(path)
    assert file.lengths.tolist() == [1, 3, 2]
    for index, expected in enumerate(rows[0]):
        np.testing.assert_array_equal(file.row(index), expected)
    out = np.empty((2, 1), F2)
    file.pooled_into(np.array([2, 0]), out, np.array([1, 0]))
    assert out.tolist() == [[0.5], [2.5]]


def test_padding_is_zeros(path):
    out, mask = np.full((2, 4, 2), 99, F2), np.zeros((2, 4), bool)
    RaggedFile(path).read_into(np.array([2, 0]), out, mask, np.array([0, 1]))
    assert out[0].tolist() == [[9, 10], [11, 12], [0, 0], [0, 0]]
    assert out[1].tolist() == [[1, 2], [0, 0], [0, 0], [0, 0]]
    assert mask.tolist() == [[True, True, False, False], [True, False, False, False]]


def test_rows_are_views_of_the_file(path):
    file = RaggedFile(path)
    assert not file.row(1).flags.owndata
    assert not file.row(1).flags.writeable


def test_the_file_is_plain_arrow(path):
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        assert reader.num_record_batches == 1
        table = reader.read_all()
    assert table.schema.field("tokens").type == pa.list_(pa.list_(pa.float16(), 2))
    assert table.column("tokens").to_pylist()[2] == [[9, 10], [11, 12]]


def test_pooled_alone(tmp_path):
    write_ragged(tmp_path / "p.arrow", None, np.array([[1.0, 2.0]]), "float16")
    file = RaggedFile(tmp_path / "p.arrow")
    assert file.tokens is None
    assert file.lengths.tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_the_row_that_float16_cannot_hold_is_named(tmp_path, rows, bad):
    tokens, pooled = rows
    tokens[1] = tokens[1] * 1.0
    tokens[1][0, 0] = bad
    with pytest.raises(NotFinite) as caught:
        write_ragged(tmp_path / "n.arrow", tokens, pooled, "float16", 2)
    assert caught.value.row == 1
    assert caught.value.overflow == (bad == 1e6)


@pytest.mark.parametrize(("value", "what"), [(7.0, "tokens row 1"), (1.5, "pooled row 1")])
def test_a_flipped_bit_is_an_error_at_read(path, value, what):
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.array(value, F2).tobytes())] ^= 1
    path.write_bytes(raw)
    file = RaggedFile(path)
    with pytest.raises(VerificationError, match=what):
        read_all(file)


def read_all(file):
    for index in range(file.rows):
        file.row(index)
    file.pooled_into(np.arange(file.rows), np.empty((file.rows, 1), F2), np.arange(file.rows))


def test_no_truncation_goes_unseen(path):
    raw = path.read_bytes()
    for keep in range(0, len(raw), 97):
        path.write_bytes(raw[:keep])
        with pytest.raises(VerificationError):
            RaggedFile(path)


def test_offsets_out_of_order(path):
    raw = path.read_bytes()
    offsets = np.array([0, 1, 4, 6], "<i4").tobytes()
    assert raw.count(offsets) == 1
    path.write_bytes(raw.replace(offsets, np.array([0, 5, 4, 6], "<i4").tobytes()))
    with pytest.raises(VerificationError):
        RaggedFile(path)


# --- batches and checks ----------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    """60 rows of 1 to 12 tokens, and what Arrow itself reads of them."""
    draw = np.random.default_rng(0)
    tokens = [draw.normal(size=(int(length), 16)).astype(F2) for length in draw.integers(1, 13, 60)]
    write_ragged(tmp_path / "m.arrow", tokens, draw.normal(size=(60, 4)).astype(F2), "float16", 16)
    with pa.memory_map(str(tmp_path / "m.arrow")) as source:
        slow = pa.ipc.open_file(source).read_all().column("tokens").to_pylist()
    return tmp_path / "m.arrow", [np.array(row, F2) for row in slow]


@pytest.mark.parametrize("check", ["first", "always", "sampled", "never"])
def test_batches_are_what_arrow_reads(many, check):
    path, slow = many
    file, draw = RaggedFile(path, Reading(check=check, sample=3)), np.random.default_rng(1)
    for count in (0, 1, 7, 60, 200):
        rows = draw.integers(0, 60, count)
        positions = draw.permutation(210)[:count]
        out, mask = np.full((210, 12, 16), 7, F2), np.ones((210, 12), bool)
        file.read_into(rows, out, mask, positions)
        for row, position in zip(rows, positions, strict=True):
            length = len(slow[row])
            np.testing.assert_array_equal(out[position, :length], slow[row])
            assert not out[position, length:].any()
            assert mask[position].tolist() == [True] * length + [False] * (12 - length)
        rest = np.delete(np.arange(210), positions)
        assert (out[rest] == 7).all()
        assert mask[rest].all()


def test_buffers_that_do_not_fit(many):
    file, zero = RaggedFile(many[0]), np.zeros(1, np.int64)
    longest = np.array([int(file.lengths.argmax())])
    for out in (np.zeros((1, 11, 16), F2), np.zeros((1, 12, 15), F2), np.zeros((1, 12, 16), np.float32)):
        with pytest.raises(InputError, match="do not fit"):
            file.read_into(longest, out, np.zeros(out.shape[:2], bool), zero)


def flip(path, position):
    """In place, so that the map of an open part sees it."""
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0] ^ 16
        file.seek(position)
        file.write(bytes([byte]))


@pytest.mark.parametrize(
    ("check", "before", "after"),
    [("first", True, False), ("always", True, True), ("sampled", True, True), ("never", False, False)],
)
@pytest.mark.parametrize("what", ["tokens", "pooled"])
def test_which_policy_finds_a_flipped_bit_and_when(many, check, before, after, what):
    """Before and after the first touch of the row."""
    path, slow = many
    reading = Reading(check=check, sample=2)
    values = slow[5] if what == "tokens" else np.array(RaggedFile(path).pooled[5])
    position = path.read_bytes().index(values.tobytes()) + 3
    for touched, found in ((False, before), (True, after)):
        file = RaggedFile(path, reading)
        if touched:
            read_row_5(file)
        flip(path, position)
        if found:
            with pytest.raises(VerificationError, match=f"{what} row 5"):
                read_row_5(file)
        else:
            read_row_5(file)
        flip(path, position)


def read_row_5(file):
    row, zero = np.array([5]), np.zeros(1, np.int64)
    for _ in range(100):  # sampled: one in two, missed with probability 2^-100
        file.read_into(row, np.empty((1, 12, 16), F2), np.empty((1, 12), bool), zero)
        file.row(5)
        file.pooled_into(row, np.empty((1, 4), F2), zero)


def test_a_part_cut_off_while_open(many):
    """Not SIGBUS: the size is compared before the map is touched."""
    file, zero = RaggedFile(many[0]), np.zeros(1, np.int64)
    os.truncate(many[0], 100)
    with pytest.raises(VerificationError, match="ends early"):
        file.row(3)
    with pytest.raises(VerificationError, match="ends early"):
        file.read_into(zero, np.empty((1, 12, 16), F2), np.empty((1, 12), bool), zero)
    with pytest.raises(VerificationError, match="ends early"):
        file.pooled_into(zero, np.empty((1, 4), F2), zero)


def test_threads_share_a_part(many):
    file, slow = RaggedFile(many[0], Reading(check="always")), many[1]

    def work(seed):
        out, mask = np.empty((32, 12, 16), F2), np.empty((32, 12), bool)
        for _ in range(20):
            rows = np.random.default_rng(seed).integers(0, 60, 32)
            file.read_into(rows, out, mask, np.arange(32))
            assert all((out[i, : len(slow[row])] == slow[row]).all() for i, row in enumerate(rows))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
