"""The plan as a file: every kind of content comes back as it was, and a damaged plan is refused."""

import os
import random
from pathlib import Path

import pytest
from dataset_roots import PHOTOGRAPHS

from compal.errors import InputError, VerificationError
from compal.pipeline import listing, plan_file
from compal.pipeline.datasets import _hub
from compal.pipeline.datasets._files import Lost
from compal.pipeline.decode import Unreadable, read_caption, read_image
from compal.pipeline.encoder import resolve
from compal.pipeline.job import Job, Listing
from compal.pipeline.plan import ExtractConfig, Nothing, plan_units
from compal.pipeline.plan_file import INDEX, ITEMS, PlanFile
from compal.stores.items import FileSlice, Item, content_key

LISTING = Listing("shapes", "train", 3)
CONFIG = ExtractConfig(max_part_rows=8, batch_size=None, workers=3)
ODD = "line\nbreak, ünïcode, \udcff half a name"


class Row:
    """Of a table: bytes that only the dataset can find again."""

    def read(self):
        raise AssertionError("planning reads nothing")


def contents():
    """Items of every kind of content, with and without boxes and segments."""
    boxes = ((0.0, 0.25, 0.5, 1.0), (1 / 3, 0.1, 0.7, 0.9))
    paths = [Path("/data/a b.jpg"), Path("/data/ümlaut.jpg"), Path(os.fsdecode(b"/data/\xff\xfe.jpg"))]
    made = [Item(content_key("test", str(n).encode()), "image", ODD, path, boxes=boxes) for n, path in enumerate(paths)]
    made += [Item(f"{n:032x}", "image", "tar", FileSlice(Path("/data/x.tar"), 2**40 + n, 17)) for n in range(3)]
    made += [Item.caption("a red cup", "c", ((0, 9, "object"), (2, 5, "attribute"))), Item.caption("", "empty")]
    made += [Item(content_key("text", b"odd"), "text", "odd", ODD), Item.caption("日本語 🙂", "")]
    return made


def written(folder, items, listing=LISTING, levels=("tokens", "pooled")):
    specs = tuple(resolve("random:4x8", level) for level in levels)
    job = Job(specs, tuple(folder / spec.folder for spec in specs), CONFIG, listing, items=len(items))
    units = plan_units(items, [Nothing(spec) for spec in specs], CONFIG)
    (folder / "plan").mkdir()
    return job, units, plan_file.write(job, units, folder / "plan")


def test_every_content_comes_back(tmp_path):
    items = contents() + list(LISTING.items())
    job, units, folder = written(tmp_path, items)
    found = PlanFile.open(folder)
    assert found.job == job
    assert list(found.entries) == [unit.name for unit in units]
    assert {len(unit.parts) for unit in units} == {2}
    pixels = 0
    for unit in units:
        again = found.unit(unit.name)
        assert again.parts.keys() == unit.parts.keys()
        for level, parts in unit.parts.items():
            assert [(part.name, part.kind) for part in parts] == [(p.name, p.kind) for p in again.parts[level]]
            assert [item.key for part in again.parts[level] for item in part.items] == [i.key for i in unit.items]
        for item, same in zip(unit.items, again.items, strict=True):
            if callable(item.content):
                pixels += 1
                assert (same.content() == item.content()).all()
                assert (same.key, same.source, same.boxes) == (item.key, item.source, item.boxes)
            else:
                assert same == item
    assert pixels == 6
    assert sorted(os.listdir(folder)) == [ITEMS, INDEX]


def test_the_items_are_an_arrow_file(tmp_path):
    import pyarrow as pa

    _, units, folder = written(tmp_path, contents())
    table = pa.ipc.open_file(folder / ITEMS).read_all()
    assert table["key"].to_pylist() == [item.key for unit in units for item in unit.items]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    items = [Item("0" * 32, "image", "a", Path("a.jpg")), Item("1" * 32, "image", "b", FileSlice(Path("b.tar"), 0, 1))]
    _, units, folder = written(tmp_path, items)
    found = {item.key[0]: item.content for item in PlanFile.open(folder).unit(units[0].name).items}
    assert found == {"0": tmp_path / "a.jpg", "1": FileSlice(tmp_path / "b.tar", 0, 1)}


def test_what_cannot_be_made_again_stays_here(tmp_path):
    with pytest.raises(InputError, match=r"made by a function.*--engine local"):
        written(tmp_path, [Item("0" * 32, "image", "row 7", Row())], listing=None)
    assert not (tmp_path / "plan" / INDEX).exists()


def test_what_cannot_be_read_travels_with_its_reason(tmp_path, monkeypatch):
    """The quarantine says the same as in one process, and nobody lists the dataset again for it."""
    items = [
        Item("0" * 32, "image", "gone", Lost("row 7 has no image")),
        Item("1" * 32, "text", "odd", 7),
        Item("2" * 32, "text", "lost", Lost("too long")),
    ]
    monkeypatch.setattr(Listing, "items", lambda self: pytest.fail("the dataset was listed again"))
    _, units, folder = written(tmp_path, items)
    plan = PlanFile.open(folder)
    found = {item.key: item for unit in units for item in plan.unit(unit.name).items}
    for item, read in zip(items, (read_image, read_caption, read_caption), strict=True):
        reasons = []
        for one in (item, found[item.key]):
            with pytest.raises(Unreadable) as told:
                read(one)
            reasons.append(str(told.value))
        assert reasons[0] == reasons[1]


def test_an_item_that_the_dataset_no_longer_lists(tmp_path):
    _, units, folder = written(tmp_path, [Item("0" * 32, "image", "row 7", Row())])
    with pytest.raises(InputError, match=r"no longer lists row 7 \(0000"):
        PlanFile.open(folder).unit(units[0].name)


def test_a_plan_that_is_gone(tmp_path):
    _, units, folder = written(tmp_path, contents())
    plan = PlanFile.open(folder)
    for name in (ITEMS, INDEX):
        (folder / name).unlink()
    with pytest.raises(InputError, match="its job has ended"):
        plan.unit(units[0].name)
    with pytest.raises(InputError, match="its job has ended"):
        PlanFile.open(folder)


@pytest.mark.parametrize("name", [ITEMS, INDEX])
def test_no_flipped_bit_is_believed(tmp_path, name):
    """Bytes that no reader of ours looks at (the schema, the file's end) may be anything; the others are refused."""
    _, units, folder = written(tmp_path, contents())
    raw, draw, refused = (folder / name).read_bytes(), random.Random(0), 0
    for _ in range(150):
        position = draw.randrange(len(raw))
        damaged = bytearray(raw)
        damaged[position] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(damaged)
        try:
            plan = PlanFile.open(folder)
            assert [plan.unit(unit.name) for unit in units] == units
        except VerificationError:
            refused += 1
    assert refused == 150 if name == INDEX else refused > 60
    for cut in (0, 1, len(raw) // 2):
        (folder / name).write_bytes(raw[:cut])
        with pytest.raises(VerificationError):
            [PlanFile.open(folder).unit(unit.name) for unit in units]


def test_rows_are_listed_again_by_the_key_cache_of_the_workspace(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(listing, "SETTLED_NS", 0)
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in PHOTOGRAPHS]
    columns = {"image": images, "caption": [path.name for path in PHOTOGRAPHS]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    rows = Listing(f"huggingface:{tmp_path / 'train.parquet'}", "train")
    stores = tmp_path / "work" / "stores"
    stores.mkdir(parents=True)
    with listing.use(tmp_path / "work" / "listing.sqlite"):
        _, units, folder = written(stores, list(rows.items()), rows)
    hashed, plain = [], _hub._key_of
    monkeypatch.setattr(_hub, "_key_of", lambda cell: hashed.append(cell) or plain(cell))
    again = PlanFile.open(folder).unit(units[0].name)
    assert [item.content.read() for item in again.items] == [item.content.read() for item in units[0].items]
    assert not hashed
    (tmp_path / "work" / "listing.sqlite").unlink()
    PlanFile.open(folder).unit(units[0].name)
    assert len(hashed) == len(PHOTOGRAPHS)
    assert not (tmp_path / "work" / "listing.sqlite").exists(), "a reader makes no cache"
