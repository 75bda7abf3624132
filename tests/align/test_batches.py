"""Joining by key: any order, every level, in memory or from the store."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compal.align.batches import Dense, FeatureTable, estimated_bytes, join, open_table
from compal.align.tables import Staging
from compal.errors import MissingFeatures, UsageError

from .conftest import image_keys, text_keys

LEVELS = ("tokens", "pooled", "regions")


def same(one, other):
    for name in ("images", "image_mask", "image_pooled", "texts", "text_mask", "text_pooled"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            torch.testing.assert_close(left, right, rtol=0, atol=0, msg=name)


def test_join_gives_padded_float32_and_masks(store):
    batch = join(store, image_keys(3), text_keys(6))
    assert batch.shape == (3, 6)
    assert batch.images.shape == (3, 5, 6)
    assert batch.texts.shape == (6, 6, 6)
    assert batch.text_mask.sum(1).tolist() == [2, 3, 4, 5, 6, 2]
    assert batch.image_mask.all()
    features = (batch.images, batch.texts, batch.image_pooled, batch.text_pooled)
    assert {tensor.dtype for tensor in features} == {torch.float32}
    assert (batch.texts[~batch.text_mask] == 0).all()
    assert not batch.positives.any()
    np.testing.assert_array_equal(batch.images.numpy(), store.image_tokens(image_keys(3)).astype(np.float32))


def test_join_is_by_key_and_not_by_order(store):
    images, texts = image_keys(9), text_keys(9)
    batch = join(store, images, texts)
    order = torch.tensor([4, 0, 8, 4, 7])
    shuffled = join(store, [images[i] for i in order], [texts[i] for i in order])
    expected = batch.select(order, order)
    length = shuffled.texts.shape[1]
    expected.texts, expected.text_mask = expected.texts[:, :length], expected.text_mask[:, :length]
    same(shuffled, expected)


def test_what_is_not_needed_is_not_read(store):
    batch = join(store, image_keys(2), text_keys(2), needs="pooled")
    assert batch.images is None
    assert batch.texts is None
    assert batch.image_pooled.shape == (2, 8)


def test_pooled_stores_have_no_tokens(stores):
    batch = join(stores["pooled"], image_keys(2), text_keys(2))
    assert batch.images is batch.texts is batch.image_mask is None


def test_regions_are_padded_with_a_mask(stores):
    batch = join(stores["regions"], image_keys(4), text_keys(4))
    assert batch.images.shape == (4, 4, 8)
    assert batch.image_mask.sum(1).tolist() == [1, 2, 3, 4]
    assert batch.texts.shape == (4, 5, 8)


def test_missing_keys_are_named(store):
    with pytest.raises(MissingFeatures, match="compal extract"):
        join(store, [*image_keys(1), "f" * 32], text_keys(1))


@pytest.mark.parametrize("level", LEVELS)
def test_in_memory_equals_from_the_store(stores, level):
    images, texts = image_keys(40), text_keys(60)
    loaded = FeatureTable.loaded(stores[level], images, texts, "cpu", "tokens")
    streaming = FeatureTable.streaming(stores[level], images, texts, "cpu", "tokens")
    assert loaded.resident == "ram"
    assert streaming.resident == "disk"
    rng = np.random.default_rng(0)
    for _ in range(3):
        rows, columns = rng.integers(0, 40, 7), rng.integers(0, 60, 9)
        same(loaded.batch(rows, columns), streaming.batch(rows, columns))


@pytest.mark.parametrize("level", LEVELS)
def test_budget_decides_and_the_estimate_is_right(stores, level):
    images, texts = image_keys(40), text_keys(60)
    expected = estimated_bytes(stores[level], images, texts, "tokens")
    loaded = open_table(stores[level], images, texts, "cpu", "tokens", "auto", expected)
    held = [loaded.image_pooled, loaded.text_pooled, loaded.images, loaded.texts]
    tensors = [rows.values if isinstance(rows, Dense) else rows.flat for rows in held if rows]
    assert sum(tensor.nbytes for tensor in tensors) == expected
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert open_table(stores[level], images, texts, "cpu", "tokens", "auto", expected - 1).resident == "disk"


def test_batches_move_and_select(store):
    batch = join(store, image_keys(3), text_keys(4))
    batch.scored = torch.rand(3, 4) < 0.5
    moved = batch.to("cpu")
    same(moved, batch)
    chosen = batch.select(torch.tensor([2, 0]), torch.tensor([3]))
    assert chosen.shape == (2, 1)
    assert torch.equal(chosen.scored[:, 0], batch.scored[[2, 0], 3])


@pytest.mark.parametrize("level", LEVELS)
def test_where_features_stay_changes_no_bit(stores, level):
    """Through staging buffers that are reused and grow, and without."""
    images, texts = image_keys(40), text_keys(60)
    tables = {
        residency: open_table(stores[level], images, texts, "cpu", "tokens", residency, 0)
        for residency in ("auto", "disk", "ram")
    }
    assert {name: table.resident for name, table in tables.items()} == {"auto": "disk", "disk": "disk", "ram": "ram"}
    staging, rng, made = Staging(), np.random.default_rng(0), []
    for size in (3, 9, 1, 20, 4):
        rows, columns = rng.integers(0, 40, size), rng.integers(0, 60, size + 1)
        made += [(rows, columns, table.batch(rows, columns, staging=staging)) for table in tables.values()]
    for rows, columns, batch in made:
        same(batch, tables["disk"].batch(rows, columns))
        assert batch.images is None or batch.images.is_contiguous()


def test_a_cpu_has_no_memory_of_its_own(store):
    with pytest.raises(UsageError, match=r"data\.resident"):
        open_table(store, image_keys(1), text_keys(1), "cpu", "tokens", "gpu", 1 << 30)
