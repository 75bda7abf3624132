"""The store: what is written comes back by key, and what cannot be right is refused in one line."""

import dataclasses
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr

from compal.errors import InputError, MissingFeatures, SpecMismatch, VerificationError
from compal.stores.buffers import aligned_empty
from compal.stores.store import ImageRows, Quarantined, Store, TextRows


def published(store):
    """Everything a reader could meet."""
    return sorted(
        path.relative_to(store.path).as_posix()
        for path in store.path.rglob("*")
        if path.is_file() and path.name != "spec.json"
    )


# --- round trip ------------------------------------------------------------------------------------------


def test_an_empty_store_has_no_keys(store):
    assert store.keys("image") == store.keys("text") == set()
    assert "a" not in store
    assert store.quarantined() == []
    assert store.table("text").num_rows == 0
    assert store.uncommitted() == []
    assert store.commit([]) == 0
    assert store.manifest == 0


def test_what_is_written_is_read_by_key(filled, make_images, make_texts):
    one, two, texts = (
        make_images("a", "b", "c", seed=1),
        make_images("d", "e", seed=2),
        make_texts("x", "y", "z", seed=3),
    )
    store = Store.open(filled.path)
    assert store.keys("image") == {"a", "b", "c", "d", "e"}
    assert store.keys("text") == {"x", "y", "z"}
    assert "a" in store
    assert "q" not in store
    tokens = store.image_tokens(["e", "a", "e", "c"])
    assert tokens.dtype == np.float16
    np.testing.assert_array_equal(tokens, [two.tokens[1], one.tokens[0], two.tokens[1], one.tokens[2]])
    np.testing.assert_array_equal(store.pooled("image", ["d", "b"]), [two.pooled[0], one.pooled[1]])
    np.testing.assert_array_equal(store.pooled("text", ["z", "x"]), texts.pooled[[2, 0]])
    padded, mask = store.text_tokens(["z", "y"])
    for row, index in enumerate((2, 1)):
        length = len(texts.tokens[index])
        np.testing.assert_array_equal(padded[row, :length], texts.tokens[index])
        assert mask[row].tolist() == [True] * length + [False] * (padded.shape[1] - length)
        assert not padded[row, length:].any()


def test_every_order_gives_the_same_rows(filled):
    keys = sorted(filled.keys("image"))
    reference = dict(zip(keys, filled.image_tokens(keys).copy(), strict=True))
    for seed in range(5):
        shuffled = np.random.default_rng(seed).choice(keys, 17).tolist()
        np.testing.assert_array_equal(filled.image_tokens(shuffled), [reference[key] for key in shuffled])


def test_the_table_keeps_what_was_said(filled, make_texts):
    texts = make_texts("x", "y", "z", seed=3)
    table = filled.table("text").to_pylist()
    assert [row["key"] for row in table] == ["x", "y", "z"]
    assert table[0]["caption"] == "a red cube left of a blue ball"
    assert [(span["start"], span["end"]) for span in table[1]["spans"]] == texts.spans[1]
    assert table[0]["segments"] == [{"start": 0, "end": 10, "kind": "object"}]
    images = filled.table("image").to_pylist()
    assert [row["key"] for row in images] == ["a", "b", "c", "d", "e"]
    assert (images[0]["width"], images[0]["height"], images[0]["source"]) == (6, 4, "s/a.jpg")


def test_reused_buffers(filled):
    out = aligned_empty((2, 3, 8), np.float16)
    assert filled.image_tokens(["a", "d"], out) is out
    np.testing.assert_array_equal(out, filled.image_tokens(["a", "d"]))
    buffer = np.full((9, 9, 5), 7, np.float16)
    padded, mask = filled.text_tokens(["x", "z"], buffer)
    fresh, fresh_mask = filled.text_tokens(["x", "z"])
    assert np.shares_memory(padded, buffer)
    np.testing.assert_array_equal(padded, fresh)
    np.testing.assert_array_equal(mask, fresh_mask)


@pytest.mark.parametrize("shape", [(1, 3, 8), (2, 8, 3)])
def test_a_wrong_buffer_is_refused(filled, shape):
    with pytest.raises(InputError, match="buffer"):
        filled.image_tokens(["a", "b"], np.empty(shape, np.float16))
    with pytest.raises(InputError, match="buffer"):
        filled.image_tokens(["a", "b"], np.empty((2, 3, 8), np.float32))
    with pytest.raises(InputError, match="buffer"):
        filled.text_tokens(["x", "y"], np.empty(1, np.float16))


def test_no_keys_at_all(filled):
    assert filled.image_tokens([]).shape == (0, 3, 8)
    assert filled.pooled("text", []).shape == (0, 4)
    padded, mask = filled.text_tokens([])
    assert padded.shape == (0, 0, 5)
    assert mask.shape == (0, 0)


def test_missing_keys_are_named_with_the_command_that_adds_them(filled):
    with pytest.raises(MissingFeatures) as caught:
        filled.image_tokens(["a", "q1", "q2", "q3", "q4", "q1"])
    assert "4 images: q1, q2, q3, …" in str(caught.value)
    assert "compal extract --backbone random" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_in_two_parts_is_read_from_the_first(store, make_images):
    first, second = make_images("a", "b", seed=1), make_images("b", "c", seed=2)
    store.write_images("i-9", first)
    store.commit(["i-9"])
    store.write_images("i-1", second)
    store.commit(["i-1"])
    np.testing.assert_array_equal(store.image_tokens(["b", "c"]), [first.tokens[1], second.tokens[1]])
    assert store.keys("image") == {"a", "b", "c"}
    assert store.parts_of("image", ["c", "a", "b", "c"]).tolist() == [1, 0, 0, 1]
    with pytest.raises(MissingFeatures, match="1 images: q"):
        store.parts_of("image", ["a", "q"])


def test_zarr_python_opens_a_part_as_a_group(filled, make_images):
    group = zarr.open_group(str(filled.path / "images" / "i-0"), mode="r")
    expected = make_images("a", "b", "c", seed=1)
    np.testing.assert_array_equal(group["tokens"][:], expected.tokens)
    np.testing.assert_array_equal(group["pooled"][:], expected.pooled)
    assert group.attrs["spec"] == filled.spec.fingerprint


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_regions_are_ragged_and_padded(tmp_path, spec, dtype):
    spec = dataclasses.replace(spec, level="regions", image_shape=(0, 0), text_dim=4, dtype=dtype)
    store = Store.create(tmp_path / "r", spec)
    tokens = [np.ones((2, 4)), np.full((1, 4), 2.0)]
    store.write_images("i", ImageRows(["a", "b"], ["", ""], [(1, 1)] * 2, tokens, np.zeros((2, 4))))
    store.commit(["i"])
    padded, mask = store.image_regions(["b", "a"])
    assert padded.dtype == dtype
    assert padded[:, :, 0].tolist() == [[2, 0], [1, 1]]
    assert mask.tolist() == [[True, False], [True, True]]
    assert store.pooled("image", ["a"]).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(MissingFeatures):
        store.image_tokens(["a"])


def test_the_pooled_level_keeps_no_tokens(tmp_path, spec):
    spec = dataclasses.replace(spec, level="pooled", image_shape=(0, 0), text_dim=0)
    store = Store.create(tmp_path / "p", spec)
    store.write_images("i", ImageRows(["a"], [""], [(1, 1)], None, np.ones((1, 4))))
    store.write_texts("t", TextRows(["x"], ["cap"], [""], None, np.full((1, 4), 2.0)))
    store.commit(["i", "t"])
    assert store.pooled("image", ["a"]).tolist() == [[1, 1, 1, 1]]
    assert store.pooled("text", ["x"]).tolist() == [[2, 2, 2, 2]]
    for read in (store.image_tokens, store.image_regions, store.text_tokens):
        with pytest.raises(MissingFeatures, match="level pooled"):
            read(["a"])


def test_many_pooled_rows_cross_chunks(tmp_path, spec):
    spec = dataclasses.replace(spec, level="pooled", image_shape=(0, 0), text_dim=0)
    store = Store.create(tmp_path / "p", spec)
    keys, pooled = [str(n) for n in range(2500)], np.arange(2500)[:, None] % 2048 + np.zeros((1, 4))
    store.write_images("i", ImageRows(keys, [""] * 2500, [(1, 1)] * 2500, None, pooled))
    store.commit(["i"])
    asked = np.random.default_rng(0).permutation(2500)
    np.testing.assert_array_equal(store.pooled("image", [keys[n] for n in asked]), pooled[asked])


def test_a_snapshot_does_not_move(filled, make_images):
    reader = Store.open(filled.path)
    filled.write_images("i-2", make_images("new"))
    assert filled.uncommitted() == ["i-2"]
    assert "new" not in filled
    assert filled.commit(["i-2"]) == 2
    assert "new" in filled
    assert "new" not in reader
    assert "new" in Store.open(reader.path)
    assert "new" not in Store.open(reader.path, manifest=1)


def test_a_store_travels_to_workers(filled):
    copy = pickle.loads(pickle.dumps(filled))
    assert (copy.path, copy.manifest, copy.spec) == (filled.path, 1, filled.spec)
    np.testing.assert_array_equal(copy.image_tokens(["b"]), filled.image_tokens(["b"]))


def test_info(filled):
    filled.write_images(
        "i-2", ImageRows([], [], [], None, np.empty((0, 4))), [Quarantined("q", "image", "q.jpg", "empty")]
    )
    filled.commit(["i-2"])
    info = filled.info()
    assert (info["images"], info["texts"], info["parts"], info["manifest"], info["manifests"]) == (
        5,
        3,
        4,
        2,
        2,
    )
    assert info["bytes"] == sum((filled.path / file).stat().st_size for part in filled.parts for file in part.files)
    assert info["quarantined"] == {"empty": 1}
    assert info["uncommitted"] == []
    assert info["fingerprint"] == filled.spec.fingerprint
    json.dumps(info)


# --- quarantine ------------------------------------------------------------------------------------------


def test_quarantined_items_are_listed_until_they_are_there(store, make_images):
    bad = Quarantined("bad", "image", "bad.jpg", "truncated")
    store.write_images("i-0", make_images("a"), [bad])
    assert store.quarantined() == []  # not committed
    store.commit(["i-0"])
    assert store.quarantined() == [bad]
    assert "bad" not in store
    store.write_images("i-1", make_images("bad"))
    store.commit(["i-1"])
    assert store.quarantined() == []


def test_a_part_of_nothing_but_quarantined_items(store):
    bad = Quarantined("bad", "text", "row 7", "the caption is empty")
    store.write_texts("t-0", TextRows([], [], [], [], np.empty((0, 4))), [bad])
    store.commit(["t-0"])
    assert Store.open(store.path).quarantined() == [bad]
    assert store.keys("text") == set()
    assert not (store.path / "texts").exists()


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "what"), [(np.nan, "NaN"), (np.inf, "NaN or infinity"), (1e5, "too large for float16")]
)
@pytest.mark.parametrize("field", ["tokens", "pooled"])
def test_values_that_are_not_finite_name_the_item_and_publish_nothing(store, make_images, bad, what, field):
    rows = make_images("a", "b", "c")
    getattr(rows, field)[1, 2] = bad
    with pytest.raises(InputError) as caught:
        store.write_images("i-0", rows)
    assert "image b (s/b.jpg)" in str(caught.value)
    assert what in str(caught.value)
    assert published(store) == []
    assert not store.part_done("i-0")


@pytest.mark.parametrize("field", ["tokens", "pooled"])
def test_texts_that_are_not_finite_are_refused(store, make_texts, field):
    rows = make_texts("x", "y")
    getattr(rows, field)[1][0] = np.nan
    with pytest.raises(InputError, match=r"text y \(s/y\)"):
        store.write_texts("t-0", rows)
    assert published(store) == []


def test_duplicate_keys_are_refused(store, make_images, make_texts):
    with pytest.raises(InputError, match=r"image a \(s/a.jpg\) stands twice"):
        store.write_images("i-0", make_images("a", "b", "a"))
    with pytest.raises(InputError, match="text x"):
        store.write_texts("t-0", make_texts("x"), [Quarantined("x", "text", "", "")])
    with pytest.raises(InputError, match="empty key"):
        store.write_images("i-0", make_images("a", ""))
    assert published(store) == []


WRONG = {
    "another shape": lambda rows: dataclasses.replace(rows, tokens=rows.tokens[:, :2]),
    "no tokens": lambda rows: dataclasses.replace(rows, tokens=None),
    "a list": lambda rows: dataclasses.replace(rows, tokens=list(rows.tokens)),
    "too few rows": lambda rows: dataclasses.replace(rows, tokens=rows.tokens[:1]),
    "too few pooled": lambda rows: dataclasses.replace(rows, pooled=rows.pooled[:1]),
    "pooled of another dim": lambda rows: dataclasses.replace(rows, pooled=rows.pooled[:, :3]),
    "too few sources": lambda rows: dataclasses.replace(rows, sources=[]),
    "too few sizes": lambda rows: dataclasses.replace(rows, sizes=[]),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_images_that_do_not_fit_the_spec_are_refused(store, make_images, change):
    with pytest.raises(InputError):
        store.write_images("i-0", change(make_images("a", "b")))
    assert published(store) == []


WRONG_TEXTS = {
    "a caption without tokens": lambda rows: rows.tokens.__setitem__(0, np.empty((0, 5))),
    "another dim": lambda rows: rows.tokens.__setitem__(0, np.ones((2, 4))),
    "one span too many": lambda rows: rows.spans[0].append((0, 1)),
    "a pool index past the end": lambda rows: rows.pool_index.__setitem__(0, 9),
    "too few captions": lambda rows: rows.captions.pop(),
    "too few segments": lambda rows: rows.segments.pop(),
}


@pytest.mark.parametrize("change", WRONG_TEXTS.values(), ids=WRONG_TEXTS)
def test_texts_that_do_not_fit_the_spec_are_refused(store, make_texts, change):
    rows = make_texts("x", "y")
    change(rows)
    with pytest.raises(InputError):
        store.write_texts("t-0", rows)
    assert published(store) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "a.b", "ä", "x" * 200])
def test_a_part_needs_a_plain_name(store, make_images, name):
    with pytest.raises(InputError, match="cannot name a part"):
        store.write_images(name, make_images("a"))


def test_a_name_that_is_taken_by_other_items(filled, make_images, make_texts):
    filled.write_images("i-0", make_images("a", "b", "c", seed=9))  # the same items: the first stay
    with pytest.raises(InputError, match="already holds other items"):
        filled.write_images("i-0", make_images("other"))
    with pytest.raises(InputError, match="already holds other items"):
        filled.write_texts("i-0", make_texts("a", "b", "c"))
    np.testing.assert_array_equal(filled.image_tokens(["a"])[0], make_images("a", "b", "c", seed=1).tokens[0])


def test_committing_what_is_not_complete(store):
    with pytest.raises(InputError, match="not complete"):
        store.commit(["i-0"])


# --- opening ---------------------------------------------------------------------------------------------


def test_creating_twice_opens(store, spec):
    again = Store.create(store.path, spec)
    assert again.spec == spec


def test_another_spec_is_a_mismatch(store, spec):
    other = dataclasses.replace(spec, weights="seed-1")
    with pytest.raises(SpecMismatch, match="weights 'seed-0' there, 'seed-1' here") as caught:
        Store.create(store.path, other)
    assert other.folder in str(caught.value)


def test_what_is_no_store(tmp_path, spec):
    with pytest.raises(InputError, match="not a store"):
        Store.open(tmp_path)
    with pytest.raises(InputError, match="not a store"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match=r"holds photo\.jpg and no store"):
        Store.create(tmp_path, spec)
    with pytest.raises(InputError, match="another folder"):
        Store.create(tmp_path / "photo.jpg", spec)


def test_a_dtype_that_cannot_be_stored(tmp_path, spec):
    with pytest.raises(InputError, match="float64"):
        Store.create(tmp_path / "b", spec.with_dtype("float64"))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format_version": 1}', b"[]", b"\xff", b'{"format_version": 9}'])
def test_a_damaged_spec_is_one_line(store, content):
    (store.path / "spec.json").write_bytes(content)
    with pytest.raises((InputError, VerificationError)) as caught:
        Store.open(store.path)
    assert "\n" not in str(caught.value)


def test_a_changed_spec_is_noticed(filled, spec):
    (filled.path / "spec.json").write_bytes(dataclasses.replace(spec, weights="seed-1").to_json())
    with pytest.raises(VerificationError, match="not the spec its manifest names"):
        Store.open(filled.path)


# --- damage at read --------------------------------------------------------------------------------------

READS = {
    "images/i-0/tokens/c.0.0.0": lambda store: store.image_tokens(["a"]),
    "images/i-0/tokens/zarr.json": lambda store: store.image_tokens(["a"]),
    "images/i-0/pooled/c.0.0": lambda store: store.pooled("image", ["a"]),
    "texts/t-0.arrow": lambda store: store.text_tokens(["x"]),
    "tables/t-0.parquet": lambda store: store.keys("text"),
}


@pytest.mark.parametrize("file", READS)
@pytest.mark.parametrize("how", ["truncated", "emptied", "gone", "longer"])
def test_files_of_another_size_are_errors(filled, file, how):
    path = filled.path / file
    raw = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes({"truncated": raw[:-1], "emptied": b"", "longer": raw + b"\0"}[how])
    with pytest.raises(VerificationError) as caught:
        READS[file](Store.open(filled.path))
    assert file in str(caught.value)
    assert "compal store verify" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_part_is_made_anew_after_its_done_file_is_deleted(filled, make_images):
    before = filled.image_tokens(["d", "e"]).copy()
    (filled.path / "images/i-1/tokens/c.0.0.0").write_bytes(b"")
    (filled.path / "done/i-1.json").unlink()
    store = Store.create(filled.path, filled.spec)
    assert store.keys("image") == {"a", "b", "c"}
    store.write_images("i-1", make_images("d", "e", seed=2))
    assert store.commit(["i-1"]) == 1  # the same content: nothing to say
    np.testing.assert_array_equal(store.image_tokens(["d", "e"]), before)


def test_a_part_made_anew_with_other_bits_replaces_its_entry(filled, make_images):
    (filled.path / "done/i-1.json").unlink()
    other = make_images("d", "e", seed=77)
    filled.write_images("i-1", other)
    assert filled.uncommitted() == ["i-1"]
    assert filled.commit(["i-1"]) == 2
    np.testing.assert_array_equal(filled.image_tokens(["e"])[0], other.tokens[1])
    assert [part.name for part in filled.parts] == ["i-0", "i-1", "t-0"]


# --- the disk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "rename", "link"])
def test_a_failing_disk_is_one_line_and_leaves_the_part_absent(store, make_images, monkeypatch, code, call):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InputError) as caught:
            store.write_images("i-0", make_images("a"))
    assert os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not store.part_done("i-0")
    assert list((store.path / ".staging").iterdir()) == []
    store.write_images("i-0", make_images("a"))
    store.commit(["i-0"])
    assert store.keys("image") == {"a"}


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_failing_disk_at_commit_leaves_the_manifest_as_it_was(filled, make_images, monkeypatch, call):
    filled.write_images("i-2", make_images("new"))

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InputError, match="Free space"):
            filled.commit(["i-2"])
    assert "new" not in Store.open(filled.path)
    assert filled.commit(["i-2"]) == 2


FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from compal.errors import InputError
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store
spec = FeatureSpec("random", "seed-0", pooled_dim=4, image_shape=(64, 96))
store = Store.create(Path(sys.argv[1]), spec)
rows = ImageRows(["a", "b"], ["", ""], [(1, 1)] * 2, np.ones((2, 64, 96)), np.ones((2, 4)))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    store.write_images("i-0", rows)
except InputError as error:
    print(error)
"""


def test_a_write_that_stops_half_way(tmp_path):
    """A real short write: the process may not make files of more than 20 kB."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "s")], capture_output=True, text=True, check=True
    )
    assert "cannot write part i-0" in done.stdout
    assert "Free space" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "s").rglob("*")) == [".staging", "spec.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path, spec):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Make the folder writable"):
        Store.create(tmp_path / "s", spec)


def test_a_store_that_is_there_opens_for_extraction_on_a_read_only_disk(filled, spec, monkeypatch):
    """All that is wanted is there: nothing needs to be written."""

    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("link", "rename", "replace", "fsync"):
        monkeypatch.setattr(os, call, fail)
    assert Store.create(filled.path, spec).commit(["i-0"]) == 1


# --- house -----------------------------------------------------------------------------------------------


def test_stores_are_read_and_written_without_torch_or_zarr(tmp_path):
    code = FULL_DISK.split("resource.setrlimit")[0] + (
        "store.write_images('i-0', rows); store.commit(['i-0']); store.image_tokens(['a'])\n"
        "import compal.stores.verify, compal.stores.pairs\n"
        "assert compal.stores.verify.verify(Path(sys.argv[1])) == []\n"
        "heavy = {'torch', 'zarr', 'open_clip'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True)


def test_one_caption_is_a_view_of_the_file(filled):
    padded, mask = filled.text_tokens(["y"])
    row = filled.text_row("y")
    np.testing.assert_array_equal(row, padded[0, mask[0]])
    assert not row.flags.writeable
    with pytest.raises(MissingFeatures, match="nobody"):
        filled.text_row("nobody")


def test_a_child_of_a_fork_can_open_what_its_parent_was_opening(filled):
    with filled._lock:
        child = os.fork()
        if child == 0:
            filled.image_tokens(["a"])
            os._exit(0)
        for _ in range(200):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.05)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert (done, status) == (child, 0)


def test_a_batch_over_more_parts_than_files_may_be_open(store, make_images, monkeypatch):
    monkeypatch.setattr("compal.stores.snapshot.OPEN_ARRAYS", 2)
    for name in "abcde":
        store.write_images(f"i-{name}", make_images(name, seed=ord(name)))
    store.commit([f"i-{name}" for name in "abcde"])
    tokens = store.image_tokens(list("ecabd"))
    for row, name in enumerate("ecabd"):
        np.testing.assert_array_equal(tokens[row], make_images(name, seed=ord(name)).tokens[0].astype(np.float16))
    assert len(store._open) <= 2
