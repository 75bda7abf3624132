"""Reading a remote store in place, its part cache, and pins."""

import os
import pickle
import shutil
import time

import numpy as np
import pytest

from compal.errors import InputError, MissingFeatures, RemoteError, UsageError, VerificationError
from compal.stores.remotes import cloud
from compal.stores.remotes.cache import PartCache
from compal.stores.remotes.lazy import Lazy, open_remote
from compal.stores.remotes.objects import connect
from compal.stores.remotes.ranges import coalesce
from compal.stores.remotes.transfer import pull, push
from compal.stores.remotes.trust import distrust, pins, trust
from compal.stores.rows import Quarantined
from compal.stores.store import Store
from compal.workspace import Workspace

SHAPE = (40, 64)  # 5 KB a sample: its chunks start on page boundaries
ROWS = 32


@pytest.fixture
def shared(tmp_path, spec, make_images, make_texts):
    """A local store of two parts of images and one of captions, with a quarantined item."""
    import dataclasses

    spec = dataclasses.replace(spec, image_shape=SHAPE)
    store = Store.create(tmp_path / "ann" / spec.folder, spec)
    for number in (0, 1):
        keys = [f"{number}-{row}" for row in range(ROWS)]
        refused = [Quarantined(f"bad-{number}", "image", "bad.jpg", "truncated")] if number else []
        store.write_images(f"i-{number}", make_images(*keys, seed=number, shape=SHAPE), refused)
    store.write_texts("t-0", make_texts(*[f"t{row}" for row in range(20)], seed=3))
    store.commit(["i-0", "i-1", "t-0"])
    return store


def same(local, remote):
    draw = np.random.default_rng(0)
    keys = [f"{draw.integers(2)}-{draw.integers(ROWS)}" for _ in range(50)]
    texts = [f"t{draw.integers(20)}" for _ in range(30)]
    assert (remote.image_tokens(keys) == local.image_tokens(keys)).all()
    assert (remote.pooled("image", keys) == local.pooled("image", keys)).all()
    for mine, theirs in zip(remote.text_tokens(texts), local.text_tokens(texts), strict=True):
        assert (mine == theirs).all()
    assert (remote.pooled("text", texts) == local.pooled("text", texts)).all()
    assert remote.table("text").equals(local.table("text"))
    assert remote.quarantined() == local.quarantined()
    assert (remote.keys("image"), remote.spec, remote.manifest) == (local.keys("image"), local.spec, local.manifest)


@pytest.mark.parametrize("whole", [False, True])
def test_reading_in_place_equals_reading_here(shared, s3, tmp_path, whole):
    remote = s3()
    push(shared.path, remote)
    lazy = open_remote(remote, shared.spec.folder, tmp_path / "cache", Lazy(whole=whole))
    same(shared, lazy)
    same(shared, pickle.loads(pickle.dumps(lazy)))
    assert lazy.info()["path"] == f"{remote.url}/{shared.spec.folder}"
    assert {**lazy.info(), "path": ""} == {**shared.info(), "path": ""}
    for write in (lambda: lazy.commit(["i-0"]), lambda: lazy.write_images("i-9", None)):
        with pytest.raises(InputError, match="open for reading"):
            write()
    with pytest.raises(MissingFeatures, match="lacks"):
        lazy.image_tokens(["nothing"])


def test_neighbours_are_one_request(shared, s3, proxy, tmp_path):
    counting = proxy()
    remote = s3(counting.url)
    push(shared.path, remote)
    lazy = open_remote(remote, shared.spec.folder, tmp_path / "cache")
    lazy.image_tokens(["0-0"])  # the index, and the description of the array
    counting.requests.clear()
    expected = shared.image_tokens([f"0-{row}" for row in range(ROWS)])
    assert (lazy.image_tokens([f"0-{row}" for row in range(ROWS)]) == expected).all()
    (span,) = counting.gets("/tokens/")
    first, last = map(int, span.removeprefix("bytes=").split("-"))
    assert last - first + 1 >= ROWS * expected[0].nbytes
    counting.requests.clear()
    lazy.image_tokens(["0-3", "0-3", "0-20"])
    (span,) = counting.gets("/tokens/")
    first, last = map(int, span.removeprefix("bytes=").split("-"))
    assert 17 * expected[0].nbytes < last - first < 19.5 * expected[0].nbytes, "17 samples of gap are read over"
    counting.requests.clear()
    again = open_remote(remote, shared.spec.folder, tmp_path / "cache")
    assert again.keys("image") == shared.keys("image")
    assert counting.gets("/tables/") == [], "tables are kept"


def test_coalesce():
    assert coalesce([(0, 10), (12, 20), (40, 50)], gap=2, longest=100) == [(0, 20), (40, 50)]
    assert coalesce([(0, 10), (10, 20), (20, 30)], gap=0, longest=20) == [(0, 20), (20, 30)]
    assert coalesce([(0, 100), (100, 110)], gap=5, longest=20) == [(0, 100), (100, 110)], "one span may be longer"
    assert coalesce([]) == []
    draw = np.random.default_rng(1)
    starts = np.unique(draw.integers(0, 100_000, 500)).tolist()
    spans = [(start, start + 7) for start in starts if start % 8 == 0]
    joined = coalesce(spans, gap=50, longest=400)
    assert all(stop - start <= 400 for start, stop in joined)
    assert all(any(a <= start and stop <= b for a, b in joined) for start, stop in spans)


def test_damage_on_the_way_is_found(shared, s3, tmp_path):
    remote = s3()
    push(shared.path, remote)
    objects, name = connect(remote), shared.spec.folder
    shard = next(path for path in shared.parts[0].files if "/tokens/c" in path)
    raw = bytearray((shared.path / shard).read_bytes())
    raw[5000 * 0 + 100] ^= 1
    objects.replace(f"{name}/{shard}", bytes(raw))
    lazy = open_remote(remote, name, tmp_path / "cache")
    with pytest.raises(VerificationError, match="crc32c of the chunk"):
        lazy.image_tokens(["0-0"])
    assert (lazy.image_tokens(["0-9"]) == shared.image_tokens(["0-9"])).all()
    raw[-1] ^= 1
    objects.replace(f"{name}/{shard}", bytes(raw))
    with pytest.raises(VerificationError, match="crc32c of the index"):
        open_remote(remote, name, tmp_path / "cache").image_tokens(["0-9"])
    with pytest.raises(VerificationError, match="xxh3_128"):
        open_remote(remote, name, tmp_path / "cache", Lazy(whole=True)).image_tokens(["0-9"])
    table = "tables/i-0.parquet"
    objects.replace(f"{name}/{table}", (shared.path / "tables" / "i-1.parquet").read_bytes())
    with pytest.raises(VerificationError, match="manifest lists"):
        open_remote(remote, name, tmp_path / "other")


def test_an_old_manifest_stays_readable(shared, s3, tmp_path, make_images):
    remote = s3()
    shared.write_images("i-7", make_images("new", seed=7, shape=SHAPE))
    shared.commit(["i-7"])
    push(shared.path, remote)
    old = open_remote(remote, shared.spec.folder, tmp_path / "cache", manifest=1)
    assert "new" not in old
    assert "new" in open_remote(remote, shared.spec.folder, tmp_path / "cache")
    with pytest.raises(RemoteError, match="no store"):
        open_remote(remote, "nothing-here", tmp_path / "cache")


def test_a_forked_process_is_told(s3, monkeypatch):
    remote = connect(s3())
    monkeypatch.setattr(cloud, "_process", os.getpid() + 1)
    with pytest.raises(RemoteError, match=r"forked.*spawn"):
        remote.names("x")


# --- the part cache ---------------------------------------------------------------------------------------


def entry(cache, name, size):
    """Ask for a file of so many bytes; returns whether it had to be filled."""
    filled = []
    made = bytes([len(name)]) * size

    def fill(folder):
        (folder / "a").write_bytes(made)
        filled.append(folder)

    place = cache.get({"a": {"bytes": size, "xxh3_128": name}}, fill)
    assert (place / "a").read_bytes() == made
    time.sleep(0.01)  # file systems round times
    return bool(filled)


def test_the_cache_keeps_its_limit(tmp_path):
    cache = PartCache(tmp_path / "cache", 100)
    assert entry(cache, "a", 40)
    assert entry(cache, "b", 40)
    assert not entry(cache, "a", 40)
    assert entry(cache, "c", 50), "b, used longest ago, makes room"
    assert cache.size() <= 100
    assert not entry(cache, "a", 40)
    assert entry(cache, "b", 40)
    assert cache.size() <= 100
    with pytest.raises(InputError, match="do not fit the cache"):
        entry(cache, "d", 101)
    with pytest.raises(ZeroDivisionError):
        cache.get({"a": {"bytes": 1, "xxh3_128": "x"}}, lambda folder: 1 // 0)
    assert {path.name.split(".")[0] for path in cache.folder.iterdir()} & {"new", "old"} == set()


def test_what_killed_processes_left_in_the_cache_goes(tmp_path):
    cache = PartCache(tmp_path / "cache", 100)
    dead = cache.folder / f"new.{2**22 + 1}.{'0' * 32}"
    alive = cache.folder / f"new.{os.getpid()}.{'0' * 32}"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    entry(cache, "a", 10)
    assert (dead.exists(), alive.exists()) == (False, True)


def test_reading_whole_parts_respects_the_limit(shared, s3, tmp_path):
    remote = s3()
    push(shared.path, remote)
    biggest = max(size["bytes"] for part in shared.parts for size in part.files.values()) + 4000
    lazy = open_remote(remote, shared.spec.folder, tmp_path / "cache", Lazy(biggest, whole=True))
    for _ in range(2):
        for number in (0, 1):
            keys = [f"{number}-{row}" for row in (5, 3)]
            assert (lazy.image_tokens(keys) == shared.image_tokens(keys)).all()
            assert PartCache(tmp_path / "cache" / "parts", 0).size() <= biggest
    small = open_remote(remote, shared.spec.folder, tmp_path / "small", Lazy(1000, whole=True))
    with pytest.raises(InputError, match="do not fit the cache"):
        small.image_tokens(["0-0"])


# --- trust ------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "compal.toml").write_text(f'[remotes]\nteam = "file://{tmp_path}/shared"\n')
    return Workspace.find(tmp_path)


def test_a_rewritten_history_is_refused(shared, workspace, tmp_path, make_images):
    remote, name = workspace.remote("team"), shared.spec.folder
    push(shared.path, remote)
    pin = trust(remote, name)
    assert pin.number == 1
    assert len(pin.sha256) == 64
    assert pins(workspace.path / "trust.json") == {f"{remote.url}/{name}": pin}
    shared.write_images("i-7", make_images("new", seed=7, shape=SHAPE))
    shared.commit(["i-7"])
    push(shared.path, remote)
    bob = tmp_path / "bob" / name
    assert pull(remote, name, bob).manifest == 2, "what continues the pinned manifest is trusted"
    forged = Store.create(tmp_path / "forged" / name, shared.spec)
    forged.write_images("i-0", make_images("0-0", seed=99, shape=SHAPE))
    forged.commit(["i-0"])
    there = tmp_path / "shared" / name
    shutil.rmtree(there)
    shutil.copytree(forged.path, there)
    for use in (
        lambda: pull(remote, name, tmp_path / "eve" / name),
        lambda: push(bob, remote),
        lambda: open_remote(remote, name, tmp_path / "cache"),
    ):
        with pytest.raises(VerificationError, match="no longer holds manifest 1 that you trust"):
            use()
    assert not (tmp_path / "eve").exists()
    assert distrust(remote, name)
    assert not distrust(remote, name)
    assert pull(remote, name, tmp_path / "eve" / name).parts == 1


def test_what_does_not_descend_from_the_pin_is_refused(shared, workspace, tmp_path, make_images):
    remote, name = workspace.remote("team"), shared.spec.folder
    push(shared.path, remote)
    trust(remote, name, 1)
    there = tmp_path / "shared" / name
    second = (there / "manifests" / "1.json").read_text().replace('"number":1', '"number":2')
    (there / "manifests" / "2.json").write_text(second)
    with pytest.raises(VerificationError, match="manifest 2 does not continue 1"):
        pull(remote, name, tmp_path / "eve" / name)


def test_pins_are_not_forgotten_in_silence(shared, workspace):
    import dataclasses

    remote, name = workspace.remote("team"), shared.spec.folder
    push(shared.path, remote)
    with pytest.raises(InputError, match="no manifest 9"):
        trust(remote, name, 9)
    with pytest.raises(UsageError, match="needs a workspace"):
        trust(dataclasses.replace(remote, trust_file=None), name)
    trust(remote, name)
    file = workspace.path / "trust.json"
    file.write_text(file.read_text().replace('"number"', '"numbr"'))
    with pytest.raises(InputError, match="cannot use"):
        pull(remote, name, shared.path.parent / "x")
