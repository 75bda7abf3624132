"""Manifests: deterministic, chained, create-only; nothing in them can point out of the store."""

import contextlib
import hashlib
import json

import pytest

from compal.config import canonical
from compal.errors import VerificationError
from compal.stores import manifest as manifests
from compal.stores.files import checked_path, create_only, replace
from compal.stores.store import Store
from compal.stores.verify import verify


def rewrite(path, change):
    data = json.loads(path.read_bytes())
    change(data)
    path.write_bytes(canonical(data))


def test_manifests_form_a_chain(filled, make_images):
    filled.write_images("i-2", make_images("f"))
    assert filled.commit(["i-2"]) == 2
    one, two = (filled.path / f"manifests/{n}.json" for n in (1, 2))
    assert json.loads(one.read_bytes())["parent"] == ""
    assert json.loads(two.read_bytes())["parent"] == hashlib.sha256(one.read_bytes()).hexdigest()
    head = json.loads((filled.path / "head.json").read_bytes())
    assert head == {"manifest": 2, "sha256": hashlib.sha256(two.read_bytes()).hexdigest()}
    assert [part["name"] for part in json.loads(two.read_bytes())["parts"]] == ["i-0", "i-1", "t-0", "i-2"]


def test_committing_again_changes_nothing(filled):
    before = {path: path.read_bytes() for path in filled.path.rglob("*.json")}
    assert filled.commit(["i-0", "t-0"]) == 1
    assert {path: path.read_bytes() for path in filled.path.rglob("*.json")} == before


def test_the_content_does_not_depend_on_place_or_time(tmp_path, spec, make_images, make_texts):
    stores = [Store.create(tmp_path / name, spec) for name in ("one", "two")]
    for store, order in zip(stores, (["i-0", "t-0"], ["t-0", "i-0"]), strict=True):
        store.write_images("i-0", make_images("a"), provenance={"device": store.path.name})
        store.write_texts("t-0", make_texts("x"))
        store.commit(order)
    for file in sorted(path.relative_to(stores[0].path) for path in stores[0].path.rglob("*") if path.is_file()):
        one, two = ((store.path / file).read_bytes() for store in stores)
        if file.parts[0] == "done":
            one, two = ({**json.loads(raw), "written": None} for raw in (one, two))
        assert one == two, file
    done = json.loads((stores[0].path / "done/i-0.json").read_bytes())
    assert done["written"]["device"] == "one"
    assert set(done["written"]) == {"device", "host", "pid", "seconds", "time"}


def test_statistics_by_hand(store, spec, make_images):
    rows = make_images("a", "b")
    rows.pooled[:] = [[1, 2, 3, 4], [3, 2, -5, 4]]
    store.write_images("i-0", rows)
    pooled = json.loads((store.path / "done/i-0.json").read_bytes())["statistics"]["pooled"]
    assert pooled == {"mean": [2, 2, -1, 4], "std": [1, 0, 4, 0], "absmax": [3, 2, 5, 4]}


def test_losing_the_race_for_a_number_commits_on_top(filled, make_images, monkeypatch):
    """Another committer takes number 2 between our look and our link."""
    other = Store.open(filled.path)
    for name, key in (("i-2", "f"), ("i-3", "g")):
        filled.write_images(name, make_images(key))
    real, raced = create_only, []

    def late(root, path, data):
        if not raced:
            raced.append(path.name)
            assert other.commit(["i-3"]) == 2
        return real(root, path, data)

    monkeypatch.setattr(manifests, "create_only", late)
    assert filled.commit(["i-2"]) == 3
    assert raced == ["i-3"] or raced == ["2.json"]
    assert Store.open(filled.path).keys("image") == set("abcdefg")
    assert verify(filled.path) == []


def test_the_head_follows_even_if_a_slower_committer_writes_last(filled, make_images, monkeypatch):
    """The slow one is about to point the head at 2 when number 3 appears."""
    other = Store.open(filled.path)
    for name, key in (("i-2", "f"), ("i-3", "g")):
        filled.write_images(name, make_images(key))
    real, raced = replace, []

    def late(root, path, data):
        if not raced:
            raced.append(path.name)
            assert other.commit(["i-3"]) == 3
        return real(root, path, data)

    monkeypatch.setattr(manifests, "replace", late)
    assert filled.commit(["i-2"]) == 3
    assert json.loads((filled.path / "head.json").read_bytes())["manifest"] == 3
    assert "g" in filled


def test_a_head_that_lags_is_moved_by_the_next_writer(filled, spec, make_images):
    old = (filled.path / "head.json").read_bytes()
    filled.write_images("i-2", make_images("f"))
    filled.commit(["i-2"])
    new = (filled.path / "head.json").read_bytes()
    (filled.path / "head.json").write_bytes(old)
    assert "f" in Store.open(filled.path)
    Store.create(filled.path, spec)
    assert (filled.path / "head.json").read_bytes() == new


def test_create_only_keeps_the_first(tmp_path):
    assert create_only(tmp_path, tmp_path / "x.json", b"one")
    assert not create_only(tmp_path, tmp_path / "x.json", b"two")
    assert (tmp_path / "x.json").read_bytes() == b"one"


# --- what comes out of a file is not trusted -------------------------------------------------------------

OUTSIDE = [
    "/etc/passwd",
    "../secret",
    "images/../../secret",
    "images/i-0/../../../secret",
    "",
    ".",
    "images\\x",
    "a\0b",
]
NOT_ITS_OWN = [
    "spec.json",
    "head.json",
    "images/i-1/tokens/c.0.0.0",
    "tables/i-1.parquet",
    "texts/i-0.arrow",
    "images//i-0/x",
]


@pytest.mark.parametrize("path", OUTSIDE + NOT_ITS_OWN)
def test_forged_paths_are_refused(filled, path):
    size = {"bytes": 1, "xxh3_128": "0" * 32}
    rewrite(filled.path / "manifests/1.json", lambda data: data["parts"][0]["files"].update({path: size}))
    with pytest.raises(VerificationError):
        Store.open(filled.path)
    rewrite(filled.path / "done/i-0.json", lambda data: data["files"].update({path: size}))
    with pytest.raises(VerificationError):
        manifests.commit(filled.path, filled.spec.fingerprint, ["i-0"])
    assert verify(filled.path)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "", ".."])
def test_forged_part_names_are_refused(filled, name):
    rewrite(filled.path / "manifests/1.json", lambda data: data["parts"][0].update(name=name))
    with pytest.raises(VerificationError):
        Store.open(filled.path)


FORGED = {
    "rows": -1,
    "kind": "video",
    "files": [],
    "quarantined": "0",
    "record": None,
    "extra": 1,
}


@pytest.mark.parametrize("field", FORGED)
def test_malformed_parts_are_refused(filled, field):
    rewrite(filled.path / "manifests/1.json", lambda data: data["parts"][0].update({field: FORGED[field]}))
    with pytest.raises(VerificationError):
        Store.open(filled.path)


@pytest.mark.parametrize("field", ["format", "number", "parent", "spec", "parts"])
@pytest.mark.parametrize("value", [None, True, -1, {}, "x", []])
def test_malformed_manifests_are_refused_or_harmless(filled, field, value):
    rewrite(filled.path / "manifests/1.json", lambda data: data.update({field: value}))
    assert verify(filled.path)
    with contextlib.suppress(VerificationError):
        Store.open(filled.path)


def test_a_part_listed_twice_is_refused(filled):
    rewrite(filled.path / "manifests/1.json", lambda data: data["parts"].append(data["parts"][0]))
    with pytest.raises(VerificationError, match="twice"):
        Store.open(filled.path)


def test_a_link_out_of_the_store_is_refused(filled, tmp_path):
    target = filled.path / "images/i-0/tokens"
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VerificationError, match="symbolic link"):
        Store.open(filled.path).image_tokens(["a"])
    assert any("symbolic link" in problem.what for problem in verify(filled.path))


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(VerificationError):
        checked_path(tmp_path, "a/x")


def test_a_store_behind_a_link_is_fine(filled, tmp_path):
    (tmp_path / "link").symlink_to(filled.path)
    assert Store.open(tmp_path / "link").image_tokens(["a"]).shape == (1, 3, 8)
    assert verify(tmp_path / "link") == []
