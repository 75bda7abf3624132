"""Forged stores and files: refused with the reason, before memory is allocated, and nothing in them is run.

A forger has full control: after each change the checksums, records and manifests are made right again, so that
only checks of content can refuse. `COMPAL_FUZZ=10000` draws that many cases in place of 500.
"""

import hashlib
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hostile import Canary, little_memory

from compal.config import canonical
from compal.errors import CompalError, VerificationError
from compal.stores.store import Store
from compal.stores.verify import verify

CASES = int(os.environ.get("COMPAL_FUZZ", "500"))
GIGABYTES = 10 * 2**30


# --- tools -----------------------------------------------------------------------------------------------


def checksum(path):
    raw = path.read_bytes()
    return {"bytes": len(raw), "xxh3_128": xxhash.xxh3_128(raw).hexdigest()}


def reseal(root):
    """Make every checksum, digest, record, parent and head right for the files as they are."""
    records = {}
    for path in (root / "done").glob("*.json"):
        done = json.loads(path.read_bytes())
        done["files"] = {file: reseal_file(root / file, entry) for file, entry in done["files"].items()}
        records[path.stem] = write_done(path, done), done
    reseal_manifests(root, records)


def reseal_file(path, entry):
    return checksum(path) if path.is_file() else entry


def write_done(path, done):
    """Write a done file with the digest that belongs to it, and return the part's record."""
    if "digest" in done:
        del done["digest"]
        done["digest"] = hashlib.sha256(canonical(done)).hexdigest()
    path.write_bytes(canonical(done))
    bare = {key: value for key, value in done.items() if key not in ("written", "digest")}
    return hashlib.sha256(canonical(bare)).hexdigest()


def reseal_manifests(root, records=None, change=None):
    """Chain the manifests anew, after `change(parts)` of each."""
    parent = ""
    numbers = sorted(int(path.stem) for path in (root / "manifests").glob("*.json"))
    for number in numbers:
        path = root / "manifests" / f"{number}.json"
        data = json.loads(path.read_bytes())
        for part in data["parts"]:
            if records and part["name"] in records:
                part["record"], done = records[part["name"]]
                part["files"], part["rows"] = done["files"], done["rows"]
        if change:
            change(data["parts"])
        data["parent"] = parent
        data["spec"] = hashlib.sha256((root / "spec.json").read_bytes()).hexdigest()
        path.write_bytes(canonical(data))
        parent = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / "head.json").write_bytes(canonical({"manifest": numbers[-1], "sha256": parent}))


def forge_parts(root, change):
    """`change(entry)` of the first part in done file and manifests alike."""

    def first(parts):
        change(parts[0])

    data = json.loads((root / "manifests" / "1.json").read_bytes())["parts"][0]
    path = root / "done" / f"{data['name']}.json"
    done = json.loads(path.read_bytes())
    entry = {"name": done["part"], **{key: done[key] for key in ("kind", "rows", "items", "files")}}
    change(entry)
    done |= {key: entry[key] for key in ("kind", "rows", "items", "files")}
    record = write_done(path, done)
    reseal_manifests(root, change=lambda parts: (first(parts), parts[0].update(record=record)))


def read_all(root):
    """Open a store and read everything it holds."""
    store = Store.open(root)
    store.info()
    store.quarantined()
    for kind in ("image", "text"):
        keys = sorted(store.keys(kind))
        store.table(kind)
        if not keys:
            continue
        store.pooled(kind, keys)
        if kind == "text" and store.spec.text_dim:
            store.text_tokens(keys)
        elif kind == "image" and store.spec.level == "regions":
            store.image_regions(keys)
        elif kind == "image" and store.spec.image_shape[-1]:
            store.image_tokens(keys)


def refused(root, match=None, error=CompalError):
    """Reading says why it refuses, in one line, and `verify` reports it and does not raise."""
    with little_memory():
        with pytest.raises(error, match=match) as found:
            read_all(root)
        problems = verify(root)
    assert "\n" not in str(found.value)
    assert problems
    return str(found.value)


@pytest.fixture
def canary(tmp_path):
    """Bytes that, unpickled, make a file; the test fails if it is there in the end."""
    yield pickle.dumps(Canary(tmp_path / "executed"))
    assert not (tmp_path / "executed").exists()


def shard_of(filled, array="tokens"):
    return next((filled.path / "images" / "i-0" / array).glob("c.*"))


# --- manifests and paths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/passwd",
        "images/i-0/../../../secret",
        "images/i-0/..",
        "images/i-0/./tokens",
        "images//i-0",
        "images\\i-0\\tokens",
        "images/i-0/tok\0ens",
        "images/i-1/tokens/c.0.0.0",
        "texts/i-0.arrow",
        "tables/i-1.parquet",
        "spec.json",
        "",
        ".",
    ],
)
def test_paths_that_a_part_may_not_list(filled, path):
    (filled.path.parent / "secret").write_text("secret")

    def add(entry):
        entry["files"] = {**entry["files"], path: {"bytes": 6, "xxh3_128": "0" * 32}}

    forge_parts(filled.path, add)
    refused(filled.path, error=VerificationError)


@pytest.mark.parametrize(
    "what", ["images/i-0/tokens/c.0.0.0", "images/i-0/tokens", "images/i-0", "images", "tables/i-0.parquet", "tables"]
)
def test_links_that_lead_out_are_refused(filled, what):
    outside = filled.path.parent / "outside"
    os.rename(filled.path / what, outside)
    (filled.path / what).symlink_to(outside)
    refused(filled.path, "symbolic link", VerificationError)


def test_a_loop_of_links(filled):
    path = filled.path / "tables" / "i-0.parquet"
    path.unlink()
    path.symlink_to(path)
    refused(filled.path, error=VerificationError)


MALFORMED = [
    {"name": "../x"},
    {"name": ""},
    {"name": "a/b"},
    {"name": ["i-0"]},
    {"kind": "audio"},
    {"kind": None},
    {"rows": -1},
    {"rows": 3.0},
    {"rows": "3"},
    {"rows": True},
    {"rows": 10**30},
    {"files": []},
    {"files": {"images/i-0/tokens/c.0.0.0": {"bytes": -1, "xxh3_128": "0" * 32}}},
    {"files": {"images/i-0/tokens/c.0.0.0": {"bytes": 1.5, "xxh3_128": "0" * 32}}},
    {"files": {"images/i-0/tokens/c.0.0.0": 5}},
    {"record": 7},
    {"items": None},
    {"extra": 1},
]


@pytest.mark.parametrize("change", MALFORMED, ids=[json.dumps(change)[:40] for change in MALFORMED])
def test_malformed_entries(filled, change):
    reseal_manifests(filled.path, change=lambda parts: parts[0].update(change))
    refused(filled.path, error=VerificationError)


def test_a_part_listed_twice(filled):
    reseal_manifests(filled.path, change=lambda parts: parts.append(parts[0]))
    refused(filled.path, "twice", VerificationError)


def test_a_manifest_without_sense(filled):
    path = filled.path / "manifests" / "1.json"
    for content in (b"[]", b"{}", b"null", b'{"format":1}', b"{" * 100_000, b"\xff", b"", b"[" * 100_000):
        path.write_bytes(content)
        refused(filled.path, error=VerificationError)


def test_a_manifest_that_names_a_key_twice(filled):
    """Two readers of one JSON must not see two things."""
    path = filled.path / "manifests" / "1.json"
    raw = path.read_bytes()
    assert raw.startswith(b'{"format":1,"number":1,')
    path.write_bytes(raw.replace(b'{"format":1,', b'{"format":1,"number":9,', 1))
    (filled.path / "head.json").write_bytes(
        canonical({"manifest": 1, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    )
    assert any("canonical" in problem.what for problem in verify(filled.path))


@pytest.mark.parametrize(
    "change",
    [
        {"level": "../../up"},
        {"level": "/tmp/x"},
        {"dtype": "object"},
        {"dtype": "O"},
        {"pooled_dim": -4},
        {"pooled_dim": 10**12},
        {"image_shape": [10**6, 10**6]},
        {"image_shape": [-3, 8]},
        {"image_shape": [3, 8, 2]},
        {"image_shape": []},
        {"text_dim": 10**9},
        {"text_dim": -5},
        {"format_version": 2},
        {"unknown": 1},
    ],
    ids=str,
)
def test_specs_that_no_store_can_have(filled, change):
    data = json.loads((filled.path / "spec.json").read_bytes()) | change
    (filled.path / "spec.json").write_bytes(canonical(data))
    for path in (filled.path / "done").glob("*.json"):
        done = json.loads(path.read_bytes()) | {"spec": hashlib.sha256(canonical(data)).hexdigest()}
        path.write_bytes(canonical(done))
    reseal(filled.path)
    refused(filled.path)


# --- claims ----------------------------------------------------------------------------------------------


def test_a_file_that_is_not_as_large_as_claimed(filled):
    def claim(entry):
        entry["files"]["images/i-0/tokens/c.0.0.0"] = {"bytes": GIGABYTES, "xxh3_128": "0" * 32}

    forge_parts(filled.path, claim)
    assert f"{GIGABYTES} bytes were written" in refused(filled.path, error=VerificationError)


@pytest.mark.parametrize("rows", [10**7, 10**10, 2**62])
def test_more_rows_than_there_are(filled, rows):
    forge_parts(filled.path, lambda entry: entry.update(rows=rows))
    refused(filled.path, error=VerificationError)


def rewrite_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("shape", [[10**10, 3, 8], [3, 10**6, 10**6], [3, 3], [3, 3, 0], [-3, 3, 8]])
def test_an_array_that_claims_another_shape(filled, shape):
    def change(data):
        data["shape"] = shape
        data["chunk_grid"]["configuration"]["chunk_shape"] = [max(1, int(n)) for n in shape]
        data["codecs"][0]["configuration"]["chunk_shape"] = [1, *(max(1, int(n)) for n in shape[1:])]

    rewrite_json(filled.path / "images" / "i-0" / "tokens" / "zarr.json", change)
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


def test_samples_that_are_not_there_but_claimed_in_spec_and_arrays(filled):
    """10 GB for each sample, all of it Zarr's fill value: spec, arrays, checksums and manifests agree."""
    side = 50_000
    data = json.loads((filled.path / "spec.json").read_bytes()) | {"image_shape": [side, side * 2]}
    (filled.path / "spec.json").write_bytes(canonical(data))

    def change(array):
        array["shape"][1:] = [side, side * 2]
        array["chunk_grid"]["configuration"]["chunk_shape"][1:] = [side, side * 2]
        array["codecs"][0]["configuration"]["chunk_shape"][1:] = [side, side * 2]

    for part in ("i-0", "i-1"):
        folder = filled.path / "images" / part / "tokens"
        rewrite_json(folder / "zarr.json", change)
        index = struct.pack("<2Q", 2**64 - 1, 2**64 - 1) * json.loads((folder / "zarr.json").read_text())["shape"][0]
        (folder / "c.0.0.0").write_bytes(index + struct.pack("<I", google_crc32c.value(index)))
    for path in (filled.path / "done").glob("*.json"):
        done = json.loads(path.read_bytes()) | {"spec": hashlib.sha256(canonical(data)).hexdigest()}
        path.write_bytes(canonical(done))
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


def test_a_shard_that_claims_a_large_index(filled):
    """A shard of 10¹² chunks for an array of 3 rows."""
    rewrite_json(
        filled.path / "images" / "i-0" / "tokens" / "zarr.json",
        lambda data: data["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 10**12),
    )
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


@pytest.mark.parametrize("offset", [2**63, 2**64 - 2, 2**40, 200])
def test_an_index_that_points_elsewhere(filled, offset):
    path = shard_of(filled)
    raw = bytearray(path.read_bytes())
    index = raw[-52:-4]
    index[:8] = struct.pack("<Q", offset)
    raw[-52:] = index + struct.pack("<I", google_crc32c.value(bytes(index)))
    path.write_bytes(raw)
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


def test_a_table_that_expands_to_ten_gigabytes(filled):
    """Dictionaries and run lengths make a file of some KB that claims 10 GB."""
    path = filled.path / "tables" / "i-0.parquet"
    count, long = 10_000, "x" * 1_000_000
    same = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([long]))
    columns = {"key": pa.array([f"{row}" for row in range(count)]), "source": same}
    columns |= {name: pa.array([1] * count, pa.int32()) for name in ("width", "height")}
    pq.write_table(pa.table(columns), path, compression="zstd", write_page_checksum=True, store_schema=False)
    assert path.stat().st_size < 100_000
    forge_parts(filled.path, lambda entry: entry.update(rows=count))
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


def test_a_compressed_array_that_claims_ten_gigabytes(filled):
    """Arrays of other writers go through zarr-python; zeros compress to nothing."""
    import zarr

    folder = filled.path / "images" / "i-0" / "tokens"
    shutil.rmtree(folder)
    zarr.create_array(str(folder), shape=(10**8, 3, 8), chunks=(10**6, 3, 8), dtype="float16")
    forge_parts(
        filled.path,
        lambda entry: entry["files"].update(
            {"images/i-0/tokens/zarr.json": checksum(folder / "zarr.json")},
        ),
    )
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


# --- checksums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["images/i-0/tokens/zarr.json", "tables/i-0.parquet", "texts/t-0.arrow"])
def test_wrong_checksums_are_found(filled, file):
    name = Path(file).parts[1].split(".")[0]

    def change(parts):
        for part in parts:
            if part["name"] == name:
                part["files"][file]["xxh3_128"] = "0" * 32

    reseal_manifests(filled.path, change=change)
    assert any("xxh3_128" in problem.what for problem in verify(filled.path))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_keys_that_stand_twice(filled, kind):
    """In one part: the rows of a table and the array behind them no longer say which is which."""
    name = "i-0" if kind == "image" else "t-0"
    path = filled.path / "tables" / f"{name}.parquet"
    table = pq.read_table(path)
    keys = table.column("key").to_pylist()
    table = table.set_column(0, table.schema.field("key"), pa.array([keys[0], *keys[:-1]]))
    with open(path, "wb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    reseal(filled.path)
    assert any("holds a key twice" in problem.what for problem in verify(filled.path))


# --- objects and pickles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["object", "O", "string", "variable_length_utf8", "bytes", "r64", "complex64", 7])
def test_arrays_of_objects(filled, dtype):
    rewrite_json(filled.path / "images" / "i-0" / "tokens" / "zarr.json", lambda data: data.update(data_type=dtype))
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


@pytest.mark.parametrize(
    "codec", ["pickle", "numcodecs.pickle", "numcodecs.json2", "vlen-utf8", "../evil", "os.system"]
)
def test_codecs_that_are_not_ours(filled, canary, codec):
    folder = filled.path / "images" / "i-0" / "tokens"
    rewrite_json(folder / "zarr.json", lambda data: data.update(codecs=[{"name": codec, "configuration": {}}]))
    shard_of(filled).write_bytes(canary)
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


def test_an_array_of_zarr_2_with_pickled_objects(filled, canary):
    folder = filled.path / "images" / "i-0" / "tokens"
    shard_of(filled).write_bytes(canary)
    old = {"zarr_format": 2, "shape": [3], "chunks": [3], "dtype": "|O", "compressor": None, "fill_value": None}
    old |= {"order": "C", "filters": [{"id": "pickle", "protocol": 5}]}
    (folder / ".zarray").write_text(json.dumps(old))
    (folder / "zarr.json").write_text(json.dumps(old))
    reseal(filled.path)
    refused(filled.path, error=VerificationError)


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "arrow.extension", "torch.tensor"])
def test_extension_types_of_arrow_are_not_unpickled(filled, canary, name):
    path = filled.path / "texts" / "t-0.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    metadata = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": canary}
    field = table.schema.field("pooled").with_metadata(metadata)
    schema = pa.schema([field if one.name == "pooled" else one for one in table.schema])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.Table.from_arrays([column.combine_chunks() for column in table.columns], schema=schema))
    table = pq.read_table(filled.path / "tables" / "t-0.parquet")
    field = table.schema.field("caption").with_metadata(metadata)
    table = table.cast(pa.schema([field if one.name == "caption" else one for one in table.schema]))
    with open(filled.path / "tables" / "t-0.parquet", "wb") as file:
        pq.write_table(table, file, write_page_checksum=True)
    reseal(filled.path)
    try:
        read_all(filled.path)
    except CompalError:
        assert verify(filled.path)
    verify(filled.path)  # the canary fixture looks whether anything ran


def test_arrow_with_compressed_buffers(filled):
    """A few KB that expand to as much as they claim."""
    path = filled.path / "texts" / "t-0.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table)
    reseal(filled.path)
    refused(filled.path, "compressed", VerificationError)


def test_arrow_whose_footer_points_anywhere(filled):
    path = filled.path / "texts" / "t-0.arrow"
    raw = path.read_bytes()
    length = int.from_bytes(raw[-10:-6], "little")
    for at in range(len(raw) - 10 - length, len(raw) - 6, 11):
        path.write_bytes(raw[:at] + b"\xff\xff\xff\x7f" + raw[at + 4 :])
        reseal(filled.path)
        try:
            read_all(filled.path)
        except CompalError:
            assert verify(filled.path)


# --- lists of Arrow that lie -----------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", [[0, 10**9, 2, 3], [0, -5, 2, 3], [5, 2, 1, 0], [0, 1, 1, 3]])
def test_offsets_that_lie(filled, offsets):
    """Written over the buffer in place: lengths of 10⁹, negative ones, none."""
    path = filled.path / "texts" / "t-0.arrow"
    raw = path.read_bytes()
    batch = pa.ipc.open_file(raw).get_batch(0)
    old = batch.column("tokens").offsets.to_numpy().astype("<i4").tobytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, np.array(offsets, "<i4").tobytes()))
    reseal(filled.path)
    refused(filled.path)
