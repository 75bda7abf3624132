"""A scan yields every key once, with the values that reads by key give, from buffers that are used again."""

import os
import threading

import numpy as np
import pytest

from compal.errors import InputError, VerificationError
from compal.stores.reading import Reading
from compal.stores.scan import scan
from compal.stores.store import ImageRows, Store


def copied(batches):
    """Scans reuse their memory: what is kept is copied."""
    return [(keys, {name: array.copy() for name, array in arrays.items()}) for keys, arrays in batches]


@pytest.mark.parametrize("mode", ["map", "pread", "direct"])
@pytest.mark.parametrize("batch", [1, 2, 256])
def test_images_once_each_as_by_key(filled, mode, batch):
    store = Store.open(filled.path, reading=Reading(mode))
    batches = copied(scan(store, "image", batch))
    assert [key for keys, _ in batches for key in keys] == ["a", "b", "c", "d", "e"]
    assert max(len(keys) for keys, _ in batches) == min(batch, 3)
    for keys, arrays in batches:
        assert set(arrays) == {"tokens", "pooled"}
        np.testing.assert_array_equal(arrays["tokens"], store.image_tokens(keys))
        np.testing.assert_array_equal(arrays["pooled"], store.pooled("image", keys))


def test_captions_with_their_mask(filled):
    batches = copied(scan(filled, "text", 2))
    assert [key for keys, _ in batches for key in keys] == ["x", "y", "z"]
    for keys, arrays in batches:
        tokens, mask = filled.text_tokens(keys)
        np.testing.assert_array_equal(arrays["tokens"], tokens)
        np.testing.assert_array_equal(arrays["mask"], mask)
        np.testing.assert_array_equal(arrays["pooled"], filled.pooled("text", keys))


@pytest.mark.parametrize(("kind", "what", "names"), [("image", "pooled", {"pooled"}), ("text", "tokens", None)])
def test_what_is_read_is_what_is_asked_for(filled, kind, what, names):
    for _, arrays in scan(filled, kind, what=(what,)):
        assert set(arrays) == (names or {"tokens", "mask"})


def test_a_key_in_two_parts_comes_once_from_the_first(filled, make_images):
    filled.write_images("i-9", make_images("f", "b", "g", "a", seed=9))
    filled.commit(["i-9"])
    batches = copied(scan(filled, "image", 2))
    assert [key for keys, _ in batches for key in keys] == ["a", "b", "c", "d", "e", "f", "g"]
    for keys, arrays in batches:
        np.testing.assert_array_equal(arrays["tokens"], filled.image_tokens(keys))


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_buffers_are_used_again(store, make_images, ahead):
    keys = [f"k{number:02}" for number in range(40)]
    store.write_images("i-0", make_images(*keys))
    store.commit(["i-0"])
    places = [arrays["tokens"].ctypes.data for _, arrays in scan(store, "image", 2, ahead=ahead)]
    assert len(places) == 20
    assert len(set(places)) <= ahead + 1


def test_a_batch_is_valid_until_the_next(store, make_images):
    keys = [f"k{number:02}" for number in range(40)]
    store.write_images("i-0", make_images(*keys))
    store.commit(["i-0"])
    expected = store.image_tokens(keys)
    for number, (_, arrays) in enumerate(scan(store, "image", 2, ahead=3)):
        threading.Event().wait(0.002)  # the reader fills all the other buffers meanwhile
        np.testing.assert_array_equal(arrays["tokens"], expected[2 * number : 2 * number + 2])


def test_regions_are_padded(tmp_path, spec):
    from dataclasses import replace

    regions = Store.create(tmp_path / "r", replace(spec, level="regions", image_shape=(0, 8)))
    tokens = [np.ones((count, 8), np.float16) * count for count in (2, 1, 3)]
    rows = ImageRows(["a", "b", "c"], ["s"] * 3, [(1, 1)] * 3, tokens, np.zeros((3, 4), np.float16))
    regions.write_images("i-0", rows)
    regions.commit(["i-0"])
    ((keys, arrays),) = copied(scan(regions, "image"))
    assert keys == ["a", "b", "c"]
    assert arrays["mask"].sum(axis=1).tolist() == [2, 1, 3]
    np.testing.assert_array_equal(arrays["tokens"], regions.image_regions(keys)[0])


def test_an_empty_store(store):
    assert list(scan(store, "image")) == []
    assert list(scan(store, "text", what=("pooled",))) == []


def test_damage_ends_the_scan_with_its_reason(filled):
    path = next((filled.path / "images" / "i-1" / "tokens").glob("c.*"))
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)
    seen = []
    with pytest.raises(VerificationError, match="crc32c of chunk 0"):
        seen.extend(keys for keys, _ in scan(Store.open(filled.path), "image"))
    assert seen == [["a", "b", "c"]]


def test_leaving_early_ends_the_thread(store, make_images):
    store.write_images("i-0", make_images(*[f"k{number:02}" for number in range(40)]))
    store.commit(["i-0"])
    batches = scan(store, "image", 1)
    next(batches)
    assert any(thread.name == "compal-scan" for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name == "compal-scan" for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 warns of forks beside threads
def test_a_scan_is_not_continued_after_a_fork(filled):
    batches = scan(filled, "image", 1)
    next(batches)
    child = os.fork()
    if child == 0:
        try:
            next(batches)
        except InputError:
            keys = [key for keys, _ in scan(filled, "image", 1) for key in keys]  # one of its own
            os._exit(0 if keys == ["a", "b", "c", "d", "e"] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(batches)) == 4


@pytest.mark.parametrize("options", [{"batch": 0}, {"ahead": 0}, {"what": ("patches",)}])
def test_scans_that_make_no_sense(filled, options):
    with pytest.raises(InputError):
        scan(filled, "image", **options)


def test_tokens_that_are_not_kept(tmp_path, spec):
    from dataclasses import replace

    pooled = Store.create(tmp_path / "p", replace(spec, level="pooled", image_shape=(0, 0), text_dim=0))
    for kind in ("image", "text"):
        with pytest.raises(InputError, match="keeps no"):
            scan(pooled, kind)
        assert list(scan(pooled, kind, what=("pooled",))) == []
