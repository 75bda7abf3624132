"""Images in tars: read where they lie, damaged ones named, patterns as a shell reads them."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import braceexpand
import pytest
from dataset_roots import PHOTOGRAPHS, picture, write_tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compal.errors import InputError, UnknownName
from compal.pipeline import listing
from compal.pipeline.datasets import _shards, dreamlip, folder, webdataset
from compal.pipeline.datasets._patterns import braces
from compal.stores.items import FileSlice, Item, caption_key


def of_kind(items, kind):
    return [item for item in items if item.kind == kind]


def texts(root):
    return [item.content for item in webdataset.items(Path(root), "train") if item.kind == "text"]


def message(error, action):
    with pytest.raises(error) as caught:
        list(action())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_image_has_one_key_in_a_tar_and_on_disk(tmp_path):
    (tmp_path / "files").mkdir()
    for path in PHOTOGRAPHS:
        (tmp_path / "files" / path.name).write_bytes(path.read_bytes())
    tar = write_tar(tmp_path / "a.tar", [(path.name, path.read_bytes()) for path in PHOTOGRAPHS])
    inside = list(webdataset.items(tar, "train"))
    outside = list(folder.items(tmp_path / "files", "train"))
    assert [item.key for item in inside] == [item.key for item in outside]
    assert all(isinstance(item.content, FileSlice) for item in inside)
    assert [item.content.read() for item in inside] == [path.read_bytes() for path in PHOTOGRAPHS]


def test_captions_by_ending_and_by_key(tmp_path):
    said = json.dumps({"caption": "from json", "long": ["a", "b"], "none": None, "number": 7}).encode()
    root = write_tar(
        tmp_path / "a.tar",
        [
            ("0.jpg", picture(0)),
            ("0.txt", b" a text\n"),
            ("0.json", said),
            ("1.jpg", picture(1)),
            ("1.json", said),
            ("2.jpg", picture(2)),
            ("2.caption", b"a caption"),
            ("3.npy", b"no image"),
            ("README", b"no ending"),
            ("dir.v2/4.left.png", picture(4)),
            ("dir.v2/4.txt", b"of the left"),
        ],
    )
    assert texts(root) == ["a text", "from json", "a caption", "of the left"]
    assert texts(f"{root}?caption=long,txt") == ["a", "b", "a text", "a", "b", "of the left"]
    assert texts(f"{root}?caption=none") == []
    assert texts(f"{root}?caption=number") == [7, 7], "for the quarantine"
    items = list(webdataset.items(root, "train"))
    assert [item.source for item in of_kind(items, "image")][-1] == "a.tar/dir.v2/4.left.png"
    assert [pair.caption for pair in webdataset.pairs(root, "train")] == [caption_key(text) for text in texts(root)]


def test_captions_that_are_no_text_are_for_the_quarantine(tmp_path):
    root = write_tar(
        tmp_path / "a.tar",
        [
            ("0.jpg", picture(0)),
            ("0.txt", b"caf\xe9"),
            ("1.jpg", picture(1)),
            ("1.json", b"{"),
            ("2.jpg", picture(2)),
            ("2.json", b'{"caption": "caf\xe9"}'),
            ("3.jpg", picture(3)),
            ("3.json", b"[" * 100_000),
        ],
    )
    items = of_kind(webdataset.items(root, "train"), "text")
    assert items[0].content == items[2].content == "caf\udce9"
    assert len({item.key for item in items}) == 3
    for item in (items[1], items[3]):
        with pytest.raises(OSError, match=r"a\.tar/\d\.json is not JSON"):
            item.content.read()


def test_splits_and_patterns(tmp_path):
    for name in ("train/0.tar", "train/1.tar", "cc3m-validation-0000.tar", "extra.tar"):
        write_tar(tmp_path / name, [("0.jpg", picture(1)), ("0.txt", name.encode())])
    assert webdataset.splits(tmp_path) == ["train", "validation"]
    assert len(list(webdataset.pairs(tmp_path, "train"))) == 3
    assert texts(tmp_path / "train" / "{0..1}.tar") == ["train/0.tar", "train/1.tar"]
    assert texts(tmp_path / "train" / "?.tar?caption=txt") == ["train/0.tar", "train/1.tar"]
    assert texts(tmp_path / "**" / "[01].tar") == ["train/0.tar", "train/1.tar"]
    assert "no split 'val'" in message(UnknownName, lambda: webdataset.items(tmp_path, "val"))
    assert "2.tar and 7 others" in message(InputError, lambda: webdataset.items(tmp_path / "train/{0..9}.tar", "train"))
    assert "nothing matches" in message(InputError, lambda: webdataset.items(tmp_path / "x*.tar", "train"))
    (tmp_path / "bare").mkdir()
    assert "no .tar" in message(InputError, lambda: webdataset.items(tmp_path / "bare", "train"))
    assert (
        "did you mean 'caption'"
        in message(UnknownName, lambda: webdataset.items(Path(f"{tmp_path}?captoin=txt"), "train")).lower()
    )


def test_limit_counts_images(tmp_path):
    for shard in range(3):
        names = [f"{shard}{number}" for number in range(4)]
        write_tar(tmp_path / f"{shard}.tar", [(f"{name}.png", picture(int(name))) for name in names])
    assert len(list(webdataset.items(tmp_path, "train", 5))) == 5
    assert len(list(webdataset.items(tmp_path, "train"))) == 12


def test_compressed_tars_are_refused_with_the_cure(tmp_path):
    tar = write_tar(tmp_path / "a.tar", [("0.jpg", picture(0))])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    assert "gunzip a.tar.gz" in message(InputError, lambda: webdataset.items(tmp_path / "b", "train"))
    (tmp_path / "c.tar").write_bytes(b"<html>not found</html>" * 100)
    assert "is not a tar" in message(InputError, lambda: webdataset.items(tmp_path / "c.tar", "train"))


def test_names_are_only_names(tmp_path):
    """What an evil tar calls its members opens nothing and writes nothing outside."""
    names = ["/etc/passwd.jpg", "../../escape.jpg", "a/../../b.jpg", "C:\\x.jpg"]
    root = write_tar(tmp_path / "in" / "a.tar", [(name, picture(number)) for number, name in enumerate(names)])
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(root, "a") as tar:
        tar.addfile(link)
    items = list(webdataset.items(root, "train"))
    assert [item.source for item in items] == [f"a.tar/{name}" for name in names]
    assert [item.content.read() for item in items] == [picture(number) for number in range(4)]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tar"]


def header_offsets(path):
    with tarfile.open(path) as tar:
        return [member.offset for member in tar.getmembers()]


def broken(items):
    """(source, reason) of what the tar lost."""
    lost = [item for item in items if not isinstance(item.content, FileSlice)]
    found = []
    for item in lost:
        with pytest.raises(OSError, match="tar") as caught:
            item.content.read()
        found.append((item.source, str(caught.value)))
    return found


def test_a_tar_that_ends_early_lists_what_is_whole(tmp_path):
    whole = write_tar(tmp_path / "a.tar", [(f"{number}.png", picture(number)) for number in range(3)]).read_bytes()
    starts = header_offsets(tmp_path / "a.tar")
    cut = tmp_path / "cut.tar"
    for size, count, why in (
        (starts[2] + 512 + 10, 2, "within 2.png"),
        (starts[2] + 100, 2, "within a header"),
        (starts[2], 2, "without an end mark"),
        (starts[1], 1, "without an end mark, after 0.png"),
        (100, 0, "it has 100 bytes"),
        (0, 0, "it has 0 bytes"),
    ):
        cut.write_bytes(whole[:size])
        items = list(webdataset.items(cut, "train"))
        assert len([item for item in items if isinstance(item.content, FileSlice)]) == count
        assert [(why in source, why in reason) for source, reason in broken(items)] == [(True, True)]
    damaged = bytearray(whole)
    damaged[starts[1] + 150] ^= 1  # in the checksum of a header
    cut.write_bytes(damaged)
    items = list(webdataset.items(cut, "train"))
    assert "what follows is no header, after 0.png" in broken(items)[0][1]
    cut.write_bytes(bytes(10240))
    assert list(webdataset.items(cut, "train")) == []


def test_a_negative_size_does_not_lead_in_circles(tmp_path):
    data = bytearray(write_tar(tmp_path / "a.tar", [("0.png", picture(0)), ("1.png", picture(1))]).read_bytes())
    start = header_offsets(tmp_path / "a.tar")[1]
    data[start + 124 : start + 136] = b"\xff" * 11 + b"\x00"  # -256 in base 256
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    (tmp_path / "a.tar").write_bytes(data)
    assert "makes no sense" in broken(webdataset.items(tmp_path / "a.tar", "train"))[0][1]


def test_members_are_remembered_until_the_tar_changes(tmp_path, monkeypatch):
    root = write_tar(tmp_path / "a.tar", [("0.png", picture(0)), ("0.txt", b"one")])
    os.utime(root, (1, 1))
    monkeypatch.setattr(listing, "SETTLED_NS", 0)
    scans = []
    scan = _shards.scan
    monkeypatch.setattr(_shards, "scan", lambda *arguments: scans.append(1) or scan(*arguments))
    with listing.use(tmp_path / "listing.sqlite"):
        first = list(webdataset.items(root, "train"))
        assert list(webdataset.items(root, "train")) == first
        assert len(scans) == 1
        write_tar(root, [("0.png", picture(1)), ("0.txt", b"two")])
        assert [item.content for item in of_kind(webdataset.items(root, "train"), "text")] == ["two"]
        assert len(scans) == 2
        listing.forget(root)
        list(webdataset.items(root, "train"))
        assert len(scans) == 3


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=130).filter(
    lambda name: not name.endswith("/")
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=6),
    layout=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    cut=st.none() | st.integers(0, 12_000),
)
def test_members_lie_where_they_are_said_to(tmp_path, members, layout, cut):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=layout) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path = tmp_path / "a.tar"
    path.write_bytes(data.getvalue()[:cut])
    with open(path, "rb") as file:
        found, damage = _shards.scan(path, file)
    stored = path.read_bytes()
    assert [(m.name, stored[m.offset : m.offset + m.size]) for m in found] == members[: len(found)]
    assert damage or len(found) == len(members)
    if cut is None:
        assert not damage


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 5000), value=st.integers(0, 255), run=st.integers(1, 40))
def test_a_damaged_tar_is_listed_or_refused(tmp_path, place, value, run):
    """Whatever the bytes: an error of ours or members inside the file, and never a wrong key."""
    members = [(f"{number}.png", picture(number)) for number in range(4)]
    data = bytearray(write_tar(tmp_path / "a.tar", members).read_bytes())
    data[place : place + run] = bytes([value]) * len(data[place : place + run])
    (tmp_path / "a.tar").write_bytes(data)
    try:
        items = of_kind(webdataset.items(tmp_path / "a.tar", "train"), "image")
    except InputError:
        return
    for item in items:
        if isinstance(item.content, FileSlice):
            assert Item.image_bytes(item.content.read(), item.content, "").key == item.key


PIECES = st.lists(
    st.one_of(
        st.text("ab-_/.0", max_size=4),
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 4)).map(
            lambda t: f"{{{t[0]:0{t[2]}d}..{t[1]:0{t[2]}d}}}"
        ),
        st.lists(st.text("xy0", max_size=3), min_size=2, max_size=3).map(lambda words: "{" + ",".join(words) + "}"),
    ),
    max_size=3,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(PIECES)
def test_braces_are_read_as_webdataset_reads_them(pattern):
    assert braces(pattern) == list(braceexpand.braceexpand(pattern))


@settings(max_examples=200, deadline=None)
@given(st.text("{}.,019a", max_size=12))
def test_braces_never_crash(pattern):
    try:
        found = braces(pattern)
    except InputError:
        return
    assert found


def test_braces_have_a_limit():
    assert "more than 1,000,000 files" in message(InputError, lambda: braces("{0..9999999999}.tar"))
    assert "more than 1,000,000 files" in message(InputError, lambda: braces("{0..9999}{0..9999}.tar"))
    assert "braces in braces" in message(InputError, lambda: braces("{a,b{1..2}}"))
    assert "not closed" in message(InputError, lambda: braces("a{1..2"))
    assert braces("{00008..00011}.tar") == [f"{number:05d}.tar" for number in range(8, 12)]
    assert braces("{a}.tar") == ["{a}.tar"]


def test_dreamlip_shards(tmp_path):
    said = {"raw_caption": "raw", "shortIB_captions": "short", "longSV_captions": ["one", "two"], "url": "https://x"}
    root = write_tar(
        tmp_path / "0.tar", [("0.jpg", picture(0)), ("0.txt", b"alt"), ("0.json", json.dumps(said).encode())]
    )
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset's own")
    assert [item.content for item in of_kind(dreamlip.items(tmp_path, "train"), "text")] == [
        "raw",
        "short",
        "one",
        "two",
    ]
    chosen = Path(f"{root}?caption=longSV_captions")
    assert [item.content for item in of_kind(dreamlip.items(chosen, "train"), "text")] == ["one", "two"]
