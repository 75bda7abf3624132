"""Stores of format 1, kept as bytes: later versions must read these numbers from them, and write these bytes."""

import hashlib
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from compal.stores import history
from compal.stores.store import Quarantined, Store
from compal.stores.verify import verify

DATA = Path(__file__).parent.parent / "data"
GOLDEN = DATA / "golden_store"
LATER = DATA / "golden_store_1b"


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


def test_the_arrays_are_still_written_byte_for_byte(tmp_path):
    """Tables and texts are as their libraries write them, done files name their writer; arrays are ours alone."""
    found = importlib.util.spec_from_file_location("make_golden_store", DATA / "make_golden_store.py")
    maker = importlib.util.module_from_spec(found)
    found.loader.exec_module(maker)
    store = Store.create(tmp_path / "store", maker.SPEC)
    store.write_images("i-0", maker.image_rows(0, 1, 2))
    store.write_images("i-1", maker.image_rows(3))
    paths = [path for path in sorted((GOLDEN / "images").rglob("*")) if path.is_file()]
    assert len(paths) == 10
    for path in paths:
        assert (store.path / path.relative_to(GOLDEN)).read_bytes() == path.read_bytes(), path


# --- what came later: bfloat16, int8, a history ----------------------------------------------------------


def numbers(*images):
    """The formula of the tokens."""
    index, token, channel = np.ix_(images, range(3), range(8))
    return (index + token / 8 + channel / 64).astype(np.float32)


def widened(bits):
    assert bits.dtype == np.uint16
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_bfloat16_is_read_as_its_bits():
    store = Store.open(LATER / "bfloat16")
    assert store.spec.dtype == "bfloat16"
    keys = ["image-3", "image-0", "image-2"]
    np.testing.assert_array_equal(widened(store.image_tokens(keys)), numbers(3, 0, 2))
    assert widened(store.pooled("image", ["image-2"])).tolist() == [[-2, -2.25, -2.5, -2.75]]
    padded, mask = store.text_tokens(["text-0", "text-2"])
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert widened(padded)[1, 2].tolist() == [2.5, 2.4375, 2.375, 2.3125, 2.25]
    assert zarr.open_array(str(LATER / "bfloat16" / "images" / "i-0" / "tokens"), mode="r")[1, 0, 0] == 0x3F80


def test_int8_is_read_as_numbers_near_the_formula():
    """Half a step: the scale of the token times the deviation of the channel, at most 1.2 · 1.6 / 127."""
    store = Store.open(LATER / "int8")
    tokens = store.image_tokens(["image-3", "image-0"])
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(tokens, numbers(3, 0), atol=0.008)
    padded, mask = store.text_tokens(["text-2"])
    assert mask.all()
    np.testing.assert_allclose(padded[0, 2], [2.5, 2.4375, 2.375, 2.3125, 2.25], atol=0.012)
    assert store.pooled("image", ["image-2"]).astype(np.float32).tolist() == [[-2, -2.25, -2.5, -2.75]]
    folder = LATER / "int8" / "images" / "i-0"
    codes, scales, (mean, std) = (
        zarr.open_array(str(folder / name), mode="r")[:] for name in ("tokens", "scales", "channels")
    )
    assert (codes.dtype, scales.shape) == (np.int8, (4, 3))
    np.testing.assert_array_equal(store.image_tokens(["image-0"])[0], codes[0] * scales[0, :, None] * std + mean)


def test_the_history_that_was_restored():
    root = LATER / "bfloat16"
    log = history.log(root)
    assert [(entry.number, entry.operation, entry.rows) for entry in log] == [
        (4, "restore", 7),
        (3, "restore", 6),
        (2, "append", 7),
        (1, "append", 6),
    ]
    assert log[1].note == "the second was a mistake"
    assert log[0].who == "golden@golden"
    assert Store.open(root, manifest=3).keys("image") == {"image-0", "image-1", "image-2"}
    assert Store.open(root).keys("image") == {"image-0", "image-1", "image-2", "image-3"}
    assert Store.open(root).quarantined() == [Quarantined("image-9", "image", "9.png", "truncated file")]


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_the_later_ones_are_whole(name):
    assert verify(LATER / name) == []


@pytest.mark.parametrize("folder", [GOLDEN, LATER / "bfloat16", LATER / "int8"], ids=lambda path: path.name)
def test_they_can_be_continued(tmp_path, folder):
    """Opened for writing by this version, appended to, undone: the old manifests stay as they are."""
    root = tmp_path / "store"
    shutil.copytree(folder, root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    store = Store.create(root, Store.open(root).spec)
    newest = store.manifest
    history.restore(root, 1, "back")
    history.restore(root, newest)
    assert all(path.read_bytes() == raw for path, raw in before.items() if path.name != "head.json")
    assert Store.open(root).keys("image") == Store.open(folder).keys("image")
    assert verify(root) == []
