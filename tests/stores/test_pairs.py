"""Tables of pairs: written whole, read back equal."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compal.errors import InputError, VerificationError
from compal.stores.items import Pair
from compal.stores.pairs import read_info, read_pairs, write_pairs

PAIRS = [Pair("a", "x", ("y", "z"), "g1", "colour"), Pair("b", "y")]


def test_round_trip(tmp_path):
    path = tmp_path / "pairs" / "shapes" / "train.parquet"
    assert write_pairs(path, iter(PAIRS)) == 2
    assert read_pairs(path).to_pylist() == [
        {"image": "a", "caption": "x", "negatives": ["y", "z"], "group": "g1", "category": "colour"},
        {"image": "b", "caption": "y", "negatives": [], "group": "", "category": ""},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["train.parquet"]


def test_no_pairs_at_all(tmp_path):
    assert write_pairs(tmp_path / "p.parquet", []) == 0
    assert read_pairs(tmp_path / "p.parquet").num_rows == 0


def test_writing_again_replaces_and_failing_keeps(tmp_path, monkeypatch):
    path = tmp_path / "p.parquet"
    write_pairs(path, PAIRS)
    write_pairs(path, PAIRS[:1])
    assert read_pairs(path).num_rows == 1

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="Free space"):
        write_pairs(path, PAIRS)
    assert read_pairs(path).num_rows == 1
    assert [file.name for file in tmp_path.iterdir()] == ["p.parquet"]


def test_what_is_missing_or_damaged(tmp_path):
    path = tmp_path / "p.parquet"
    with pytest.raises(InputError, match="compal extract"):
        read_pairs(path)
    write_pairs(path, PAIRS)
    raw = path.read_bytes()
    for keep in (0, 10, len(raw) - 1):
        path.write_bytes(raw[:keep])
        with pytest.raises(VerificationError):
            read_pairs(path)
    pq.write_table(pa.table({"image": ["a"]}), path)
    with pytest.raises(VerificationError, match="columns"):
        read_pairs(path)


def test_where_the_pairs_come_from_is_kept(tmp_path):
    path = tmp_path / "p.parquet"
    info = {"dataset": "coco", "licence": "CC BY 4.0", "revision": "sha256:…"}
    write_pairs(path, PAIRS, info)
    assert read_info(path) == info
    assert read_pairs(path).num_rows == 2
    write_pairs(path, [], info)
    assert read_info(path) == info
    write_pairs(path, PAIRS)
    assert read_info(path) == {}
