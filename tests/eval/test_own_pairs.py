"""The benchmark of one's own pictures: tables, folders, what is held out, and its agreement with the dataset."""

from __future__ import annotations

import json

import pytest
from command_line import rows, table
from PIL import Image

from compal import registry
from compal.errors import InputError, UnknownName, UsageError
from compal.eval.sources import Sources
from compal.workspace import Workspace

pairs = registry.load("benchmarks", "pairs")


def of(root, **more):
    sources = Sources(root=root, **more)
    (group,) = pairs.groups(sources)
    return group, sources


@pytest.mark.parametrize("name", ["table", "folder"])
def test_what_is_held_out_is_what_the_dataset_calls_val(tmp_path, name):
    path = table(tmp_path / "set", rows(30))
    for number in range(30):
        (path.parent / f"{number}.txt").write_text(f"picture number {number}\n")
    root = type(path)(f"{path if name == 'table' else path.parent}?holdout=0.3")
    if name == "folder":
        path.unlink()
    dataset = registry.load("datasets", name)
    assert dataset.splits(root) == ["train", "val"]
    keys = {split: {item.key for item in dataset.items(root, split)} for split in ("train", "val")}
    assert not keys["train"] & keys["val"]
    assert len(keys["train"] | keys["val"]) == 60
    group, sources = of(root)
    assert {*group.images, *group.captions} == keys["val"]
    assert not sources.notes
    group, _ = of(root, split="train")
    assert {*group.images, *group.captions} == keys["train"]
    assert {item.key for item in pairs.items(Sources(root=root))} == keys["val"]


def test_captions_that_pictures_share_are_right_for_both(tmp_path):
    told = [{"image": "0.png", "caption": "a"}, {"image": "1.png", "caption": "a"}, {"image": "1.png", "caption": "b"}]
    group, sources = of(table(tmp_path, told))
    assert group.right().tolist() == [[True, False], [True, True]]
    assert "no pictures are held out" in next(iter(sources.notes))


def test_columns_by_name_parquet_and_images_elsewhere(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = table(tmp_path / "set", rows(3))
    read = [json.loads(line) for line in path.read_text().splitlines()]
    columns = {"file": [row["image"] for row in read], "alt": [[row["caption"], "more"] for row in read]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    group, _ = of(type(path)(f"{tmp_path / 't.parquet'}?image=file&caption=alt&images={path.parent}"))
    assert (len(group.images), len(group.captions)) == (3, 4)
    with pytest.raises(InputError, match=r"no column .*Columns: file, alt"):
        of(tmp_path / "t.parquet")


def test_wrong_roots_are_one_line(tmp_path):
    with pytest.raises(InputError, match="no --root is given"):
        of(None)
    with pytest.raises(InputError, match="no folder"):
        of(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="no pictures with captions"):
        of(tmp_path)
    path = table(tmp_path, rows(3))
    with pytest.raises(UnknownName, match="holdout"):
        of(path, split="val")
    for share in ("0", "1", "x"):
        with pytest.raises(UsageError, match="is no share of the images"):
            of(type(path)(f"{path}?holdout={share}"))
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a.png")
    with pytest.raises(UsageError, match="has splits"):
        registry.load("datasets", "folder").splits(type(path)(f"{tmp_path}?holdout=0.5"))


@pytest.mark.parametrize(
    ("data", "roots", "root"),
    [
        ("captions.jsonl?holdout=0.2", "", "captions.jsonl?holdout=0.2"),
        ("table:x.csv", "", "x.csv"),
        ("table", 'table = "y.csv"', "y.csv"),
        ("shapes", "", None),
        ("coco", 'pairs = "z.csv"', "z.csv"),
    ],
)
def test_without_a_root_it_asks_the_data_in_use(tmp_path, monkeypatch, data, roots, root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compal.toml").write_text(f'[defaults]\ndata = "{data}"\n[roots]\n{roots}\n')
    found = Workspace.find().root_for("pairs")
    assert (found if found is None else found.name) == root
