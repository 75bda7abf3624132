"""Annotation files in the layouts that are published: Karpathy's splits, Flickr30k, DeGLA, TROHN-Text, DreamLIP."""

import json
from pathlib import Path

import pytest
from dataset_roots import COCO, coco_karpathy, degla, dreamlip, flickr30k, karpathy, trohn_text, write_image

from compal.errors import InputError, UnknownName
from compal.pipeline.datasets import coco_karpathy as karpathys
from compal.pipeline.datasets import degla as deglas
from compal.pipeline.datasets import dreamlip as dreamlips
from compal.pipeline.datasets import flickr30k as flickrs
from compal.pipeline.datasets import table
from compal.pipeline.datasets import trohn_text as trohns
from compal.stores.items import Item, caption_key


def contents(items, kind):
    return [item.content for item in items if item.kind == kind]


def message(error, action):
    with pytest.raises(error) as caught:
        list(action())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Karpathy -----------------------------------------------------------------------------------------


def test_karpathy_splits_of_coco(tmp_path):
    root = coco_karpathy(tmp_path)
    assert karpathys.splits(root) == ["restval", "test", "train", "val"]
    items = list(karpathys.items(root, "test"))
    paths = contents(items, "image")
    assert [path.name for path in paths] == [f"COCO_val2014_{number:012d}.jpg" for number in (3, 7, 11, 15)]
    assert all(path.is_file() and path.parent.name == "val2014" for path in paths)
    assert contents(items, "text")[:2] == ["sentence 6.", "sentence 7."]
    assert items[1].source == "coco-karpathy/test/sentence 6"
    assert len(contents(karpathys.items(root, "train+restval"), "image")) == 8
    assert len(contents(karpathys.items(root, "train+restval", 3), "image")) == 3
    assert "Did you mean 'restval'" in message(UnknownName, lambda: karpathys.items(root, "train+restva"))


def test_karpathy_of_real_photographs_under_their_names_of_2017(tmp_path):
    data = json.loads((COCO / "annotations" / "captions_val2017.json").read_text())
    said = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        said[annotation["image_id"]].append({"raw": annotation["caption"], "sentid": annotation["id"]})
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{image['id']:012d}.jpg",
            "split": "test",
            "sentences": said[image["id"]],
        }
        for image in data["images"]
    ]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": images}))
    root = Path(f"{file}?images={COCO}")
    items = list(karpathys.items(root, "test"))
    assert {path.name for path in contents(items, "image")} == {path.name for path in COCO.rglob("*.jpg")}
    from compal.pipeline.datasets import coco

    assert {(pair.image, pair.caption) for pair in karpathys.pairs(root, "test")} == {
        (pair.image, pair.caption) for pair in coco.pairs(COCO, "val2017")
    }


def test_karpathy_errors(tmp_path):
    assert "no dataset_coco.json in" in message(InputError, lambda: karpathys.items(tmp_path, "val"))
    file = tmp_path / "dataset_coco.json"
    for text, why in (
        ("{", "is not a JSON file"),
        ("[]", "no list 'images'"),
        ('{"images": [{"split": "val"}]}', "images[0] has no filename"),
        ('{"images": [7]}', "images[0] has no filename, split"),
    ):
        file.write_text(text)
        file.touch()
        karpathys._karpathy._read.cache_clear()
        assert why in message(InputError, lambda: karpathys.items(tmp_path, "val"))


def test_karpathy_sentences_that_are_none(tmp_path):
    data = karpathy(["a.jpg"], ("val",))
    data["images"][0]["sentences"] = [{"tokens": ["x"]}, None, {"raw": 3}]
    (tmp_path / "dataset_coco.json").write_text(json.dumps(data))
    assert len({item.key for item in karpathys.items(tmp_path, "val")}) == 4


# --- Flickr30k ----------------------------------------------------------------------------------------


def test_flickr30k_in_three_layouts(tmp_path):
    root = flickr30k(tmp_path)
    expected = list(flickrs.pairs(root, "val"))
    assert len(expected) == 8
    assert flickrs.splits(root) == ["test", "train", "val"]
    data = json.loads((root / "dataset_flickr30k.json").read_text())["images"]
    (root / "dataset_flickr30k.json").unlink()
    rows = ["raw,sentids,split,filename,img_id"]
    for number, image in enumerate(data):
        raw = json.dumps([sentence["raw"] for sentence in image["sentences"]]).replace('"', '""')
        rows.append(f'"{raw}","[1, 2]",{image["split"]},{image["filename"]},{number}')
    (root / "flickr_annotations_30k.csv").write_text("\n".join(rows))
    assert list(flickrs.pairs(root, "val")) == expected
    (root / "flickr_annotations_30k.csv").unlink()
    lines = [
        f"{image['filename']}#{number}\t{sentence['raw']}"
        for image in data
        for number, sentence in enumerate(image["sentences"])
    ]
    (root / "results_20130124.token").write_text("\r\n".join(lines) + "\n")
    assert flickrs.splits(root) == ["all"]
    assert set(flickrs.pairs(root, "all")) > set(expected)
    items = list(flickrs.items(root, "all", 2))
    assert [path.name for path in contents(items, "image")] == ["1000.jpg", "1001.jpg"]
    assert all(path.parent.name == "flickr30k-images" for path in contents(items, "image"))
    (root / "results_20130124.token").write_bytes(b"a.jpg#0\tcaf\xe9\na.jpg 1 no tab\n")
    assert "line 2 is not IMAGE#NUMBER, TAB, CAPTION" in message(InputError, lambda: flickrs.items(root, "all"))


# --- DeGLA --------------------------------------------------------------------------------------------


def test_degla(tmp_path):
    root = degla(tmp_path)
    pairs = list(deglas.pairs(root, "train"))
    assert len(pairs) == 8
    assert pairs[0].caption == caption_key("caption 0.0")
    assert pairs[0].negatives == tuple(caption_key(f"not 0.0 {letter}") for letter in "abcd")
    items = list(deglas.items(root, "train", 1))
    assert contents(items, "image") == [root / "train2014" / "COCO_train2014_000000000000.jpg"]
    assert len(contents(items, "text")) == 10, "both captions of the image, each with four negatives"
    assert items[2].source == "degla/row 1, negative 1"
    assert list(deglas.pairs(root / "DeGLA.json", "train")) == pairs


def test_degla_images_elsewhere(tmp_path):
    root = degla(tmp_path)
    (root / "train2014").rename(tmp_path / "train2017")
    for path in (tmp_path / "train2017").iterdir():
        path.rename(path.with_name(path.name.removeprefix("COCO_train2014_")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "DeGLA.json").rename(elsewhere / "DeGLA.json")
    items = list(deglas.items(Path(f"{elsewhere / 'DeGLA.json'}?images={tmp_path}"), "train"))
    assert all(path.is_file() for path in contents(items, "image"))


def test_degla_errors(tmp_path):
    file = tmp_path / "DeGLA.json"
    assert "no file" in message(InputError, lambda: deglas.items(tmp_path, "train"))
    for text, why in (
        ("{}", "not a list of captions"),
        ('[{"image_id": "1", "enhanced": []}]', "row 1 has no image_id"),
        ('[{"image_id": true, "enhanced": []}]', "row 1 has no image_id"),
        ('[{"image_id": 1, "original": "a"}]', "no list 'enhanced'"),
    ):
        file.write_text(text)
        deglas._read.cache_clear()
        assert why in message(InputError, lambda: deglas.items(file, "train"))
    assert "no split 'val'" in message(UnknownName, lambda: deglas.items(file, "val"))


# --- TROHN-Text ---------------------------------------------------------------------------------------


def test_trohn_text_joins_the_rows_of_a_caption(tmp_path):
    root = trohn_text(tmp_path)
    assert trohns.splits(root) == ["train", "validation"]
    pairs = list(trohns.pairs(root, "train"))
    assert len(pairs) == 4, "eight rows"
    assert [pair.negatives for pair in pairs][1] == (caption_key("not 1 a"), caption_key("not 1 b"))
    assert contents(trohns.items(root, "train"), "image")[2] == root / "train2017" / "000000000002.jpg"
    assert len(list(trohns.pairs(root, "validation"))) == 1


def test_trohn_text_of_other_columns(tmp_path):
    write_image(tmp_path / "coco" / "images" / "000000000005.jpg", 5)
    (tmp_path / "mine.csv").write_text("number,said,wrong\n000000000005.jpg,a dog,a cat\n")
    root = Path(f"{tmp_path / 'mine.csv'}?image=number&caption=said&negatives=wrong&images={tmp_path / 'coco'}")
    assert [pair.negatives for pair in trohns.pairs(root, "train")] == [(caption_key("a cat"),)]
    assert contents(trohns.items(root, "train"), "image")[0].is_file()
    assert "no column 'image_id'" in message(InputError, lambda: trohns.items(tmp_path / "mine.csv", "train"))


# --- DreamLIP -----------------------------------------------------------------------------------------


def test_dreamlip_tables(tmp_path):
    root = dreamlip(tmp_path)
    texts = contents(dreamlips.items(root, "train", 1), "text")
    assert texts == [f"{name} 0" for name in dreamlips.SETS if "LLA" not in name]
    chosen = Path(f"{root / 'captions.csv'}?caption=longSV_captions")
    assert contents(dreamlips.items(chosen, "train", 1), "text") == ["longSV_captions 0"]
    rows = [{"image": "0.png", "raw_caption": "raw", "longLLA_captions": ["a", "b"], "shortSV_captions": None}]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    file = Path(f"{tmp_path / 'c.json'}?images={root / 'images'}")
    assert contents(dreamlips.items(file, "train"), "text") == ["raw", "a", "b"]
    assert contents(dreamlips.items(file, "train"), "image") == [root / "images" / "0.png"]


def test_dreamlip_images_by_url_need_a_download(tmp_path):
    (tmp_path / "c.csv").write_text("Image Path,raw_caption\nhttps://x/0.jpg,a\n")
    text = message(InputError, lambda: dreamlips.items(tmp_path / "c.csv", "train"))
    assert "img2dataset" in text
    (tmp_path / "c.csv").write_text("Image Path,caption\n0.jpg,a\n")
    assert "no column 'raw_caption'" in message(InputError, lambda: dreamlips.items(tmp_path / "c.csv", "train"))


# --- faults that all share ----------------------------------------------------------------------------


def latin(root, old, new):
    """Put a byte that is not UTF-8 into a file of text."""
    data = root.read_bytes()
    assert old in data
    root.write_bytes(data.replace(old, new, 1))
    return root


@pytest.mark.parametrize(
    ("module", "make", "file", "old", "split"),
    [
        (karpathys, coco_karpathy, "dataset_coco.json", b"sentence 0.", "train"),
        (flickrs, flickr30k, "dataset_flickr30k.json", b"sentence 0.", "train"),
        (deglas, degla, "DeGLA.json", b"not 0.0 a", "train"),
        (dreamlips, dreamlip, "captions.csv", b"raw_caption 0", "train"),
    ],
)
def test_captions_that_are_not_utf8_are_for_the_quarantine(tmp_path, module, make, file, old, split):
    root = make(tmp_path)
    good = list(module.items(root, split))
    latin(root / file, old, b"caf\xe9")
    items = list(module.items(root, split))
    assert len(items) == len(good)
    bad = [item for item in items if item.content == "caf\udce9"]
    assert len(bad) == 1
    assert all(item.source.encode() for item in items)
    assert list(module.pairs(root, split))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_tables_with_bytes_that_are_not_utf8(tmp_path, ending):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_image(tmp_path / "a.png", 1)
    file = tmp_path / f"t.{ending}"
    if ending == "parquet":
        text = pa.array([b"caf\xe9", b"fine"]).view(pa.string())
        pq.write_table(pa.table({"image": ["a.png", "a.png"], "caption": text}), file)
    elif ending == "csv":
        file.write_bytes(b"image,caption\na.png,caf\xe9\na.png,fine\n")
    else:
        lines = [b'{"image": "a.png", "caption": "caf\xe9"}', b'{"image": "a.png", "caption": "fine"}']
        file.write_bytes(b"\n".join(lines) if ending == "jsonl" else b"[" + b",".join(lines) + b"]")
    assert contents(table.items(file, "train"), "text") == ["caf\udce9", "fine"]
    assert len(list(table.pairs(file, "train"))) == 2


def test_names_that_are_not_utf8_stay_printable(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"image,caption\nb\xe9.png,a\n")
    image, text = table.items(tmp_path / "t.csv", "train")
    assert image.source == "t.csv/b\\udce9.png"
    assert text.source.encode()
    assert image.key == Item.image_file(image.content, image.source).key


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_table_of_negatives(tmp_path, ending):
    write_image(tmp_path / "a.png", 1)
    file = tmp_path / f"t.{ending}"
    if ending == "csv":
        file.write_text('image,caption,negatives\na.png,a,"[""b"", ""a"", ""b""]"\na.png,c,\n')
    else:
        file.write_text(
            '{"image": "a.png", "caption": "a", "negatives": ["b", "a", "b"]}\n{"image": "a.png", "caption": "c"}'
        )
    first, second = table.pairs(file, "train")
    assert first.negatives == (caption_key("b"),), "once, and never the caption itself"
    assert second.negatives == ()
    keys = {item.key for item in table.items(file, "train")}
    assert {first.caption, *first.negatives} <= keys
