"""Verify: a whole store has no problems; every kind of damage is one, and none is an exception."""

import json
import random
import shutil

import google_crc32c
import numpy as np
import pytest

from compal.stores.files import checksum
from compal.stores.store import Store
from compal.stores.verify import verify
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


def forge(store, part, *changed):
    """Make the manifest and done file agree with files that were changed: only their content is wrong."""
    done = store.path / "done" / f"{part}.json"
    data = json.loads(done.read_bytes())
    data["files"] |= {file: checksum(store.path / file) for file in changed}
    done.write_text(json.dumps(data))
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
        monkeypatch.setattr(room, "_alive", lambda pid: False)
        assert [problem.what for problem in verify(filled.path)] == ["a killed writer left it"]
        assert folder.is_dir()


def test_random_damage_is_found_and_never_raises(filled):
    """120 random flips, cuts and overwrites of any file: found, except in what says who wrote a part."""
    draw = random.Random(0)
    paths = sorted(path for path in filled.path.rglob("*") if path.is_file())
    for _ in range(120):
        path = draw.choice(paths)
        raw = path.read_bytes()
        position, how = draw.randrange(len(raw)), draw.choice(["flip", "cut", "zero", "junk"])
        damaged = {
            "flip": raw[:position] + bytes([raw[position] ^ (1 << draw.randrange(8))]) + raw[position + 1 :],
            "cut": raw[:position],
            "zero": raw[:position] + bytes(len(raw[position : position + 9])) + raw[position + 9 :],
            "junk": raw[:position] + draw.randbytes(len(raw[position : position + 9])) + raw[position + 9 :],
        }[how]
        if damaged == raw:
            continue
        path.write_bytes(damaged)
        problems = verify(filled.path)
        in_written = path.parent.name == "done" and position >= raw.index(b'"written"')
        assert problems or in_written, (path, how, position)
        path.write_bytes(raw)
    assert verify(filled.path) == []
