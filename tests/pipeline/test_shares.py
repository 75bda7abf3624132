"""A network share that fails while a dataset is listed or a store is written: it is waited for, and no item is lost."""

import builtins
import contextlib
import csv
import errno
import io
import json
import os
import signal
import tarfile
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from compal.errors import InputError, VerificationError
from compal.eval.benchmarks.sugarcrepe import SUBSETS
from compal.pipeline import listing, patience
from compal.pipeline.datasets import _karpathy, coco
from compal.pipeline.job import Listing
from compal.pipeline.patience import Patience, passing_write
from compal.pipeline.plan import ExtractConfig
from compal.pipeline.provenance import describe
from compal.stores import parts
from compal.stores.files import TRANSIENT, read_json
from compal.stores.items import Item
from compal.stores.store import Store

from .test_faults import SMALL, files, images, run

NUMBERS = ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EREMOTEIO"]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(patience, "FIRST", 0.001)


class Share:
    """Every look at what lies below `root` is counted; `fail` is called with its number and may raise."""

    def __init__(self, root, monkeypatch):
        self.root, self.count, self.lock = str(root), 0, threading.Lock()
        self.fail = lambda number: None
        for owner, name in ((os, "stat"), (os, "scandir"), (os, "pread")):
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name)))
        monkeypatch.setattr(builtins, "open", self.opener(builtins.open))
        monkeypatch.setattr(io, "open", self.opener(io.open))

    def look(self):
        with self.lock:
            self.count += 1
            number = self.count - 1
        self.fail(number)

    def holds(self, place):
        return isinstance(place, int) or str(place).startswith(self.root)

    def watched(self, plain):
        def action(place, *args, **options):
            if self.holds(place):
                self.look()
            return plain(place, *args, **options)

        return action

    def opener(self, plain):
        look = self.look

        class Raw(io.FileIO):
            def readinto(self, buffer):
                look()
                return super().readinto(buffer)

            def readall(self):
                look()
                return super().readall()

        def action(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **options):
            if isinstance(file, int) or not self.holds(file) or set(mode) & set("wax+"):
                return plain(file, mode, buffering, encoding, errors, newline, **options)
            look()
            raw = Raw(file)
            if not buffering:
                return raw
            held = io.BufferedReader(raw)
            return held if "b" in mode else io.TextIOWrapper(held, encoding, errors, newline)

        return action


def made(root, kind):
    """A dataset of four images, one of them missing where its annotations can name it; its `NAME:ROOT`."""
    held = root / "val2017"
    held.mkdir(parents=True)
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        Image.new("RGB", (3, 3), (number, 0, 0)).save(held / name)
        (held / name).with_suffix(".txt").write_text(f"caption {number}")
    named = [*names, "missing.png"]
    if kind == "coco":
        rows = [{"id": number, "file_name": name} for number, name in enumerate(named)]
        told = [{"id": number, "image_id": number, "caption": f"caption {number}"} for number in range(5)]
        (root / "captions_val2017.json").write_text(json.dumps({"images": rows, "annotations": told}))
    if kind == "coco-karpathy":
        rows = [
            {"filename": name, "filepath": "val2014", "split": "val", "sentences": [{"sentid": 0, "raw": name}]}
            for name in named
        ]
        (root / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    if kind == "table":
        with (root / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", "caption"), *((f"val2017/{name}", name) for name in named)])
    if kind.startswith("webdataset"):
        for shard in range(2):
            with tarfile.open(root / f"{shard}.tar", "w") as tar:
                for name in names[2 * shard : 2 * shard + 2]:
                    tar.add(held / name, name)
                    tar.add((held / name).with_suffix(".txt"), name.replace("png", "txt"))
    return {
        "folder": f"folder:{held}",
        "coco": f"coco:{root}",
        "coco-karpathy": f"coco-karpathy:{root}",
        "table": f"table:{root}/t.csv?image=image",
        "webdataset": f"webdataset:{root}",
        "webdataset pattern": f"webdataset:{root}/*.tar",
    }[kind]


SPLITS = {"coco": "val2017", "coco-karpathy": "val"}
DATA = ["folder", "coco", "coco-karpathy", "table", "webdataset", "webdataset pattern"]


def listed(data, seconds):
    for read in (coco._read, _karpathy._read):
        read.cache_clear()
    found = Listing(data, SPLITS.get(data.partition(":")[0], "train"))
    config = ExtractConfig(patience=seconds)
    with listing.use(None, patience=found.patience(config)):
        return list(found.items()), set(found.pairs()), describe(found.data, found.split)


@pytest.mark.parametrize("kind", DATA)
def test_wherever_a_share_fails_it_is_waited_for(tmp_path, monkeypatch, kind):
    """Each look at the share fails thrice, one after the other; then each is the last that it answers.

    No file settles: what is remembered of one that did would make later listings look less often than the first.
    """
    monkeypatch.setattr(listing, "SETTLED_NS", 10**18)
    data = made(tmp_path / "share", kind)
    expected = listed(data, 0)
    share = Share(tmp_path / "share", monkeypatch)
    assert listed(data, 0) == expected
    looks = share.count
    assert looks > 10
    for at in range(looks):
        name = NUMBERS[at % len(NUMBERS)]

        def fail(number, first=at, last=at + 3, name=name):
            if first <= number < last:
                raise OSError(getattr(errno, name), name)

        share.count, share.fail = 0, fail
        assert listed(data, 9) == expected, at
    whole = 0
    for at in range(looks):
        share.count, share.fail = 0, lambda number, at=at: fail(number, at, 10**9)
        with contextlib.suppress(InputError):
            assert listed(data, 0.005) == expected, at
            whole += 1
    assert whole < looks / 4, "only what was not needed"


@pytest.mark.parametrize("kind", DATA)
def test_a_root_that_is_gone_is_not_a_missing_file(tmp_path, monkeypatch, kind):
    """The root goes before a look and is back three looks later, or never: no good item gets another key."""
    root, away = tmp_path / "share", tmp_path / "away"
    data = made(root, kind)
    expected = listed(data, 0)
    share = Share(root, monkeypatch)
    assert listed(data, 0) == expected
    looks, whole = share.count, 0
    for at in range(looks):
        for back in (at + 3, 10**9):

            def fail(number, at=at, back=back):
                if number == at:
                    root.rename(away)
                elif number >= back and away.exists():
                    away.rename(root)

            share.count, share.fail = 0, fail
            with contextlib.suppress(InputError):
                assert listed(data, 9 if back < 10**9 else 0.005) == expected, at
                whole += 1
            share.fail = lambda number: None
            if away.exists():
                away.rename(root)
    assert whole >= looks / 2, "most are waited for"


def test_one_missing_file_is_an_item_for_the_quarantine(tmp_path):
    data = made(tmp_path / "share", "coco")
    started = time.monotonic()
    items = listed(data, 60)[0]
    assert time.monotonic() - started < 5
    lost = [item for item in items if item.kind == "image" and not item.content.exists()]
    assert [item.source for item in lost] == ["coco/val2017/missing.png"]
    assert lost[0].key == Item.image_file(Path("none"), lost[0].source).key


@pytest.mark.parametrize("number", NUMBERS)
def test_an_item_of_a_share_that_is_gone_is_an_error(tmp_path, monkeypatch, number):
    path = files(tmp_path, 1)[0].content
    expected = Item.image_file(path).key
    with monkeypatch.context() as patch:

        def gone(path):
            raise OSError(getattr(errno, number), "the share")

        patch.setattr(Path, "read_bytes", gone)
        with pytest.raises(InputError, match=r"cannot read .*: the share\. Bring the share back") as caught:
            Item.image_file(path)
        assert caught.value.__cause__.errno in TRANSIENT
    assert Item.image_file(path).key == expected


def test_what_was_read_before_a_share_went_is_not_read_again(tmp_path, monkeypatch):
    paths = [item.content for item in files(tmp_path / "data", 8)]
    time.sleep(2 * listing.SETTLED_NS / 1e9)
    share, went = Share(tmp_path / "data", monkeypatch), []

    def fail(number):
        if went:
            raise OSError(errno.EIO, "the share")

    monkeypatch.setattr(listing, "READERS", 1)
    plain = listing._read_key
    share.fail = fail
    monkeypatch.setattr(
        listing, "_read_key", lambda place: (went.append(1) if place.endswith("4.png") else 0, plain(place))[1]
    )
    with listing.use(None, patience=Patience(0.01)):
        with pytest.raises(InputError, match="Bring the share back"):
            listing.file_keys(paths)
        del went[:]
        share.fail, share.count = lambda number: None, 0
        monkeypatch.setattr(listing, "_read_key", plain)
        assert all(listing.file_keys(paths))
        assert share.count == 8 + 2 * 4, "eight are looked at, four opened and read"


def test_a_benchmark_is_read_again_from_its_start(tmp_path, monkeypatch):
    """Photographs that are missing while the share is gone are not left out for it."""
    root = tmp_path / "share"
    (root / "images").mkdir(parents=True)
    rows = {}
    for number in range(3):
        Image.new("RGB", (3, 3), (50 * number, 0, 0)).save(root / "images" / f"{number}.jpg")
        rows[str(number)] = {"filename": f"{number}.jpg", "caption": f"a {number}", "negative_caption": f"b {number}"}
    for name in SUBSETS:
        (root / f"{name}.json").write_text(json.dumps(rows))
    found = Listing(benchmark="sugarcrepe", root=str(root), images=str(root / "images"), allow_missing=True)
    expected = list(found.items())
    assert sum(item.kind == "image" for item in expected) == 3
    share = Share(root, monkeypatch)
    assert list(found.items()) == expected
    for at in range(share.count):

        def fail(number, at=at):
            if at <= number < at + 6:
                raise OSError(errno.ENOTCONN, "the share")

        share.count, share.fail = 0, fail
        with listing.use(None, patience=found.patience(ExtractConfig(patience=9))):
            assert list(found.items()) == expected, at


# --- writing ------------------------------------------------------------------------------------------


def test_a_json_that_a_share_withholds_says_so(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(VerificationError) as damaged:
        read_json(tmp_path / "x.json")
    with pytest.raises(VerificationError, match="is missing") as missing:
        read_json(tmp_path / "y.json")

    def gone(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", gone)
    with pytest.raises(VerificationError, match="Input/output error") as withheld:
        read_json(tmp_path / "x.json")
    assert passing_write(withheld.value)
    assert not passing_write(damaged.value)
    assert not passing_write(missing.value)


def test_a_part_is_published_once_its_record_can_be_read(tmp_path, monkeypatch):
    """Another writer was first, and its done file cannot be read for a while."""
    items = images(10)
    run(items, tmp_path / "first")
    name = Store.open(tmp_path / "first").parts[0].name
    plain, left = Path.read_bytes, [3]

    def withheld(path):
        if path.name == f"{name}.json" and path.parent.name == "done" and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return plain(path)

    rows = parts.read_done(tmp_path / "first", name)
    monkeypatch.setattr(Path, "read_bytes", withheld)
    waiting = Patience(5)
    assert waiting.through(lambda: parts.read_done(tmp_path / "first", name), passing_write, "publish") == rows
    assert left == [0]
    left[0] = 10**9
    with pytest.raises(InputError, match=r"cannot publish .*: Input/output error\. Bring the share back"):
        Patience(0.01).through(lambda: parts.read_done(tmp_path / "first", name), passing_write, "publish")


def test_patience_begins_with_the_first_failure():
    calls = []

    def action():
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.3)  # a long read before the share goes
            raise OSError(errno.EIO, "the share")
        return 7

    assert Patience(0.2).read(None, action) == 7


# --- Ctrl-C -------------------------------------------------------------------------------------------


@pytest.fixture
def interruptible():
    """As a terminal would find it: a test runner's worker process may ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("place", ["reading", "writing", "listing"])
def test_ctrl_c_leaves_a_wait_at_once(tmp_path, monkeypatch, place):
    items = files(tmp_path / "data", 40)
    plain, seen, waits = Path.read_bytes, [], threading.Event()

    def gone():
        waits.set()
        raise OSError(errno.EHOSTDOWN, "Host is down")

    def read(path):
        seen.append(path.suffix)
        return gone() if path.suffix == ".png" and seen.count(".png") > 30 else plain(path)

    def sync(stage, plain=parts.sync_tree):
        seen.append("part")
        return gone() if seen.count("part") > 1 else plain(stage)

    if place == "reading":
        monkeypatch.setattr(Path, "read_bytes", read)
    elif place == "writing":
        monkeypatch.setattr(parts, "sync_tree", sync)
    else:
        stat = os.stat  # everybody's: only the photographs are gone

        def look(path, **more):
            return gone() if str(path).startswith(str(tmp_path / "data")) else stat(path, **more)

        monkeypatch.setattr(listing.os, "stat", look)
    config = ExtractConfig(batch_size=8, max_part_rows=16, patience=60.0, workers=1)

    def work():
        if place == "listing":
            with listing.use(None, patience=Patience(60)):
                listing.file_keys([item.content for item in items])
        run(items, tmp_path / "store", config=config)

    main = threading.get_ident()
    threading.Thread(target=lambda: (waits.wait(), time.sleep(0.1), signal.pthread_kill(main, signal.SIGINT))).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - started < 10
    monkeypatch.undo()
    if place != "listing":
        assert len(Store.open(tmp_path / "store").uncommitted()) == 1, "the complete part is kept"
        summary, encoder = run(items, tmp_path / "store", config=SMALL)
        assert (sum(encoder.sizes), summary.quarantined) == (24, [])
