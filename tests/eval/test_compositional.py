"""Benchmarks of composition on files: counts of the official files, crops, tags, frozen shuffles, broken input."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from collections import Counter
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import DATA, paint, write_json
from layouts import cola as cola_layout
from PIL import Image

from compal import registry
from compal.errors import InputError, UnknownName
from compal.eval.score import Options, evaluate
from compal.eval.sources import Group, Sources
from compal.pipeline import order
from compal.pipeline.decode import Unreadable, open_image
from compal.stores.items import caption_key

NAMES = (
    "aro-attribution",
    "aro-coco-order",
    "aro-flickr30k-order",
    "aro-relation",
    "biscor-ctrl",
    "cola",
    "crepe",
    "sugarcrepe-pp",
    "valse",
    "vl-checklist",
    "whatsup",
    "whatsup-qa",
)


def read(name: str, root: Path, **how) -> list[Group]:
    return list(registry.load("benchmarks", name).groups(Sources(root=root, **how)))


def edit(path: Path, change) -> None:
    """Rewrite a JSON file by `change(value)`."""
    value = json.loads(path.read_text())
    write_json(path, change(value) or value)


@pytest.mark.parametrize("name", NAMES)
def test_scored_end_to_end(tmp_path: Path, filled, name: str):
    """Rows of a table from the features of a store, chance beside them; the random row is no scorer's merit."""
    layouts.write(name, tmp_path / "root")
    sources = Sources(root=tmp_path / "root")
    module = registry.load("benchmarks", name)
    options = Options(references=("random", "cosine"))
    rows = evaluate(name, sources, filled(name, sources), {}, tmp_path / "out", options=options)
    assert [row.label for row in rows] == ["chance", "random", "cosine"]
    groups = list(module.groups(sources))
    # Between two captions random numbers say nothing: they are of an image and a caption.
    of_texts = set(module.INFO.get("text_metrics", ()))
    assert of_texts <= set(rows[-1].overall.metrics)
    for row in rows:
        assert row.overall.n == len(groups)
        told = {metric for metric in row.overall.metrics if " (" not in metric and not metric.startswith("r@")}
        assert told - of_texts == set(module.INFO["chance"]) - of_texts
        assert all(row.overall.metrics[metric].value is not None for metric in told)
    assert rows[0].meta["tie_rule"] == module.INFO["tie_rule"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_image_is_named_and_left_out_only_when_told(tmp_path: Path, name: str):
    layouts.write(name, tmp_path)
    whole = read(name, tmp_path)
    named = next(item.source for item in registry.load("benchmarks", name).items(Sources(root=tmp_path)))
    victim = next(iter(tmp_path.rglob(named.partition("#")[0].rpartition("/")[2])))
    victim.unlink()
    with pytest.raises(InputError, match=rf"\d of .* images are not in .*{victim.name}.*--allow-missing"):
        read(name, tmp_path)
    sources = Sources(root=tmp_path, allow_missing=True)
    left = list(registry.load("benchmarks", name).groups(sources))
    missing = [reason for reason in sources.excluded.values() if reason.startswith("no image")]
    assert 0 < len(left) == len(whole) - len(missing)


@pytest.mark.parametrize("name", NAMES)
def test_no_files_and_no_folder_say_what_to_put_where(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=r"(lacks|has none of) .*ROOT"):
        read(name, tmp_path)
    with pytest.raises(InputError, match=r"no folder .*ROOT"):
        read(name, tmp_path / "nowhere")


# --- SugarCrepe++ -----------------------------------------------------------------------------------


def test_sugarcrepe_pp_rows_are_the_image_with_both_captions_and_the_negative(tmp_path: Path):
    layouts.write("sugarcrepe-pp", tmp_path)
    groups = read("sugarcrepe-pp", tmp_path)
    assert Counter(group.category for group in groups) == dict.fromkeys(
        ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"), 3
    )
    row = json.loads((tmp_path / "swap_obj.json").read_text())[2]
    found = next(group for group in groups if group.id == "swap_obj/3")
    assert found.captions == tuple(caption_key(row[name]) for name in ("caption", "caption2", "negative_caption"))
    assert found.truth == ((True, True, False),)


def test_a_negative_that_is_a_caption_is_told_and_left_out_by_variant(tmp_path: Path):
    """Rows 2 and 8 of the official swap_obj."""
    layouts.write("sugarcrepe-pp", tmp_path)
    edit(tmp_path / "swap_obj.json", lambda rows: rows[1].update(negative_caption=rows[1]["caption"]))
    sources = Sources(root=tmp_path)
    module = registry.load("benchmarks", "sugarcrepe-pp")
    assert len(list(module.groups(sources))) == 15
    assert any("in 1 of 15 rows" in note and "swap_obj/1" in note for note in sources.notes)
    sources = Sources(root=tmp_path, variant="without-identical")
    assert len(list(module.groups(sources))) == 14
    assert sources.excluded == {"swap_obj/1": "the wrong caption equals a right one"}


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"id": 0, "filename": "a.jpg", "caption": "x", "negative_caption": "y"}], "row 0 has no text 'caption2'"),
        ({"0": {}}, "swap_att.json is not a list of objects"),
    ],
)
def test_broken_sugarcrepe_pp_files_are_named(tmp_path: Path, rows, match: str):
    layouts.write("sugarcrepe-pp", tmp_path)
    write_json(tmp_path / "swap_att.json", rows)
    with pytest.raises(InputError, match=match):
        read("sugarcrepe-pp", tmp_path)


# --- VALSE ------------------------------------------------------------------------------------------

VALID = {
    "existence": (505, 534),
    "plurals": (851, 1000),
    "counting-hard": (868, 1000),
    "counting-small-quant": (900, 1000),
    "counting-adversarial": (691, 756),
    "relations": (535, 614),
    "action-replacement": (648, 779),
    "actant-swap": (949, 1042),
    "coreference-standard": (708, 916),
    "coreference-hard": (104, 141),
    "foil-it": (943, 1000),
}


def test_valse_counts_by_the_official_votes(tmp_path: Path):
    """The votes of all 8,782 official rows, with texts of our own."""
    text = gzip.decompress((DATA / "valse" / "votes.csv.gz").read_bytes()).decode()
    rows: dict[str, dict[str, dict]] = {}
    for number, row in enumerate(csv.DictReader(io.StringIO(text))):
        votes = {name: int(row[name]) for name in ("caption", "foil", "other")}
        texts = {"caption": f"caption {number}", "foil": f"caption {number}" if int(row["same"]) else f"foil {number}"}
        rows.setdefault(row["piece"], {})[str(number)] = {"image_file": "one.jpg", **texts, "mturk": votes}
    for piece, found in rows.items():
        write_json(tmp_path / f"{piece}.json", found)
    paint(tmp_path / "images" / "one.jpg")
    valid = read("valse", tmp_path)
    every = read("valse", tmp_path, variant="unvalidated")
    assert (len(valid), len(every)) == (7702, 8782)
    counts = [Counter(group.category for group in groups) for groups in (valid, every)]
    assert {piece: (counts[0][piece], counts[1][piece]) for piece in VALID} == VALID
    assert not any(group.captions[0] == group.captions[1] for group in valid)
    assert sum(group.captions[0] == group.captions[1] for group in every) == 24
    assert registry.load("benchmarks", "valse").INFO["size"] == 7702


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"image_file": "a.jpg", "caption": "x", "foil": "y"}, "no count of votes 'mturk.caption'"),
        ({"image_file": "a.jpg", "caption": "x", "mturk": {"caption": 3}}, "row 'k' has no text 'foil'"),
        (3, "row 'k' is not an object"),
    ],
)
def test_broken_valse_files_are_named(tmp_path: Path, row, match: str):
    layouts.write("valse", tmp_path)
    write_json(tmp_path / "data" / "plurals.json", {"k": row})
    with pytest.raises(InputError, match=rf"plurals\.json .*{match}"):
        read("valse", tmp_path)


# --- Cola -------------------------------------------------------------------------------------------


def test_cola_counts(tmp_path: Path):
    """All 210 official rows on 218 images."""
    rows = cola_layout.rows()
    names = {address.rpartition("/")[2] for row in rows for address in (row[0], row[2])}
    write_json(tmp_path / "COLA_multiobjects_matching_benchmark.json", rows)
    for name in names:
        paint(tmp_path / "images" / name)
    groups = read("cola", tmp_path)
    assert len(groups) == registry.load("benchmarks", "cola").INFO["size"] == 210
    assert len({key for group in groups for key in group.images}) == len(names) == 218
    assert groups[0].captions == (caption_key(rows[0][1]), caption_key(rows[0][3]))


@pytest.mark.parametrize(
    ("row", "match"), [(["a", "b", "c"], "row 1 is not a list of image_url_1"), (["a", " ", "c", "d"], "'caption_1'")]
)
def test_broken_cola_rows_are_named(tmp_path: Path, row, match: str):
    layouts.write("cola", tmp_path)
    table = tmp_path / "data" / "COLA_multiobjects_matching_benchmark.json"
    edit(table, lambda rows: rows.__setitem__(1, row))
    with pytest.raises(InputError, match=match):
        read("cola", tmp_path)


# --- crops: ARO and CREPE ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "folder"), [("aro-relation", "images"), ("crepe", "VG_100K")])
def test_crops_are_those_of_the_official_scripts(tmp_path: Path, name: str, folder: str):
    """Image.crop of the whole pixels; equal boxes of equal files are one item, wherever the file lies."""
    layouts.write(name, tmp_path)
    module = registry.load("benchmarks", name)
    items = [item for item in module.items(Sources(root=tmp_path)) if item.kind == "image"]
    assert len(items) == len({item.key for item in items})
    item = pickle.loads(pickle.dumps(items[-1]))
    file, _, corners = item.source.partition("/")[2].rpartition("#")
    with Image.open(tmp_path / folder / file) as image:
        expected = np.asarray(image.convert("RGB").crop(tuple(map(int, corners.split(",")))))
    assert np.array_equal(np.asarray(open_image(item)), expected)
    (tmp_path / folder).rename(tmp_path / "elsewhere")
    moved = module.items(Sources(root=tmp_path, images=tmp_path / "elsewhere"))
    if name == "aro-relation":
        assert {one.key for one in moved if one.kind == "image"} == {one.key for one in items}


def test_a_damaged_file_behind_a_crop_goes_to_the_quarantine(tmp_path: Path):
    layouts.write("aro-relation", tmp_path)
    (tmp_path / "images" / "0.jpg").write_bytes(b"\x89PNG no picture")
    items = list(registry.load("benchmarks", "aro-relation").items(Sources(root=tmp_path)))
    bad = next(item for item in items if "/0.jpg#" in item.source)
    with pytest.raises(Unreadable, match="cannot be read: cannot identify image file"):
        open_image(bad)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bbox_w": 0}, "row 1: the box of 0 x 3 pixels .* is empty"),
        ({"bbox_h": "nan"}, "row 1: the box .* is empty"),
        ({"bbox_x": None}, "row 1 has no number 'bbox_x'"),
        ({"true_caption": 3}, "row 1 has no text 'true_caption'"),
    ],
)
def test_broken_aro_rows_are_named(tmp_path: Path, change: dict, match: str):
    for name, table in (("aro-relation", "relation"), ("aro-attribution", "attribution")):
        root = tmp_path / name
        layouts.write(name, root)
        edit(root / f"visual_genome_{table}.json", lambda rows: rows[1].update(change))
        with pytest.raises(InputError, match=match):
            read(name, root)
    edit(tmp_path / "aro-attribution" / "visual_genome_attribution.json", lambda rows: rows[0].update(attributes="a"))
    with pytest.raises(InputError, match="row 0 has no two 'attributes'"):
        read("aro-attribution", tmp_path / "aro-attribution")


def test_crepe_splits_complexities_and_rows_without_negatives(tmp_path: Path):
    layouts.write("crepe", tmp_path)
    groups = read("crepe", tmp_path)
    assert Counter(group.category for group in groups) == {
        f"{kind}-{atoms}": 2 for kind in ("atom", "swap", "negate") for atoms in range(4, 13)
    }
    assert all(len(group.captions) == 6 for group in groups)
    assert len(read("crepe", tmp_path, split="swap")) == 18
    sources = Sources(root=tmp_path, split="seen-comp-cc12m")
    assert len(list(registry.load("benchmarks", "crepe").groups(sources))) == 2
    assert sources.excluded == {"seen-comp-cc12m/2": "no hard negatives"}
    with pytest.raises(InputError, match="lacks syst_vg_hard_negs_unseen_compounds_in_laion"):
        read("crepe", tmp_path, split="unseen-atom-laion")


def test_crepe_says_when_chance_is_of_another_number(tmp_path: Path):
    layouts.write("crepe", tmp_path)
    path = tmp_path / "prod_hard_negatives" / "atom" / "prod_vg_hard_negs_atom_complexity_4.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "0,1,2,5,4,a caption,\"['one wrong']\"", *lines[2:]]) + "\n")
    sources = Sources(root=tmp_path)
    list(registry.load("benchmarks", "crepe").groups(sources))
    assert "rows have 1 to 5 negatives; chance is of 5" in sources.notes
    path.write_text(lines[0] + "\n0,1,2,5,4,a caption,not a list\n")
    with pytest.raises(InputError, match=r"complexity_4\.csv row 0: 'hard_negs' is not a list of texts"):
        read("crepe", tmp_path)


# --- ARO's order tests ------------------------------------------------------------------------------


def test_shuffles_are_frozen_once_and_carry_their_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    layouts.write("aro-coco-order", tmp_path)
    table = tmp_path / "coco_order.jsonl"
    written = table.read_bytes()
    sources = Sources(root=tmp_path)
    groups = list(registry.load("benchmarks", "aro-coco-order").groups(sources))
    assert len(groups) == 3
    (note,) = sources.notes
    assert note.startswith("negatives: coco_order.jsonl, sha256 ")
    assert note.endswith("seed 1")
    assert order.main([str(tmp_path / "coco_karpathy_test.json"), "--tagger", "own"]) == 1
    assert "never overwritten" in capsys.readouterr().err
    table.unlink()
    assert order.main([str(tmp_path / "coco_karpathy_test.json"), "--tagger", "own"]) == 0
    assert table.read_bytes() == written
    assert note.split("sha256 ")[1][:16] in capsys.readouterr().out
    table.unlink()
    with pytest.raises(InputError, match=r"lacks coco_order\.jsonl.*python -m compal\.pipeline\.order"):
        read("aro-coco-order", tmp_path)


def test_the_four_orders_move_what_they_should(tmp_path: Path):
    """Nouns and adjectives stay where such words were, the others stay in order, and so do groups of three."""
    caption = "A small brown dog sits on a wide wooden bench near two old trees"
    named, others, within, wholes = order.orders(next(iter(order.tag_all([caption], "own"))), seed=1)
    words = caption.split()
    nouns, adjectives = {"dog", "bench", "trees"}, {"small", "brown", "wide", "wooden", "old"}
    moved = named.split()
    assert [word if word not in nouns | adjectives else "" for word in moved] == [
        word if word not in nouns | adjectives else "" for word in words
    ]
    assert {words[at] for at, word in enumerate(moved) if word in nouns} == nouns
    assert [word for word in others.split() if word in nouns | adjectives] == [
        word for word in words if word in nouns | adjectives
    ]
    for text in (named, others, within, wholes):
        assert Counter(text.split()) == Counter(words)
        assert text != caption
    assert all(
        Counter(words[start : start + 3]) == Counter(within.split()[start : start + 3]) for start in range(0, 15, 3)
    )
    threes = [" ".join(words[start : start + 3]) for start in range(0, len(words), 3)]
    assert all(three in wholes for three in threes)


def test_captions_are_compared_as_aro_writes_them():
    assert order.plain('  A dog, "Rex" (old): runs!\n') == "a dog, rex old runs"
    assert len(order.plain("word " * 40).split()) == 30


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"image": "a.jpg", "caption_options": ["a", "b"]}', "row 1: 'caption_options' is not a caption and 4 orders"),
        ('{"caption_options": ["a", "b", "c", "d", "e"]}', "row 1 has no text 'image'"),
        ("{", r"coco_order\.jsonl line 2 is not valid JSON"),
    ],
)
def test_broken_frozen_files_are_named(tmp_path: Path, line: str, match: str):
    layouts.write("aro-coco-order", tmp_path)
    table = tmp_path / "coco_order.jsonl"
    table.write_text(table.read_text().splitlines()[0] + f"\n{line}\n")
    with pytest.raises(InputError, match=match):
        read("aro-coco-order", tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[", "cannot be read"),
        ("{}", "is not a list of images"),
        ('[{"image": "a.jpg"}]', "row 0 is not an 'image' and its list"),
        ('[{"image": "a.jpg", "caption": ["!"]}]', "row 0 has a caption without words"),
    ],
)
def test_broken_annotations_are_not_frozen(tmp_path: Path, text: str, match: str):
    (tmp_path / "coco_karpathy_test.json").write_text(text)
    with pytest.raises(InputError, match=match):
        order.freeze(tmp_path / "coco_karpathy_test.json", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


# --- What'sUp ---------------------------------------------------------------------------------------


def test_whatsup_sets_are_of_two_things_and_pairs_of_opposites(tmp_path: Path):
    layouts.write("whatsup", tmp_path)
    groups = read("whatsup", tmp_path)
    members = Counter(member for group in groups for member in group.sets)
    assert Counter(name for name, _ in members) == {"pair": 8, "set": 4}
    assert {count for (name, _), count in members.items() if name == "pair"} == {2}
    assert {count for (name, _), count in members.items() if name == "set"} == {4}
    assert ("pair", "A/mug_table/on-under") in members
    assert Counter(group.category for group in groups) == {"A": 8, "B": 8}
    assert Counter(group.id.split("/")[1] for group in groups if group.category == "B")["in-front"] == 2
    assert len(read("whatsup", tmp_path, split="B")) == 8


def test_whatsup_sets_without_all_their_pictures_do_not_count(tmp_path: Path):
    layouts.write("whatsup", tmp_path)
    (tmp_path / "controlled_images" / "mug_on_table.jpeg").unlink()
    groups = read("whatsup", tmp_path, allow_missing=True)
    members = {member for group in groups for member in group.sets}
    assert len(groups) == 15
    assert ("set", "A/mug_table") not in members
    assert ("pair", "A/mug_table/on-under") not in members
    assert ("pair", "A/mug_table/left-right") in members


def test_broken_whatsup_rows_are_named(tmp_path: Path):
    layouts.write("whatsup", tmp_path)
    table = tmp_path / "controlled_images_dataset.json"
    whole = table.read_text()
    edit(table, lambda rows: rows[1].update(image_path="data/controlled_images/mug_beside_table.jpeg"))
    with pytest.raises(InputError, match=r"row 1: 'controlled_images/mug_beside_table.jpeg' does not name"):
        read("whatsup", tmp_path)
    table.write_text(whole)
    edit(table, lambda rows: rows[2].update(caption_options=["one"]))
    with pytest.raises(InputError, match="row 2: 'caption_options' is not 4 texts"):
        read("whatsup", tmp_path)
    table.write_text(whole)
    edit(table, lambda rows: rows[:-1])
    with pytest.raises(InputError, match=r"the set 'A/mug_table' has 3 pictures, not 4"):
        read("whatsup", tmp_path)


def test_whatsup_qa_rows_by_set_and_preposition(tmp_path: Path):
    layouts.write("whatsup-qa", tmp_path)
    found = Counter(group.category for group in read("whatsup-qa", tmp_path))
    assert {"coco_one/top", "coco_two/below", "vg_one/left", "vg_two/front", "vg_two/top"} <= set(found)
    assert set(found.values()) == {1}
    write_json(tmp_path / "vg_qa_two_obj.json", [[3, "a caption"]])
    with pytest.raises(InputError, match=r"vg_qa_two_obj\.json row 0 is not \[image id, caption, wrong caption\]"):
        read("whatsup-qa", tmp_path)


# --- Winoground's hard tags -------------------------------------------------------------------------

TAGS = {
    "Ambiguously Correct": 46,
    "Visually Difficult": 38,
    "Unusual Image": 56,
    "Unusual Text": 50,
    "Complex Reasoning": 78,
    "Non Minimal": 30,
    "untagged": 172,
}


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """400 rows under Winoground's ids, with the official tags."""
    for name in ("one.png", "two.png"):
        paint(tmp_path / "images" / name)
    rows = [
        {"id": n, "image_0": "one", "image_1": "two", "caption_0": f"a {n} b", "caption_1": f"b {n} a", "tag": "x"}
        for n in range(400)
    ]
    layouts.write_lines(tmp_path / "examples.jsonl", rows)
    tags = gzip.decompress((DATA / "winoground_tags.json.gz").read_bytes())
    (tmp_path / "new_tag_assignments.json").write_bytes(tags)
    return tmp_path


def test_hard_tags_are_splits(tagged: Path):
    assert {tag: len(read("winoground", tagged, split=tag)) for tag in TAGS} == TAGS
    assert len(read("winoground", tagged)) == len(read("winoground", tagged, split="x")) == 400
    with pytest.raises(UnknownName, match="Did you mean 'Unusual Text'"):
        read("winoground", tagged, split="Unusual Test")


def test_hard_tags_that_lack_or_break_are_named(tagged: Path):
    file = tagged / "new_tag_assignments.json"
    edit(file, lambda tags: {key: tags[key] for key in tags if key != "17"})
    with pytest.raises(InputError, match=r"new_tag_assignments\.json says nothing of row '17'"):
        read("winoground", tagged, split="untagged")
    write_json(file, [])
    with pytest.raises(InputError, match="is not an object of lists"):
        read("winoground", tagged, split="untagged")
    file.unlink()
    with pytest.raises(InputError, match=r"lacks new_tag_assignments\.json.*why-winoground-hard"):
        read("winoground", tagged, split="untagged")
    assert len(read("winoground", tagged)) == 400


# --- BiSCoR-Ctrl's format and VL-CheckList ----------------------------------------------------------


def test_biscor_ctrl_categories_are_splits_in_any_case(tmp_path: Path):
    layouts.write("biscor-ctrl", tmp_path)
    groups = read("biscor-ctrl", tmp_path)
    assert Counter(group.category for group in groups) == dict.fromkeys(("color", "material", "size", "quantity"), 2)
    assert read("biscor-ctrl", tmp_path, split="Color") == read("biscor-ctrl", tmp_path, split="color")
    assert len(read("biscor-ctrl", tmp_path, limit=1)) == 4
    layouts.write_lines(tmp_path / "examples.jsonl", [{"image_0": "a", "image_1": "b", "caption_0": "x"}])
    with pytest.raises(InputError, match=r"examples\.jsonl row 0 has no text 'caption_1'"):
        read("biscor-ctrl", tmp_path)


def test_vl_checklist_types_kinds_and_the_first_thousand(tmp_path: Path):
    layouts.write("vl-checklist", tmp_path)
    module = registry.load("benchmarks", "vl-checklist")
    assert len(module.PARTS) == 56
    assert len(module.TYPES) == 13
    assert len(read("vl-checklist", tmp_path)) == 112
    assert len(read("vl-checklist", tmp_path, split="Object_Size_small")) == 14
    assert len(read("vl-checklist", tmp_path, split="Attribute")) == 20
    assert len(read("vl-checklist", tmp_path, split="Relation_spatial_vg")) == 2
    path = tmp_path / "data" / module.PARTS["Relation_spatial_vg"].path
    edit(path, lambda rows: rows * 600)
    assert len(read("vl-checklist", tmp_path, split="Relation_spatial")) == 1200
    assert len(read("vl-checklist", tmp_path, split="Relation_spatial", variant="first-1000")) == 1000


def test_broken_vl_checklist_files_are_named(tmp_path: Path):
    layouts.write("vl-checklist", tmp_path)
    path = tmp_path / "data" / "Attribute" / "vg" / "color.json"
    edit(path, lambda rows: rows[1][1].update(NEG=[]))
    with pytest.raises(InputError, match=r"color\.json row 1 has no text under 'NEG'"):
        read("vl-checklist", tmp_path, split="Attribute_color")
    write_json(path, [["a.jpg"]])
    with pytest.raises(InputError, match=r"color\.json row 0 is not \[image, \{POS, NEG\}\]"):
        read("vl-checklist", tmp_path, split="Attribute_color")
    path.unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 56 files \(first: Attribute/vg/color\.json\).*--split"):
        read("vl-checklist", tmp_path)
