"""Compaction changes no value; collection deletes what nothing needs and never anything else."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from compal.errors import CompalError, InputError, VerificationError
from compal.stores import compaction, files, manifest, sizes, upkeep
from compal.stores.history import log, restore
from compal.stores.rows import ImageRows
from compal.stores.spec import FeatureSpec
from compal.stores.store import Quarantined, Store
from compal.stores.upkeep import compact, gc
from compal.stores.verify import verify

MIN = sizes.MIN_PART_ROWS


def listed(store):
    return [part.name for part in Store.open(store.path).parts]


def everything(store):
    """All that a reader gets: values and tables by key, and the quarantine."""
    store = Store.open(store.path)
    images, texts = sorted(store.keys("image")), sorted(store.keys("text"))
    found = {"quarantined": sorted(map(dataclasses.astuple, store.quarantined()))}
    found["tables"] = [
        sorted(store.table(kind).to_pylist(), key=lambda row: (row["key"], str(row))) for kind in ("image", "text")
    ]
    if images:
        found["pooled"] = store.pooled("image", images).tobytes()
        if store.spec.level == "regions":
            found["regions"] = [value.tobytes() for value in store.image_regions(images)]
        elif store.spec.image_shape[0]:
            found["tokens"] = store.image_tokens(images).tobytes()
    if texts and store.spec.text_dim:
        found["texts"] = [value.tobytes() for value in store.text_tokens(texts)]
    if texts:
        found["text pooled"] = store.pooled("text", texts).tobytes()
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return tmp_path_factory.mktemp("template") / "store"


@pytest.fixture
def many(tmp_path, template, spec, make_images, make_texts):
    """Ten small parts of three images and five of two captions, each a commit of its own; two refuse two items."""
    if not template.exists():
        store = Store.create(template, spec)
        for number in range(10):
            bad = [Quarantined(f"{number}-{n}", "image", "x.jpg", "truncated") for n in range(2)] if number < 2 else []
            images = make_images(*(f"{number}{letter}" for letter in "abc"), seed=number)
            store.write_images(f"i-{number}", images, bad, {"device": "cpu", "n": number})
            names = [f"i-{number}"]
            if number % 2:
                store.write_texts(f"t-{number}", make_texts(f"{number}x", f"{number}y", seed=number))
                names.append(f"t-{number}")
            store.commit(names)
    return Store.open(shutil.copytree(template, tmp_path / "store"))


# --- compact ---------------------------------------------------------------------------------------------


def test_small_parts_become_one_and_nothing_else_changes(many):
    before = everything(many)
    done = compact(many.path)
    assert everything(many) == before
    assert len(done.sources) == 15
    assert len(done.parts) == 2
    assert (done.rows, done.duplicates, done.manifest, done.notes) == (40, 0, 11, ())
    assert listed(many) == list(done.parts)
    entry = log(many.path)[0]
    assert (entry.operation, entry.parts_dropped, entry.parts_added) == ("compact", 15, 2)
    assert entry.rows_added == entry.rows_dropped == 40
    assert verify(many.path) == []
    again = compact(many.path)
    assert (again.parts, again.manifest) == ((), 11)


def test_full_parts_have_a_power_of_two_rows(store, make_images):
    for number in range(12):
        store.write_images(f"i-{number}", make_images(*(f"{number}-{n}" for n in range(20)), seed=number))
    store.commit(f"i-{number}" for number in range(12))
    before = everything(store)
    compact(store.path, part_bytes=1)  # the least a part may hold
    assert [part.rows for part in Store.open(store.path).parts] == [MIN, MIN, MIN, 240 - 3 * MIN]
    assert everything(store) == before
    assert compact(store.path, part_bytes=1).sources == ()


def test_full_parts_stay_as_they_are(store, make_images):
    store.write_images("i-full", make_images(*(f"f{n}" for n in range(MIN // 2))))
    for name in "ab":
        store.write_images(f"i-{name}", make_images(name, name * 2))
    store.commit(["i-a"])
    store.commit(["i-full"])
    store.commit(["i-b"])
    done = compact(store.path, part_bytes=1)
    assert done.sources == ("i-a", "i-b")
    assert listed(store) == [done.parts[0], "i-full"]


def test_the_rows_of_a_full_part_by_hand():
    def part(rows, size):
        return manifest.Part("i-0", "image", rows, 0, "", "", {"images/i-0/x": {"bytes": size, "xxh3_128": ""}})

    target = compaction._target_rows
    assert target([part(100, 30_105_600)], 256 * 2**20) == 1024  # 196×768 float16: 891 fit
    assert target([part(100, 5_120_000)], 256 * 2**20) == 4096  # 50×512: 5,242
    assert target([part(0, 10)], 256 * 2**20) == MIN
    assert target([part(1000, 1_000_000)], 256 * 2**20) == compaction.MAX_ROWS


def test_a_key_that_stands_twice_is_kept_where_it_is_read(store, make_images):
    """In two small parts; in a full part before a small one; in a full part after a small one."""
    full = [f"f{n}" for n in range(MIN)]
    for name, keys, seed in (
        ("i-a", ["twice", "late", "a"], 1),
        ("i-full", [*full, "late", "early"], 2),
        ("i-b", ["b", "twice", "early"], 3),
    ):
        store.write_images(name, make_images(*keys, seed=seed))
        store.commit([name])
    before = Store.open(store.path).image_tokens(["twice", "late", "early", "a", "b"])
    done = compact(store.path, part_bytes=1)
    assert (done.sources, done.duplicates, done.rows) == (("i-a", "i-b"), 2, 4)
    after = Store.open(store.path)
    assert after.image_tokens(["twice", "late", "early", "a", "b"]).tobytes() == before.tobytes()
    assert after.parts[0].rows == 4
    assert verify(store.path) == []


def test_quarantine_statistics_and_provenance_are_carried_over(many):
    compact(many.path)
    name = listed(many)[0]
    done = json.loads((many.path / f"done/{name}.json").read_bytes())
    assert {item["key"] for item in done["quarantined"]} == {"0-0", "0-1", "1-0", "1-1"}
    values = np.float64(many.pooled("image", sorted(many.keys("image"))))
    assert done["statistics"]["pooled"]["absmax"] == np.abs(values).max(axis=0).tolist()
    assert done["written"]["device"] == "cpu"
    assert "n" not in done["written"]  # not the same in all
    assert done["written"]["sources"] == [f"i-{number}" for number in range(10)]


def test_an_item_that_was_read_later_leaves_the_quarantine(store, make_images):
    store.write_images("i-0", make_images("a"), [Quarantined("b", "image", "b.jpg", "truncated")])
    store.write_images("i-1", make_images("b"), [Quarantined("c", "image", "c.jpg", "truncated")])
    store.write_images("i-2", make_images(), [Quarantined("c", "image", "c.jpg", "again")])
    store.commit(["i-0", "i-1", "i-2"])
    before = everything(store)
    compact(store.path)
    assert everything(store) == before
    assert [part.quarantined for part in Store.open(store.path).parts] == [1]
    assert verify(store.path) == []


def test_parts_whose_items_could_all_not_be_read(store, make_images):
    for name in "abc":
        store.write_images(f"i-{name}", make_images(), [Quarantined(name, "image", name, "truncated")])
    store.commit(["i-a", "i-b", "i-c"])
    before = everything(store)
    compact(store.path)
    assert everything(store) == before
    assert len(listed(store)) == 1
    assert verify(store.path) == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("level", ["tokens", "pooled", "regions"])
def test_every_kind_of_array_bit_for_bit(tmp_path, make_texts, level, dtype):
    shape = {"tokens": (3, 8), "pooled": (0, 0), "regions": (0, 8)}[level]
    dim = 0 if level == "pooled" else 5
    spec = FeatureSpec("r", "s", pooled_dim=4, image_shape=shape, text_dim=dim, level=level, dtype=dtype)
    store, draw = Store.create(tmp_path / "s", spec), np.random.default_rng(0)
    for number in range(3):
        keys = [f"{number}{letter}" for letter in "abc"]
        tokens = {
            "tokens": draw.standard_normal((3, 3, 8), np.float32),
            "pooled": None,
            "regions": [draw.standard_normal((n + 1, 8), np.float32) for n in range(3)],
        }[level]
        pooled = draw.standard_normal((3, 4), np.float32)
        store.write_images(f"i-{number}", ImageRows(keys, keys, [(6, 4)] * 3, tokens, pooled))
        rows = make_texts(f"{number}x", f"{number}y", seed=number)
        rows.tokens = rows.tokens if dim else None
        store.write_texts(f"t-{number}", rows)
        store.commit([f"i-{number}", f"t-{number}"])
    before = everything(store)
    assert len(compact(store.path).parts) == 2
    assert everything(store) == before
    assert verify(store.path) == []


def test_int8_is_left_and_said(tmp_path, spec, make_images):
    """Each part has its own scale of each channel; another scale would round the values again."""
    store = Store.create(tmp_path / "int8", spec.with_dtype("int8"))
    for name in "ab":
        store.write_images(f"i-{name}", make_images(name, name * 2))
    store.commit(["i-a", "i-b"])
    done = compact(store.path)
    assert (done.sources, done.manifest) == ((), 1)
    assert "int8" in done.notes[0]
    assert gc(store.path, days=0).files == 0
    assert verify(store.path) == []


def test_a_dry_run_writes_nothing(many):
    before = {path: path.read_bytes() for path in many.path.rglob("*") if path.is_file()}
    done = compact(many.path, dry_run=True)
    assert (done.dry_run, len(done.sources), len(done.parts), done.rows) == (True, 15, 2, 40)
    assert {path: path.read_bytes() for path in many.path.rglob("*") if path.is_file()} == before
    assert compact(many.path).parts == done.parts


def test_progress_counts_parts(many):
    seen = []
    compact(many.path, progress=lambda *event: seen.append(event))
    assert seen == [(1, 2), (2, 2)]


def test_damage_is_not_copied_under_a_new_checksum(many):
    path = many.path / "images/i-3/tokens/zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"sample"', b'"simple"'))  # no reader would mind
    with pytest.raises(VerificationError, match=r"i-3.*not what was written"):
        compact(many.path)
    assert len(listed(many)) == 15


def test_a_part_about_to_be_made_anew_is_left(many, make_images):
    (many.path / "done/i-3.json").unlink()
    done = compact(many.path)
    assert "i-3" not in done.sources
    many.write_images("i-3", make_images("3a", "3b", "3c", seed=3))
    assert Store.open(many.path).keys("image") == {f"{n}{letter}" for n in range(10) for letter in "abc"}


def test_names_follow_the_bits(tmp_path, spec, make_images):
    """Equal names mean equal bits: the same keys of another run, rounded otherwise, are another part."""
    names = []
    for place, seed in (("one", 1), ("two", 1), ("three", 2)):
        store = Store.create(tmp_path / place, spec)
        for key in "ab":
            store.write_images(f"i-{key}", make_images(key, seed=seed))
        store.commit(["i-a", "i-b"])
        names += compact(store.path).parts
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("other", ["append", "compact", "restore"])
def test_others_commit_while_we_write(many, make_images, monkeypatch, other):
    """Just before our commit: an append is kept, anything else makes us plan again."""
    many.write_images("i-new", make_images("new"))
    raced, real = [], compaction.commit_change

    def late(*arguments):
        if not raced:
            raced.append(other)
            if other == "append":
                Store.open(many.path).commit(["i-new"])
            elif other == "compact":
                compact(many.path)
            else:
                restore(many.path, 5)
        return real(*arguments)

    monkeypatch.setattr(compaction, "commit_change", late)
    done = compact(many.path)
    keys = {f"{n}{letter}" for n in range(5 if other == "restore" else 10) for letter in "abc"}
    assert Store.open(many.path).keys("image") == keys | ({"new"} if other == "append" else set())
    assert len(listed(many)) == (3 if other == "append" else 2)
    assert done.parts == (() if other == "compact" else tuple(listed(many)[:2]))
    copies = [problem.what for problem in verify(many.path) if "compaction" in problem.what]
    assert len(copies) == (2 if other == "restore" else 0)  # of the first plan
    assert manifest.dropped(many.path) >= set(Store.open(many.path).uncommitted()) - {"i-new"}


def test_compaction_can_be_undone(many):
    before, names = everything(many), listed(many)
    compact(many.path)
    restore(many.path, 10)
    assert listed(many) == names
    assert everything(many) == before


# --- gc --------------------------------------------------------------------------------------------------


def paths(store):
    return {path.relative_to(store.path).as_posix() for path in store.path.rglob("*") if path.is_file()}


@pytest.fixture
def later(monkeypatch):
    """`later(days)`: so much time passes for the collector."""
    real = time.time

    def pass_days(days):
        monkeypatch.setattr(upkeep.time, "time", lambda: real() + days * upkeep.DAY)

    return pass_days


def test_dropped_parts_are_collected_after_the_days(many, later):
    compact(many.path)
    before = everything(many)
    assert gc(many.path).parts == ()
    assert len(gc(many.path).waiting) == 15
    later(6.9)
    assert gc(many.path).parts == ()
    later(7.1)
    planned, files_before = gc(many.path, dry_run=True), paths(many)
    assert planned.dry_run
    done = gc(many.path)
    assert dataclasses.replace(planned, dry_run=False) == done
    assert len(done.parts) == 15
    gone = files_before - paths(many)
    assert (len(gone), done.leftovers, done.waiting) == (done.files, (), ())
    assert all(any(f"/{name}" in path for name in done.parts) for path in gone)
    assert {path.split("/")[0] for path in gone} == {"images", "texts", "tables", "done"}
    assert not (many.path / "images/i-3").exists()
    assert everything(many) == before
    assert verify(many.path) == []
    assert [entry.restorable for entry in log(many.path)] == [True] + [False] * 10
    assert gc(many.path).files == 0


def test_what_the_newest_lists_is_never_collected(many, later):
    later(1000)
    before = paths(many)
    assert gc(many.path, days=0).files == 0
    assert paths(many) == before


def test_age_counts_from_when_a_manifest_was_superseded(many, later):
    """An old manifest that was the newest until a moment ago may have readers."""
    later(100)
    reader = Store.open(many.path)
    compact(many.path)
    future = time.time()
    real = upkeep.changed
    upkeep.changed, kept = lambda path: future if path.name == "11.json" else real(path), upkeep.changed
    try:
        assert gc(many.path).parts == ()
    finally:
        upkeep.changed = kept
    reader.image_tokens(sorted(reader.keys("image")))


def test_an_uncommitted_part_is_kept_for_ever(many, later, make_images):
    many.write_images("i-new", make_images("new"))
    later(1000)
    assert gc(many.path, days=0).files == 0
    many.commit(["i-new"])
    assert "new" in Store.open(many.path)


def test_copies_of_a_killed_compaction(many, later, monkeypatch):
    """They wait for the next compaction, not for the next extraction; a day later they may go."""
    monkeypatch.setattr(compaction, "commit_change", None)
    with pytest.raises(TypeError):
        compact(many.path)
    monkeypatch.undo()
    copies = set(manifest.done_names(many.path)) - set(listed(many))
    assert manifest.dropped(many.path) == copies
    assert len(copies) == 2
    assert {problem.part for problem in verify(many.path)} == copies
    assert gc(many.path, days=0).waiting == tuple(sorted(copies))
    with monkeypatch.context() as patch:
        patch.setattr(upkeep.time, "time", lambda at=time.time(): at + 1.1 * upkeep.DAY)  # noqa: B008
        assert set(gc(many.path, days=0, dry_run=True).parts) == copies
    assert set(compact(many.path).parts) == copies
    assert [problem.what for problem in verify(many.path)] == []


def test_a_collected_part_that_is_written_again_is_kept(many, make_images, later):
    """Uncommitted, and an old manifest lists its name: its age tells it from what was dropped."""
    restore(many.path, 5)
    later(8)
    assert len(gc(many.path).parts) == 8
    later(0)
    many.write_images("i-9", make_images("9a", "9b", "9c", seed=9))
    assert gc(many.path, days=1).parts == ()
    many.commit(["i-9"])
    assert "9a" in Store.open(many.path)


def test_a_part_that_was_adopted_again_is_kept(many, later):
    restore(many.path, 5)
    many.commit(["i-9"])
    later(8)
    done = gc(many.path)
    assert "i-9" not in done.parts
    assert "i-8" in done.parts
    assert verify(many.path) == []


def test_a_committer_that_adopts_while_the_collector_looks(many, later, monkeypatch):
    """Between the reading before the lock and the deleting under it."""
    restore(many.path, 5)
    later(8)
    raced, real = [], upkeep.lock

    def late(root):
        if not raced:
            raced.append(root)
            many.commit(["i-9"])
        return real(root)

    monkeypatch.setattr(upkeep, "lock", late)
    assert "i-9" not in gc(many.path).parts
    assert verify(many.path) == []


def test_a_newest_manifest_that_took_the_number_of_another(many, later, monkeypatch):
    """As a pull does that follows a remote's chain: between the reading before the lock and that under it."""
    restore(many.path, 5)
    path = many.path / "manifests/11.json"
    five, ten = path.read_bytes(), (many.path / "manifests/10.json").read_bytes()
    raced, real = [], upkeep.lock

    def late(root):
        if not raced:
            raced.append(root)
            path.write_bytes(ten.replace(b'"number":10', b'"number":11'))
        return real(root)

    monkeypatch.setattr(upkeep, "lock", late)
    assert gc(many.path, days=0).parts == ()
    path.write_bytes(five)
    assert len(gc(many.path, days=0).parts) == 8


def test_the_lock_keeps_committers_out_while_parts_are_deleted(many, monkeypatch):
    """Another process commits a dropped part: it waits, and then finds the part gone."""
    restore(many.path, 5)
    real, children = upkeep._collect, []
    code = (
        "import sys; from pathlib import Path; from compal.stores.store import Store\n"
        "store = Store.open(Path(sys.argv[1])); print('ready', flush=True); store.commit(['i-9'])"
    )

    def slow(*arguments, **options):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(many.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        children.append(child)
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        assert child.poll() is None
        return real(*arguments, **options)

    monkeypatch.setattr(upkeep, "_collect", slow)
    assert "i-9" in gc(many.path, days=0).parts
    _, said = children[0].communicate(timeout=60)
    assert "part i-9" in said
    assert "is not complete" in said
    assert verify(many.path) == []


def test_what_killed_writers_left_behind(many, later):
    (many.path / "images/i-77/tokens").mkdir(parents=True)
    for file in ("images/i-77/zarr.json", "images/i-77/tokens/c.0.0.0", "texts/t-77.arrow", "tables/t-77.parquet"):
        (many.path / file).write_bytes(b"12345")
    assert gc(many.path).leftovers == ()  # young: a remote's writer may be at it
    later(8)
    done = gc(many.path)
    assert len(done.leftovers) == done.files == 4
    assert done.bytes == 20
    assert not (many.path / "images/i-77").exists()
    assert verify(many.path) == []


def test_files_that_are_not_ours_stay(many, later):
    """Whatever their age, wherever they lie."""
    compact(many.path)
    strange = ["images/i-3/notes.txt", "images/i-3/tokens/my.bin", "images/README", "tables/old.csv", "notes.md"]
    strange += ["images/my photos/zarr.json", "done/readme.txt", "manifests/x.json", ".staging/mine/file"]
    for file in strange:
        (many.path / file).parent.mkdir(parents=True, exist_ok=True)
        (many.path / file).write_bytes(b"mine")
    later(1000)
    assert len(gc(many.path, days=0).parts) == 15
    assert set(strange) <= paths(many)
    assert not (many.path / "images/i-3/zarr.json").exists()


def test_links_out_of_the_store_are_not_followed(many, later, tmp_path):
    compact(many.path)
    tokens = many.path / "images/i-3/tokens"
    tokens.rename(tmp_path / "elsewhere")
    tokens.symlink_to(tmp_path / "elsewhere")
    later(8)
    assert "i-3" in gc(many.path).parts
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["c.0.0.0", "zarr.json"]


def test_a_listed_part_that_lost_its_done_file_is_kept(many, later):
    """Putting the file back makes it whole again."""
    raw = (many.path / "done/i-3.json").read_bytes()
    (many.path / "done/i-3.json").unlink()
    later(1000)
    assert gc(many.path, days=0).files == 0
    (many.path / "done/i-3.json").write_bytes(raw)
    assert verify(many.path) == []


def test_staging_of_the_dead_of_the_living_and_of_other_hosts(many, later):
    with files.staging(many.path, "i-9") as mine:
        host = mine.name.split(".")[1]
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        dead = mine.with_name(f"i-9.{host}.{child.pid}.{'0' * 32}")
        other = mine.with_name(f"i-9.another-host.{os.getpid()}.{'1' * 32}")
        for folder in (dead, other):
            (folder / "images").mkdir(parents=True)
            (folder / "images/x").write_bytes(b"123")
        done = gc(many.path, days=0)
        assert done.leftovers == (dead.relative_to(many.path).as_posix(),)
        assert (done.files, done.bytes) == (1, 3)
        later(1.1)
        assert gc(many.path).leftovers == ()
        assert gc(many.path, days=0).leftovers == (other.relative_to(many.path).as_posix(),)
        assert mine.is_dir()


def test_without_locks_a_day_must_pass(many, later, monkeypatch):
    def refuse(*_):
        raise OSError(files.errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    compact(many.path)
    assert gc(many.path, days=0).parts == ()
    later(1.1)
    assert len(gc(many.path, days=0).parts) == 15


def test_a_damaged_manifest_that_may_have_readers_stops_it(many):
    compact(many.path)
    (many.path / "manifests/10.json").write_bytes(b"{")
    with pytest.raises(VerificationError, match=r"10\.json"):
        gc(many.path)
    assert len(gc(many.path, days=0).parts) == 13  # nobody reads it; that it listed two more nobody can say


def test_not_a_store_and_nonsense(tmp_path, filled):
    for work in (gc, compact):
        with pytest.raises(InputError, match="not a store"):
            work(tmp_path)
    for days in (-1, float("nan")):
        with pytest.raises(InputError, match="days"):
            gc(filled.path, days=days)
    with pytest.raises(InputError, match="bytes"):
        compact(filled.path, part_bytes=0)


def test_a_disk_that_cannot_be_written_is_one_line(many, monkeypatch):
    compact(many.path)

    def refuse(*_, **__):
        raise OSError(files.errno.EROFS, "Read-only file system")

    monkeypatch.setattr(upkeep.Path, "unlink", refuse)
    with pytest.raises(InputError, match="Read-only"):
        gc(many.path, days=0)


def test_results_are_json(many):
    for result in (compact(many.path), gc(many.path)):
        json.dumps(dataclasses.asdict(result))


def test_an_empty_store(store):
    assert compact(store.path).manifest == 0
    assert gc(store.path, days=0).files == 0
    with pytest.raises(CompalError):
        compact(shutil.copytree(store.path, store.path.parent / "x") / "images")
