"""Random damage and random forgery: every reader answers with values or with one of our errors, in little memory.

`COMPAL_FUZZ=10000` draws that many cases in place of 500.
"""

import hashlib
import json
import os
import shutil

import pytest
import xxhash
from hostile import little_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compal import registry
from compal.config import canonical
from compal.errors import CompalError
from compal.stores.store import Store
from compal.stores.verify import verify

CASES = int(os.environ.get("COMPAL_FUZZ", "500"))
KINDS = ["bfloat16", "float32", "int8", "pixels", "pooled", "regions", "tokens"]
FORMATS = ["hdf5", "huggingface", "npz", "safetensors", "webdataset"]


def cases(share):
    """Settings of a property that takes a share of all cases."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=max(1, round(CASES * share)), deadline=None, suppress_health_check=checks, database=None
    )


def answer(read, root):
    """What reading gives: values, or the error."""
    try:
        return read(root)
    except CompalError as error:
        return error if "\n" not in str(error) else None


def files_of(root):
    return sorted(path for path in root.rglob("*") if path.is_file() and ".index" not in path.parts)


def reseal(root):
    """Make sizes, checksums, digests, records, parents and head right for the files as they are; what is too
    damaged for that stays."""
    records = {}
    for path in sorted((root / "done").glob("*.json")):
        try:
            done = json.loads(path.read_bytes())
            for file in done["files"]:
                raw = (root / file).read_bytes()
                done["files"][file] = {"bytes": len(raw), "xxh3_128": xxhash.xxh3_128(raw).hexdigest()}
            done.pop("digest", None)
            done["digest"] = hashlib.sha256(canonical(done)).hexdigest()
            path.write_bytes(canonical(done))
            bare = {key: value for key, value in done.items() if key not in ("written", "digest")}
            records[path.stem] = hashlib.sha256(canonical(bare)).hexdigest(), done
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            continue
    parent, paths = "", sorted((root / "manifests").glob("*.json"))
    for path in paths:
        try:
            data = json.loads(path.read_bytes())
            for part in data["parts"]:
                record, done = records[part["name"]]
                part |= {"record": record, **{key: done[key] for key in ("files", "rows", "items", "kind")}}
            data |= {"parent": parent, "spec": hashlib.sha256((root / "spec.json").read_bytes()).hexdigest()}
            path.write_bytes(canonical(data))
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            pass
        parent = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / "head.json").write_bytes(canonical({"manifest": len(paths), "sha256": parent}))


# --- cases -----------------------------------------------------------------------------------------------

NASTY = st.sampled_from(
    [
        *[
            None,
            True,
            False,
            0,
            -1,
            1,
            2,
            3,
            2**31,
            2**32,
            2**63,
            2**64,
            10**10,
            10**30,
            0.5,
            1e308,
            "",
            "0",
            "x" * 5000,
        ],
        *[
            "../../x",
            "/etc/passwd",
            "i-0",
            "images/i-0",
            "object",
            "|O",
            "float64",
            "bytes",
            "\0",
            "\ud800",
            [],
            {},
            [[]],
        ],
    ]
)
JSON = NASTY | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
EDIT = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["flip", "write", "cut", "insert", "end"]),
    st.binary(max_size=12),
)
EDITS = st.lists(EDIT, min_size=1, max_size=4)


def edited(raw, edits):
    """`raw` after some edits, each at a fraction of its length."""
    for where, how, content in edits:
        at = int(where * len(raw))
        if how == "flip" and raw:
            bit = 1 << (content[0] % 8 if content else 0)
            raw = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
        elif how == "write":
            raw = raw[:at] + content + raw[at + len(content) :]
        elif how == "cut":
            raw = raw[:at] + raw[at + max(1, len(content)) :]
        elif how == "insert":
            raw = raw[:at] + content + raw[at:]
        elif how == "end":
            raw = raw[:at]
    return raw


def places(node, found=None):
    """(container, key) of every value inside a JSON value."""
    found = [] if found is None else found
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        found.append((node, key))
        places(value, found)
    return found


@cases(0.35)
@given(data=st.data(), name=st.sampled_from(KINDS), sealed=st.booleans())
def test_descriptions_that_say_anything(whole_stores, damageable, values_of, data, name, sealed):
    """Any value anywhere in any JSON of a store, with checksums made right again or not."""
    root = damageable(name)
    path = data.draw(st.sampled_from([path for path in files_of(root) if path.suffix == ".json"]))
    content = json.loads(path.read_bytes())
    spots = places(content)
    node, key = spots[data.draw(st.integers(0, len(spots) - 1))]
    if isinstance(node, dict) and data.draw(st.booleans()):
        node[data.draw(st.sampled_from(sorted(node)) | st.text(max_size=6))] = data.draw(JSON)
    else:
        node[key] = data.draw(JSON)
    path.write_bytes(json.dumps(content).encode())
    if sealed:
        reseal(root)
    with little_memory():
        found = answer(values_of, root)
        problems = verify(root)
    if not sealed and not problems:
        assert isinstance(found, CompalError) or found == whole_stores[name][1], (path, key)


@cases(0.35)
@given(data=st.data(), name=st.sampled_from(KINDS), edits=EDITS, sealed=st.booleans())
def test_bytes_that_are_anything(whole_stores, damageable, values_of, data, name, edits, sealed):
    """Edits of any file. Unsealed: found by `verify`, and a reader gets an error or the values as they were."""
    root = damageable(name)
    path = data.draw(st.sampled_from(files_of(root)))
    before = path.read_bytes()
    path.write_bytes(edited(before, edits))
    changed = path.read_bytes() != before
    if sealed:
        reseal(root)
    with little_memory():
        found = answer(values_of, root)
        problems = verify(root)
    if not sealed:
        assert isinstance(found, CompalError) or found == whole_stores[name][1], path
        assert problems or not changed, path


@pytest.fixture(scope="module")
def exports(whole_stores, tmp_path_factory):
    """Exports of one store to damage: format → path."""
    root = tmp_path_factory.mktemp("exports")
    store = Store.open(whole_stores["tokens"][0])
    for name in FORMATS:
        registry.load("formats", name).export(store, root / name)
    return root


@cases(0.3)
@given(data=st.data(), name=st.sampled_from(FORMATS), edits=EDITS)
def test_files_of_others_that_are_anything(exports, data, name, edits):
    """Imports of damaged files: a store that is whole, or one of our errors; and nothing beside the store."""
    work = exports / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    path = work / name
    (shutil.copytree if (exports / name).is_dir() else shutil.copy)(exports / name, path)
    target = data.draw(st.sampled_from(files_of(path))) if path.is_dir() else path
    target.write_bytes(edited(target.read_bytes(), edits))
    with little_memory():
        try:
            folder = registry.load("formats", name).load(path, work / "stores")
        except CompalError as error:
            lines = str(error).splitlines()
        else:
            lines = ["fine"]
            assert folder.parent == work / "stores"
            assert verify(folder) == []
    assert len(lines) == 1
    assert {entry.name for entry in work.iterdir()} <= {name, "stores"}
