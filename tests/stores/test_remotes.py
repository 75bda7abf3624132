"""Push, pull and merge: two folders and an S3 bucket between them."""

import json

import pytest

from compal.errors import InputError, RemoteError, SpecMismatch, UnknownName, UsageError, VerificationError
from compal.stores.manifest import newest, numbers
from compal.stores.remotes.cloud import CloudObjects
from compal.stores.remotes.generic import GenericObjects
from compal.stores.remotes.objects import PROOF, connect, prove_create_only
from compal.stores.remotes.transfer import merge, pull, push, remote_stores
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.workspace import Remote


def tree(folder):
    """Every visible file's bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    return {name: (folder / name).read_bytes() for name in names if not name.startswith(".")}


def bucket(remote):
    """Every object's bytes, by the path below the store's folder."""
    objects = connect(remote)
    (name,) = objects.folders()
    return {path.removeprefix(f"{name}/"): objects.get(path, 1 << 20) for path in objects.names(name)}


@pytest.fixture
def member(tmp_path, spec, make_images, make_texts):
    """`member("ann", "i-1", "t-1")`: that member's store with those parts added; a part's values follow its name."""

    def make(who, *parts):
        store = Store.create(tmp_path / who / spec.folder, spec)
        for part in parts:
            number = int(part[2:])
            keys = [f"{part}-{row}" for row in range(3)]
            written = {"forward_seconds": 2.0}
            if part[0] == "i":
                store.write_images(part, make_images(*keys, seed=number), (), written)
            else:
                store.write_texts(part, make_texts(*keys, seed=number), (), written)
        store.commit(parts)
        return store.path

    return make


def test_a_store_comes_back_byte_equal(member, s3, tmp_path, spec):
    ann = member("ann", "i-1", "t-1")
    member("ann", "i-2")
    remote = s3()
    pushed = push(ann, remote)
    assert (pushed.parts, pushed.present, pushed.conflicts, pushed.manifest, pushed.equal) == (3, 0, (), 2, True)
    assert pushed.bytes == Store.open(ann).info()["bytes"]
    assert bucket(remote) == tree(ann)
    bob = tmp_path / "bob" / spec.folder
    pulled = pull(remote, spec.folder, bob)
    assert (pulled.parts, pulled.items, pulled.manifest, pulled.saved_seconds) == (3, 9, 2, 6.0)
    assert tree(bob) == tree(ann)
    assert verify(bob) == []
    assert not list(bob.glob(".incoming*"))


def test_equal_parts_are_never_sent_twice(member, s3, proxy, tmp_path, spec):
    counting = proxy()
    remote = s3(counting.url)
    ann = member("ann", "i-1", "t-1")
    push(ann, remote)
    counting.requests.clear()
    again = push(ann, remote)
    assert (again.parts, again.bytes, again.present) == (0, 0, 2)
    written = [(method, path) for method, path, _ in counting.requests if method in ("PUT", "POST")]
    assert all(path.endswith((PROOF, "spec.json")) for _, path in written), written
    bob = tmp_path / "bob" / spec.folder
    pull(remote, spec.folder, bob)
    counting.requests.clear()
    assert (pull(remote, spec.folder, bob).bytes, counting.gets("/images/")) == (0, [])
    member("ann", "i-2")
    push(ann, remote)
    counting.requests.clear()
    assert pull(remote, spec.folder, bob).parts == 1
    assert all("i-2" in path for method, path, _ in counting.requests if "/images/" in path)


def test_those_who_add_at_the_same_time_end_equal(member, s3, tmp_path, spec):
    remote = s3()
    ann = member("ann", "i-1")
    push(ann, remote)
    bob, eve = tmp_path / "bob" / spec.folder, tmp_path / "eve" / spec.folder
    for folder in (bob, eve):
        pull(remote, spec.folder, folder)
    member("bob", "i-2")
    member("eve", "i-3", "t-3")
    assert push(bob, remote).equal
    pushed = push(eve, remote)
    assert (pushed.parts, pushed.present, pushed.manifest, pushed.equal) == (2, 1, 3, False)
    mine = (eve / "manifests" / "2.json").read_bytes()
    for folder in (eve, bob, ann):
        pull(remote, spec.folder, folder)
        assert verify(folder) == []
    assert tree(ann) == tree(bob) == tree(eve) == bucket(remote)
    assert [part.name for part in newest(ann).parts] == ["i-1", "i-2", "i-3", "t-3"]
    (kept,) = (eve / ".displaced").iterdir()
    assert kept.read_bytes() == mine, "the manifest whose number others took is kept"


def test_a_longer_history_is_not_rewritten(member, s3, tmp_path, spec):
    """Ann pulls while her own history is longer than the remote's: nothing of it goes."""
    remote = s3()
    push(member("bob", "i-9"), remote)
    ann = member("ann", "i-1")
    member("ann", "i-2")
    member("ann", "i-3")
    before = tree(ann)
    pull(remote, spec.folder, ann)
    assert before.items() <= (tree(ann) | {"head.json": before["head.json"]}).items()
    assert [part.name for part in newest(ann).parts] == ["i-9", "i-1", "i-2", "i-3"]
    assert newest(ann).written["operation"] == "pull"
    assert verify(ann) == []
    pull(remote, spec.folder, ann)
    assert numbers(ann) == [1, 2, 3, 4], "pulling again changes nothing"
    push(ann, remote)
    bob = tmp_path / "bob" / spec.folder
    pull(remote, spec.folder, bob)
    assert tree(bob) == bucket(remote)
    assert set(tree(bob)) - set(tree(ann)) == set()


def test_a_dropped_part_stays_dropped(member, s3, tmp_path, spec):
    from compal.stores.manifest import commit

    remote = s3()
    ann = member("ann", "i-1", "i-2")
    push(ann, remote)
    bob = tmp_path / "bob" / spec.folder
    pull(remote, spec.folder, bob)
    commit(ann, spec.fingerprint, [], drop=["i-1"], operation="compact")
    member("bob", "i-3")
    push(bob, remote)
    push(ann, remote)
    assert [part.name for part in connect_newest(remote).parts] == ["i-2", "i-3"]
    pull(remote, spec.folder, bob)
    assert [part.name for part in Store.open(bob).parts] == ["i-2", "i-3"]


def connect_newest(remote):
    from compal.stores.remotes.shared import SharedStore

    objects = connect(remote)
    return SharedStore(objects, objects.folders()[0]).newest()


def test_other_bytes_under_a_name_are_reported_and_stay(tmp_path, spec, make_images, s3):
    stores = []
    for who, seed in (("ann", 1), ("bob", 2)):
        store = Store.create(tmp_path / who / spec.folder, spec)
        store.write_images("i-1", make_images("a", "b", seed=seed))
        store.write_images(f"i-{seed + 5}", make_images(f"{who}-c", seed=seed))
        store.commit(["i-1", f"i-{seed + 5}"])
        stores.append(store)
    ann, bob = stores
    remote = s3()
    push(ann.path, remote)
    pushed = push(bob.path, remote)
    assert (pushed.conflicts, pushed.parts, pushed.equal) == (("i-1",), 1, False)
    assert not [path for path in bucket(remote) if ".claims" in path]
    before = tree(bob.path)
    pulled = pull(remote, spec.folder, bob.path)
    assert (pulled.conflicts, pulled.parts) == (("i-1",), 1)
    assert (Store.open(bob.path).image_tokens(["a"]) == bob.image_tokens(["a"])).all(), "bob keeps his own"
    assert {name: data for name, data in before.items() if name.startswith("images/")}.items() <= tree(bob.path).items()
    eve = tmp_path / "eve" / spec.folder
    pull(remote, spec.folder, eve)
    assert (Store.open(eve).image_tokens(["a"]) == ann.image_tokens(["a"])).all(), "the first published stays"
    assert verify(eve) == verify(bob.path) == []
    assert push(bob.path, remote).parts == 0


def test_what_a_dead_writer_declared_done_is_listed(tmp_path, spec, make_images, s3):
    """Ann was killed between a part and its manifest; Bob holds the part with other bytes."""
    remote, stores = s3(), []
    for seed in (1, 2):
        store = Store.create(tmp_path / str(seed) / spec.folder, spec)
        store.write_images("i-1", make_images("a", "b", seed=seed))
        store.commit(["i-1"])
        stores.append(store)
    push(stores[0].path, remote)
    for name in ("manifests/1.json", "head.json"):
        connect(remote).delete(f"{spec.folder}/{name}")
    assert push(stores[1].path, remote).conflicts == ("i-1",)
    assert connect_newest(remote).parts == stores[0].parts


def test_a_claim_keeps_other_bytes_off(member, s3, spec):
    """A part that somebody is uploading with other bytes is not touched; after a day the claimer is dead."""
    remote = s3()
    ann = member("ann", "i-1", "i-2")
    objects = connect(remote)
    import time

    claim = {"record": "of another", "host": "far", "time": time.time()}
    path = f"{spec.folder}/.claims/i-1.json"
    objects.create(path, json.dumps(claim).encode())
    objects.create(f"{spec.folder}/tables/i-1.parquet", b"theirs")
    assert push(ann, remote).conflicts == ("i-1",)
    assert objects.get(f"{spec.folder}/tables/i-1.parquet", 100) == b"theirs"
    objects.replace(path, json.dumps({**claim, "time": time.time() - 90_000}).encode())
    pushed = push(ann, remote)
    assert (pushed.conflicts, pushed.parts) == ((), 1)
    pulled = ann.parents[1] / "bob" / spec.folder
    pull(remote, spec.folder, pulled)
    assert verify(pulled) == []
    assert Store.open(pulled).keys("image") == Store.open(ann).keys("image")


def test_only_the_parts_that_hold_the_keys_travel(member, s3, proxy, tmp_path, spec):
    counting = proxy()
    remote = s3(counting.url)
    push(member("ann", "i-1", "i-2", "t-1"), remote)
    bob = tmp_path / "bob" / spec.folder
    counting.requests.clear()
    pulled = pull(remote, spec.folder, bob, keys={"i-2-0", "i-2-1", "unknown"})
    assert (pulled.parts, pulled.items) == (1, 2)
    assert pulled.saved_seconds == pytest.approx(2.0 * 2 / 3)
    assert Store.open(bob).keys("image") == {f"i-2-{row}" for row in range(3)}
    assert verify(bob) == []
    assert not [path for _, path, _ in counting.requests if "/images/i-1/" in path]
    counting.requests.clear()
    assert pull(remote, spec.folder, bob, keys={"nothing"}).parts == 0
    assert counting.gets("/tables/") == [], "tables that were looked at are kept"
    pull(remote, spec.folder, bob)
    assert tree(bob) == bucket(remote), "the whole store ends equal, whatever came first"


def test_a_damaged_part_is_brought_anew(member, s3, spec):
    remote, ann = s3(), member("ann", "i-1", "i-2")
    push(ann, remote)
    before = tree(ann)
    (ann / "done" / "i-1.json").unlink()
    (ann / "tables" / "i-1.parquet").write_bytes(b"damaged")
    assert pull(remote, spec.folder, ann).parts == 1
    assert tree(ann) == before


def test_what_a_killed_publish_moved_aside_is_in_nobodys_way(member, s3, tmp_path, spec):
    """Killed twice between the moves of a publish: the part's old folder lies aside already, and at its place."""
    remote, ann = s3(), member("ann", "i-1")
    push(ann, remote)
    bob = Store.create(tmp_path / "bob" / spec.folder, spec).path
    (part,) = newest(ann).parts
    aside = bob / ".incoming" / f"{part.name}.{part.record[:16]}" / "old-images-i-1" / "tokens"
    for folder in (aside, bob / "images" / "i-1" / "tokens"):
        folder.mkdir(parents=True)
        (folder / "c.0.0.0").write_bytes(b"half")
    pull(remote, spec.folder, bob)
    assert tree(bob) == tree(ann)
    assert not (bob / ".incoming").exists()


def test_damaged_bytes_are_not_pushed(member, s3):
    ann = member("ann", "i-1")
    file = ann / "tables" / "i-1.parquet"
    raw = bytearray(file.read_bytes())
    raw[20] ^= 1
    file.write_bytes(raw)
    with pytest.raises(VerificationError, match="was not pushed"):
        push(ann, s3())


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_other_media(member, tmp_path, spec, kind):
    url = f"file://{tmp_path}/shared" if kind == "file" else f"memory://{tmp_path.name}"
    remote = Remote("here", url)
    ann = member("ann", "i-1", "t-1")
    pushed = push(ann, remote)
    assert (pushed.parts, pushed.equal) == (2, True)
    bob = tmp_path / "bob" / spec.folder
    pull(remote, spec.folder, bob)
    member("bob", "i-2")
    assert push(bob, remote).parts == 1
    pull(remote, spec.folder, ann)
    assert tree(ann) == tree(bob) == bucket(remote)
    if kind == "file":
        assert verify(tmp_path / "shared" / spec.folder) == []
        with pytest.raises(InputError, match="itself the other store"):
            pull(remote, spec.folder, tmp_path / "shared" / spec.folder)


def test_merge(member, tmp_path, spec):
    ann, bob = member("ann", "i-1", "t-1"), member("bob", "i-2", "t-1")
    other = tmp_path / "other"
    Store.create(other, spec.with_dtype("float32"))
    target = tmp_path / "all"
    with pytest.raises(SpecMismatch, match="different specs"):
        merge([ann, other], target)
    assert not target.exists()
    before = tree(ann), tree(bob)
    merged = merge([ann, bob], target)
    assert (merged.parts, merged.present, merged.items, merged.conflicts) == (3, 1, 9, ())
    assert (tree(ann), tree(bob)) == before
    assert verify(target) == []
    assert [part.name for part in newest(target).parts] == ["i-1", "t-1", "i-2"]
    assert merge([ann, bob], target).manifest == merged.manifest
    assert newest(target).written["operation"] == "merge"
    with pytest.raises(InputError, match="itself"):
        merge([ann, target], target)


def test_list(member, s3):
    remote = s3()
    assert remote_stores(remote) == []
    push(member("ann", "i-1", "t-1"), remote)
    (found,) = remote_stores(remote)
    assert (found.backbone, found.images, found.texts, found.parts, found.manifest) == ("random", 3, 3, 2, 1)
    assert found.bytes > 0
    connect(remote).replace(f"{found.name}/manifests/1.json", b"{")
    (found,) = remote_stores(remote)
    assert "cannot be read as JSON" in found.problem


def test_a_remote_without_create_only_puts_is_refused(s3, monkeypatch, member):
    def ignoring(self, path, data):
        self.replace(path, data)
        return True

    monkeypatch.setattr(CloudObjects, "create", ignoring)
    with pytest.raises(RemoteError, match="ignores create-only puts"):
        push(member("ann", "i-1"), s3())
    assert push(member("ann", "i-1"), s3(single_writer=True)).parts == 1


def test_the_proof_costs_one_request(s3, proxy):
    counting = proxy()
    remote = s3(counting.url)
    prove_create_only(connect(remote), remote)
    counting.requests.clear()
    prove_create_only(connect(remote), remote)
    assert len([one for one in counting.requests if one[0] == "PUT"]) == 1


def test_what_cannot_be_reached(s3, member, spec, tmp_path):
    import dataclasses

    ann = member("ann", "i-1")
    with pytest.raises(RemoteError, match="no such bucket"):
        push(ann, dataclasses.replace(s3(), url="s3://nothing-there/x"))
    with pytest.raises(RemoteError, match="does not answer"):
        push(ann, s3("http://127.0.0.1:9", retries=0))
    with pytest.raises(RemoteError, match="there is no store"):
        pull(s3(), spec.folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match=r"ftp://.*Known: file://, s3://"):
        connect(Remote("x", "ftp://host/x"))
    with pytest.raises(UsageError, match=r"without TLS.*remote_options.x\] allow_http = true"):
        connect(Remote("x", "s3://b/x", {"endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(UnknownName, match="endpoint"):
        connect(Remote("x", "s3://b/x", {"endpiont": "x"}))
    with pytest.raises(InputError, match="cannot be the name"):
        pull(s3(), "../x", tmp_path / "new")
    empty = Store.create(tmp_path / "empty", spec).path
    with pytest.raises(InputError, match="no committed features"):
        push(empty, s3())


def test_the_hub_is_read_only(monkeypatch):
    """hf:// itself cannot be tested without its server; what we refuse can."""
    objects = GenericObjects.__new__(GenericObjects)
    objects.scheme, objects.url = "hf", "hf://datasets/team/features"
    for write in (lambda: objects.create("x", b""), lambda: objects.replace("x", b""), lambda: objects.delete("x")):
        with pytest.raises(RemoteError, match="compal push-hub"):
            write()


@pytest.mark.parametrize("kind", ["file", "memory", "s3"])
def test_objects(kind, tmp_path, s3):
    """One contract for every medium."""
    urls = {"file": Remote("x", f"file://{tmp_path}/a b"), "memory": Remote("x", f"memory://{tmp_path.name}x")}
    objects = connect(urls.get(kind) or s3())
    assert (objects.get("a/b", 10), objects.size("a/b"), objects.names("a"), objects.folders()) == (None, None, [], [])
    assert objects.create("a/b", b"0123456789")
    assert objects.create("a/b", b"0123456789"), "what a retried put finds is its own"
    assert not objects.create("a/b", b"other")
    assert not objects.create("a/b", b"9876543210")
    assert objects.get("a/b", 10) == b"0123456789"
    assert objects.get_ranges("a/b", [(0, 2), (7, 10)]) == [b"01", b"789"]
    with pytest.raises(RemoteError, match="more than 9 bytes"):
        objects.get("a/b", 9)
    local = tmp_path / "local"
    local.write_bytes(b"012")
    objects.get_file("a/b", local, 10)
    assert local.read_bytes() == b"0123456789"
    with pytest.raises(VerificationError, match="10 bytes, its manifest lists 12"):
        objects.get_file("a/b", tmp_path / "new", 12)
    objects.put_file(local, "c/d/e")
    objects.replace("c/f", b"x")
    objects.replace("c/f", b"yy")
    assert objects.size("c/f") == 2
    assert objects.names("c") == ["c/d/e", "c/f"]
    assert objects.folders() == ["a", "c"]
    objects.delete("c/f")
    objects.delete("c/f")
    assert objects.names("c") == ["c/d/e"]
    with pytest.raises(VerificationError, match="not inside the store"):
        objects.get("../x", 1)
