"""The key index against a dict: any key, any order, twins, prefixes, damage."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compal.stores import index as module
from compal.stores.index import KeyIndex, key_index


def hexes(*numbers):
    return [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in numbers]


def columns(parts):
    return [pa.chunked_array([pa.array(keys, pa.string())]) for keys in parts]


def reference(parts, first=0):
    found = {}
    for number, keys in enumerate(parts, first):
        for row, key in enumerate(keys):
            found.setdefault(key, number << 32 | row)
    return found


KEY = st.one_of(
    st.text(min_size=1, max_size=40),
    st.sampled_from([*hexes(*range(6)), "0" * 32, "f" * 32, "F" * 32, "0" * 31 + " ", "é" * 32]),
)


@settings(deadline=None)  # the first call imports; time is not what is tested
@given(st.lists(st.lists(KEY, max_size=8, unique=True), max_size=5), st.lists(KEY, max_size=8))
def test_it_is_the_dict(parts, asked):
    index, expected = KeyIndex.build(0, columns(parts)), reference(parts)
    assert len(index) == len(expected)
    asked += expected
    assert index.locate(asked).tolist() == [expected.get(key, -1) for key in asked]
    assert [index.place(key) for key in asked] == [expected.get(key, -1) for key in asked]


@settings(deadline=None)
@given(st.lists(st.lists(KEY, max_size=6, unique=True), max_size=6), st.integers(0, 6))
def test_extending_is_building(parts, cut):
    first = KeyIndex.build(0, columns(parts[:cut]))
    index = first.extended(KeyIndex.build(cut, columns(parts[cut:])))
    whole = KeyIndex.build(0, columns(parts))
    assert sorted(index.places.tolist()) == sorted(whole.places.tolist())
    assert index.locate(list(reference(parts))).tolist() == list(reference(parts).values())


def crowd(monkeypatch, mask):
    """Digests whose first halves keep only the bits of `mask`."""
    vectors, one = module._hex_digests, module._digest

    def crowded(raw):
        (high, low), sound = vectors(raw)
        return (high & np.uint64(mask), low), sound

    monkeypatch.setattr(module, "_hex_digests", crowded)
    monkeypatch.setattr(module, "_digest", lambda key: (int.from_bytes(one(key)[:8]) & mask).to_bytes(8) + one(key)[8:])


def test_digests_that_share_their_first_half(monkeypatch):
    """64 equal bits among 5 million keys happen once in a million stores; here in every one."""
    crowd(monkeypatch, 3)
    parts = [hexes(*range(40)), hexes(*range(20, 60))]
    index, expected = KeyIndex.build(0, columns(parts)), reference(parts)
    asked = [*expected, *hexes(*range(60, 80))]
    random.Random(0).shuffle(asked)
    assert len(index) == 60
    assert index.locate(asked).tolist() == [expected.get(key, -1) for key in asked]
    assert [index.place(key) for key in asked] == [expected.get(key, -1) for key in asked]


def test_a_sliced_column_and_an_empty_one():
    keys = hexes(*range(9))
    column = pa.chunked_array([pa.array(keys[:4]).slice(1, 2), pa.array([], pa.string()), pa.array(keys[6:])])
    index = KeyIndex.build(3, [column])
    assert index.locate([keys[1], keys[2], keys[6], keys[0]]).tolist() == [3 << 32, 3 << 32 | 1, 3 << 32 | 2, -1]
    assert KeyIndex.build(0, []).locate(keys).tolist() == [-1] * 9


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """`kept(parts)`: the index of a store whose indexes are always kept, and how many parts were read."""
    monkeypatch.setattr(module, "KEPT_FROM", 0)

    def make(parts):
        read, tables = [], columns(parts)

        def one(number):
            read.append(number)
            return tables[number]

        records = [hashlib.sha256(repr(keys).encode()).hexdigest() for keys in parts]
        return key_index(tmp_path, "image", records, sum(map(len, parts)), one), read

    return make


def test_it_is_kept_and_extended(kept, tmp_path):
    parts = [hexes(0, 1), hexes(2, 3, 0), hexes(4)]
    assert kept(parts[:2])[1] == [0, 1]
    assert kept(parts[:2])[1] == []
    index, read = kept(parts)
    assert read == [2]
    assert index.locate(hexes(*range(6))).tolist() == [0, 1, 1 << 32, 1 << 32 | 1, 2 << 32, -1]
    assert len(list((tmp_path / ".index").iterdir())) == 1
    assert kept([parts[0], parts[2]])[1] == [0, 1]  # another history: nothing of it fits


def test_every_damaged_byte_makes_it_anew(kept, tmp_path):
    parts = [hexes(0, 1), hexes(2)]
    kept(parts)
    (path,) = (tmp_path / ".index").iterdir()
    sound = path.read_bytes()
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert KeyIndex.load(path) is None, position
    path.write_bytes(sound[:-1])
    index, read = kept(parts)
    assert read == [0, 1]
    assert index.locate(hexes(2)).tolist() == [1 << 32]
    assert path.read_bytes() == sound


def test_a_store_that_cannot_be_written_is_read_all_the_same(kept, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(module.os, "replace", refuse)
    index, read = kept([hexes(0)])
    assert index.locate(hexes(0)).tolist() == [0]
    assert read == [0]


@pytest.mark.parametrize("mask", [2**64 - 1, 15, 0], ids=["as they are", "crowded", "one heap"])
def test_inserting_a_few_is_building(monkeypatch, mask):
    crowd(monkeypatch, mask)
    parts = [hexes(*range(150)), hexes(*range(100, 300)), hexes(*range(290, 310))]
    index = KeyIndex.build(0, columns(parts[:2])).extended(KeyIndex.build(2, columns(parts[2:])))
    expected = reference(parts)
    assert len(index) == 310
    assert index.locate([*expected, "absent"]).tolist() == [*expected.values(), -1]
