"""The order of an epoch: every unit once, parts together where a window asks for it."""

from __future__ import annotations

import numpy as np
import pytest

from compal.align.order import epoch_order
from compal.align.pairs import PairTable
from compal.align.sampling import DataConfig, Sampler
from compal.errors import UsageError
from compal.stores.items import Pair
from compal.stores.pairs import write_pairs
from compal.stores.store import ImageRows, Store, TextRows

from .conftest import SPEC, image_keys, text_keys

PARTS = np.random.default_rng(5).permutation(np.repeat(np.array([3, 11, 4, 8, 20, 7]), 50))


def runs(parts):
    """How many stretches of equal parts an order has."""
    return 1 + int((np.diff(parts) != 0).sum())


@pytest.mark.parametrize("window", [0, 1, 2, 4, 6, 100])
def test_every_unit_once_and_a_pure_function(window):
    order = epoch_order(PARTS, [0, 1], window)
    assert sorted(order.tolist()) == list(range(300))
    np.testing.assert_array_equal(order, epoch_order(PARTS, [0, 1], window))
    assert not np.array_equal(order, epoch_order(PARTS, [0, 2], window))


def test_without_a_window_it_is_the_shuffle_of_recorded_runs():
    expected = np.random.default_rng([7, 0, 1, 2]).permutation(300)
    np.testing.assert_array_equal(epoch_order(PARTS, [7, 0, 1, 2]), expected)


def test_a_window_mixes_its_parts_and_no_others():
    assert runs(PARTS[epoch_order(PARTS, 0, 1)]) == 6, "part after part"
    order = PARTS[epoch_order(PARTS, 0, 2)].reshape(3, 100)
    seen = [set(block) for block in order.tolist()]
    assert [len(block) for block in seen] == [2, 2, 2]
    assert set().union(*seen) == set(PARTS.tolist())
    assert all(runs(block) > 20 for block in order), "within a window, parts alternate"
    assert len({tuple(sorted(set(PARTS[epoch_order(PARTS, seed, 2)][:100].tolist()))) for seed in range(20)}) > 5
    first = epoch_order(PARTS, 0, 1)[:50]
    assert not np.array_equal(first, np.sort(first)), "units of a part are shuffled too"


def test_no_units_and_bad_windows():
    assert len(epoch_order(np.zeros(0, np.int64), 0, 2)) == 0
    with pytest.raises(UsageError, match="shuffle_window = -1"):
        epoch_order(PARTS, 0, -1)


@pytest.fixture(scope="module")
def many_parts(tmp_path_factory):
    """80 images in ten parts, one caption each."""
    folder = tmp_path_factory.mktemp("many")
    store, rng = Store.create(folder / "store", SPEC), np.random.default_rng(9)

    def half(*shape):
        return rng.standard_normal(shape).astype(np.float16)

    keys, texts = [image_keys(80)[number] for number in rng.permutation(80)], text_keys(80)
    names = [f"i-{part}" for part in range(10)]
    for part, name in enumerate(names):
        here = keys[8 * part : 8 * part + 8]
        store.write_images(name, ImageRows(here, here, [(1, 1)] * 8, half(8, 5, 6), half(8, 8)))
    rows = TextRows(texts, texts, texts, [half(3, 6) for _ in texts], half(80, 8), spans=[[(0, 1)] * 3] * 80)
    store.write_texts("t", rows)
    store.commit([*names, "t"])
    write_pairs(folder / "pairs.parquet", [Pair(*pair) for pair in zip(image_keys(80), texts, strict=True)])
    store = Store.open(folder / "store")
    return store, PairTable.read(folder / "pairs.parquet", store)


def test_with_a_window_an_epoch_reads_each_part_once(many_parts):
    """Parts touched by each step, in the order of steps: without a window every step touches many, with one of two
    parts at most a window's at a time, and no part comes back in the epoch once it was left."""
    store, table = many_parts
    parts = store.parts_of("image", table.image_keys)

    def touched(window, epoch=0):
        config = DataConfig(batch_size=4, shuffle_window=window)
        sampler = Sampler(table, config, 100, 0, parts)
        return [set(parts[table.images[sampler.pairs(20 * epoch + step)]].tolist()) for step in range(20)]

    assert np.mean([len(step) for step in touched(0)]) > 3
    for epoch in range(2):
        steps = touched(2, epoch)
        assert max(len(step) for step in steps) <= 2
        seen = [[number for number, step in enumerate(steps) if part in step] for part in range(10)]
        assert all(spans for spans in seen)
        assert max(spans[-1] - spans[0] + 1 for spans in seen) == 4, "two parts are 16 pairs, four steps"
    assert touched(2, 0) != touched(2, 1)


def test_a_window_needs_the_parts(many_parts):
    _, table = many_parts
    with pytest.raises(UsageError, match="part of each image"):
        Sampler(table, DataConfig(shuffle_window=2), 10, 0)
    with pytest.raises(UsageError, match="at least 0"):
        Sampler(table, DataConfig(shuffle_window=-2), 10, 0)
