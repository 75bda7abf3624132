"""Verify: a whole store has no problems; every kind of damage is one, and none is an exception."""

import json
import random
import shutil

import google_crc32c
import numpy as np
import pytest

from compal.config import canonical
from compal.stores import upkeep
from compal.stores.files import checksum
from compal.stores.history import restore
from compal.stores.manifest import commit, done_digest
from compal.stores.spec import FeatureSpec
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.stores.verify_part import wrong_rows
from compal.stores.writer import write_array


def flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 4
    path.write_bytes(raw)


def reasons(store, **options):
    return {(problem.file, problem.what) for problem in verify(store.path, **options)}


def files(problems):
    return {problem.file for problem in problems}


def test_a_whole_store_has_no_problems(filled):
    assert verify(filled.path) == []
    assert verify(filled.path, deep=False) == []


def test_an_empty_store_has_no_problems(store):
    assert verify(store.path) == []


def test_no_store_at_all(tmp_path):
    (problem,) = verify(tmp_path / "nowhere")
    assert "there is no folder" in problem.what
    assert files(verify(tmp_path)) == {"spec.json"}


def test_a_flipped_bit_names_file_and_sample(filled):
    shard = "images/i-0/tokens/c.0.0.0"
    flip(filled.path / shard, 64 + 5)  # row 1
    problems = verify(filled.path)
    assert {problem.part for problem in problems} == {"i-0"}
    assert (shard, "its xxh3_128 is not what was written") in {(p.file, p.what) for p in problems}
    assert any("crc32c of chunk 1 " in problem.what for problem in problems)
    assert all("done/i-0.json" in problem.cure for problem in problems)
    assert verify(filled.path, deep=False) == []  # sizes are unchanged


@pytest.mark.parametrize(
    "file", ["images/i-0/tokens/c.0.0.0", "texts/t-0.arrow", "tables/t-0.parquet", "done/i-1.json"]
)
@pytest.mark.parametrize("how", ["truncated", "gone"])
def test_truncated_and_missing_files(filled, file, how):
    path = filled.path / file
    raw = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(raw[: len(raw) // 2])
    for deep in (False, True):
        assert file in files(verify(filled.path, deep=deep))


def test_files_that_no_manifest_lists(filled, make_images):
    (filled.path / "tables" / "stray.parquet").touch()
    (filled.path / "images" / "i-7" / "tokens").mkdir(parents=True)
    (filled.path / "images" / "i-7" / "tokens" / "zarr.json").touch()
    filled.write_images("i-2", make_images("f"))
    found = reasons(filled)
    assert ("tables/stray.parquet", "no manifest lists it") in found
    assert ("images/i-7/tokens/zarr.json", "no manifest lists it") in found
    assert ("done/i-2.json", "the part is complete but not committed") in found
    assert len(found) == 3


def test_a_broken_chain_of_manifests(filled, make_images):
    for name, key in (("i-2", "f"), ("i-3", "g")):
        filled.write_images(name, make_images(key))
        filled.commit([name])
    (filled.path / "manifests/2.json").unlink()
    found = reasons(filled)
    assert ("manifests/3.json", "its parent 2 is missing") in found
    (filled.path / "manifests/3.json").write_bytes(b"{")
    assert any(file == "manifests/3.json" and "JSON" in what for file, what in reasons(filled))


def test_a_manifest_that_drops_a_part(filled, make_images):
    filled.write_images("i-2", make_images("f"))
    filled.commit(["i-2"])
    path = filled.path / "manifests/2.json"
    data = json.loads(path.read_bytes())
    data["parts"] = data["parts"][1:]
    path.write_text(json.dumps(data))
    assert ("manifests/2.json", "drops the parts i-0") in reasons(filled)


@pytest.mark.parametrize("content", [None, b"", b'{"manifest":9,"sha256":""}'])
def test_a_wrong_head(filled, content):
    (filled.path / "head.json").unlink()
    if content is not None:
        (filled.path / "head.json").write_bytes(content)
    assert files(verify(filled.path)) == {"head.json"}


def reseal(path, done):
    """Write a done file that agrees with itself."""
    path.write_bytes(canonical({**done, "digest": done_digest(done)}))


def forge(store, part, *changed):
    """Make the manifest and done file agree with files that were changed: only their content is wrong."""
    done = store.path / "done" / f"{part}.json"
    data = json.loads(done.read_bytes())
    data["files"] |= {file: checksum(store.path / file) for file in changed}
    reseal(done, data)
    shutil.rmtree(store.path / "manifests")
    (store.path / "head.json").unlink()
    names = [path.stem for path in (store.path / "done").glob("*.json")]
    Store.open(store.path).commit(names)


def test_nan_that_was_written_with_the_right_checksums(filled):
    """Only a writer other than ours could do this; the check does not rest on checksums."""
    folder = filled.path / "images/i-0/tokens"
    shutil.rmtree(folder)
    values = np.zeros((3, 3, 8), np.float32)
    write_array(folder, values, "float16")
    raw = bytearray((folder / "c.0.0.0").read_bytes())
    bad = np.zeros(24, "<f2")
    bad[7] = np.nan
    raw[64:116] = bad.tobytes() + google_crc32c.value(bad).to_bytes(4, "little")
    (folder / "c.0.0.0").write_bytes(raw)
    forge(filled, "i-0", "images/i-0/tokens/c.0.0.0", "images/i-0/tokens/zarr.json")
    assert reasons(filled) == {("images/i-0/tokens", "row 1 holds NaN or infinity")}


def test_a_table_that_is_not_of_the_arrays(filled, make_texts):
    """The table of other rows: same columns, other keys and lengths."""
    other = Store.create(filled.path.parent / "other", filled.spec)
    other.write_texts("t-0", make_texts("p", "q", "r", seed=8))
    shutil.copy(other.path / "tables/t-0.parquet", filled.path / "tables/t-0.parquet")
    forge(filled, "t-0", "tables/t-0.parquet")
    found = reasons(filled)
    assert ("tables/t-0.parquet", "does not hold the keys that were planned") in found
    assert any(file == "texts/t-0.arrow" and "spans" in what for file, what in found)


@pytest.mark.parametrize("field", ["spans", "segments"])
def test_spans_outside_the_caption(store, make_texts, field):
    rows = make_texts("x", "y")
    if field == "spans":
        rows.spans[1][0] = (5, 99)
    else:
        rows.segments = [(), ((3, 2, "object"),)]
    store.write_texts("t-0", rows)
    store.commit(["t-0"])
    assert reasons(store) == {("tables/t-0.parquet", "caption y has a span outside its 30 characters")}


def test_what_killed_writers_left_is_listed(filled, monkeypatch):
    from compal.stores import files as room

    with room.staging(filled.path, "i-9") as folder:
        assert verify(filled.path) == []  # a writer at work is no problem
        monkeypatch.setattr(room, "alive", lambda pid: False)
        assert [problem.what for problem in verify(filled.path)] == ["a killed writer left it"]
        assert folder.is_dir()


@pytest.fixture
def rich(filled, make_images, make_texts):
    """A store with a past: a restored manifest, dropped parts, a part that is not committed."""
    filled.write_images("i-2", make_images("f", seed=4))
    filled.write_texts("t-1", make_texts("w", seed=5))
    filled.commit(["i-2", "t-1"])
    restore(filled.path, 1)
    filled.write_images("i-9", make_images("q", seed=6))
    return filled


def test_what_a_rich_store_has_is_no_problem(rich):
    assert reasons(rich) == {("done/i-9.json", "the part is complete but not committed")}


def test_random_damage_is_found_and_never_raises(rich):
    """100 random flips of one bit and 60 cuts and overwrites, of any file, of parts that are listed, dropped and
    not committed: each found, and none raises."""
    draw = random.Random(0)
    paths = sorted(path for path in rich.path.rglob("*") if path.is_file())
    before = verify(rich.path)
    for number in range(160):
        path = draw.choice(paths)
        raw = path.read_bytes()
        position, how = draw.randrange(len(raw)), "flip" if number < 100 else draw.choice(["cut", "zero", "junk"])
        damaged = {
            "flip": raw[:position] + bytes([raw[position] ^ (1 << draw.randrange(8))]) + raw[position + 1 :],
            "cut": raw[:position],
            "zero": raw[:position] + bytes(len(raw[position : position + 9])) + raw[position + 9 :],
            "junk": raw[:position] + draw.randbytes(len(raw[position : position + 9])) + raw[position + 9 :],
        }[how]
        if damaged == raw:
            continue
        path.write_bytes(damaged)
        assert verify(rich.path) != before, (path, how, position)
        verify(rich.path, deep=False)
        path.write_bytes(raw)
    assert verify(rich.path) == before


@pytest.mark.parametrize("part", ["i-2", "i-9"])
def test_damage_of_parts_that_are_dropped_or_not_committed(rich, part):
    """A later restore or commit would list them."""
    flip(rich.path / f"images/{part}/tokens/c.0.0.0", 3)
    assert (f"images/{part}/tokens/c.0.0.0", "its xxh3_128 is not what was written") in reasons(rich)
    (rich.path / f"tables/{part}.parquet").unlink()
    assert (f"tables/{part}.parquet", "is missing") in reasons(rich, deep=False)


def test_a_dropped_part_that_was_collected_is_no_problem(rich):
    assert upkeep.gc(rich.path, days=0).parts == ("i-2", "t-1")
    assert len(reasons(rich)) == 1


def test_a_done_file_that_agrees_with_all_but_itself(filled):
    """`written` is not part of the record; the digest covers it."""
    path = filled.path / "done/i-0.json"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"host":"', b'"host":"x'))
    (problem,) = {problem.what for problem in verify(filled.path) if problem.file == "done/i-0.json"}
    assert "digest does not match" in problem
    data = json.loads(raw)
    del data["digest"]
    path.write_bytes(canonical(data))  # as an older version wrote it
    assert verify(filled.path) == []
    path.write_bytes(json.dumps(data).encode())
    assert reasons(filled) == {("done/i-0.json", "is not canonical JSON")}


def test_the_newest_manifest_against_its_head(filled):
    path = filled.path / "manifests/1.json"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"host":"', b'"host":"x'))
    found = reasons(filled)
    assert found == {("head.json", "has another sha256 than manifest 1: one of the two has changed")}
    path.write_bytes(raw.replace(b'"number":1', b'"number":7'))
    assert all("delete it and extract again" in p.cure for p in verify(filled.path) if p.file == "manifests/1.json")


@pytest.mark.parametrize("operation", ["append", None, "restore"])
def test_only_an_operation_that_says_so_may_drop(filled, operation):
    number = commit(filled.path, filled.spec.fingerprint, [], drop=["i-0"])
    path = filled.path / f"manifests/{number}.json"
    data = json.loads(path.read_bytes())
    assert data["written"]["operation"] == "drop"
    assert verify(filled.path) == []
    data["written"]["operation"] = operation
    if operation is None:
        del data["written"]
    path.write_bytes(canonical(data))
    dropping = ("manifests/2.json", "drops the parts i-0")
    assert (dropping in reasons(filled)) == (operation != "restore")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("level", ["tokens", "regions"])
def test_lengths_of_embeddings_that_the_spec_calls_normalised(tmp_path, make_images, level, dtype):
    shape = (3, 8) if level == "tokens" else (0, 8)
    spec = FeatureSpec("r", "s", 4, shape, level=level, normalized=True, dtype=dtype)
    store = Store.create(tmp_path / "s", spec)
    rows = make_images("a", "b", "c")
    rows.tokens = rows.tokens if level == "tokens" else list(rows.tokens)
    rows.pooled = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    rows.pooled /= np.linalg.norm(rows.pooled, axis=1, keepdims=True)
    store.write_images("i-0", rows)
    rows.keys, rows.pooled = ["d", "e", "f"], rows.pooled * np.float32([[1], [1.05], [0]])
    store.write_images("i-1", rows)
    store.commit(["i-0", "i-1"])
    file = "images/i-1/pooled" if level == "tokens" else "images/i-1.arrow"
    assert {(file, what[:21]) for file, what in reasons(store)} == {
        (file, "row 1 has length 1.05"),
        (file, "row 2 has length 0, t"),
    }


@pytest.mark.parametrize("level", ["tokens", "regions"])
def test_every_bit_of_an_int8_part(tmp_path, make_images, make_texts, level):
    """Quantized values, scales and channels: 60 flips in the files of two parts, each found."""
    shape = (3, 8) if level == "tokens" else (0, 8)
    spec = FeatureSpec("r", "s", 4, shape, text_dim=5, level=level, dtype="int8")
    store = Store.create(tmp_path / "s", spec)
    rows = make_images("a", "b", "c")
    rows.tokens = rows.tokens if level == "tokens" else list(rows.tokens)
    store.write_images("i-0", rows)
    store.write_texts("t-0", make_texts("x", "y"))
    store.commit(["i-0", "t-0"])
    assert verify(store.path) == []
    draw = random.Random(1)
    paths = sorted(path for path in store.path.rglob("*") if path.is_file() and path.parts[-2] != "manifests")
    for _ in range(60):
        path = draw.choice(paths)
        raw = path.read_bytes()
        position = draw.randrange(len(raw))
        path.write_bytes(raw[:position] + bytes([raw[position] ^ (1 << draw.randrange(8))]) + raw[position + 1 :])
        assert verify(store.path), (path, position)
        path.write_bytes(raw)
    assert verify(store.path) == []


def test_values_that_are_not_finite_by_hand():
    half = np.array([[1, 2], [np.inf, 0], [0, np.nan]], np.float16)
    assert [row for row, _ in wrong_rows(half, False)] == [1, 2]
    bits = (half.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    for unit in (False, True):
        assert [row for row, what in wrong_rows(bits, unit) if "NaN" in what] == [1, 2]


def test_a_folder_that_is_named_for_another_spec(tmp_path, spec):
    path = tmp_path / spec.folder
    Store.create(path, spec)
    assert verify(path) == []
    path = path.rename(tmp_path / f"random-tokens-{'0' * 16}")
    (problem,) = verify(path)
    assert "named for" in problem.what
    assert verify(path.rename(tmp_path / "mine")) == []
