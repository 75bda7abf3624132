"""Ragged rows: exact values, zeros behind them, and no flipped bit returned as data."""

import numpy as np
import pyarrow as pa
import pytest

from compal.errors import VerificationError
from compal.stores.ragged import RaggedFile, write_ragged
from compal.stores.writer import NotFinite

F2 = np.dtype("<f2")


@pytest.fixture
def rows():
    tokens = [np.array([[1, 2]]), np.array([[3, 4], [5, 6], [7, 8]]), np.array([[9, 10], [11, 12]])]
    return tokens, np.array([[0.5], [1.5], [2.5]])


@pytest.fixture
def path(tmp_path, rows):
    write_ragged(tmp_path / "t.arrow", *rows, F2, 2)
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
    write_ragged(tmp_path / "p.arrow", None, np.array([[1.0, 2.0]]), F2)
    file = RaggedFile(tmp_path / "p.arrow")
    assert file.tokens is None
    assert file.lengths.tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_the_row_that_float16_cannot_hold_is_named(tmp_path, rows, bad):
    tokens, pooled = rows
    tokens[1] = tokens[1] * 1.0
    tokens[1][0, 0] = bad
    with pytest.raises(NotFinite) as caught:
        write_ragged(tmp_path / "n.arrow", tokens, pooled, F2, 2)
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
