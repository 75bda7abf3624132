"""Hugging Face datasets: parquet, arrow and saved ones, columns by name, images as bytes and as paths; TROHN-Img."""

import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_roots import COCO, PHOTOGRAPHS, embedded, picture, trohn_img, write_image

from compal.errors import InputError, UnknownName
from compal.pipeline import listing
from compal.pipeline.datasets import _hub, coco
from compal.pipeline.datasets import huggingface as hub
from compal.pipeline.datasets import trohn_img as trohn
from compal.pipeline.provenance import describe
from compal.stores.items import caption_key

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub-cache")


def of_kind(items, kind):
    return [item for item in items if item.kind == kind]


def message(error, action):
    with pytest.raises(error) as caught:
        list(action())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def photographs(captions=None):
    """A dataset of the photographs, as the library makes it."""
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in PHOTOGRAPHS],
        "caption": captions or [f"caption {number}" for number in range(4)],
    }
    features = {"image": datasets.Image(), "caption": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(params=["parquet", "arrow", "saved", "dictionary"])
def root(request, tmp_path):
    """The photographs on disk in one of four layouts."""
    place = tmp_path / "root"
    place.mkdir()
    data = photographs()
    datasets.disable_progress_bars()
    if request.param == "parquet":
        data.to_parquet(place / "train-00000-of-00001.parquet")
    elif request.param == "arrow":
        data.save_to_disk(str(tmp_path / "saved"))
        next((tmp_path / "saved").glob("*.arrow")).rename(place / "train.arrow")
    elif request.param == "saved":
        data.save_to_disk(str(place))
    else:
        datasets.DatasetDict({"train": data}).save_to_disk(str(place))
    datasets.enable_progress_bars()
    return place


def test_an_image_has_one_key_in_a_dataset_and_on_disk(root):
    items = list(hub.items(root, "train"))
    assert {item.key for item in of_kind(items, "image")} == {
        item.key for item in of_kind(coco.items(COCO, "val2017"), "image")
    }
    assert [item.content.read() for item in of_kind(items, "image")] == [path.read_bytes() for path in PHOTOGRAPHS]
    assert [item.content for item in of_kind(items, "text")] == [f"caption {number}" for number in range(4)]
    assert items[0].source == "root/0"
    assert hub.splits(root) == ["train"]
    assert len(list(hub.pairs(root, "train", 3))) == 3


def test_keys_are_taken_once(root, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_NS", 0)
    taken = []
    take = _hub._key_of
    monkeypatch.setattr(_hub, "_key_of", lambda cell: taken.append(1) or take(cell))
    keys = []
    for _ in range(2):
        with listing.use(tmp_path / "listing.sqlite"):
            keys.append([item.key for item in hub.items(root, "train")])
    assert keys[0] == keys[1]
    assert len(taken) == 4


def test_other_files_have_other_keys(tmp_path, monkeypatch):
    """The same names, sizes and columns: only the files' times and contents differ."""
    monkeypatch.setattr(listing, "SETTLED_NS", 0)
    file = tmp_path / "root" / "train.arrow"
    file.parent.mkdir()
    with listing.use(tmp_path / "listing.sqlite"):
        for value in (1, 2):
            table = pa.table({"image": [picture(value)], "caption": ["x"]})
            with pa.OSFile(str(tmp_path / "new"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            os.replace(tmp_path / "new", file)
            image = next(iter(hub.items(file.parent, "train")))
            assert image.content.read() == picture(value)
            assert image.key == _hub._key_of(picture(value)).hex()


def test_columns_by_name_and_lists(tmp_path):
    rows = {
        "jpg": [picture(1), picture(2)],
        "long": [["a", "b"], ["c"]],
        "short": ["d", None],
        "wrong": [["e"], []],
    }
    pq.write_table(pa.table(rows), tmp_path / "val.parquet")
    place = f"{tmp_path}?caption=long,short&negatives=wrong"
    pairs = list(hub.pairs(Path(place), "val"))
    assert [pair.caption for pair in pairs] == [caption_key(text) for text in "abdc"]
    assert [pair.negatives for pair in pairs] == [(caption_key("e"),)] * 3 + [()]
    assert "no column 'caption'" in message(InputError, lambda: hub.items(tmp_path, "val"))
    assert "no column 'x'" in message(InputError, lambda: hub.items(Path(f"{tmp_path}?caption=x"), "val"))
    assert "Columns: jpg, long, short, wrong" in message(InputError, lambda: hub.items(tmp_path, "val"))
    assert "no split 'train'" in message(UnknownName, lambda: hub.items(Path(place), "train"))


def test_images_by_path_and_images_that_are_not_there(tmp_path):
    file = write_image(tmp_path / "pictures" / "0.png", 0)
    rows = {"image": ["pictures/0.png", "pictures/none.png", None], "caption": ["a", "b", "c"]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    images = of_kind(hub.items(tmp_path, "train"), "image")
    assert images[0].content == file
    assert images[1].content == tmp_path / "pictures" / "none.png"
    with pytest.raises(OSError, match="row 2 has no image in 'image'"):
        images[2].content.read()
    assert len({image.key for image in images}) == 3


def test_several_files_in_order(tmp_path):
    for number in range(3):
        rows = {"image": [embedded(number)], "caption": [f"caption {number}"]}
        pq.write_table(pa.table(rows), tmp_path / f"train-{number:05d}-of-00003.parquet")
    items = list(hub.items(tmp_path, "train"))
    assert [item.content for item in of_kind(items, "text")] == ["caption 0", "caption 1", "caption 2"]
    assert [item.content.read() for item in of_kind(items, "image")] == [picture(number) for number in range(3)]


def test_damaged_and_missing(tmp_path):
    assert "nothing matches" in message(InputError, lambda: hub.items(tmp_path / "none*", "train"))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    assert "cannot load the dataset" in message(InputError, lambda: hub.items(tmp_path, "train"))
    assert "needs its folder" in message(InputError, lambda: hub.items(None, "train"))


def test_the_hub_is_asked_for_one_commit(tmp_path, monkeypatch):
    """The branch is resolved first; what is loaded and what is recorded is the commit."""
    calls = []
    monkeypatch.chdir(tmp_path)
    card = {"license": "cc0-1.0"}
    info = SimpleNamespace(sha="f" * 40, card_data=card)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name, revision=None: info)

    def load(name, config=None, revision=None):
        calls.append((name, config, revision))
        return datasets.DatasetDict({"test": photographs()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    place = Path("org/some-name?revision=main&config=small")
    assert len(list(hub.pairs(place, "test"))) == 4
    assert calls == [("org/some-name", "small", "f" * 40)]
    said = describe(f"huggingface:{place}", "test")
    assert (said["licence"], said["revision"]) == ("cc0-1.0", "f" * 40)


def test_a_hub_dataset_names_no_file_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    info = SimpleNamespace(sha="e" * 40, card_data=None)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name, revision=None: info)
    rows = datasets.Dataset.from_dict({"image": ["/etc/hostname"], "caption": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": rows}))
    image = next(iter(hub.items(Path("org/evil"), "train")))
    with pytest.raises(OSError, match="has no image"):
        image.content.read()
    assert describe("huggingface:org/evil", "train")["licence"] == "unknown"


def test_trohn_img_rows_are_swap_quadruplets(tmp_path):
    root = trohn_img(tmp_path)
    pairs = list(trohn.pairs(root, "train"))
    assert len(pairs) == 8
    first, second = pairs[:2]
    assert first.group == second.group == "trohn-img/train/0"
    assert first.negatives == (second.caption,)
    assert second.negatives == (first.caption,)
    assert (first.caption, second.caption) == (caption_key("caption 0"), caption_key("not 0"))
    items = list(trohn.items(root, "train", 1))
    images = of_kind(items, "image")
    assert images[0].content == root / "train2017" / "000000000000.jpg"
    assert images[1].content.read() == picture(100)
    assert {item.key for item in of_kind(items, "text")} == {first.caption, second.caption}
    assert len({pair.group for pair in pairs}) == 4
    assert "no split 'val'" in message(UnknownName, lambda: trohn.items(root, "val"))
    assert trohn.splits(root) == ["train"]


def test_without_a_network_the_copy_in_the_cache_is_used(tmp_path, monkeypatch):
    httpx = pytest.importorskip("httpx")

    def fail(self, name, revision=None):
        raise httpx.ConnectError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    copy = datasets.DatasetDict({"test": photographs()})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config=None, revision=None: copy)
    assert len(list(hub.pairs(Path("org/in-the-cache"), "test"))) == 4

    def gone(name, config=None, revision=None):
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", gone)
    said = message(InputError, lambda: hub.pairs(Path("org/nowhere"), "test"))
    assert "cannot load the dataset org/nowhere: no route to host" in said


def test_the_first_rows_cost_no_more_than_their_block(tmp_path, monkeypatch):
    data = photographs()
    many = datasets.concatenate_datasets([data] * 8)
    read = []
    take = _hub._key_of
    monkeypatch.setattr(_hub, "BLOCK", 8)
    monkeypatch.setattr(_hub, "ROWS", 4)
    monkeypatch.setattr(_hub, "_key_of", lambda cell: read.append(1) or take(cell))
    rows = _hub._undecoded(many, "image")
    keys = _hub._keys(rows, "image")
    first = [next(keys) for _ in range(3)]
    assert 3 <= len(read) <= 4  # the fourth may still be under way in its thread
    assert first + list(keys) == [take(cell).hex() for cell in rows[:]["image"]]
