"""Batches from stores of every dtype: float32 values, and as much memory as was estimated."""

import numpy as np
import pytest
import torch

from compal.align.batches import FeatureTable, estimated_bytes, join
from compal.stores.cast import cast
from compal.stores.dtypes import READ, from_bfloat16
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store, TextRows

FEATURES = [dtype for dtype in READ if dtype != "uint8"]  # uint8 is that of pixels, which no head reads
IMAGES, TEXTS = ["b", "a", "b"], ["y", "x"]


@pytest.fixture
def make_store(tmp_path):
    def make(dtype):
        spec = FeatureSpec("random", "seed-0", pooled_dim=4, image_shape=(3, 8), text_dim=8, dtype="float32")
        store, draw = Store.create(tmp_path / "float32", spec), np.random.default_rng(0)
        store.write_images(
            "i-0",
            ImageRows(["a", "b"], ["a", "b"], [(1, 1)] * 2, draw.normal(size=(2, 3, 8)), draw.normal(size=(2, 4))),
        )
        tokens = [draw.normal(size=(length, 8)) for length in (2, 5)]
        spans = [[(0, 1)] * 2, [(0, 1)] * 5]
        store.write_texts("t-0", TextRows(["x", "y"], ["a"] * 2, ["x", "y"], tokens, draw.normal(size=(2, 4)), spans))
        store.commit(["i-0", "t-0"])
        return store if dtype == "float32" else Store.open(cast(store.path, tmp_path / dtype, dtype).path)

    return make


def exact(values):
    return from_bfloat16(values) if values.dtype == np.uint16 else values.astype(np.float32)


@pytest.mark.parametrize("dtype", FEATURES)
def test_batches_are_float32_whatever_is_stored(make_store, dtype):
    store = make_store(dtype)
    rows, columns = np.arange(3), np.arange(2)
    loaded = FeatureTable.loaded(store, IMAGES, TEXTS, "cpu", "tokens").batch(rows, columns)
    for batch in (join(store, IMAGES, TEXTS), loaded):
        found = (batch.images, batch.texts, batch.image_pooled, batch.text_pooled)
        there = store.image_tokens(IMAGES), store.text_tokens(TEXTS)[0], store.pooled("image", IMAGES)
        for here, values in zip(found, (*there, store.pooled("text", TEXTS)), strict=True):
            assert here.dtype == torch.float32
            np.testing.assert_array_equal(here.numpy(), exact(values))


@pytest.mark.parametrize("dtype", FEATURES)
def test_memory_is_as_estimated(make_store, dtype):
    """int8 tokens are held as float32, their pooled embeddings as float16."""
    store = make_store(dtype)
    table = FeatureTable.loaded(store, IMAGES, TEXTS, "cpu", "tokens")
    held = [table.images.values, table.image_pooled.values, table.text_pooled.values, table.texts.flat]
    assert estimated_bytes(store, IMAGES, TEXTS, "tokens") == sum(one.nbytes for one in held)
