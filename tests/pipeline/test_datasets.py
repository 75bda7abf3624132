"""Datasets of real files: what is found, and one line for what is wrong."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compal.errors import InputError, UnknownName
from compal.pipeline.datasets import coco, folder, table
from compal.stores.items import caption_key

DATA = Path(__file__).parent.parent / "data" / "coco"
NAMES = ["000000006818.jpg", "000000301421.jpg", "000000403385.jpg", "000000422836.jpg"]


def of_kind(items, kind):
    return [item for item in items if item.kind == kind]


def message(error, action):
    with pytest.raises(error) as caught:
        list(action())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- coco ---------------------------------------------------------------------------------------------


def test_coco_images_with_their_captions():
    items = list(coco.items(DATA, "val2017"))
    assert sorted(item.content.name for item in of_kind(items, "image")) == NAMES
    assert len(of_kind(items, "text")) == 20
    assert items[0].kind == "image"
    assert items[0].source == f"coco/val2017/{items[0].content.name}", "no path of this machine"
    annotations = json.loads((DATA / "annotations" / "captions_val2017.json").read_text())
    pairs = list(coco.pairs(DATA, "val"))
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    keys = {item.content.name: item.key for item in of_kind(items, "image")}
    expected = {(keys[names[a["image_id"]]], caption_key(a["caption"])) for a in annotations["annotations"]}
    assert {(pair.image, pair.caption) for pair in pairs} == expected


def test_coco_limit_counts_images():
    items = list(coco.items(DATA, "val", limit=2))
    assert len(of_kind(items, "image")) == 2
    assert {pair.image for pair in coco.pairs(DATA, "val", limit=2)} == {i.key for i in of_kind(items, "image")}


def test_coco_splits():
    assert coco.splits(DATA) == ["val2017"]
    text = message(UnknownName, lambda: coco.items(DATA, "vall"))
    assert "no split 'vall'. Did you mean 'val'?" in text


def coco_root(tmp_path, images, annotations=(), split="val2014"):
    listed = [{"id": number, "file_name": name} for number, name in images]
    said = [{"id": 100 + i, "image_id": number, "caption": text} for i, (number, text) in enumerate(annotations)]
    (tmp_path / f"captions_{split}.json").write_text(json.dumps({"images": listed, "annotations": said}))
    return tmp_path


@pytest.mark.parametrize(
    "place",
    ["COCO_val2014_{}", "val2014/COCO_val2014_{}", "images/COCO_val2014_{}", "images/val2014/{}", "{}"],
)
def test_coco_2014_names_and_places(tmp_path, place):
    root = coco_root(tmp_path, [(1, "COCO_val2014_000000422836.jpg")], [(1, "a photograph")])
    target = tmp_path / place.format(NAMES[3])
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(DATA / "val2017" / NAMES[3], target)
    assert next(coco.items(root, "val")).content == target


def test_coco_keeps_missing_images(tmp_path):
    root = coco_root(tmp_path, [(1, "x.jpg"), (2, "y.jpg")], [(1, "a"), (2, "b")])
    images = of_kind(coco.items(root, "val"), "image")
    assert [item.content for item in images] == [tmp_path / "x.jpg", tmp_path / "y.jpg"]
    assert len({item.key for item in images}) == 2


def test_coco_errors(tmp_path):
    assert "needs its folder. Give it as --data coco:FOLDER" in message(InputError, lambda: coco.items(None, "val"))
    assert "no folder" in message(InputError, lambda: coco.items(tmp_path / "nowhere", "val"))
    assert "no captions_*.json" in message(InputError, lambda: coco.items(tmp_path, "val"))
    coco_root(tmp_path, [(1, "x.jpg"), (1, "y.jpg")])
    assert "image id 1 stands for both x.jpg and y.jpg" in message(InputError, lambda: coco.items(tmp_path, "val"))
    coco_root(tmp_path, [(1, "x.jpg"), (1, "x.jpg")], [(2, "a")])
    assert "annotation 100 is of image 2" in message(InputError, lambda: coco.items(tmp_path, "val"))
    coco_root(tmp_path, [], split="val2017")
    assert "could be val2014 or val2017" in message(InputError, lambda: coco.items(tmp_path, "val"))
    (tmp_path / "captions_val2014.json").write_text("{")
    assert "not a JSON file" in message(InputError, lambda: coco.items(tmp_path, "val2014"))
    (tmp_path / "captions_val2014.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    assert "images[0] has no file_name" in message(InputError, lambda: coco.items(tmp_path, "val2014"))
    (tmp_path / "captions_val2014.json").write_text('{"images": []}')
    assert "no list 'annotations'" in message(InputError, lambda: coco.items(tmp_path, "val2014"))


def test_captions_that_are_not_text_are_items(tmp_path):
    root = coco_root(tmp_path, [(1, "x.jpg")], [(1, None), (1, 3), (1, ""), (1, "\ud800")])
    texts = of_kind(coco.items(root, "val"), "text")
    assert len({item.key for item in texts}) == 4
    assert {pair.caption for pair in coco.pairs(root, "val")} == {item.key for item in texts}


def test_coco_captions_that_are_not_utf8_are_items(tmp_path):
    root = coco_root(tmp_path, [(1, "x.jpg")], [(1, "coffee"), (1, "b")])
    file = root / "captions_val2014.json"
    file.write_bytes(file.read_bytes().replace(b"coffee", b"caf\xe9"))
    assert [item.content for item in of_kind(coco.items(root, "val"), "text")] == ["caf\udce9", "b"]


# --- table --------------------------------------------------------------------------------------------

ROWS = [
    {"image": "a.png", "caption": "a, red square", "id": "1"},
    {"image": "sub/b.png", "caption": "a blue square", "id": "2"},
    {"image": "a.png", "caption": "square", "id": "3"},
]


def write_table(file, rows):
    file.parent.mkdir(exist_ok=True)
    (file.parent / "sub").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(file.parent / "a.png")
    Image.new("RGB", (4, 4), "blue").save(file.parent / "sub" / "b.png")
    if file.suffix == ".jsonl":
        file.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    elif file.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]
        file.write_text("\ufeff" + "\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_tables_of_three_formats_say_the_same(tmp_path, ending):
    file = write_table(tmp_path / "data" / f"captions.{ending}", ROWS)
    items = list(table.items(file, "train"))
    assert [item.content for item in of_kind(items, "text")] == [row["caption"] for row in ROWS]
    assert [item.content for item in of_kind(items, "image")] == [file.parent / row["image"] for row in ROWS]
    assert items[0].source == f"captions.{ending}/a.png"
    pairs = list(table.pairs(file, "train"))
    keys = [item.key for item in of_kind(items, "image")]
    assert [(p.image, p.caption) for p in pairs] == [
        (k, caption_key(r["caption"])) for k, r in zip(keys, ROWS, strict=True)
    ]
    assert len({pair.image for pair in pairs}) == 2


def test_table_columns_by_name_or_given(tmp_path):
    rows = [{"path": "a.png", "alt": "red", "filename": "sub/b.png", "text": "blue"}]
    file = write_table(tmp_path / "t.csv", rows)
    assert next(table.items(file, "train")).content.name == "b.png"
    given = Path(f"{file}?image=path&caption=alt")
    assert [item.content for item in table.items(given, "train")] == [tmp_path / "a.png", "red"]
    assert "Did you mean 'caption'" in message(UnknownName, lambda: table.items(Path(f"{file}?captoin=x"), "train"))
    text = message(InputError, lambda: table.items(Path(f"{file}?caption=altt"), "train"))
    assert "no column 'altt'" in text
    assert "Columns: path, alt, filename, text" in text


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_a_cell_of_several_captions(tmp_path, ending):
    captions = ["one", "two"]
    rows = [{"image": "a.png", "captions": captions}]
    if ending == "csv":
        rows = [{"image": "a.png", "captions": '[""one"", ""two""]'}]
    file = write_table(tmp_path / f"t.{ending}", rows)
    assert [item.content for item in of_kind(table.items(file, "train"), "text")] == captions


def test_table_splits(tmp_path):
    rows = [{**row, "split": split} for row, split in zip(ROWS, ["train", "val", "val"], strict=True)]
    file = write_table(tmp_path / "t.csv", rows)
    assert table.splits(file) == ["train", "val"]
    assert len(list(table.pairs(file, "val"))) == 2
    assert "Known: train, val" in message(UnknownName, lambda: table.items(file, "test"))
    plain = write_table(tmp_path / "plain.csv", ROWS)
    assert table.splits(plain) == ["train"]
    assert "Known: train" in message(UnknownName, lambda: table.items(plain, "val"))


def test_table_limit_counts_images(tmp_path):
    file = write_table(tmp_path / "t.csv", [*ROWS, {"image": "c.png", "caption": "c", "id": "9"}])
    assert len(list(table.pairs(file, "train", limit=2))) == 3
    assert len(list(table.pairs(file, "train", limit=1))) == 1


def test_table_errors(tmp_path):
    def of(name, content):
        (tmp_path / name).write_text(content)
        return message(InputError, lambda: table.items(tmp_path / name, "train"))

    assert "needs its file" in message(InputError, lambda: table.items(None, "train"))
    assert "no file" in message(InputError, lambda: table.items(tmp_path / "none.csv", "train"))
    assert "Known endings: .jsonl, .json, .csv, .parquet" in of("t.xlsx", "")
    assert "has no rows" in of("t.csv", "image,caption\n")
    assert "line 3 has 3 cells" in of("t.csv", "image,caption\na.png,red\na.png,b,c\n")
    assert "two columns of one name" in of("t.csv", "image,image\na,b\n")
    assert "no column 'caption' or 'text' or 'captions'" in of("t.csv", "image,alt\na,b\n")
    assert "line 2: column 'image' holds ''" in of("t.csv", "image,caption\n,b\n")
    good = '{"image": "a.png", "caption": "x"}'
    assert "line 3 is not JSON" in of("t.jsonl", f"{good}\n\n{{bad\n")
    assert "line 2 is not a JSON object" in of("t.jsonl", f"{good}\n[1]\n")
    assert "column 'image' holds 7" in of("t.jsonl", '{"image": 7, "caption": "x"}')
    assert "captions are not a JSON list" in of("t.csv", 'image,captions\na.png,"[oops"\n')
    twice = "image,caption,id\na,b,7\na,b,8\na,b,7\n"
    assert "id 7 stands in t.csv line 2 and in t.csv line 4" in of("t.csv", twice)
    assert "not a Parquet file" in of("t.parquet", "PAR1 no")
    (tmp_path / "t.csv").write_bytes("image,caption\na.png,b\n".encode("utf-16"))
    assert "UTF-8" in message(InputError, lambda: table.items(tmp_path / "t.csv", "train"))


# --- folder -------------------------------------------------------------------------------------------


def photo(path, colour="red", captions=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)
    if captions is not None:
        path.with_suffix(".txt").write_text(captions)


def test_a_folder_of_images_and_texts(tmp_path):
    photo(tmp_path / "b.PNG", "blue", "blue\r\n\n  \nsecond line\n")
    photo(tmp_path / "more" / "a.jpg", "red", "\ufeffred")
    photo(tmp_path / "z.png", "green")
    photo(tmp_path / ".hidden" / "h.png")
    (tmp_path / "notes.txt").write_text("no image of mine")
    items = list(folder.items(tmp_path, "train"))
    assert [item.source for item in of_kind(items, "image")] == ["b.PNG", "more/a.jpg", "z.png"]
    assert [item.content for item in of_kind(items, "text")] == ["blue", "second line", "red"]
    assert of_kind(items, "text")[1].source == "b.txt:4"
    assert len(list(folder.pairs(tmp_path, "train"))) == 3
    assert len(of_kind(folder.items(tmp_path, "train", limit=1), "image")) == 1


def test_a_folder_with_texts_that_are_not_utf8(tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\nfine\n")
    texts = of_kind(folder.items(tmp_path, "train"), "text")
    assert [(item.source, item.content) for item in texts] == [("a.txt:1", "caf\udce9"), ("a.txt:2", "fine")]


def test_folder_splits(tmp_path):
    photo(tmp_path / "cats" / "a.png", captions="a cat")
    assert folder.splits(tmp_path) == ["train"]
    assert len(list(folder.items(tmp_path, "train"))) == 2
    assert "Known: train" in message(UnknownName, lambda: folder.items(tmp_path, "val"))
    photo(tmp_path / "val" / "b.png", "blue", "val")
    photo(tmp_path / "train" / "c.png", "green", "train")
    assert folder.splits(tmp_path) == ["cats", "train", "val"]
    assert [pair.caption for pair in folder.pairs(tmp_path, "val")] == [caption_key("val")]
    assert [pair.caption for pair in folder.pairs(tmp_path, "train")] == [caption_key("train")]


def test_folder_errors(tmp_path):
    assert "needs its folder" in message(InputError, lambda: folder.items(None, "train"))
    assert "no images in" in message(InputError, lambda: folder.items(tmp_path, "train"))
    photo(tmp_path / "a.png", captions="x")
