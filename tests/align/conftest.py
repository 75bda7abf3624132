"""A small store of random features, and pairs tables over it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from compal.stores.items import Pair
from compal.stores.pairs import write_pairs
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Quarantined, Store, TextRows

SPEC = FeatureSpec(
    backbone="toy",
    weights="0" * 64,
    pooled_dim=8,
    image_shape=(5, 6),
    image_prefix=1,
    image_grid=(2, 2),
    text_dim=6,
    context_length=7,
)


def image_keys(count):
    return [f"{number:032x}" for number in range(count)]


def text_keys(count):
    return [f"{1000 + number:032x}" for number in range(count)]


def fill(folder, spec, images=40, texts=60, seed=0):
    """A committed store; caption t has 2 + t % 5 tokens and 1 + t % 3 object segments, image i of a
    `regions` store 1 + i % 4 regions."""
    rng = np.random.default_rng(seed)
    store = Store.create(folder, spec)
    dtype = np.dtype(spec.dtype)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    if spec.level == "regions":
        states = [normal(1 + number % 4, spec.pooled_dim) for number in range(images)]
    else:
        states = normal(images, *spec.image_shape) if spec.level == "tokens" else None
    words = None
    if spec.text_dim:
        words = [normal(2 + number % 5, spec.text_dim) for number in range(texts)]
    keys = image_keys(images)
    lost = Quarantined(f"{999:032x}", "image", "lost.jpg", "truncated")
    store.write_images("i-1", ImageRows(keys, keys, [(8, 8)] * images, states, normal(images, 8)), [lost])
    keys = text_keys(texts)
    captions = ["word " * (1 + number % 4) + str(number) for number in range(texts)]
    rows = TextRows(keys, captions, keys, words, normal(texts, 8))
    lengths = [len(part) for part in words] if words else [0] * texts
    rows.spans = [[(-1, -1)] * length for length in lengths]
    rows.pool_index, rows.truncated = [-1] * texts, [False] * texts
    rows.segments = [tuple((0, 1, "object") for _ in range(1 + number % 3)) for number in range(texts)]
    store.write_texts("t-1", rows)
    store.commit(["i-1", "t-1"])
    return Store.open(folder)


@pytest.fixture(scope="session")
def stores(tmp_path_factory):
    """One store per level."""
    folder = tmp_path_factory.mktemp("stores")
    pooled = dataclasses.replace(SPEC, level="pooled", image_shape=(0, 0), text_dim=0)
    regions = dataclasses.replace(SPEC, level="regions", image_shape=(0, 8), text_dim=8)
    return {spec.level: fill(folder / spec.level, spec) for spec in (SPEC, pooled, regions)}


@pytest.fixture(scope="session")
def store(stores):
    return stores["tokens"]


@pytest.fixture(scope="session")
def quad_table(tmp_path_factory):
    """Twelve swap groups: pairs 2g and 2g + 1 are each other's negatives."""
    images, texts = image_keys(24), text_keys(24)
    rows = []
    for group in range(12):
        one, two = 2 * group, 2 * group + 1
        category = ("colour", "size")[group % 2]
        rows.append(Pair(images[one], texts[one], (texts[two],), f"train/{group}", category))
        rows.append(Pair(images[two], texts[two], (texts[one],), f"train/{group}", category))
    path = tmp_path_factory.mktemp("pairs") / "train.parquet"
    write_pairs(path, rows)
    return path


@pytest.fixture(scope="session")
def plain_table(tmp_path_factory):
    """Thirty pairs: image i has captions i and, if i < 10, 30 + i; two negatives each."""
    images, texts = image_keys(20), text_keys(60)
    rows = [Pair(images[i], texts[i], (texts[40 + i % 10], texts[50 + i % 10])) for i in range(20)]
    rows += [Pair(images[i], texts[30 + i], (texts[40 + i], texts[50 + i])) for i in range(10)]
    path = tmp_path_factory.mktemp("pairs") / "plain.parquet"
    write_pairs(path, rows)
    return path
