"""Stores made in another way are found by the backbone's name, and names of datasets mean what the field means."""

from __future__ import annotations

import dataclasses
import json

import pytest

from compal import api
from compal.errors import InputError, MissingFeatures
from compal.eval.sources import Sources
from compal.pipeline.encoder import resolve
from compal.pipeline.naming import dataset_name, default_splits, pairs_of
from compal.pipeline.stored import segmenter_of, spec_named
from compal.stores.pairs import write_pairs
from compal.stores.store import Store
from compal.workspace import Workspace

NAME = "random:4x8"


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work")


def made(workspace, spec):
    return Store.create(workspace.find_store(spec), spec).path.name


def test_the_only_store_made_in_another_way_is_taken(workspace):
    with pytest.raises(MissingFeatures, match=f"no features of {NAME}"):
        api.open_store(NAME, workspace=workspace)
    other = resolve(NAME, precision="bfloat16")
    made(workspace, other)
    made(workspace, dataclasses.replace(resolve(NAME), weights="other"))
    made(workspace, resolve(NAME, "pooled"))
    assert api.open_store(NAME, workspace=workspace).spec == other
    made(workspace, resolve(NAME))
    assert api.open_store(NAME, workspace=workspace).spec == resolve(NAME)


def test_of_several_one_is_chosen_by_its_folder(workspace):
    plain = resolve(NAME)
    other = dataclasses.replace(plain, preprocess={**plain.preprocess, "jpeg": "reduced"})
    folders = [made(workspace, spec) for spec in (resolve(NAME, precision="bfloat16"), other)]
    with pytest.raises(InputError, match="--backbone FOLDER") as caught:
        api.open_store(NAME, workspace=workspace)
    assert all(folder in str(caught.value) for folder in folders)
    assert "\n" not in str(caught.value)
    assert api.open_store(folders[1], workspace=workspace).spec == other
    assert spec_named(folders[0], "tokens", "float16", workspace).precision == "bfloat16"


def test_evaluate_adds_to_the_store_that_there_is(workspace):
    spec = resolve(NAME, precision="bfloat16")
    made(workspace, spec)
    sources = Sources(split="in_domain", limit=2)
    api.evaluate("shapes", backbone=NAME, sources=sources, extract_missing=True, workspace=workspace)
    assert [path.name for path in workspace.list_stores()] == [spec.folder]
    assert Store.open(workspace.find_store(spec)).count("image")


def test_segments_are_those_of_the_store(workspace):
    spec = resolve(NAME, "regions", segmenter="rules")
    made(workspace, spec)
    found = spec_named(NAME, "regions", "float16", workspace)
    assert found == spec
    assert segmenter_of(found) == "rules"
    assert segmenter_of(resolve(NAME)) == ""
    with pytest.raises(InputError, match="cannot be made here"):
        segmenter_of(dataclasses.replace(spec, extra={**spec.extra, "segments": "rules 0"}))


def test_paths_of_tables_need_no_name(tmp_path):
    for name in ("pairs.json", "captions.csv"):
        (tmp_path / name).write_text("")
        path = str(tmp_path / name)
        assert dataset_name(path) == f"table:{path}"
        assert dataset_name(f"{path}?caption=alt") == f"table:{path}?caption=alt"
    assert dataset_name(str(tmp_path)) == f"folder:{tmp_path}"
    assert dataset_name("compal.x:y") == "compal.x:y"


def test_train_of_karpathy_is_train_and_restval(tmp_path, workspace):
    def described(splits):
        rows = [{"filename": "a.jpg", "split": split, "sentences": [{"raw": split}]} for split in splits]
        (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": rows}))
        return f"coco-karpathy:{tmp_path}"

    data = described(["train", "restval", "val", "test"])
    assert default_splits(data, workspace) == ["train+restval", "val"]
    with pytest.raises(MissingFeatures, match=r"--split train\+restval"):
        pairs_of(data, "train", "val", workspace, NAME)
    for split in ("train", "val"):
        write_pairs(workspace.pairs_path(data, split), [], {})
    assert pairs_of(data, "train", "validation", workspace, NAME)[0] == workspace.pairs_path(data, "train")
    write_pairs(workspace.pairs_path(data, "train+restval"), [], {})
    both = [workspace.pairs_path(data, split) for split in ("train+restval", "val")]
    assert list(pairs_of(data, "train", "validation", workspace, NAME)) == both


def test_karpathy_without_restval_is_as_it_is(tmp_path, workspace):
    rows = [{"filename": "a.jpg", "split": split, "sentences": [{"raw": split}]} for split in ("train", "val")]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    assert default_splits(f"coco-karpathy:{tmp_path}", workspace) == ["train", "val"]
