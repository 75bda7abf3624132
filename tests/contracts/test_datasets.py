"""Every dataset that exists keeps the contract: INFO, items, pairs."""

import subprocess
import sys
from pathlib import Path

import parts
import pytest
from dataset_roots import MAKERS

from compal import registry
from compal.errors import UnknownName
from compal.pipeline.provenance import describe
from compal.stores.items import Item, Pair

NAMES = registry.names("datasets")
TRIED = parts.names("datasets")
LIMIT = 3


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing is left in the user's own cache of Hugging Face datasets."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub-cache")


@pytest.fixture(params=TRIED)
def dataset(request, tmp_path):
    """(module, root, a split it has)."""
    name, given = registry.split_argument(request.param)
    module = registry.load("datasets", name)
    folder = tmp_path / "root"
    folder.mkdir()
    root = MAKERS[name](folder) if name in MAKERS else Path(given) if given else None
    splits = module.splits(root) if hasattr(module, "splits") else module.INFO["splits"]
    return module, root, splits[0]


def test_every_dataset_has_a_maker():
    assert set(NAMES) == set(MAKERS)


def test_the_known_datasets_are_collected():
    assert {"coco", "folder", "shapes", "table"} <= set(NAMES)


@pytest.mark.parametrize("name", TRIED)
def test_the_summary_is_a_sentence(name):
    assert 20 < len(parts.summary("datasets", name)) <= 110


def test_info(dataset):
    info = dataset[0].INFO
    assert {"licence", "revision", "citation", "splits"} <= set(info)
    assert info["splits"]
    assert all(isinstance(split, str) for split in info["splits"])


def test_where_pairs_come_from(dataset):
    module, root, split = dataset
    data = module.__name__.removeprefix("compal.pipeline.datasets.") + (f":{root}" if root else "")
    info = describe(data, split, 7)
    assert set(info) == {"dataset", "split", "limit", "licence", "revision", "citation"}
    assert all(info[name] for name in info)
    assert not any(str(root) in value for value in info.values()), "no place of this machine"
    assert describe(data, split, 7) == info


@pytest.mark.parametrize("name", NAMES)
def test_the_licence_is_known_without_importing(name):
    assert registry.licence("datasets", name) == registry.load("datasets", name).INFO["licence"]


def test_items_have_keys_kinds_and_sources(dataset):
    module, root, split = dataset
    items = list(module.items(root, split, LIMIT))
    assert {item.kind for item in items} == {"image", "text"}
    for item in items:
        assert isinstance(item, Item)
        assert len(item.key) == 32
        assert item.source
        assert not item.source.startswith("/"), "a source names no place of this machine"
        assert isinstance(item.content, str) == (item.kind == "text")


def test_keys_are_the_same_every_time(dataset):
    module, root, split = dataset
    first, second = ([item.key for item in module.items(root, split, LIMIT)] for _ in range(2))
    assert first == second


def test_pairs_join_items_of_the_right_kind(dataset):
    module, root, split = dataset
    kinds = {item.key: item.kind for item in module.items(root, split, LIMIT)}
    pairs = list(module.pairs(root, split, LIMIT))
    assert pairs
    for pair in pairs:
        assert isinstance(pair, Pair)
        assert kinds[pair.image] == "image"
        assert all(kinds[key] == "text" for key in (pair.caption, *pair.negatives))
        assert pair.caption not in pair.negatives


def test_a_limit_is_a_prefix(dataset):
    module, root, split = dataset
    few, more = (list(module.items(root, split, limit)) for limit in (1, LIMIT))
    assert 0 < len(few) < len(more)
    assert [item.key for item in few] == [item.key for item in more[: len(few)]]


def test_an_unknown_split_is_named(dataset):
    module, root, split = dataset
    for function in (module.items, module.pairs):
        with pytest.raises(UnknownName, match=split):
            list(function(root, "no-such-split"))


@pytest.mark.parametrize("name", TRIED)
def test_loading_needs_no_torch(name):
    code = (
        f"import sys\nfrom compal import registry\nregistry.load('datasets', {name.partition(':')[0]!r})\n"
        "heavy = {'torch', 'open_clip', 'pyarrow', 'datasets'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
