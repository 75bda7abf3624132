"""Stores of the levels pixels (uint8, no pooled embeddings) and block (states on their way through the tower)."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import zarr

from compal import registry
from compal.errors import InputError, MissingFeatures, UsageError, VerificationError
from compal.stores.cast import cast
from compal.stores.diff import diff
from compal.stores.history import restore
from compal.stores.remotes.lazy import Lazy, open_remote
from compal.stores.remotes.transfer import pull, push
from compal.stores.scan import scan
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Quarantined, Store, TextRows
from compal.stores.upkeep import compact, gc
from compal.stores.verify import verify
from compal.workspace import Remote

LEVELS = ["block", "pixels"]
HEIGHT, WIDTH = 4, 2
PIXELS = FeatureSpec(
    backbone="random",
    weights="seed-0",
    pooled_dim=0,
    level="pixels",
    layer="input",
    dtype="uint8",
    image_shape=(HEIGHT, 3 * WIDTH),
    text_dim=4,
    context_length=9,
)
FORMATS = ["hdf5", "huggingface", "npz", "safetensors", "webdataset"]


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def image_rows(*keys, seed=0):
    values = pictures(len(keys), seed).reshape(len(keys), HEIGHT, 3 * WIDTH)
    return ImageRows(list(keys), list(keys), [(6, 4)] * len(keys), values, np.zeros((len(keys), 0), np.uint8))


def text_rows(*keys, ids):
    tokens = [np.array(row, "<u4").view(np.uint8).reshape(-1, 4) for row in ids]
    spans = [[(0, 1)] * len(row) for row in ids]
    return TextRows(list(keys), ["a cup"] * len(keys), list(keys), tokens, np.zeros((len(keys), 0), np.uint8), spans)


@pytest.fixture
def pixels(tmp_path):
    """Two parts of images and two of captions, committed."""
    store = Store.create(tmp_path / PIXELS.folder, PIXELS)
    store.write_images("i-0", image_rows("a", "b", seed=1))
    store.write_images("i-1", image_rows("c", seed=2))
    store.write_texts("t-0", text_rows("x", "y", ids=[[49406, 320, 49407], [1 << 31]]))
    store.write_texts("t-1", text_rows("z", ids=[[7, 0]]))
    store.commit(["i-0", "i-1", "t-0", "t-1"])
    return store


# --- pixels ----------------------------------------------------------------------------------------------


def test_pictures_and_token_ids_come_back(pixels):
    found = pixels.image_tokens(["c", "a", "b"]).reshape(3, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(found, [*pictures(1, 2), *pictures(2, 1)])
    assert found.dtype == np.uint8
    padded, mask = pixels.text_tokens(["x", "z"])
    assert padded.view("<u4")[..., 0].tolist() == [[49406, 320, 49407], [7, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, True, False]]
    assert pixels.text_row("y").view("<u4").tolist() == [[1 << 31]]
    assert verify(pixels.path) == []
    assert PIXELS.folder.startswith("random-pixels-")


def test_there_are_no_pooled_embeddings(pixels):
    for kind, key in (("image", "a"), ("text", "x")):
        with pytest.raises(MissingFeatures, match=r"keeps no pooled embeddings .level pixels."):
            pixels.pooled(kind, [key])
    assert not list(pixels.path.glob("images/*/pooled"))
    done = json.loads((pixels.path / "done" / "i-0.json").read_bytes())
    assert set(done["statistics"]) == {"rows", "tokens"}


def test_zarr_python_reads_them(pixels):
    array = zarr.open_array(str(pixels.path / "images" / "i-0" / "tokens"), mode="r")
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[:], pixels.image_tokens(["a", "b"]))


def test_a_scan_gives_the_tokens(pixels):
    seen = {}
    for keys, arrays in scan(pixels, "image", 2, what=("tokens",)):
        assert set(arrays) == {"tokens"}
        seen |= dict(zip(keys, arrays["tokens"].copy(), strict=True))
    np.testing.assert_array_equal([seen[key] for key in "abc"], pixels.image_tokens(["a", "b", "c"]))
    words = {key: ids for keys, arrays in scan(pixels, "text", what=("tokens",)) for key, ids in _ids(keys, arrays)}
    assert words == {"x": [49406, 320, 49407], "y": [1 << 31], "z": [7, 0]}
    with pytest.raises(InputError, match=r"keeps no pooled embeddings .level pixels.. Scan the tokens"):
        next(scan(pixels, "image"))


def _ids(keys, arrays):
    ids = arrays["tokens"].view("<u4")[..., 0]
    return [(key, row[valid].tolist()) for key, row, valid in zip(keys, ids, arrays["mask"], strict=True)]


def test_a_part_of_which_nothing_could_be_read(pixels):
    empty = ImageRows([], [], [], None, np.zeros((0, 0), np.uint8))
    pixels.write_images("i-9", empty, [Quarantined("bad", "image", "bad.jpg", "truncated file")])
    pixels.commit(["i-9"])
    assert [item.key for item in pixels.quarantined()] == ["bad"]
    assert verify(pixels.path) == []


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8])
def test_other_numbers_are_not_cast_to_bytes(pixels, dtype):
    rows = image_rows("d")
    rows.tokens = rows.tokens.astype(dtype)
    with pytest.raises(InputError, match=f"{np.dtype(dtype)} at level pixels, which stores uint8"):
        pixels.write_images("i-9", rows)
    words = text_rows("w", ids=[[1, 2]])
    words.tokens = [words.tokens[0].astype(dtype)]
    with pytest.raises(InputError, match="which stores uint8"):
        pixels.write_texts("t-9", words)


def test_pooled_embeddings_are_refused(pixels):
    rows = image_rows("d")
    rows.pooled = np.zeros((1, 4), np.float16)
    with pytest.raises(InputError, match=r"the spec says \(N, 0\)"):
        pixels.write_images("i-9", rows)


def test_a_kind_of_which_nothing_is_kept_cannot_be_written(tmp_path):
    store = Store.create(tmp_path / "s", dataclasses.replace(PIXELS, text_dim=0))
    words = text_rows("w", ids=[[1, 2]])
    words.tokens = None
    with pytest.raises(InputError, match="neither tokens nor pooled embeddings of texts"):
        store.write_texts("t-0", words)


@pytest.mark.parametrize(
    "forged",
    [{"dtype": "float16"}, {"level": "tokens"}, {"pooled_dim": 4}, {"dtype": "float16", "level": "tokens"}],
    ids=str,
)
def test_level_dtype_and_pooled_belong_together(tmp_path, forged):
    spec = dataclasses.replace(PIXELS, **forged)
    with pytest.raises(InputError, match=r"cannot be stored as|has pooled embeddings of"):
        Store.create(tmp_path / "s", spec)
    with pytest.raises(InputError, match=r"cannot be stored as|has pooled embeddings of"):
        FeatureSpec.from_json(dataclasses.asdict(spec))
    assert not (tmp_path / "s").exists()


def test_a_part_of_another_kind_of_store_is_seen(pixels, tmp_path, spec, make_texts):
    """A text part with pooled embeddings in the place of one without, its checksums made to fit."""
    other = Store.create(tmp_path / "other", dataclasses.replace(spec, text_dim=4))
    rows = make_texts("x", "y")
    rows.tokens = [np.zeros((len(row), 4)) for row in rows.tokens]
    other.write_texts("t-0", rows)
    shutil.copy(other.path / "texts" / "t-0.arrow", pixels.path / "texts" / "t-0.arrow")
    size = (pixels.path / "texts" / "t-0.arrow").stat().st_size
    part = next(part for part in pixels.parts if part.name == "t-0")
    part.files["texts/t-0.arrow"]["bytes"] = size
    with pytest.raises(VerificationError, match="in place of"):
        pixels.text_tokens(["x"])
    assert any(problem.file == "texts/t-0.arrow" for problem in verify(pixels.path))


def test_pixels_are_not_cast(pixels, filled):
    for dtype in ("float16", "int8", "bfloat16"):
        with pytest.raises(UsageError, match=r"pixels and token ids .level pixels., of which no bit can be left out"):
            cast(pixels.path, None, dtype)
    with pytest.raises(UsageError, match="no dtype 'uint8' to cast to"):
        cast(filled.path, None, "uint8")


# --- both levels, through everything that handles a store ------------------------------------------------


@pytest.fixture
def whole(request, whole_stores, damageable):
    """(a copy of the store of a level, all it gives to a reader)."""
    return damageable(request.param), whole_stores[request.param][1]


both = pytest.mark.parametrize("whole", LEVELS, indirect=True)


def added(root, seed=9):
    """Another part of images and of captions, of new keys."""
    store = Store.open(root)
    draw = np.random.default_rng(seed)
    bytes_ = store.spec.dtype == "uint8"

    def values(*shape):
        return draw.integers(0, 256, shape, np.uint8) if bytes_ else draw.integers(-8, 8, shape).astype(np.float32)

    keys = [f"new-{seed}-{row}" for row in range(3)]
    pooled = values(3, store.spec.pooled_dim)
    shape = (3, *store.spec.image_shape)
    store.write_images(f"i-{seed}", ImageRows(keys, keys, [(1, 1)] * 3, values(*shape), pooled))
    words = [values(n, store.spec.text_dim) for n in (1, 3, 2)]
    spans = [[(-1, -1)] * n for n in (1, 3, 2)]
    store.write_texts(f"t-{seed}", TextRows(keys, ["a"] * 3, keys, words, pooled, spans))
    store.commit([f"i-{seed}", f"t-{seed}"])
    return store


@both
def test_compaction_changes_no_value(whole, values_of):
    root, _ = whole
    added(root)
    before = values_of(root)
    done = compact(root)
    assert len(done.parts) == 2
    assert len(done.sources) == 4
    assert values_of(root) == before
    assert verify(root) == []
    gc(root, days=0)
    assert values_of(root) == before
    assert verify(root) == []


@both
def test_a_version_is_restored(whole, values_of):
    root, expected = whole
    added(root)
    restore(root, 2)
    assert values_of(root) == expected


@both
def test_a_difference_is_counted(whole, tmp_path):
    root, _ = whole
    shutil.copytree(root, tmp_path / "same")
    assert diff(root, tmp_path / "same").equal
    one, two = (shutil.copytree(root, tmp_path / name) for name in ("one", "two"))
    for folder, change in ((one, 0), (two, 1)):
        store = Store.open(folder)
        values = store.image_tokens(["image-0", "image-1"]).copy()
        values[1, 0, 0] = values[1, 0, 0] // 2 + change
        pooled = np.zeros((2, store.spec.pooled_dim), values.dtype)
        store.write_images("i-7", ImageRows(["p", "q"], ["p", "q"], [(1, 1)] * 2, values, pooled))
        store.commit(["i-7"])
    found = diff(one, two)
    assert not found.equal
    tallies = {(one.kind, one.what): one for one in found.values}
    assert tallies["image", "tokens"].first == ("q",)
    assert tallies["image", "tokens"].max_abs == 1
    assert (("image", "pooled") in tallies) == (Store.open(root).spec.pooled_dim > 0)


def test_a_difference_of_level_is_said(pixels, filled):
    notes = {one.note for one in diff(pixels.path, filled.path).values}
    assert "pooled embeddings are not kept here, 4 there" in notes


@both
@pytest.mark.parametrize("name", FORMATS)
def test_exported_and_imported_bit_for_bit(whole, tmp_path, values_of, name):
    root, expected = whole
    module = registry.load("formats", name)
    module.export(Store.open(root), tmp_path / f"out{module.SUFFIX}")
    back = module.load(tmp_path / f"out{module.SUFFIX}", tmp_path / "back")
    assert values_of(back) == expected
    assert verify(back) == []


@pytest.mark.parametrize("name", FORMATS)
def test_floats_are_not_imported_as_pixels(damageable, tmp_path, name):
    """An export of states whose spec was changed to say that it holds pixels."""
    module = registry.load("formats", name)
    store = Store.open(damageable("block"))
    pixels = dataclasses.replace(PIXELS, image_shape=(3, 8), text_dim=5)
    path = tmp_path / f"out{module.SUFFIX}"
    store.spec = _Lying(store.spec, pixels)
    module.export(store, path)
    with pytest.raises(InputError):
        module.load(path, tmp_path / "back")
    assert not list(tmp_path.glob("back/*/manifests/*"))


class _Lying:
    """A spec that reads as one thing and is written as another."""

    def __init__(self, true, said):
        self._true, self._said = true, said

    def __getattr__(self, name):
        return getattr(self._said if name == "to_json" else self._true, name)


def test_no_index_is_made_of_nothing(pixels, tmp_path):
    with pytest.raises(InputError, match=r"no pooled embeddings .level pixels."):
        registry.load("formats", "faiss").export(pixels, tmp_path / "index.faiss")


@both
def test_pushed_pulled_and_read_in_place(whole, tmp_path, values_of):
    root, expected = whole
    home = tmp_path / "home" / Store.open(root).spec.folder
    shutil.copytree(root, home)
    remote = Remote("here", str(tmp_path / "there"))
    assert push(home, remote).equal
    pull(remote, home.name, tmp_path / "away" / home.name)
    assert values_of(tmp_path / "away" / home.name) == expected
    assert verify(tmp_path / "away" / home.name) == []
    for all_of_it in (False, True):
        store = open_remote(remote, home.name, tmp_path / f"cache-{all_of_it}", Lazy(whole=all_of_it))
        keys = [f"image-{number}" for number in range(4)]
        assert store.image_tokens(keys).tobytes() == expected["tokens"]
        words = store.text_tokens([f"text-{number}" for number in range(3)])
        assert [one.tobytes() for one in words] == expected["words"]


def test_block_states_are_cast_as_tokens_are(damageable):
    root = damageable("block")
    made = Store.open(cast(root, None, "int8").path)
    keys = sorted(made.keys("image"))
    np.testing.assert_allclose(made.image_tokens(keys), Store.open(root).image_tokens(keys), atol=0.05)
    assert made.spec.level == "block:-2"
    assert "-block-2-" in made.spec.folder
    assert verify(made.path) == []
    shutil.rmtree(made.path)
