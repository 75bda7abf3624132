"""Small stores: values are drawn from a seed, so a test can ask for the same rows again."""

from __future__ import annotations

import os

import numpy as np
import pytest

from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store, TextRows

P, D, L_DIM, E = 3, 8, 5, 4
CAPTION = "a red cube left of a blue ball"


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """No test can cause what fsync guards against, loss of power; 17 of them cost a part 0.2 s."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def spec():
    return FeatureSpec("random", "seed-0", pooled_dim=E, image_shape=(P, D), text_dim=L_DIM, context_length=9)


@pytest.fixture
def store(tmp_path, spec):
    return Store.create(tmp_path / "store", spec)


@pytest.fixture
def make_images():
    """`make_images("a", "b", seed=0)`: rows with those keys; float32 values that float16 holds exactly."""

    def make(*keys, seed=0, shape=(P, D)):
        draw = np.random.default_rng(seed)
        tokens = draw.integers(-64, 64, (len(keys), *shape)).astype(np.float32) / 16
        pooled = draw.integers(-64, 64, (len(keys), E)).astype(np.float32) / 16
        return ImageRows(list(keys), [f"s/{key}.jpg" for key in keys], [(6, 4)] * len(keys), tokens, pooled)

    return make


@pytest.fixture
def make_texts():
    """`make_texts("x", "y", seed=0)`: captions of 1 to 5 tokens."""

    def make(*keys, seed=0):
        draw = np.random.default_rng(seed)
        lengths = draw.integers(1, 6, len(keys)).tolist()
        tokens = [draw.integers(-64, 64, (n, L_DIM)).astype(np.float32) / 16 for n in lengths]
        pooled = draw.integers(-64, 64, (len(keys), E)).astype(np.float32) / 16
        return TextRows(
            keys=list(keys),
            captions=[CAPTION] * len(keys),
            sources=[f"s/{key}" for key in keys],
            tokens=tokens,
            pooled=pooled,
            spans=[[(-1, -1), (2, 5), (6, 10), (11, 15), (-1, -1)][:n] for n in lengths],
            pool_index=[n - 1 for n in lengths],
            truncated=[False] * len(keys),
            segments=[((0, 10, "object"),)] * len(keys),
        )

    return make


@pytest.fixture
def filled(store, make_images, make_texts):
    """Two parts of images and one of captions, committed."""
    store.write_images("i-0", make_images("a", "b", "c", seed=1))
    store.write_images("i-1", make_images("d", "e", seed=2))
    store.write_texts("t-0", make_texts("x", "y", "z", seed=3))
    store.commit(["i-0", "i-1", "t-0"])
    return store
