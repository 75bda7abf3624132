"""The log says what each commit changed; restore is a commit like any other and loses nothing."""

import dataclasses
import json
import os
import time

import pytest

from compal.config import canonical
from compal.errors import InputError, VerificationError
from compal.stores import manifest as manifests
from compal.stores.history import log, restore
from compal.stores.store import Store
from compal.stores.verify import verify


@pytest.fixture
def versions(filled, make_images):
    """1: i-0, i-1, t-0 (a–e, x–z); 2: and i-2 (f, g); 3: and i-3 (h)."""
    for name, keys in (("i-2", "fg"), ("i-3", "h")):
        filled.write_images(name, make_images(*keys))
        filled.commit([name])
    return filled


def listed(store, number=None):
    return [part.name for part in Store.open(store.path, manifest=number).parts]


def part_bytes(store, *names):
    parts = {part.name: part for part in Store.open(store.path).parts}
    return sum(size["bytes"] for name in names for size in parts[name].files.values())


def added(entry):
    return entry.parts_added, entry.rows_added, entry.bytes_added


def gone(entry):
    return entry.parts_dropped, entry.rows_dropped, entry.bytes_dropped


def test_an_empty_store_has_no_log(store):
    assert log(store.path) == []


def test_the_log_newest_first_with_counts(versions):
    entries = log(versions.path)
    assert [entry.number for entry in entries] == [3, 2, 1]
    assert [entry.operation for entry in entries] == ["append"] * 3
    assert all(entry.restorable and entry.compal and "@" in entry.who for entry in entries)
    assert all(abs(entry.time - time.time()) < 60 for entry in entries)
    assert added(entries[0]) == (1, 1, part_bytes(versions, "i-3"))
    assert added(entries[1]) == (1, 2, part_bytes(versions, "i-2"))
    assert added(entries[2]) == (3, 8, part_bytes(versions, "i-0", "i-1", "t-0"))
    assert (entries[2].parts, entries[2].rows, entries[2].bytes) == added(entries[2])
    assert {gone(entry) for entry in entries} == {(0, 0, 0)}
    assert json.loads(json.dumps(dataclasses.asdict(entries[0])))["rows_added"] == 1


def test_a_limited_log_still_knows_what_came_before(versions):
    assert log(versions.path, limit=2) == log(versions.path)[:2]
    assert log(versions.path, limit=9) == log(versions.path)
    assert log(versions.path, limit=0) == []


def test_a_bad_append_is_undone_and_the_undoing_too(versions):
    assert restore(versions.path, 2, note="i-3 was blurred") == 4
    assert listed(versions) == ["i-0", "i-1", "t-0", "i-2"]
    assert "h" not in Store.open(versions.path)
    entry = log(versions.path)[0]
    assert (entry.operation, entry.note) == ("restore", "i-3 was blurred")
    assert (added(entry), gone(entry)) == ((0, 0, 0), added(log(versions.path)[1]))
    assert verify(versions.path) == []
    assert restore(versions.path, 3) == 5
    assert listed(versions) == listed(versions, 3)
    assert "h" in Store.open(versions.path)
    assert verify(versions.path) == []


def test_before_the_first_commit(versions):
    assert restore(versions.path, 0) == 4
    assert listed(versions) == []
    assert verify(versions.path) == []


def test_restoring_what_is_there_changes_nothing(versions):
    assert restore(versions.path, 3) == 3
    assert restore(versions.path, 2) == restore(versions.path, 2) == 4
    assert len(log(versions.path)) == 4


def test_the_order_of_the_parts_is_restored(filled, make_images):
    """A key that two parts hold is read from the first: order is content."""
    filled.write_images("i-2", make_images("a", seed=9))
    filled.commit(["i-2"])
    before = Store.open(filled.path).image_tokens(["a"])
    manifests.commit(filled.path, filled.spec.fingerprint, [], drop=["i-0"])
    filled.commit(["i-0"])  # listed last now
    assert (Store.open(filled.path).image_tokens(["a"]) != before).any()
    restore(filled.path, 2)
    assert (Store.open(filled.path).image_tokens(["a"]) == before).all()


def test_dropped_parts_are_no_work_in_progress(versions, make_images):
    restore(versions.path, 1)
    versions.write_images("i-9", make_images("q"))
    assert manifests.dropped(versions.path) == {"i-2", "i-3"}
    versions.commit(["i-3"])  # by its name alone: nothing is written anew
    assert manifests.dropped(versions.path) == {"i-2"}
    assert "h" in Store.open(versions.path)


def test_many_dropped_parts_are_found_at_once(filled, make_images):
    names = [f"i-{number}" for number in range(10, 10 + manifests.FEW + 4)]
    for name in names:
        filled.write_images(name, make_images(name))
    filled.commit(names)
    restore(filled.path, 1)
    assert manifests.dropped(filled.path) == set(names)


def test_what_others_append_meanwhile_stays(versions, make_images, monkeypatch):
    """Between our look at the store and our commit."""
    versions.write_images("i-4", make_images("z9"))
    real, raced = manifests.lock, []

    def late(root):
        if not raced:
            raced.append(root)
            Store.open(versions.path).commit(["i-4"])
        return real(root)

    monkeypatch.setattr(manifests, "lock", late)
    assert restore(versions.path, 1) == 5
    assert listed(versions) == ["i-0", "i-1", "t-0", "i-4"]


def test_a_part_that_is_gone_refuses(versions):
    (versions.path / "done/i-3.json").unlink()
    assert [entry.restorable for entry in log(versions.path)] == [False, True, True]
    manifests.commit(versions.path, versions.spec.fingerprint, [], drop=["i-3"])
    with pytest.raises(InputError, match=r"manifest 3 .* i-3 are gone.*store log"):
        restore(versions.path, 3)
    (versions.path / "images/i-2/tokens/c.0.0.0").unlink()
    with pytest.raises(VerificationError, match="missing"):
        restore(versions.path, 2)


def test_a_number_that_never_was(versions):
    with pytest.raises(InputError, match="no manifest 9"):
        restore(versions.path, 9)
    with pytest.raises(InputError, match="no manifest -1"):
        restore(versions.path, -1)


def test_a_part_written_anew_is_taken_as_it_is(versions, make_images):
    """Damaged, deleted, extracted again: the same items with other rounding."""
    restore(versions.path, 2)
    (versions.path / "done/i-3.json").unlink()
    versions.write_images("i-3", make_images("h", seed=99))
    restore(versions.path, 3)
    assert verify(versions.path) == []
    assert log(versions.path)[0].restorable


def test_a_name_that_other_items_took_refuses(versions, make_images):
    restore(versions.path, 2)
    (versions.path / "done/i-3.json").unlink()
    versions.write_images("i-3", make_images("other"))
    with pytest.raises(InputError, match="other items"):
        restore(versions.path, 3)


def test_a_damaged_manifest_is_listed_as_damaged(versions):
    (versions.path / "manifests/2.json").write_bytes(b"{")
    three, two, one = log(versions.path)
    assert (two.number, two.operation, two.restorable) == (2, "damaged", False)
    assert "JSON" in two.note
    assert (one.number, three.number) == (1, 3)
    assert added(three) == (2, 3, part_bytes(versions, "i-2", "i-3"))  # against the last that can be read


def test_old_manifests_say_nothing_of_their_making(filled):
    path = filled.path / "manifests/1.json"
    data = json.loads(path.read_bytes())
    del data["written"]
    path.write_bytes(canonical(data))
    os.utime(path, (1e9, 1e9))
    (entry,) = log(filled.path)
    assert (entry.time, entry.who, entry.operation, entry.note) == (1e9, "", "append", "")


FORGED = {"user": "\x1b[31mroot", "host": 7, "note": "a\nb" + "x" * 999, "operation": ["x"], "time": "now"}


def test_what_a_stranger_wrote_is_harmless(filled):
    path = filled.path / "manifests/1.json"
    data = json.loads(path.read_bytes())
    data["written"] = FORGED
    path.write_bytes(canonical(data))
    (entry,) = log(filled.path)
    assert entry.who == "�[31mroot"
    assert entry.note.startswith("a bx")
    assert len(entry.note) == 200
    assert (entry.operation, entry.time) == ("append", path.stat().st_mtime)
