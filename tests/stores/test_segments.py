"""Segments kept beside a store: many writers, damage, and adding twice."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress

import pyarrow as pa
import pytest

from compal.errors import CompalError, InputError, VerificationError
from compal.stores import segments
from compal.stores.segments import SCHEMA, add_segments, read_segments, segments_path
from compal.stores.tables import write_table
from compal.stores.upkeep import gc
from compal.stores.verify import verify

FOUND = {
    "a": ((2, 10, "object"), (2, 5, "attribute"), (11, 18, "relation")),
    "b": (),
    "ü": ((0, 4, "phrase"),),
}


def test_what_was_added_is_read(filled):
    assert read_segments(filled.path, "rules", "1") == {}
    assert add_segments(filled.path, "rules", "1", FOUND) == 3
    assert read_segments(filled.path, "rules", "1") == FOUND
    assert add_segments(filled.path, "rules", "1", {"c": [(0, 0, "object")]}) == 1
    assert read_segments(filled.path, "rules", "1") == {**FOUND, "c": ((0, 0, "object"),)}
    assert read_segments(filled.path, "rules", "2") == {}
    assert read_segments(filled.path, "rule", "s-1") == {}


def test_adding_again_changes_nothing(filled):
    add_segments(filled.path, "rules", "1", FOUND)
    path = segments_path(filled.path, "rules", "1")
    before = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
    assert add_segments(filled.path, "rules", "1", {"a": [(0, 1, "object")], "b": ()}) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_equal_content_is_equal_bytes(filled):
    for key in reversed(FOUND):
        add_segments(filled.path, "rules", "1", {key: FOUND[key]})
    add_segments(filled.path, "rules", "2", FOUND)
    one, two = (segments_path(filled.path, "rules", version).read_bytes() for version in "12")
    assert one == two


def test_the_store_does_not_notice(filled, values_of):
    before, manifest = values_of(filled.path), filled.manifest
    add_segments(filled.path, "rules", "1", FOUND)
    assert values_of(filled.path) == before
    assert filled.open(filled.path).manifest == manifest
    assert verify(filled.path) == []
    gc(filled.path, days=0)
    assert read_segments(filled.path, "rules", "1") == FOUND


def add_many(folder, worker):
    os.fsync = lambda handle: None
    for number in range(12):
        add_segments(folder, "rules", "1", {f"{worker}-{number}": [(number, number + 1, "object")], "both": ()})
        read_segments(folder, "rules", "1")


def test_writers_that_race_lose_nothing(filled):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=add_many, args=(filled.path, worker)) for worker in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * 4
    found = read_segments(filled.path, "rules", "1")
    assert len(found) == 4 * 12 + 1
    assert found["3-11"] == ((11, 12, "object"),)
    assert not list((filled.path / ".staging").iterdir())


def test_damage_is_an_error_or_changes_nothing(filled):
    add_segments(filled.path, "rules", "1", FOUND)
    path = segments_path(filled.path, "rules", "1")
    raw, errors = path.read_bytes(), 0
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        try:
            assert read_segments(filled.path, "rules", "1") == FOUND, at
        except VerificationError:
            errors += 1
    assert errors > len(raw) / 2  # the rest is what the footer says of writers and statistics
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(VerificationError, match=r"cannot be read.*Delete it: the segmenter makes it again"):
        read_segments(filled.path, "rules", "1")
    with pytest.raises(VerificationError, match="cannot be read"):
        add_segments(filled.path, "rules", "1", {"new": ()})
    assert path.read_bytes() == raw[: len(raw) // 2], "a damaged table is not overwritten"


ROWS = {"key": ["a"], "start": [[0]], "end": [[1]], "kind": [["object"]]}


@pytest.mark.parametrize(
    "forged",
    [
        *({"key": ["a", "a"]}, {"start": [[0, 1]]}, {"start": [None]}, {"kind": [[None]]}, {"end": [[-1]]}),
        *({"start": [[2]]}, {"key": [None]}, {"key": [""]}),
    ],
    ids=str,
)
def test_tables_that_say_what_no_segmenter_says(filled, forged):
    rows = {name: values * (2 if len(forged.get("key", "")) == 2 else 1) for name, values in ROWS.items()} | forged
    path = segments_path(filled.path, "rules", "1")
    path.parent.mkdir()
    table = pa.table(rows, schema=SCHEMA)
    with suppress(TypeError):  # of texts that are missing there is no digest
        table = segments._sealed(table)
    write_table(path, table)
    with pytest.raises(VerificationError, match=r"a key twice, or segments that no caption has|its digest differs"):
        read_segments(filled.path, "rules", "1")


def test_a_table_of_other_columns(filled):
    path = segments_path(filled.path, "rules", "1")
    path.parent.mkdir()
    write_table(path, pa.table({"key": ["a"], "begin": [[0]]}))
    with pytest.raises(VerificationError, match="has the columns key, begin"):
        read_segments(filled.path, "rules", "1")


@pytest.mark.parametrize("bad", [(-1, 2, "object"), (3, 2, "object"), (0, 1, ""), (0, 1 << 31, "x"), (0, 1, None)])
def test_segments_that_no_caption_has_are_refused(filled, bad):
    with pytest.raises(InputError, match="caption a has the segment"):
        add_segments(filled.path, "rules", "1", {"a": [bad]})
    assert read_segments(filled.path, "rules", "1") == {}


def test_names_stay_inside_the_store(filled, tmp_path):
    for name, version in (("../x", "1"), ("", "1"), ("a-b", "1"), ("rules", ""), ("a/b", "1")):
        with pytest.raises(InputError, match="no segmenter can be called"):
            add_segments(filled.path, name, version, FOUND)
    for version in ("../../up", "3.8.1+en_core_web_sm-3.8.0", "..", "two words"):
        add_segments(filled.path, "rules", version, FOUND)
        assert segments_path(filled.path, "rules", version).parent == filled.path / "segments"
        assert read_segments(filled.path, "rules", version) == FOUND
    assert len(list((filled.path / "segments").iterdir())) == 4


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(InputError, match="is not a store"):
        add_segments(tmp_path, "rules", "1", FOUND)
    assert not (tmp_path / "segments").exists()


def test_a_full_disk_leaves_the_table_as_it_was(filled, monkeypatch):
    add_segments(filled.path, "rules", "1", FOUND)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("compal.stores.segments.write_table", full)
    with pytest.raises(CompalError, match="Free space"):
        add_segments(filled.path, "rules", "1", {"new": ()})
    monkeypatch.undo()
    assert read_segments(filled.path, "rules", "1") == FOUND
