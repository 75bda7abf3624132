"""Small stores: values are drawn from a seed, so a test can ask for the same rows again."""

from __future__ import annotations

import os
import shutil
from itertools import count

import numpy as np
import pytest

from compal.stores.cast import cast
from compal.stores.reading import Reading
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Quarantined, Store, TextRows

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


# --- stores of every kind, to damage copies of -----------------------------------------------------------

EVERY_KIND = {
    "tokens": {"image_shape": (3, 8), "text_dim": 5},
    "float32": {"image_shape": (3, 8), "text_dim": 5, "dtype": "float32"},
    "bfloat16": {"image_shape": (3, 8), "text_dim": 5, "dtype": "bfloat16"},
    "int8": {"image_shape": (3, 8), "text_dim": 5, "dtype": "float32"},
    "regions": {"level": "regions", "image_shape": (0, 6), "text_dim": 5, "dtype": "float32"},
    "pooled": {"level": "pooled"},
    "block": {"level": "block:-2", "layer": "-2", "image_shape": (3, 8), "text_dim": 5},
    "pixels": {
        "level": "pixels",
        "layer": "input",
        "dtype": "uint8",
        "pooled_dim": 0,
        "image_shape": (4, 6),
        "text_dim": 4,
    },
}


def write_whole(folder, name):
    """A store of one kind: two manifests, an item in quarantine, texts of unequal length."""
    spec = FeatureSpec("random", "seed-0", **{"pooled_dim": 4, **EVERY_KIND[name]})
    store = Store.create(folder if name != "int8" else folder.with_name("int8-source"), spec)
    draw = np.random.default_rng(0)

    def values(*shape):
        return draw.integers(0, 256, shape, np.uint8) if spec.dtype == "uint8" else draw.normal(size=shape)

    tokens = values(4, *spec.image_shape) if spec.image_shape[0] else None
    if spec.level == "regions":
        tokens = [values(n, 6) for n in (1, 3, 2, 1)]
    names = [f"image-{number}" for number in range(4)]
    refused = [Quarantined("bad", "image", "bad.jpg", "truncated file")]
    store.write_images("i-0", ImageRows(names, names, [(6, 4)] * 4, tokens, values(4, spec.pooled_dim)), refused)
    words = [values(n, spec.text_dim) for n in (2, 1, 3)] if spec.text_dim else None
    spans = [[(0, 1), (2, 5), (-1, -1)][:n] for n in (2, 1, 3)] if words else []
    keys, segments = [f"text-{number}" for number in range(3)], [((0, 1, "object"),)] * 3
    pooled = values(3, spec.pooled_dim)
    store.write_texts("t-0", TextRows(keys, ["a cup"] * 3, keys, words, pooled, spans, segments=segments))
    store.commit(["i-0"])
    store.commit(["t-0"])
    if name == "int8":
        cast(store.path, folder, "int8")


def read_values(root, reading=None):
    """Everything that a store gives to a reader."""
    store = Store.open(root, reading=reading or Reading())
    found = {"quarantined": store.quarantined(), "spec": store.spec}
    for kind in ("image", "text"):
        keys = sorted(store.keys(kind))
        found[kind] = sorted(store.table(kind).to_pylist(), key=lambda row: row["key"])
        if not keys:
            continue
        if store.spec.pooled_dim:
            found[f"{kind} pooled"] = store.pooled(kind, keys).tobytes()
        if kind == "text" and store.spec.text_dim:
            found["words"] = [one.tobytes() for one in store.text_tokens(keys)]
        elif kind == "image" and store.spec.level == "regions":
            found["regions"] = [one.tobytes() for one in store.image_regions(keys)]
        elif kind == "image" and store.spec.image_shape[-1]:
            found["tokens"] = store.image_tokens(keys).tobytes()
    return found


@pytest.fixture(scope="session")
def values_of():
    """`values_of(folder, reading=None)`: everything that a store gives to a reader, for comparison."""
    return read_values


@pytest.fixture(scope="session")
def whole_stores(tmp_path_factory):
    """Name → (folder, its values) of a store of every kind. Not to be changed: see `damageable`."""
    root = tmp_path_factory.mktemp("whole")
    sync, os.fsync = os.fsync, lambda handle: None
    try:
        for name in EVERY_KIND:
            write_whole(root / name, name)
    finally:
        os.fsync = sync
    return Stores({name: (root / name, read_values(root / name)) for name in EVERY_KIND})


class Stores(dict):
    """Named in the reports of failed cases, which would print all values."""

    def __repr__(self):
        return "whole_stores"


@pytest.fixture(scope="session")
def damageable(whole_stores):
    """`damageable(name)`: a fresh copy of a whole store; the one before is deleted."""
    numbers, last = count(), []

    def copy(name):
        if last:
            shutil.rmtree(last.pop(), ignore_errors=True)
        folder = whole_stores[name][0].with_name(f"copy-{next(numbers)}")
        shutil.copytree(whole_stores[name][0], folder)
        last.append(folder)
        return folder

    return copy
