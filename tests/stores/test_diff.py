"""Differences by hand: keys, values beyond a tolerance, lengths, tables, specs; equal parts are not read."""

import dataclasses
import json

import numpy as np
import pytest

from compal.errors import InputError, VerificationError
from compal.stores import upkeep
from compal.stores.diff import diff
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store


@pytest.fixture
def twin(tmp_path, spec, make_images, make_texts):
    """`twin()`: what `filled` holds, written again elsewhere; rows can be changed on the way."""

    def make(change=lambda name, rows: None, spec=spec):
        store = Store.create(tmp_path / "twin", spec)
        for name, keys, seed in (("i-0", "abc", 1), ("i-1", "de", 2), ("t-0", "xyz", 3)):
            rows = (make_images if name[0] == "i" else make_texts)(*keys, seed=seed)
            change(name, rows)
            (store.write_images if name[0] == "i" else store.write_texts)(name, rows)
        store.commit(["i-0", "i-1", "t-0"])
        return store.path

    return make


def value(found, kind, what):
    (one,) = (one for one in found.values if (one.kind, one.what) == (kind, what))
    return one


def test_a_store_equals_itself_and_its_copy_without_a_read(filled, twin, monkeypatch):
    monkeypatch.setattr(Store, "image_tokens", None)
    for other in (filled.path, twin()):
        found = diff(filled.path, other)
        assert found.equal
        assert (found.spec, [one.common for one in found.keys]) == ((), [5, 3])
        assert {(one.equal, one.compared, one.different) for one in found.values} == {(5, 0, 0), (3, 0, 0)}
    json.dumps(dataclasses.asdict(found))


def test_one_value(filled, twin):
    def change(name, rows):
        if name == "i-0":
            rows.tokens[1, 2, 3] += 0.5

    before = float(filled.image_tokens(["b"])[0, 2, 3])
    found = diff(filled.path, twin(change))
    assert not found.equal
    tokens = value(found, "image", "tokens")
    assert (tokens.equal, tokens.compared, tokens.different, tokens.first) == (2, 3, 1, ("b",))
    assert tokens.max_abs == 0.5
    assert tokens.max_rel == pytest.approx(0.5 / max(abs(before), abs(before + 0.5)))
    x = np.float64(filled.image_tokens(["b"])[0, 2])
    y = x + 0.5 * (np.arange(8) == 3)
    assert tokens.min_cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    assert value(found, "image", "pooled").different == value(found, "image", "table").different == 0
    assert diff(filled.path, filled.path.parent / "twin", atol=0.5).equal
    assert not diff(filled.path, filled.path.parent / "twin", atol=0.49).equal
    assert diff(filled.path, filled.path.parent / "twin", rtol=abs(0.5 / (before + 0.5)) * 1.001).equal


def test_keys_only_here_and_only_there(filled, twin, make_images):
    path = twin()
    filled.write_images("i-2", make_images("f", "g"))
    filled.commit(["i-2"])
    other = Store.open(path)
    other.write_images("i-3", make_images(*(f"n{number:02}" for number in range(12))))
    other.commit(["i-3"])
    images, texts = diff(filled.path, path).keys
    assert (images.common, images.only_here, images.only_there) == (5, 2, 12)
    assert images.first_only_here == ("f", "g")
    assert images.first_only_there == tuple(f"n{number:02}" for number in range(10))
    assert (texts.common, texts.only_here, texts.only_there) == (3, 0, 0)
    assert not diff(filled.path, path).equal


def test_captions_of_other_lengths_and_values(filled, twin):
    def change(name, rows):
        if name == "t-0":
            assert len(rows.tokens[0]) > 1
            rows.tokens[0], rows.spans[0], rows.pool_index[0] = rows.tokens[0][:1], rows.spans[0][:1], 0
            rows.tokens[2] = rows.tokens[2] + 1
            rows.truncated[1] = True

    found = diff(filled.path, twin(change))
    tokens, table = value(found, "text", "tokens"), value(found, "text", "table")
    assert (tokens.compared, tokens.different, tokens.first, tokens.max_abs) == (3, 2, ("x", "z"), 1.0)
    assert (table.different, table.first) == (2, ("x", "y"))
    assert value(found, "text", "pooled").different == 0


def test_where_it_comes_from_is_no_difference(filled, twin):
    def change(name, rows):
        rows.sources[:] = [f"elsewhere/{source}" for source in rows.sources]

    assert diff(filled.path, twin(change)).equal


def test_the_copy_that_is_read_is_the_one_compared(filled, twin, make_images):
    """A key that stands twice is compared where it is read, and counted once."""
    path = twin()
    filled.write_images("i-2", make_images("a", seed=9))
    filled.commit(["i-2"])
    found = diff(filled.path, path)
    assert found.equal
    assert found.keys[0].common == 5


def test_specs_field_by_field(filled, twin, spec):
    found = diff(filled.path, twin(spec=dataclasses.replace(spec, layer="-2", dtype="float32")))
    assert [(one.name, one.here, one.there) for one in found.spec] == [
        ("layer", "last", "-2"),
        ("dtype", "float16", "float32"),
    ]
    assert not found.equal
    assert {one.different for one in found.values} == {0}  # the values float16 holds exactly
    assert value(found, "image", "tokens").compared == 5


def test_what_cannot_be_compared_says_why(filled, tmp_path, make_images):
    spec = FeatureSpec("random", "seed-0", pooled_dim=3, level="pooled")
    other = Store.create(tmp_path / "pooled", spec)
    other.write_images("i-0", ImageRows(["a"], ["a"], [(6, 4)], None, np.ones((1, 3))))
    other.commit(["i-0"])
    found = diff(filled.path, other.path)
    assert value(found, "image", "tokens").note == "tokens are (3, 8) here, not kept there"
    assert value(found, "image", "pooled").note == "pooled embeddings are 4 here, 3 there"
    assert value(found, "image", "table").compared == 1


def test_a_limit(filled, twin):
    def change(name, rows):
        rows.pooled += 1

    found = diff(filled.path, twin(change), limit=2)
    assert {one.compared for one in found.values} == {2}
    assert value(found, "image", "pooled").different == 2
    assert {one.compared for one in diff(filled.path, filled.path.parent / "twin", limit=0).values} == {0}


def test_compaction_changes_nothing(filled, twin):
    path = twin()
    assert upkeep.compact(path).parts
    found = diff(filled.path, path)
    assert found.equal
    assert value(found, "image", "tokens").compared == 5
    assert value(found, "text", "tokens").equal == 3  # its one part stays


def test_regions_and_bfloat16(tmp_path, make_images):
    spec = FeatureSpec("r", "s", pooled_dim=4, image_shape=(0, 8), level="regions", dtype="bfloat16")
    paths = []
    for place, extra in (("one", 0.0), ("two", 0.25)):
        store = Store.create(tmp_path / place, spec)
        tokens = [np.ones((count, 8), np.float32) for count in (2, 1, 3)]
        tokens[2][1, 4] += extra
        rows = ImageRows(list("abc"), list("abc"), [(6, 4)] * 3, tokens, np.ones((3, 4), np.float32))
        store.write_images("i-0", rows)
        store.commit(["i-0"])
        paths.append(store.path)
    tokens = value(diff(*paths), "image", "tokens")
    assert (tokens.compared, tokens.different, tokens.first, tokens.max_abs) == (3, 1, ("c",), 0.25)
    assert diff(*paths, atol=0.25).equal


def test_vectors_of_zeros(filled, twin):
    def change(name, rows):
        if name == "i-0":
            rows.pooled[0] = 0

    pooled = value(diff(filled.path, twin(change)), "image", "pooled")
    assert (pooled.min_cosine, pooled.max_rel, pooled.first) == (0.0, 1.0, ("a",))


def test_damage_and_nonsense(filled, tmp_path, twin):
    path = twin(lambda name, rows: rows.pooled.__iadd__(1))
    with pytest.raises(InputError, match="negative"):
        diff(filled.path, path, atol=-1)
    with pytest.raises(InputError, match="not a store"):
        diff(filled.path, tmp_path / "nowhere")
    shard = path / "images/i-0/tokens/c.0.0.0"
    raw = bytearray(shard.read_bytes())
    raw[3] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(VerificationError, match="crc32c"):
        diff(filled.path, path)


def test_empty_stores(store, filled):
    assert diff(store.path, store.path).equal
