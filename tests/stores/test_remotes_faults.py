"""A server that fails a fifth of all requests, cuts bodies, loses answers and is late; and input that is forged."""

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from compal.config import canonical
from compal.errors import CompalError, InputError, RemoteError, VerificationError
from compal.stores import space
from compal.stores.manifest import Part
from compal.stores.remotes import pull as pulling
from compal.stores.remotes.lazy import open_remote
from compal.stores.remotes.objects import connect
from compal.stores.remotes.shared import SharedStore
from compal.stores.remotes.transfer import pull, push
from compal.stores.store import Store
from compal.stores.verify import verify

IMPATIENT = {"timeout": 0.5, "retries": 3}


@pytest.fixture
def ann(tmp_path, spec, make_images, make_texts):
    store = Store.create(tmp_path / "ann" / spec.folder, spec)
    for number in range(3):
        store.write_images(f"i-{number}", make_images(*[f"{number}-{row}" for row in range(4)], seed=number))
    store.write_texts("t-0", make_texts("x", "y", seed=9))
    store.commit(["i-0", "i-1"])
    store.commit(["i-2", "t-0"])
    return store


def visible(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if not name.startswith(".")}


def until_right(work, patience=12):
    """Run until it succeeds; every failure must be one of ours and name the cure. Returns how often it failed."""
    said = []
    for attempt in range(patience):
        assert all(error.cure and "\n" not in str(error) for error in said)
        try:
            work()
            return attempt
        except RemoteError as error:
            said.append(error)
    raise AssertionError("it never ends right")


@pytest.mark.parametrize("seed", range(2))
def test_a_failing_server(ann, s3, proxy, tmp_path, spec, seed):
    faulty = proxy(rate=0.2, seed=seed)
    through, straight = s3(faulty.url, **IMPATIENT), s3()
    until_right(lambda: push(ann.path, through))
    shared = SharedStore(connect(straight), spec.folder)
    assert shared.numbers() == [1, 2], "each manifest is whole, and none was made twice"
    shared.check_chain(0, 2)
    assert shared.newest().parts == Store.open(ann.path).parts
    assert {path for path in shared.objects.names(spec.folder) if "/." in path} == set()
    bob = tmp_path / "bob" / spec.folder
    until_right(lambda: pull(through, spec.folder, bob))
    assert visible(bob) == visible(ann.path)
    assert verify(bob) == []
    keys = [f"{number}-{row}" for row in range(4) for number in range(3)]
    lazy = []
    until_right(lambda: lazy.append(open_remote(through, spec.folder, tmp_path / "cache").image_tokens(keys)))
    assert (lazy[0] == ann.image_tokens(keys)).all()
    assert sum(faulty.spoiled.values()) > 10
    assert sum(count > 0 for count in faulty.spoiled.values()) >= 4, "most kinds of fault were met"


def test_a_server_that_only_fails_ends_with_the_cure(ann, s3, proxy, tmp_path, spec):
    straight = s3()
    push(ann.path, straight)
    through = s3(proxy(rate=1.0, late=0).url, timeout=1, retries=1)
    bob = tmp_path / "bob" / spec.folder
    for work in (lambda: push(ann.path, through), lambda: pull(through, spec.folder, bob)):
        with pytest.raises(CompalError) as caught:
            work()
        assert caught.value.cure
    assert not bob.exists()


def test_a_download_goes_on_where_it_was(s3, proxy, tmp_path, spec):
    big = Store.create(tmp_path / "big", spec)
    draw = np.random.default_rng(0)
    from compal.stores.rows import ImageRows

    keys = [str(row) for row in range(64)]
    tokens = draw.standard_normal((64, *spec.image_shape)).astype(np.float32)
    big.write_images("i-0", ImageRows(keys, keys, [(1, 1)] * 64, tokens, tokens[:, 0, : spec.pooled_dim]))
    big.commit(["i-0"])
    counting = proxy()
    remote = s3(counting.url)
    push(big.path, remote)
    (part,) = big.parts
    shard = next(path for path in part.files if "/tokens/c" in path)
    bob = tmp_path / "bob" / spec.folder
    half = (big.path / shard).read_bytes()[: part.files[shard]["bytes"] // 2]
    place = bob / pulling.INCOMING / f"{part.name}.{part.record[:16]}" / shard
    place.parent.mkdir(parents=True)
    place.write_bytes(half)
    pulled = pull(remote, spec.folder, bob)
    assert counting.gets("/tokens/c") == [f"bytes={len(half)}-"]
    assert pulled.bytes == sum(size["bytes"] for size in part.files.values()) - len(half)
    assert verify(bob) == []
    eve = tmp_path / "eve" / spec.folder
    place = eve / pulling.INCOMING / f"{part.name}.{part.record[:16]}" / shard
    place.parent.mkdir(parents=True)
    place.write_bytes(bytes(len(half)))
    pull(remote, spec.folder, eve)
    assert visible(eve) == visible(bob), "a wrong beginning is thrown away"


def test_a_disk_without_room(ann, s3, tmp_path, spec, monkeypatch):
    remote = s3()
    push(ann.path, remote)
    monkeypatch.setattr(space, "RESERVE", 1 << 60)
    with pytest.raises(InputError, match="GB free"):
        pull(remote, spec.folder, tmp_path / "bob" / spec.folder)


# --- forged input -----------------------------------------------------------------------------------------


class Forger:
    """A store on a remote, changed by its owner, who keeps all checksums right."""

    def __init__(self, remote, name):
        self.objects, self.name = connect(remote), name

    def read(self, path):
        return self.objects.get(f"{self.name}/{path}", 1 << 24)

    def write(self, path, data):
        self.objects.replace(f"{self.name}/{path}", data)

    def manifest(self, change):
        manifest = json.loads(self.read("manifests/1.json"))
        change(manifest)
        self.write("manifests/1.json", canonical(manifest))

    def file(self, path, data):
        """Another file in a part, listed with its true size and checksum."""
        self.write(path, data)
        name = next(one for one in ("i-0", "t-0") if one in path)

        def change(done):
            done["files"][path] = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128(data).hexdigest()}

        self.done(name, change)

    def done(self, name, change):
        done = json.loads(self.read(f"done/{name}.json"))
        change(done)
        done.pop("digest", None)
        self.write(f"done/{name}.json", canonical(done))
        entry = vars(Part.of_done(self.objects.url, done))
        self.manifest(lambda all_: all_.update(parts=[entry if one["name"] == name else one for one in all_["parts"]]))


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def bad_path(path):
    def change(manifest):
        files = manifest["parts"][0]["files"]
        files[path] = files.pop("images/i-0/zarr.json")

    return lambda forger: forger.manifest(change)


def set_part(**fields):
    return lambda forger: forger.manifest(lambda manifest: manifest["parts"][0].update(fields))


def ten_gigabytes(forger):
    def change(manifest):
        manifest["parts"][0]["files"]["images/i-0/zarr.json"]["bytes"] = 10**10

    forger.manifest(change)


def ten_gigabytes_in_done(forger):
    forger.done("i-0", lambda done: done["files"]["images/i-0/zarr.json"].update(bytes=10**10))


def wrong_checksum(forger):
    forger.done("i-0", lambda done: done["files"]["images/i-0/zarr.json"].update(xxh3_128="0" * 32))


def no_checksum(forger):
    forger.manifest(lambda manifest: manifest["parts"][0]["files"]["images/i-0/zarr.json"].update(xxh3_128=7))


def a_key_twice(forger):
    table = pq.read_table(io.BytesIO(forger.read("tables/i-0.parquet")))
    forger.file("tables/i-0.parquet", parquet(pa.concat_tables([table.slice(0, 1), table.slice(0, 3)])))


def other_keys(forger):
    table = pq.read_table(io.BytesIO(forger.read("tables/i-0.parquet")))
    keys = pa.array([f"other {row}" for row in range(4)])
    forger.file("tables/i-0.parquet", parquet(table.set_column(0, "key", keys)))


def other_columns(forger):
    table = pq.read_table(io.BytesIO(forger.read("tables/i-0.parquet")))
    forger.file("tables/i-0.parquet", parquet(table.append_column("run", pa.array([b"pickle"] * 4))))


def a_table_bomb(forger):
    table = pq.read_table(io.BytesIO(forger.read("tables/i-0.parquet")))
    huge = pa.array([f"{row}" + "x" * (1 << 20) for row in range(4)])
    forger.file("tables/i-0.parquet", parquet(table.set_column(1, "source", huge)))


def not_a_table(forger):
    forger.file("tables/i-0.parquet", b"\x80\x04\x95 a pickle, perhaps")


def zarr(**changes):
    def forge(forger):
        data = json.loads(forger.read("images/i-0/tokens/zarr.json")) | changes
        forger.file("images/i-0/tokens/zarr.json", json.dumps(data).encode())

    return forge


def a_codec_that_is_code(forger):
    data = json.loads(forger.read("images/i-0/tokens/zarr.json"))
    data["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    forger.file("images/i-0/tokens/zarr.json", json.dumps(data).encode())


def strings_in_arrow(forger):
    sink = io.BytesIO()
    batch = pa.RecordBatch.from_pydict({"pooled": pa.array(["a", "b"])})
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    forger.file("texts/t-0.arrow", sink.getvalue())


def twice(forger):
    forger.manifest(lambda manifest: manifest["parts"].append(manifest["parts"][0]))


def another_done(forger):
    forger.write("done/i-0.json", forger.read("done/t-0.json"))


def another_spec(forger):
    forger.write("spec.json", forger.read("spec.json").replace(b"seed-0", b"seed-1"))


def a_field_more(forger):
    forger.write("spec.json", forger.read("spec.json").replace(b'{"back', b'{"aback":1,"back', 1))


def deep_json(forger):
    forger.write("manifests/1.json", b"[" * 100_000)


def a_parent(forger):
    forger.manifest(lambda manifest: manifest.update(parent=hashlib.sha256(b"").hexdigest()))


def missing(forger):
    forger.objects.delete(f"{forger.name}/images/i-0/tokens/zarr.json")


FORGED = {
    "a path upward": (bad_path("images/i-0/../../../evil"), "not inside the store"),
    "an absolute path": (bad_path("/etc/passwd"), "not inside the store"),
    "another part's file": (bad_path("images/i-1/zarr.json"), "not a file of its own"),
    "a name with a slash": (set_part(name="../evil"), "part named"),
    "negative rows": (set_part(rows=-1), "malformed part"),
    "a part twice": (twice, "lists a part twice"),
    "10 GB": (ten_gigabytes, "not what the manifest lists"),
    "10 GB, consistently": (ten_gigabytes_in_done, "GB free|its manifest lists 10000000000"),
    "a wrong checksum": (wrong_checksum, "xxh3_128"),
    "no checksum": (no_checksum, "without size and checksum"),
    "a key twice": (a_key_twice, "holds a key twice"),
    "other keys": (other_keys, "keys that were planned"),
    "other columns": (other_columns, "other columns"),
    "a table that unpacks to much": (a_table_bomb, "bytes unpacked"),
    "no table": (not_a_table, "cannot be read"),
    "objects": (zarr(data_type="object"), "plain numbers"),
    "a huge shape": (zarr(shape=[10**15, 3, 8]), "plain numbers"),
    "a codec that is code": (a_codec_that_is_code, "plain numbers"),
    "strings for numbers": (strings_in_arrow, "rows of numbers"),
    "another part's done file": (another_done, "not what the manifest lists"),
    "another spec": (another_spec, "folder's name stands for"),
    "a field nobody knows": (a_field_more, "spec.json is damaged"),
    "deep JSON": (deep_json, "JSON"),
    "a parent that is not there": (a_parent, "does not continue"),
    "a file that is missing": (missing, "is not there"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_input_is_refused(case, ann, tmp_path, spec):
    from compal.workspace import Remote

    remote = Remote("here", f"memory://forged-{tmp_path.name}")
    single = Store.create(tmp_path / "one" / spec.folder, spec)
    from compal.stores.remotes.transfer import merge

    merge([ann.path], single.path)
    for number in (1, 2):  # one manifest is easier to forge
        (single.path / "manifests" / f"{number}.json").unlink()
    Store.open(single.path).commit(["i-0", "t-0"])
    push(single.path, remote)
    forge, reason = FORGED[case]
    forge(Forger(remote, spec.folder))
    bob = tmp_path / "bob" / spec.folder
    with pytest.raises((VerificationError, InputError, RemoteError), match=reason):
        pull(remote, spec.folder, bob)
    part = "t-0" if case == "strings for numbers" else "i-0"
    assert not (bob / "done" / f"{part}.json").exists()
    assert not list(bob.glob("manifests/*"))
    assert not list(tmp_path.rglob("evil*"))


def test_symbolic_links_lead_nowhere(ann, tmp_path, spec):
    """A shared folder may hold links to files of whoever pulls."""
    from compal.workspace import Remote

    remote = Remote("here", f"file://{tmp_path}/shared")
    push(ann.path, remote)
    secret = tmp_path / "secret"
    file = tmp_path / "shared" / spec.folder / "tables" / "i-0.parquet"
    secret.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(VerificationError, match="symbolic link"):
        pull(remote, spec.folder, tmp_path / "bob" / spec.folder)
