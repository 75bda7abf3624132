"""Formats of others: what goes out comes back bit for bit, others' libraries read it, nothing is overwritten."""

import dataclasses
import io
import json
import os
import zipfile

import numpy as np
import pyarrow as pa
import pytest

from compal import registry
from compal.errors import CompalError, InputError, MissingFeatures, SpecMismatch, UnknownName, UsageError
from compal.stores.items import caption_key
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Quarantined, Store, TextRows
from compal.stores.verify import verify

NAMES = ["hdf5", "huggingface", "npz", "safetensors", "webdataset"]
COLUMNS = ["hdf5", "npz", "safetensors"]
SPECS = {
    "tokens": {"image_shape": (3, 8), "image_grid": (1, 2), "image_prefix": 1, "text_dim": 5, "context_length": 9},
    "float32": {"image_shape": (3, 8), "text_dim": 5, "dtype": "float32"},
    "bfloat16": {"image_shape": (3, 8), "text_dim": 5, "dtype": "bfloat16"},
    "pooled": {"level": "pooled"},
    "regions": {"level": "regions", "image_shape": (0, 6), "text_dim": 5},
}
CAPTIONS = ["a red cube", "ein grüner Würfel — 緑", 'two\nlines\t"quoted" \'n \\ all', "x", "émoji 🙂 end "]


def draw(shape, seed):
    """Values of every size that the dtypes hold, zeros of both signs and the smallest numbers."""
    random = np.random.default_rng(seed)
    values = random.normal(size=shape) * 10.0 ** random.integers(-6, 4, shape)
    flat = values.reshape(-1)
    flat[:4] = [-0.0, 0.0, 6e-8, 65504.0][: len(flat)]
    return values.astype(np.float32)


def images(spec, *keys, seed=0):
    tokens = None
    if spec.level == "tokens":
        tokens = draw((len(keys), *spec.image_shape), seed)
    if spec.level == "regions":
        tokens = [draw((1 + row % 3, spec.image_shape[-1]), seed + row) for row in range(len(keys))]
    sizes = [(6 + row, 4) for row in range(len(keys))]
    return ImageRows(list(keys), [f"s/{key}.jpg" for key in keys], sizes, tokens, draw((len(keys), 4), seed + 50))


def texts(spec, *keys, seed=0):
    lengths = [1 + (row + seed) % 4 for row in range(len(keys))]
    tokens = [draw((n, 5), seed + 90 + row) for row, n in enumerate(lengths)] if spec.text_dim else None
    captions = [CAPTIONS[(row + seed) % len(CAPTIONS)] for row in range(len(keys))]
    return TextRows(
        keys=list(keys),
        captions=captions,
        sources=[f"words/{key}" for key in keys],
        tokens=tokens,
        pooled=draw((len(keys), 4), seed + 70),
        spans=[[(-1, -1), *[(0, 1)] * (n - 1)] for n in lengths],
        pool_index=[n - 1 for n in lengths],
        truncated=[row % 2 == 0 for row in range(len(keys))],
        segments=[((0, 1, "object"), (0, 1, "relation")) if row % 2 else () for row in range(len(keys))],
    )


def make_store(folder, name="tokens"):
    spec = FeatureSpec("random", "seed-0", pooled_dim=4, preprocess={"size": "4x6"}, **SPECS[name])
    store = Store.create(folder / spec.folder, spec)
    refused = [Quarantined("bad-1", "image", "bad.jpg", "truncated file"), Quarantined("bad-2", "image", "é", "empty")]
    store.write_images("i-0", images(spec, "a", "b", "c", seed=1), refused)
    store.write_images("i-1", images(spec, "d.e/f", "Ünï", "a b", seed=2))
    store.write_texts("t-0", texts(spec, "x", "y", "z", seed=3))
    store.write_texts("t-1", texts(spec, "a", "w", seed=4))  # "a" is a key of an image too
    store.commit(["i-0", "i-1", "t-0", "t-1"])
    return store


@pytest.fixture(params=SPECS)
def any_store(request, tmp_path):
    return make_store(tmp_path / "source", request.param)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "source")


def module(name):
    return registry.load("formats", name)


def content(store):
    """Everything a store says of its items, by kind and key; features as bytes."""
    found = {}
    for kind in ("image", "text"):
        for row in store.table(kind).to_pylist():
            key = row["key"]
            features = [store.pooled(kind, [key]).tobytes()]
            if kind == "text" and store.spec.text_dim:
                features.append(store.text_tokens([key])[0].tobytes())
            elif kind == "image" and store.spec.level == "regions":
                features.append(store.image_regions([key])[0].tobytes())
            elif kind == "image" and store.spec.level == "tokens":
                features.append(store.image_tokens([key]).tobytes())
            found[kind, key] = (row, features)
    return store.spec, found, sorted(store.quarantined(), key=lambda item: item.key)


# --- round trips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_round_trip_is_exact(any_store, tmp_path, name):
    path = tmp_path / f"out{module(name).SUFFIX}"
    written = module(name).export(any_store, path)
    assert (written.images, written.texts, written.format, written.path) == (6, 5, name, path)
    files = [file for file in [path, *path.rglob("*")] if file.is_file()]
    assert (written.files, written.bytes) == (len(files), sum(file.stat().st_size for file in files))
    folder = module(name).load(path, tmp_path / "stores")
    assert folder == tmp_path / "stores" / any_store.spec.folder
    assert content(Store.open(folder)) == content(any_store)
    assert verify(folder) == []


@pytest.mark.parametrize("name", NAMES)
def test_many_small_blocks_give_the_same(any_store, tmp_path, name, monkeypatch):
    """Blocks and parts of one or two rows: every boundary is crossed."""
    from compal.stores.formats import _columns, _common, _items, huggingface, webdataset

    for room in (_columns, _common, huggingface, webdataset):
        if hasattr(room, "BLOCK_BYTES"):
            monkeypatch.setattr(room, "BLOCK_BYTES", 1)
    monkeypatch.setattr(_columns, "PIECE", 2)
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 2000)
    for room in (_items, huggingface, webdataset):
        monkeypatch.setattr(room, "part_rows", lambda size: 2)
    path = tmp_path / "out"
    module(name).export(any_store, path)
    folder = module(name).load(path, tmp_path / "stores")
    assert content(Store.open(folder)) == content(any_store)
    assert len(Store.open(folder).parts) == 6  # 6 images, 5 texts


@pytest.mark.parametrize("name", NAMES)
def test_some_keys_in_their_order(store, tmp_path, name):
    path = tmp_path / "out"
    written = module(name).export(store, path, ["z", "d.e/f", "b", "z"])
    assert (written.images, written.texts) == (2, 1)
    copy = Store.open(module(name).load(path, tmp_path / "stores"))
    assert copy.table("image").column("key").to_pylist() == ["d.e/f", "b"]
    assert copy.table("text").column("key").to_pylist() == ["z"]
    assert copy.quarantined() == []
    np.testing.assert_array_equal(copy.image_tokens(["b"]), store.image_tokens(["b"]))
    with pytest.raises(MissingFeatures, match="1 items: nobody"):
        module(name).export(store, tmp_path / "other", ["a", "nobody"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", NAMES)
def test_importing_again_continues_and_adds(store, tmp_path, name):
    module(name).export(store, tmp_path / "some", ["a", "b", "x"])
    module(name).export(store, tmp_path / "all")
    for path in ("some", "some", "all", "all"):
        folder = module(name).load(tmp_path / path, tmp_path / "stores")
    copy = Store.open(folder)
    assert content(copy) == content(store)
    assert copy.manifest == 2
    assert verify(folder) == []


@pytest.mark.parametrize("name", [*NAMES, "faiss"])
def test_equal_stores_make_equal_exports(store, tmp_path, name):
    for number in (1, 2):
        module(name).export(store, tmp_path / f"out{number}")

    def whole(path):
        files = [file for file in [path, *path.rglob("*")] if file.is_file()]
        return {file.relative_to(path): file.read_bytes() for file in files if file.name != "state.json"}

    assert whole(tmp_path / "out1") == whole(tmp_path / "out2")  # state.json holds a random fingerprint


@pytest.mark.parametrize("name", [*NAMES, "faiss"])
def test_nothing_is_overwritten_and_nothing_is_left(store, tmp_path, name, monkeypatch):
    paths = {taken: tmp_path / taken for taken in ("file", "folder", "link")}
    paths["file"].touch()
    paths["folder"].mkdir()
    paths["link"].symlink_to("nowhere")
    for path in paths.values():
        with pytest.raises(InputError, match="exists"):
            module(name).export(store, path)
    before = sorted(os.listdir(tmp_path))

    def broken(kind, keys):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "pooled", broken)
    with pytest.raises(InputError, match="No space left"):
        module(name).export(store, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == before


def test_somebody_was_faster(store, tmp_path):
    from compal.stores.formats._common import publishing

    with pytest.raises(InputError, match="exists"), publishing(tmp_path / "out") as staged:  # noqa: PT012
        staged.write_text("mine")
        (tmp_path / "out").write_text("theirs")
    assert (tmp_path / "out").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out"]


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_store_has_nothing_to_export(tmp_path, name):
    spec = FeatureSpec("random", "seed-0", pooled_dim=4, level="pooled")
    with pytest.raises(InputError, match="nothing to export"):
        module(name).export(Store.create(tmp_path / "s", spec), tmp_path / "out")


@pytest.mark.parametrize("name", NAMES)
def test_one_kind_alone(tmp_path, name):
    spec = FeatureSpec("random", "seed-0", pooled_dim=4, level="pooled")
    store = Store.create(tmp_path / "s", spec)
    store.write_texts("t-0", texts(spec, "x", "y"), [Quarantined("bad", "text", "?", "not UTF-8")])
    store.write_images("i-0", ImageRows([], [], [], None, np.zeros((0, 4))), [Quarantined("b", "image", "b", "empty")])
    store.commit(["t-0", "i-0"])
    module(name).export(store, tmp_path / "out")
    copy = Store.open(module(name).load(tmp_path / "out", tmp_path / "stores"))
    assert content(copy) == content(store)
    assert verify(copy.path) == []


def test_a_key_that_two_parts_hold_is_exported_once(store, tmp_path):
    store.write_images("i-2", images(store.spec, "a", "new", seed=9))
    store.commit(["i-2"])
    module("npz").export(store, tmp_path / "out.npz")
    copy = Store.open(module("npz").load(tmp_path / "out.npz", tmp_path / "stores"))
    assert copy.table("image").num_rows == 7
    np.testing.assert_array_equal(copy.image_tokens(["a"]), store.image_tokens(["a"]))


@pytest.mark.parametrize(("name", "text", "refused"), [("hdf5", "a\0b", 1), ("npz", "a\0b", 0), ("npz", "a\0", 1)])
def test_texts_that_a_format_cannot_hold_are_refused(tmp_path, name, text, refused):
    spec = FeatureSpec("random", "seed-0", pooled_dim=4, level="pooled")
    store = Store.create(tmp_path / "s", spec)
    rows = texts(spec, "x")
    rows.captions = [text]
    store.write_texts("t-0", rows)
    store.commit(["t-0"])
    for chosen in (name, "safetensors"):
        if refused and chosen == name:
            with pytest.raises(InputError, match=r"NUL.*safetensors"):
                module(chosen).export(store, tmp_path / chosen)
        else:
            module(chosen).export(store, tmp_path / chosen)
            assert content(Store.open(module(chosen).load(tmp_path / chosen, tmp_path / f"{chosen}s"))) == content(
                store
            )


def test_a_missing_library_names_the_extra(store, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r'h5py.*pip install "compal\[interop\]"'):
        module("hdf5").export(store, tmp_path / "out.h5")


# --- read by others --------------------------------------------------------------------------------------


def test_h5py_reads_it(store, tmp_path):
    import h5py

    module("hdf5").export(store, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        keys = file["images/keys"].asstr()[:].tolist()
        np.testing.assert_array_equal(file["images/tokens"][keys.index("b")], store.image_tokens(["b"])[0])
        assert json.loads(file["spec"].asstr()[0]) == json.loads(store.spec.to_json())
        assert file["texts/captions"].asstr()[1] == store.table("text").column("caption")[1].as_py()
        offsets, tokens = file["texts/offsets"][:], file["texts/tokens"][:]
        np.testing.assert_array_equal(tokens[offsets[2] : offsets[3]], store.text_tokens(["z"])[0][0])


def test_numpy_reads_it(store, tmp_path):
    module("npz").export(store, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        keys = file["images.keys"].tolist()
        assert keys == ["a", "b", "c", "d.e/f", "Ünï", "a b"]
        np.testing.assert_array_equal(file["images.tokens"], store.image_tokens(keys))
        np.testing.assert_array_equal(file["texts.pooled"], store.pooled("text", file["texts.keys"].tolist()))


def test_safetensors_reads_it_and_its_files_are_read(store, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    module("safetensors").export(store, tmp_path / "out.safetensors")
    tensors = load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(tensors["images.pooled"][:2], store.pooled("image", ["a", "b"]))
    with safe_open(tmp_path / "out.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["spec"]) == json.loads(store.spec.to_json())
    save_file(tensors, tmp_path / "theirs.safetensors", metadata)
    folder = module("safetensors").load(tmp_path / "theirs.safetensors", tmp_path / "stores")
    assert content(Store.open(folder)) == content(store)


def test_torch_reads_bfloat16_from_safetensors(tmp_path):
    import torch
    from safetensors.torch import load_file

    store = make_store(tmp_path, "bfloat16")
    module("safetensors").export(store, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")["images.pooled"]
    assert found.dtype == torch.bfloat16
    assert found.view(torch.uint16).numpy()[0].tobytes() == store.pooled("image", ["a"]).tobytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_webdataset_reads_it(store, tmp_path):
    import webdataset

    module("webdataset").export(store, tmp_path / "out.wds")
    shards = sorted(str(path) for path in (tmp_path / "out.wds").glob("images-*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["json"]["key"] for sample in samples] == store.table("image").column("key").to_pylist()
    np.testing.assert_array_equal(samples[3]["tokens.npy"], store.image_tokens(["d.e/f"])[0])
    texts = list(webdataset.WebDataset(str(tmp_path / "out.wds" / "texts-000000.tar"), shardshuffle=False).decode())
    assert texts[0]["json"] == store.table("text").to_pylist()[0]
    assert not any(".." in sample["__key__"] or "/" in sample["__key__"] for sample in samples)


def test_datasets_reads_it(store, tmp_path):
    import datasets

    module("huggingface").export(store, tmp_path / "out.hf")
    found = datasets.load_from_disk(str(tmp_path / "out.hf" / "images"))
    assert found["key"][:] == store.table("image").column("key").to_pylist()
    assert found[3]["tokens"] == store.image_tokens(["d.e/f"])[0].tolist()
    assert sorted(os.listdir(tmp_path / "out.hf")) == ["compal.json", "images", "texts"]
    found = datasets.load_from_disk(str(tmp_path / "out.hf" / "texts"))
    assert found[1]["caption"] == store.table("text").column("caption")[1].as_py()
    assert found[1]["segments"] == [
        {"start": 0, "end": 1, "kind": "object"},
        {"start": 0, "end": 1, "kind": "relation"},
    ]


@pytest.mark.parametrize("name", ["tokens", "pooled", "bfloat16"])
def test_the_nearest_of_the_index_are_the_nearest(tmp_path, name):
    import faiss

    store = make_store(tmp_path, name)
    module("faiss").export(store, tmp_path / "out.faiss")
    assert not hasattr(module("faiss"), "load")
    for kind, plural in (("image", "images"), ("text", "texts")):
        keys = json.loads((tmp_path / "out.faiss" / f"{plural}.keys.json").read_text())
        assert keys == store.table(kind).column("key").to_pylist()
        values = store.pooled(kind, keys)
        if values.dtype == np.uint16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float64)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        index = faiss.read_index(str(tmp_path / "out.faiss" / f"{plural}.faiss"))
        scores, found = index.search(values.astype(np.float32), len(keys))
        expected = values @ values.T
        np.testing.assert_allclose(scores, np.take_along_axis(expected, found, 1), atol=1e-6)
        np.testing.assert_allclose(scores, -np.sort(-expected, axis=1), atol=1e-6)


# --- others' files ---------------------------------------------------------------------------------------


def write_foreign(name, path, arrays):
    """As somebody else would write them."""
    if name == "hdf5":
        import h5py

        with h5py.File(path, "w") as file:
            for key, values in arrays.items():
                kind = h5py.string_dtype() if values.dtype.kind == "U" else values.dtype
                file.create_dataset(key, data=values.astype(kind), compression="gzip" if values.ndim > 1 else None)
    elif name == "npz":
        np.savez_compressed(path, **arrays)
    else:
        from safetensors.numpy import save_file

        save_file({key: values for key, values in arrays.items() if values.dtype.kind != "U"}, path)


MAPPING = {
    "backbone": "dinov2-vits14",
    "image_grid": "1x2",
    "image_prefix": "1",
    "images.keys": "ids",
    "images.tokens": "feats",
    "images.pooled": "cls",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_others_files_by_a_mapping(tmp_path, name):
    """Numbered images, captions padded to one length."""
    feats, cls = draw((5, 3, 8), 0).astype(np.float16), draw((5, 6), 1).astype(np.float16)
    words, pooled = draw((4, 7, 5), 2).astype(np.float16), draw((4, 6), 3).astype(np.float32)
    arrays = {"ids": np.arange(5) + 40, "feats": feats, "cls": cls, "words": words, "sentence": pooled}
    arrays |= {"valid": np.array([7, 1, 3, 2], np.int32), "text": np.array(CAPTIONS[:4])}
    write_foreign(name, tmp_path / "theirs.npz", arrays)
    mapping = dict(MAPPING)
    if name != "safetensors":  # it holds no texts
        mapping |= {"texts.captions": "text", "texts.tokens": "words", "texts.lengths": "valid"}
        mapping |= {"texts.pooled": "sentence"}
    folder = module(name).load(tmp_path / "theirs.npz", tmp_path / "stores", mapping)
    store = Store.open(folder)
    assert verify(folder) == []
    assert store.spec.backbone == "dinov2-vits14"
    assert (store.spec.image_shape, store.spec.image_grid, store.spec.pooled_dim) == ((3, 8), (1, 2), 6)
    assert store.keys("image") == {"40", "41", "42", "43", "44"}
    np.testing.assert_array_equal(store.image_tokens(["43"])[0], feats[3])
    np.testing.assert_array_equal(store.pooled("image", ["41"])[0], cls[1])
    if name != "safetensors":
        assert store.spec.dtype == "float32"  # the widest of the file
        tokens, mask = store.text_tokens([caption_key(text) for text in CAPTIONS[:4]])
        assert mask.sum(axis=1).tolist() == [7, 1, 3, 2]
        np.testing.assert_array_equal(tokens[2, :3], words[2, :3])
    assert module(name).load(tmp_path / "theirs.npz", tmp_path / "stores", mapping) == folder
    assert Store.open(folder).manifest == 1


def test_pooled_by_the_mean_where_a_file_has_none(tmp_path):
    feats = draw((5, 3, 8), 0)
    np.savez(tmp_path / "theirs.npz", ids=np.array(list("abcde")), feats=feats)
    mapping = MAPPING | {"images.pooled": "=mean"}
    store = Store.open(module("npz").load(tmp_path / "theirs.npz", tmp_path / "stores", mapping))
    np.testing.assert_allclose(store.pooled("image", list("abcde")), feats.mean(axis=1), rtol=1e-6)
    assert store.spec.extra == {"pooled_image": "mean of the tokens"}
    assert store.spec.weights.startswith("imported-")


def test_regions_of_others(tmp_path):
    values, cuts = draw((7, 6), 0), np.array([0, 3, 4, 7])
    np.savez(tmp_path / "r.npz", ids=np.array(list("abc")), feats=values, cls=draw((3, 4), 1), cuts=cuts)
    mapping = {**MAPPING, "images.offsets": "cuts", "image_grid": "0x0"}
    store = Store.open(module("npz").load(tmp_path / "r.npz", tmp_path / "stores", mapping))
    regions, mask = store.image_regions(["b", "a"])
    assert mask.tolist() == [[True, False, False], [True] * 3]
    np.testing.assert_array_equal(regions[1], values[:3])


@pytest.mark.parametrize(
    ("changes", "arrays", "error", "match"),
    [
        ({"images.keyz": "ids"}, {}, UnknownName, "Did you mean 'images.keys'"),
        ({"backbone": ""}, {}, UsageError, "names no backbone"),
        ({"images.keys": "none"}, {}, InputError, "none is not in it"),
        ({"images.pooled": None}, {}, InputError, "=mean"),
        ({"image_grid": "14"}, {}, UsageError, "ROWSxCOLUMNS"),
        ({"image_prefix": "-1"}, {}, UsageError, "not a number"),
        ({"dtype": "int8"}, {}, InputError, "int8"),
        ({"dtype": "float8"}, {}, InputError, "float8"),
        ({"level": "../../up"}, {}, InputError, "level"),
        ({}, {"ids": np.array(["a", "a", "c", "d", "e"])}, InputError, "'a' stands twice"),
        ({}, {"ids": np.array(["a", "b"])}, InputError, "2 keys|the keys and the spec say"),
        ({}, {"ids": np.zeros((5, 2), np.int64)}, InputError, "not a column of texts"),
        ({}, {"feats": np.zeros((5, 24), np.float16)}, InputError, "items, tokens, channels"),
        ({}, {"feats": np.zeros((5, 3, 8), np.int32)}, InputError, "int32"),
        ({}, {"feats": np.zeros((5, 3, 8), np.complex64)}, InputError, "complex64"),
        ({}, {"feats": np.zeros((5, 3, 8))}, InputError, 'dtype = "float32"'),
        ({}, {"feats": np.full((5, 3, 8), np.nan, np.float16)}, InputError, "NaN or infinity"),
        ({}, {"cls": np.zeros((4, 6), np.float16)}, InputError, "the keys and the spec say"),
        ({}, {"feats": np.array([[[object()]]] * 5)}, InputError, "neither numbers nor texts.*never unpickled"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(tmp_path, changes, arrays, error, match):
    given = {"ids": np.array(list("abcde")), "feats": draw((5, 3, 8), 0).astype(np.float16)}
    given |= {"cls": draw((5, 6), 1).astype(np.float16), **arrays}
    np.savez(tmp_path / "theirs.npz", allow_pickle=True, **given)
    mapping = {name: place for name, place in (MAPPING | changes).items() if place is not None}
    with pytest.raises(error, match=match) as found:
        module("npz").load(tmp_path / "theirs.npz", tmp_path / "stores", mapping)
    assert "\n" not in str(found.value)
    assert not list((tmp_path / "stores").rglob("manifests/*"))


def test_float64_is_rounded_when_asked_for(tmp_path):
    feats = draw((5, 3, 8), 0).astype(np.float64)
    np.savez(tmp_path / "t.npz", ids=np.array(list("abcde")), feats=feats, cls=np.ones((5, 2)))
    folder = module("npz").load(tmp_path / "t.npz", tmp_path / "stores", MAPPING | {"dtype": "float32"})
    np.testing.assert_array_equal(Store.open(folder).image_tokens(["b"])[0], feats[1].astype(np.float32))


# --- the contract and the edges --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_somebody_else_asks_for_a_mapping(tmp_path, name):
    path = tmp_path / "theirs"
    if name in ("webdataset", "huggingface"):
        path.mkdir()
        (path / "compal.json").write_text("{}")
    else:
        write_foreign(name, path.with_suffix(".npz"), {"feats": np.zeros((2, 3), np.float16)})
        path = path.with_suffix(".npz")
    with pytest.raises(InputError, match=r"no spec of ours.*mapping"):
        module(name).load(path, tmp_path / "stores")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_one_line(tmp_path, name):
    with pytest.raises(InputError, match="is not imported"):
        module(name).load(tmp_path / "nothing", tmp_path / "stores")


@pytest.mark.parametrize("name", NAMES)
def test_int8_is_exported_as_numbers_and_not_imported(whole_stores, tmp_path, name):
    """What int8 stands for are numbers; importing them would be a second quantization under the first's name."""
    store = Store.open(whole_stores["int8"][0])
    module(name).export(store, tmp_path / "out")
    with pytest.raises(InputError, match=r"made from others.*compal store cast"):
        module(name).load(tmp_path / "out", tmp_path / "stores")
    assert not (tmp_path / "stores").exists()


def test_the_numbers_of_int8(whole_stores, tmp_path):
    store = Store.open(whole_stores["int8"][0])
    module("npz").export(store, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert file["images.tokens"].dtype == np.float32
        np.testing.assert_array_equal(file["images.tokens"], store.image_tokens(file["images.keys"].tolist()))
        assert json.loads(str(file["spec"][0]))["dtype"] == "int8"


def test_a_store_of_another_spec_in_the_way(store, tmp_path):
    """Folder names carry 64 bits of the fingerprint; a clash is an error, never a mixture."""
    module("npz").export(store, tmp_path / "out.npz")
    other = dataclasses.replace(store.spec, weights="others")
    Store.create(tmp_path / "stores" / store.spec.folder, other)
    with pytest.raises(SpecMismatch):
        module("npz").load(tmp_path / "out.npz", tmp_path / "stores")


def test_a_member_that_fails_its_checksum(store, tmp_path):
    module("npz").export(store, tmp_path / "out.npz")
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        info = archive.getinfo("images.pooled.npy")
    raw = bytearray((tmp_path / "out.npz").read_bytes())
    raw[info.header_offset + 30 + len(info.filename) + 20 + info.file_size - 1] ^= 1
    (tmp_path / "out.npz").write_bytes(raw)
    with pytest.raises(CompalError, match="CRC-32"):
        module("npz").load(tmp_path / "out.npz", tmp_path / "stores")


def test_tables_and_texts_are_read_by_pandas_polars_and_duckdb(store):
    import duckdb
    import pandas
    import polars

    path = store.path / "tables" / "t-0.parquet"
    rows = store.table("text").to_pylist()[:3]
    captions = [row["caption"] for row in rows]
    assert pandas.read_parquet(path)["caption"].tolist() == captions
    assert pandas.read_parquet(path)["spans"][1].tolist() == rows[1]["spans"]
    assert polars.read_parquet(path).to_dicts() == rows
    found = duckdb.sql(f"select caption, len(spans), pool_index from '{path}' order by key").fetchall()
    assert found == [(row["caption"], len(row["spans"]), row["pool_index"]) for row in rows]
    everything = duckdb.sql(f"select count(*) from '{store.path}/tables/t-*.parquet'").fetchall()
    assert everything == [(5,)]
    arrow = store.path / "texts" / "t-0.arrow"
    expected = store.pooled("text", ["x", "y", "z"])
    frame = pa.ipc.open_file(pa.memory_map(str(arrow))).read_pandas()
    np.testing.assert_array_equal(np.stack(frame["pooled"]), expected)
    table = polars.read_ipc(arrow)
    np.testing.assert_array_equal(table["pooled"].cast(polars.Array(polars.Float32, 4)).to_numpy(), expected)
    assert [len(row) for row in table["tokens"].to_list()] == [len(row["spans"]) for row in rows]
    relation = pa.ipc.open_file(io.BytesIO(arrow.read_bytes())).read_all().select(["pooled_crc32c"])
    assert duckdb.from_arrow(relation).aggregate("count(*)").fetchall() == [(3,)]
