"""Benchmarks on files: rows, keys, missing photographs, broken input."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compal.errors import InputError, UnknownName
from compal.eval.benchmarks import bivlc as bivlc_module
from compal.eval.benchmarks import sugarcrepe as sugarcrepe_module
from compal.eval.benchmarks import winoground as winoground_module
from compal.eval.sources import QUAD_TRUTH, Sources
from compal.stores.items import caption_key, content_key


def test_sugarcrepe_rows_are_known_by_key_and_keep_their_white_space(sugarcrepe: Path):
    groups = {group.id: group for group in sugarcrepe_module.groups(Sources(root=sugarcrepe))}
    assert len(groups) == 20
    assert {"swap_obj/107", "swap_obj/109"} <= set(groups)
    row = json.loads((sugarcrepe / "swap_obj.json").read_text())["109"]
    group = groups["swap_obj/109"]
    assert group.category == "swap_obj"
    assert group.captions == (caption_key(row["caption"]), caption_key(row["negative_caption"]))
    photograph = (sugarcrepe / "val2017" / row["filename"]).read_bytes()
    assert group.images == (content_key("image-file", photograph),)


def test_sugarcrepe_items_are_unique_and_groups_refer_to_them(sugarcrepe: Path):
    items = list(sugarcrepe_module.items(Sources(root=sugarcrepe)))
    keys = [item.key for item in items]
    assert len(keys) == len(set(keys))
    # 000000301867.jpg stands in add_obj and in replace_rel.
    assert sum(item.kind == "image" for item in items) == 19
    for group in sugarcrepe_module.groups(Sources(root=sugarcrepe)):
        assert {*group.images, *group.captions} <= set(keys)


def test_photographs_may_lie_elsewhere(sugarcrepe: Path, tmp_path: Path):
    (sugarcrepe / "val2017").rename(tmp_path / "photographs")
    with pytest.raises(InputError, match="19 of 19 images are not in"):
        list(sugarcrepe_module.items(Sources(root=sugarcrepe)))
    assert len(list(sugarcrepe_module.groups(Sources(sugarcrepe, tmp_path / "photographs")))) == 20


def test_missing_photographs_are_counted_and_left_out_only_when_told(sugarcrepe: Path):
    (sugarcrepe / "val2017" / "000000301867.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 19 images .*2 of 20 rows with --allow-missing"):
        list(sugarcrepe_module.groups(Sources(root=sugarcrepe)))
    sources = Sources(root=sugarcrepe, allow_missing=True)
    assert len(list(sugarcrepe_module.groups(sources))) == 18
    assert sources.excluded == dict.fromkeys(("add_obj/1", "replace_rel/2"), "no image 000000301867.jpg")


def test_no_photograph_at_all_is_an_error_also_with_allow_missing(sugarcrepe: Path):
    for path in (sugarcrepe / "val2017").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="check the path"):
        list(sugarcrepe_module.groups(Sources(root=sugarcrepe, allow_missing=True)))


def test_split_takes_a_subset_and_limit_the_first_of_every_category(sugarcrepe: Path):
    one = list(sugarcrepe_module.groups(Sources(root=sugarcrepe, split="swap_att")))
    assert [group.id for group in one] == ["swap_att/0", "swap_att/1", "swap_att/2"]
    few = [group.id for group in sugarcrepe_module.groups(Sources(root=sugarcrepe, limit=1))]
    assert few == [f"{name}/{107 if name == 'swap_obj' else 0}" for name in sugarcrepe_module.SUBSETS]
    with pytest.raises(UnknownName, match="Did you mean 'swap_att'"):
        list(sugarcrepe_module.groups(Sources(root=sugarcrepe, split="swap_attt")))


def test_row_108_of_the_old_file_counts_only_where_it_is_asked_for(sugarcrepe: Path):
    path = sugarcrepe / "swap_obj.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps({"108": rows["107"], **rows}))
    sources = Sources(root=sugarcrepe)
    assert "swap_obj/108" not in {group.id for group in sugarcrepe_module.groups(sources)}
    assert any("108" in note for note in sources.notes)
    as_before = Sources(root=sugarcrepe, variant="swap_obj-246")
    assert len(list(sugarcrepe_module.groups(as_before))) == 21
    assert not as_before.notes
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"has no row 108.*546eb51"):
        list(sugarcrepe_module.groups(as_before))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"0": {"filename": "a.jpg", "caption": "x"', "add_att.json is not valid JSON"),
        ('{"0": {}, "0": {}}', "'0' stands there twice"),
        ("[]", "is not an object of rows"),
        ('{"0": 3}', "row '0' is not an object"),
        ('{"0": {"filename": "a.jpg", "caption": "x"}}', "row '0' has no text 'negative_caption'"),
        ('{"0": {"filename": "a.jpg", "caption": " ", "negative_caption": "y"}}', "'caption' is empty"),
    ],
)
def test_broken_sugarcrepe_files_are_named(sugarcrepe: Path, text: str, match: str):
    (sugarcrepe / "add_att.json").write_text(text)
    with pytest.raises(InputError, match=match):
        list(sugarcrepe_module.groups(Sources(root=sugarcrepe)))


def test_missing_files_and_folders_say_where_to_get_them(sugarcrepe: Path, tmp_path: Path):
    (sugarcrepe / "add_att.json").unlink()
    with pytest.raises(InputError, match=r"lacks add_att\.json.*github\.com/RAIVNLab"):
        list(sugarcrepe_module.groups(Sources(root=sugarcrepe)))
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        list(sugarcrepe_module.groups(Sources(root=tmp_path / "nowhere")))
    with pytest.raises(InputError, match="--root"):
        list(sugarcrepe_module.groups(Sources()))


# --- BiVLC ------------------------------------------------------------------------------------------


def shard(path: Path, rows: list[dict[str, str]], painted: Path, per_group: int = 2) -> None:
    def image(name: str) -> dict[str, bytes | str]:
        return {"bytes": (painted / name).read_bytes(), "path": name}

    cells = [row | {"image": image(row["image"]), "negative_image": image(row["negative_image"])} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(cells), path, row_group_size=per_group)


@pytest.fixture
def shards(tmp_path: Path, bivlc_rows: list[dict[str, str]]) -> Path:
    root = tmp_path / "shards"
    shard(root / "data" / "test-00000-of-00002.parquet", bivlc_rows[:3], tmp_path / "painted")
    shard(root / "data" / "test-00001-of-00002.parquet", bivlc_rows[3:], tmp_path / "painted")
    return root


def test_bivlc_shards_and_csv_give_the_same_groups(shards: Path, bivlc: Path):
    one = list(bivlc_module.groups(Sources(root=shards)))
    other = list(bivlc_module.groups(Sources(root=bivlc)))
    assert [(g.id, g.images, g.captions, g.category) for g in one] == [
        (g.id, g.images, g.captions, g.category) for g in other
    ]
    assert [group.category for group in one] == ["replace_obj", "swap_att", "swap_obj", "add_att", "add_att"]
    assert all(group.truth == QUAD_TRUTH for group in one)
    assert one[0].images[0] == one[1].images[0]


def test_bivlc_shard_images_are_keyed_by_their_bytes_and_decoded_later(shards: Path, tmp_path: Path):
    images = [item for item in bivlc_module.items(Sources(root=shards)) if item.kind == "image"]
    assert len(images) == 9
    painted = {content_key("image-file", path.read_bytes()): path for path in (tmp_path / "painted").iterdir()}
    assert {item.key for item in images} == set(painted)
    for item in pickle.loads(pickle.dumps(images)):
        assert np.array_equal(item.content(), np.asarray(Image.open(painted[item.key])))


def test_bivlc_splits_are_types(bivlc: Path):
    swaps = list(bivlc_module.groups(Sources(root=bivlc, split="swap")))
    assert [group.id for group in swaps] == ["1", "2"]


def test_bivlc_without_an_image_in_a_shard(tmp_path: Path, bivlc_rows: list[dict[str, str]]):
    root = tmp_path / "holes"
    shard(root / "test.parquet", bivlc_rows, tmp_path / "painted")
    table = pq.read_table(root / "test.parquet").to_pylist()
    table[2]["negative_image"] = {"bytes": None, "path": None}
    pq.write_table(pa.Table.from_pylist(table), root / "test.parquet")
    with pytest.raises(InputError, match="1 of 10 images are not in the shards"):
        list(bivlc_module.groups(Sources(root=root)))
    assert len(list(bivlc_module.groups(Sources(root=root, allow_missing=True)))) == 4


def test_broken_bivlc_files_are_named(tmp_path: Path, bivlc: Path):
    with pytest.raises(InputError, match="neither parquet shards nor a CSV"):
        list(bivlc_module.groups(Sources(root=bivlc / "images")))
    (bivlc / "other.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a readable parquet"):
        list(bivlc_module.groups(Sources(root=bivlc)))
    (tmp_path / "x.csv").write_text("image,caption\na,b\n")
    with pytest.raises(InputError, match="lacks the columns negative_caption"):
        list(bivlc_module.groups(Sources(root=tmp_path / "x.csv")))


# --- Winoground format ------------------------------------------------------------------------------


def test_winoground_rows_in_three_formats(winoground: Path):
    groups = list(winoground_module.groups(Sources(root=winoground)))
    assert [(group.id, group.category) for group in groups] == [
        ("0", "Object"),
        ("1", "Relation"),
        ("2", "Object"),
        ("3", "Relation"),
    ]
    lines = (winoground / "examples.jsonl").read_text().splitlines()
    (winoground / "other.json").write_text("[" + ",".join(lines) + "]")
    rows = [json.loads(line) for line in lines]
    table = [",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]
    (winoground / "other.csv").write_text("\n".join(table) + "\n")
    for name in ("examples.jsonl", "other.json", "other.csv"):
        found = list(winoground_module.groups(Sources(root=winoground / name)))
        assert [(g.id, g.images, g.captions) for g in found] == [(g.id, g.images, g.captions) for g in groups]


def test_winoground_category_column_comes_first_and_is_a_split(winoground: Path):
    path = winoground / "examples.jsonl"
    rows = [json.loads(line) | {"category": "colour"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {group.category for group in winoground_module.groups(Sources(root=winoground))} == {"colour"}
    assert len(list(winoground_module.groups(Sources(root=winoground, split="colour")))) == 4
    with pytest.raises(UnknownName, match="colour"):
        list(winoground_module.groups(Sources(root=winoground, split="color")))


def test_broken_winoground_files_are_named(winoground: Path):
    path = winoground / "examples.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"id": 9\n')
    with pytest.raises(InputError, match=r"examples\.jsonl line 5 is not valid JSON"):
        list(winoground_module.groups(Sources(root=winoground)))
    path.write_text('{"id": 9, "image_0": "a"}\n')
    with pytest.raises(InputError, match=r"row 0 \(id '9'\) has no text 'image_1'"):
        list(winoground_module.groups(Sources(root=winoground)))
    path.unlink()
    with pytest.raises(InputError, match=r"has none of examples\.jsonl"):
        list(winoground_module.groups(Sources(root=winoground)))
