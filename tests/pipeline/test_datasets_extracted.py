"""Datasets through to the store: faults end in the quarantine with a reason, known images are not encoded again."""

import json

import pytest
from dataset_roots import FEW, MAKERS, huggingface, picture, webdataset, write_image, write_tar

from compal.pipeline import decode, listing
from compal.pipeline.encoder import resolve
from compal.pipeline.extract import extract_dataset
from compal.stores.pairs import read_info, read_pairs
from compal.workspace import Workspace


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub-cache")


@pytest.fixture
def extract(tmp_path):
    """A function of `NAME:ROOT` and a split that extracts into one workspace."""
    workspace = Workspace(tmp_path / "work")

    def run(data, split="train"):
        summary = extract_dataset(data, split, resolve("shapes-vit", "pooled"), workspace)
        return summary, workspace.pairs_path(data, split)

    return run


def new_root(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    return MAKERS[name](folder)


def test_faults_in_tars_are_quarantined_with_their_reasons(tmp_path, extract):
    members = [
        ("0.png", picture(0)),
        ("0.txt", b"fine"),
        ("1.png", picture(1)),
        ("1.txt", b"caf\xe9"),
        ("2.png", picture(2)),
        ("2.json", b"{no"),
        ("3.png", b"no image"),
        ("3.txt", b"of no image"),
        ("4.png", picture(4)),
        ("4.txt", b"  "),
        ("5.png", picture(5)),
    ]
    tar = write_tar(tmp_path / "a.tar", members)
    tar.write_bytes(tar.read_bytes()[: -10240 + 600])
    summary, path = extract(f"webdataset:{tar}")
    reasons = {item.source: item.reason for item in summary.quarantined}
    assert reasons["a.tar/1.txt"] == "caption is not valid Unicode"
    assert reasons["a.tar/2.json"].startswith("a.tar/2.json is not JSON")
    assert reasons["a.tar/3.png"] == "not an image that Pillow can read"
    assert reasons["a.tar/4.txt"] == "empty caption"
    assert len(reasons) == 5
    assert any("ends early" in source and "ends early" in reason for source, reason in reasons.items())
    assert read_pairs(path).num_rows == 1, "what is left of five"
    assert summary.images >= 4


def test_the_same_images_elsewhere_are_not_encoded_again(tmp_path, extract):
    data = webdataset(tmp_path / "shards")
    first, path = extract(f"webdataset:{data}")
    assert (first.images, first.texts) == (2 * FEW, 2 * FEW)
    info = read_info(path)
    assert info["dataset"] == "webdataset"
    assert info["revision"].endswith("of 2 files")
    for number in range(FEW):
        write_image(tmp_path / "files" / f"{number}.png", number)
    second, _ = extract(f"folder:{tmp_path / 'files'}")
    assert (second.images, second.reused) == (0, FEW)
    third, path = extract(f"huggingface:{huggingface(tmp_path / 'rows')}")
    assert third.images == 0
    assert read_pairs(path).num_rows == 2 * FEW
    assert read_info(path)["licence"] == "unknown"


@pytest.mark.parametrize("name", ["coco-karpathy", "degla", "dreamlip", "table", "trohn-img", "trohn-text"])
def test_pairs_and_negatives_reach_the_table(tmp_path, extract, name):
    root = new_root(tmp_path, name)
    summary, path = extract(f"{name}:{root}")
    assert summary.quarantined == []
    table = read_pairs(path)
    assert table.num_rows
    info = read_info(path)
    assert info["dataset"] == name
    assert info["split"] == "train"
    negatives = [len(row) for row in table.column("negatives").to_pylist()]
    assert set(negatives) == {{"degla": 4, "trohn-text": 2, "trohn-img": 1, "table": 2}.get(name, 0)}


def test_a_second_run_reads_and_encodes_nothing(tmp_path, extract, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_NS", 0)
    root = new_root(tmp_path, "folder")
    extract(f"folder:{root}")
    monkeypatch.setattr(listing, "_read_key", None)
    again, _ = extract(f"folder:{root}")
    assert (again.images, again.texts, again.forward_seconds) == (0, 0, 0.0)


def test_a_wrong_key_is_named_and_forgotten(tmp_path, extract, monkeypatch):
    """An edit that leaves no trace in size and times: the next run lists the file anew."""
    root = new_root(tmp_path, "folder")
    monkeypatch.setattr(listing, "_stamp", lambda status: f"{status.st_ino}")
    monkeypatch.setattr(listing, "SETTLED_NS", 0)
    changed = write_image(root / "9.png", 9)
    opened = decode.read_image

    def late(item, *arguments, **options):
        if item.source == "9.png":
            changed.write_bytes(picture(10))
        return opened(item, *arguments, **options)

    monkeypatch.setattr(decode, "read_image", late)
    summary, _ = extract(f"folder:{root}")
    assert [item.reason for item in summary.quarantined] == ["changed since it was listed; extract again"]
    monkeypatch.setattr(decode, "read_image", opened)
    again, _ = extract(f"folder:{root}")
    assert (again.images, again.quarantined) == (1, [])


def test_captions_that_are_not_utf8_stop_nothing(tmp_path, extract):
    root = new_root(tmp_path, "degla")
    file = root / "DeGLA.json"
    file.write_bytes(file.read_bytes().replace(b"not 0.0 a", b"caf\xe9"))
    summary, path = extract(f"degla:{root}")
    assert [item.reason for item in summary.quarantined] == ["caption is not valid Unicode"]
    assert sorted(len(row) for row in read_pairs(path).column("negatives").to_pylist())[:2] == [3, 4]
    assert json.loads(json.dumps(read_info(path)))["citation"].startswith("Hu et al.")
