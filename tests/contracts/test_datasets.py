"""Every dataset that exists keeps the contract: INFO, items, pairs."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from compal import registry
from compal.errors import UnknownName
from compal.stores.items import Item, Pair

COCO = Path(__file__).parent.parent / "data" / "coco"
NAMES = registry.names("datasets")
LIMIT = 3


def make_root(name, folder):
    """A small root for a dataset of files, None for one that needs none. A new dataset of files adds a row."""
    if name == "coco":
        return COCO
    if name not in ("folder", "table"):
        return None
    for number in range(LIMIT + 1):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"caption {number}\nanother {number}\n")
    rows = [f"{number}.png,caption {number}" for number in range(LIMIT + 1)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    return folder if name == "folder" else folder / "captions.csv"


@pytest.fixture(params=NAMES)
def dataset(request, tmp_path):
    """(module, root, a split it has)."""
    module = registry.load("datasets", request.param)
    root = make_root(request.param, tmp_path)
    splits = module.splits(root) if hasattr(module, "splits") else module.INFO["splits"]
    return module, root, splits[0]


def test_the_known_datasets_are_collected():
    assert {"coco", "folder", "shapes", "table"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_summary_is_a_sentence(name):
    assert 20 < len(registry.summary("datasets", name)) <= 110


def test_info(dataset):
    info = dataset[0].INFO
    assert {"licence", "revision", "citation", "splits"} <= set(info)
    assert info["splits"]
    assert all(isinstance(split, str) for split in info["splits"])


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


@pytest.mark.parametrize("name", NAMES)
def test_loading_needs_no_torch(name):
    code = (
        f"import sys\nfrom compal import registry\nregistry.load('datasets', {name!r})\n"
        "heavy = {'torch', 'open_clip', 'pyarrow'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
