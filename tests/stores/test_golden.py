"""A store of format 1, kept as bytes: later versions must read these numbers from it."""

import hashlib
from pathlib import Path

import numpy as np
import zarr

from compal.stores.store import Quarantined, Store
from compal.stores.verify import verify

GOLDEN = Path(__file__).parent.parent / "data" / "golden_store"


def test_the_numbers():
    store = Store.open(GOLDEN)
    assert store.manifest == 2
    assert store.keys("image") == {"image-0", "image-1", "image-2", "image-3"}
    assert store.keys("text") == {"text-0", "text-1", "text-2"}
    tokens = store.image_tokens(["image-3", "image-1"])
    assert tokens.shape == (2, 3, 8)
    assert tokens.dtype == np.float16
    assert tokens[0, 0].tolist() == [3, 3.015625, 3.03125, 3.046875, 3.0625, 3.078125, 3.09375, 3.109375]
    assert tokens[1, 2, 7] == 1 + 2 / 8 + 7 / 64
    assert store.pooled("image", ["image-2"]).tolist() == [[-2, -2.25, -2.5, -2.75]]
    padded, mask = store.text_tokens(["text-0", "text-2"])
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert padded[0].tolist() == [[0, -0.0625, -0.125, -0.1875, -0.25], [0] * 5, [0] * 5]
    assert padded[1, 2].tolist() == [2.5, 2.4375, 2.375, 2.3125, 2.25]
    assert store.pooled("text", ["text-1"]).tolist() == [[0.5, 1.5, 2.5, 3.5]]


def test_the_tables():
    store = Store.open(GOLDEN)
    texts = {row["key"]: row for row in store.table("text").to_pylist()}
    assert texts["text-2"]["spans"] == [{"start": 0, "end": 1}, {"start": 2, "end": 5}, {"start": 6, "end": 10}]
    assert [texts[f"text-{n}"]["truncated"] for n in range(3)] == [False, True, False]
    assert texts["text-1"]["pool_index"] == 1
    assert texts["text-0"]["segments"] == [{"start": 2, "end": 10, "kind": "object"}]
    assert store.table("image").to_pylist()[3] == {
        "key": "image-3",
        "source": "image-3.png",
        "width": 6,
        "height": 4,
    }
    assert store.quarantined() == [Quarantined("image-9", "image", "9.png", "truncated file")]


def test_it_is_whole():
    assert verify(GOLDEN) == []


def test_its_fingerprint_still_names_it():
    spec = Store.open(GOLDEN).spec
    assert spec.fingerprint == hashlib.sha256((GOLDEN / "spec.json").read_bytes()).hexdigest()
    assert spec.fingerprint == "3c20c93aab410fc0a61b5e42395d8c87319662756422e036c543701c7ac844ec"
    assert spec.image_grid == (1, 2)


def test_zarr_python_reads_it():
    assert zarr.open_array(str(GOLDEN / "images" / "i-0" / "tokens"), mode="r")[2, 1, 4] == 2 + 1 / 8 + 4 / 64


def test_the_first_manifest_is_still_there():
    assert Store.open(GOLDEN, manifest=1).keys("image") == {"image-0", "image-1", "image-2"}
