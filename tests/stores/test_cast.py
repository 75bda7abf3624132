"""A store in fewer bytes: the values of a plain cast; a killed cast ends where an undisturbed one does."""

import json
import subprocess
import sys

import numpy as np
import pytest

from compal.errors import InputError, SpecMismatch, UsageError, VerificationError
from compal.stores import parts
from compal.stores.cast import cast
from compal.stores.dtypes import from_bfloat16, to_bfloat16
from compal.stores.manifest import commit, read_done, read_manifest
from compal.stores.quantized import channels_of, quantize
from compal.stores.spec import FeatureSpec
from compal.stores.store import Quarantined, Store, TextRows
from compal.stores.verify import verify

IMAGES, TEXTS = ["e", "a", "d", "b", "c"], ["z", "x", "y"]


@pytest.fixture
def make_source(tmp_path, make_images, make_texts):
    """`make_source("float32", level="tokens")`: two parts of images, one of captions, one with nothing readable."""

    def make(dtype="float16", level="tokens", scale=1.0, **fields):
        shapes = {
            "tokens": {"image_shape": (3, 8), "text_dim": 5},
            "regions": {"image_shape": (0, 8), "text_dim": 5},
            "pooled": {},
        }[level]
        spec = FeatureSpec("random", "seed-0", pooled_dim=4, dtype=dtype, level=level, **shapes, **fields)
        store = Store.create(tmp_path / spec.folder, spec)
        for name, keys, seed in (("i-1", "abc", 1), ("i-0", "de", 2)):
            rows = make_images(*keys, seed=seed)
            rows.tokens, rows.pooled = rows.tokens / 3 * scale, rows.pooled / 3
            if level == "regions":
                rows.tokens = [row[: 1 + number] for number, row in enumerate(rows.tokens)]
            rows.tokens = None if level == "pooled" else rows.tokens
            store.write_images(name, rows, [Quarantined(f"{keys}-bad", "image", "bad.jpg", "truncated")])
        texts = make_texts("x", "y", "z", seed=3)
        if level == "pooled":
            texts.tokens = None
        store.write_texts("t-0", texts, provenance={"device": "cuda", "forward_seconds": 2.5})
        empty = TextRows([], [], [], [] if level != "pooled" else None, np.empty((0, 4)))
        store.write_texts("t-1", empty, [Quarantined("q", "text", "s", "too long")])
        store.commit(["i-1", "t-0"])
        store.commit(["i-0", "t-1"])
        return Store.open(store.path)

    return make


def tokens_of(store):
    """Image and text tokens as float32, padded, and the masks."""
    read = store.image_regions if store.spec.level == "regions" else lambda keys: (store.image_tokens(keys), None)
    found = *read(IMAGES), *store.text_tokens(TEXTS)
    return [from_bfloat16(one) if one is not None and one.dtype == np.uint16 else one for one in found]


def pooled_of(store):
    return [store.pooled("image", IMAGES), store.pooled("text", TEXTS)]


@pytest.mark.parametrize("level", ["tokens", "regions", "pooled"])
@pytest.mark.parametrize(
    ("source", "dtype"), [("float32", "float16"), ("float32", "bfloat16"), ("float16", "bfloat16")]
)
def test_to_another_float(make_source, level, source, dtype):
    store = make_source(source, level)
    summary = cast(store.path, None, dtype)
    made = Store.open(store.path.parent / store.spec.with_dtype(dtype).folder)
    assert (str(made.path), made.spec.fingerprint) == (summary.path, summary.fingerprint)
    assert made.spec == store.spec.with_dtype(dtype)
    turned = to_bfloat16 if dtype == "bfloat16" else (lambda values: values.astype(np.float16))
    for there, here in zip(pooled_of(store), pooled_of(made), strict=True):
        np.testing.assert_array_equal(here, turned(there))
    if level != "pooled":
        for there, here in zip(tokens_of(store), tokens_of(made), strict=True):
            if there is not None and there.dtype != bool:
                there, here = turned(there), turned(here)
            np.testing.assert_array_equal(here, there)
    assert verify(made.path) == []


@pytest.mark.parametrize("level", ["tokens", "regions"])
@pytest.mark.parametrize("source", ["float16", "float32", "bfloat16"])
def test_to_int8(make_source, level, source):
    store = make_source(source, level)
    cast(store.path, None, "int8")
    made = Store.open(store.path.parent / store.spec.with_dtype("int8").folder)
    for number, part in enumerate(store.parts):
        if not part.rows:
            continue
        keys = store._table(part, ["key"]).column("key").to_pylist()
        read = {"image": "image_regions" if level == "regions" else "image_tokens", "text": "text_tokens"}[part.kind]
        there, here = (getattr(one, read)(keys) for one in (store, made))
        there, mask = there if isinstance(there, tuple) else (there, np.ones(there.shape[:2], bool))
        here = here[0] if isinstance(here, tuple) else here
        exact = from_bfloat16(there) if there.dtype == np.uint16 else there.astype(np.float32)
        valid = exact[mask]
        channels = channels_of([valid])
        codes, scales = quantize(valid, channels)
        np.testing.assert_allclose(here[mask], codes * scales[:, None] * channels[1] + channels[0], atol=1e-6)
        assert (np.abs(here[mask] - valid) <= scales[:, None] * channels[1] / 2 + 1e-5).all(), number
        assert (here[~mask] == 0).all()
    for there, here in zip(pooled_of(store), pooled_of(made), strict=True):
        exact = from_bfloat16(there) if there.dtype == np.uint16 else there
        np.testing.assert_array_equal(here, exact.astype(np.float16))
    assert verify(made.path) == []


def test_all_else_is_carried_over(make_source):
    store = make_source()
    summary = cast(store.path, None, "int8")
    made = Store.open(summary.path)
    assert [part.name for part in made.parts] == [part.name for part in store.parts] == ["i-1", "t-0", "i-0", "t-1"]
    assert [part.items for part in made.parts] == [part.items for part in store.parts]
    for kind in ("image", "text"):
        assert made.table(kind).equals(store.table(kind))
    assert made.quarantined() == store.quarantined()
    assert len(made.quarantined()) == 3
    written = read_done(made.path, "t-0")["written"]
    assert written["cast_from"] == store.spec.fingerprint
    assert (written["device"], written["forward_seconds"]) == ("cuda", 2.5)
    assert read_manifest(made.path, 1).written["operation"] == "cast"
    assert summary.source_bytes == sum(size["bytes"] for part in store.parts for size in part.files.values())
    assert summary.bytes == sum(size["bytes"] for part in made.parts for size in part.files.values())
    assert (summary.parts, summary.written, summary.rows, summary.manifest) == (4, 4, 8, 1)


def test_a_key_in_two_parts_is_read_from_the_same(make_source, make_images):
    """Parts are listed in the source's order, not by name."""
    store = make_source()
    other = make_images("a", "f", seed=7)
    store.write_images("i-00", other)
    store.commit(["i-00"])
    made = Store.open(cast(store.path, None, "bfloat16").path)
    np.testing.assert_array_equal(made.image_tokens(["a"]), to_bfloat16(store.image_tokens(["a"])))
    assert not np.array_equal(store.image_tokens(["a"])[0], other.tokens[0].astype(np.float16))


def test_again_it_writes_what_is_new_and_drops_what_was_dropped(make_source, make_images):
    store = make_source()
    first = cast(store.path, None, "int8")
    second = cast(store.path, None, "int8")
    assert (second.written, second.manifest) == (0, 1)
    assert (second.bytes, second.rows) == (first.bytes, first.rows)
    store.write_images("i-2", make_images("f", seed=4))
    store.commit(["i-2"])
    seen = []
    third = cast(store.path, None, "int8", lambda *numbers: seen.append(numbers))
    assert (third.written, third.dropped, third.parts, seen) == (1, 0, 5, [(5, 5)])
    commit(store.path, store.spec.fingerprint, [], drop=["i-1"])
    made = Store.open(first.path)
    own = make_images("g", seed=5)
    made.write_images("i-own", own)
    made.commit(["i-own"])
    fourth = cast(store.path, None, "int8")
    assert (fourth.written, fourth.dropped) == (0, 1)
    made = Store.open(first.path)
    assert sorted(part.name for part in made.parts) == ["i-0", "i-2", "i-own", "t-0", "t-1"]
    assert verify(made.path) == []


def test_a_folder_of_ones_own(make_source, tmp_path):
    store = make_source()
    assert cast(store.path, tmp_path / "mine", "int8").path == str(tmp_path / "mine")
    with pytest.raises(SpecMismatch, match="dtype"):
        cast(store.path, tmp_path / "mine", "bfloat16")
    with pytest.raises(SpecMismatch, match="dtype"):
        cast(store.path, store.path, "bfloat16")


@pytest.mark.parametrize(
    ("source", "dtype", "level", "message"),
    [
        ("float16", "float32", "tokens", "would not make it smaller. From float16 to: bfloat16, int8"),
        ("float16", "float16", "tokens", "would not make it smaller"),
        ("bfloat16", "float16", "tokens", "would not make it smaller"),
        ("int8", "float16", "tokens", "would not make it smaller. Cast its source"),
        ("float16", "float8", "tokens", "no dtype 'float8' to cast to. Known: float16, float32, bfloat16, int8"),
        ("float16", "int8", "pooled", "pooled embeddings only"),
    ],
)
def test_what_is_not_cast(make_source, source, dtype, level, message):
    store = make_source(source, level)
    before = sorted(store.path.parent.iterdir())
    with pytest.raises(UsageError, match=message):
        cast(store.path, None, dtype)
    assert sorted(store.path.parent.iterdir()) == before


def test_an_empty_source(tmp_path, spec):
    Store.create(tmp_path / "s", spec)
    with pytest.raises(InputError, match="no committed part"):
        cast(tmp_path / "s", None, "int8")
    with pytest.raises(InputError, match="is not a store"):
        cast(tmp_path, None, "int8")


def test_values_beyond_the_dtype_name_the_item(make_source):
    store = make_source("float32", scale=1e5)
    with pytest.raises(InputError, match=r"image [abc] \(s/[abc].jpg\) hold values too large for float16"):
        cast(store.path, None, "float16")
    assert Store.open(cast(store.path, None, "bfloat16").path).keys("image") == set(IMAGES)


def test_a_damaged_source_is_not_cast(make_source):
    store = make_source()
    path = store.path / "images" / "i-0" / "tokens" / "c.0.0.0"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(VerificationError, match="crc32c"):
        cast(store.path, None, "int8")
    made = Store.open(store.path.parent / store.spec.with_dtype("int8").folder)
    assert made.keys("image") == set()  # nothing is committed before all is there
    assert made.part_done("i-1")


def test_a_full_disk(make_source, monkeypatch):
    store, real = make_source(), parts.write_table

    def full(path, table):
        if path.stem == "i-0":
            raise OSError(28, "No space left on device")
        real(path, table)

    monkeypatch.setattr(parts, "write_table", full)
    with pytest.raises(InputError, match="Free space"):
        cast(store.path, None, "int8")
    monkeypatch.undo()
    summary = cast(store.path, None, "int8")
    assert summary.written == 2  # i-1 and t-0 were complete
    assert verify(summary.path) == []


KILLED = """
import json, signal, sys
from pathlib import Path
from compal.stores.cast import cast
from compal.stores.verify import verify
sys.path.insert(0, sys.argv[2])
from workers import STEPS, content, fork, killed_at_step, status

source, root, dtype = Path(sys.argv[1]), Path(sys.argv[3]), sys.argv[4]

cast(source, root / "undisturbed", dtype)
expected, step, hit = content(root / "undisturbed"), 0, 0
while True:
    folder = root / str(step)
    code = status(fork(killed_at_step, lambda: cast(source, folder, dtype), step, (*STEPS, "pwrite")))
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    cast(source, folder, dtype)
    assert content(folder) == expected, set(content(folder).items()) ^ set(expected.items())
    assert verify(folder) == [], verify(folder)
    hit, step = hit + 1, step + 7
print(json.dumps({"steps": step, "killed": hit}))
"""


def test_a_killed_cast_is_resumed_to_the_same_bytes(tmp_path, make_source, request):
    """SIGKILL before every seventh system call that changes the disk, then the same command again."""
    store = make_source("float32")
    command = [sys.executable, "-c", KILLED, store.path, request.path.parent, tmp_path / "killed", "int8"]
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["killed"] > 8
