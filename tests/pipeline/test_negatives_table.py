"""Tables of negatives: written once and whole, read with suspicion, joined to a dataset, judged."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from compal.errors import InputError, UnknownName, VerificationError
from compal.pipeline import negation, negatives_table
from compal.pipeline.negation import Negation, Request
from compal.pipeline.negatives._contract import Negative
from compal.pipeline.negatives_blind import auc, blindness
from compal.pipeline.negatives_report import report
from compal.pipeline.negatives_table import Table, find, read, with_negatives
from compal.stores.items import Item, Pair, caption_key
from compal.workspace import Workspace

COCO = Path(__file__).parent.parent / "data" / "coco"
OWN = ("tagger=own",)


def negate(path, method="swap", settings=OWN, data=f"coco:{COCO}", split="val2017", **more):
    return Negation(Request(method, data, split, settings, **more), Workspace(Path(path)))


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    return read(negate(tmp_path_factory.mktemp("work")).run())


def test_a_table_says_all_of_its_making(swapped):
    meta = swapped.meta
    assert swapped.rows.schema.names == ["key", "caption", "negative", "type", "method", "detail"]
    assert swapped.path.name == f"coco-val2017-swap-{meta['identity'][:12]}.parquet"
    assert meta["config"]["types"] == ["noun", "adjective", "phrase"]
    assert meta["provenance"]["tagger"].startswith("own ")
    assert "CC BY 4.0" in meta["dataset_licence"]
    assert {"compal", "seed", "date", "command", "source", "licence", "dataset_revision"} <= set(meta)
    counts = meta["counts"]
    assert counts["captions"] == 20
    assert counts["with_negatives"] + sum(counts["without"].values()) == 20
    for row in swapped.rows.to_pylist():
        assert row["key"] == caption_key(row["caption"])


def test_equal_inputs_are_one_file_and_others_another(tmp_path, swapped):
    first = negate(tmp_path)
    assert first.path.name == swapped.path.name
    path = first.run()
    before = (path.stat().st_mtime_ns, path.read_bytes())
    assert negate(tmp_path).plan().exists
    assert negate(tmp_path).run() == path
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    names = {negate(tmp_path, **one).path.name for one in (
        {"seed": 1}, {"limit": 2}, {"settings": (*OWN, "per_type=2")}, {"method": "shuffle"}, {},
    )}  # fmt: skip
    assert len(names) == 5
    same = read(path).rows
    assert same.equals(swapped.rows)


def test_a_file_of_other_inputs_is_never_overwritten(tmp_path, swapped):
    made = negate(tmp_path)
    made.path.parent.mkdir(parents=True)
    negatives_table.write(made.path, [], {"identity": "other"})
    with pytest.raises(InputError, match="made from other inputs"):
        made.run()
    assert read(made.path).meta == {"identity": "other"}
    assert not negatives_table.write(made.path, [], {"identity": "mine"})  # somebody was first
    assert read(made.path).meta == {"identity": "other"}


def test_what_fails_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    made = negate(tmp_path)

    def generate(captions, config, seed, around):
        yield Negative(0, "one", "noun")
        raise InputError("the lamp went out")

    monkeypatch.setattr(made._method, "generate", generate)
    with pytest.raises(InputError, match="lamp"):
        made.run()
    assert list(made.path.parent.iterdir()) == []


def test_a_method_from_outside_is_sieved(tmp_path, monkeypatch):
    """Whatever a method yields, false negatives are not written, and are counted."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "bad.py").write_text(
        "from dataclasses import dataclass\n"
        "INFO = {'version': '1'}\n"
        "@dataclass(frozen=True)\nclass Config:\n    times: int = 1\n"
        "def generate(captions, config, seed, around):\n"
        "    for index, caption in enumerate(captions):\n"
        "        for text in (caption.text.upper(), captions[0].text, '', '...', 'a \\ud800', 'New', 'new!'):\n"
        "            yield index, text, 'made'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    table = read(negate(tmp_path / "work", "elsewhere.bad", ()).run())
    assert set(table.rows.column("negative").to_pylist()) == {"New", table.rows.column("caption").to_pylist()[0]}
    dropped = table.meta["counts"]["dropped"]
    assert dropped["the caption itself"] == 20 + 1
    assert dropped["a true caption of the image"] == 4  # the first image has five captions
    assert dropped["empty"] == 40
    assert dropped["another negative of the caption"] == 20
    assert table.meta["counts"]["in_dataset"] == 15
    assert table.path.name.startswith("coco-val2017-elsewhere.bad-")


def test_captions_are_listed_once_with_all_their_images(tmp_path):
    some = negation.captions_of(Request("swap", "shapes", "train", limit=3), Workspace(tmp_path))
    assert len({one.key for one in some}) == len(some)
    assert all(one.images for one in some)
    with pytest.raises(UnknownName):
        negation.captions_of(Request("swap", "shapes", "nowhere"), Workspace(tmp_path))


def test_names_are_found_by_their_beginning(swapped, tmp_path):
    workspace = Workspace(swapped.path.parent.parent)
    assert find(workspace, "coco-val") == find(workspace, swapped.path.name) == find(workspace, str(swapped.path))
    with pytest.raises(UnknownName, match="no table of negatives 'nothing'"):
        find(workspace, "nothing")
    with pytest.raises(UnknownName):
        find(workspace, "")
    other = negate(workspace.path, seed=5).run()
    with pytest.raises(InputError, match="fits several tables"):
        find(workspace, "coco-val2017-swap")
    other.unlink()


def test_other_files_are_refused(tmp_path, swapped):
    with pytest.raises(InputError, match="no table"):
        read(tmp_path / "none.parquet")
    pq.write_table(swapped.rows.select(["key"]), tmp_path / "other.parquet")
    with pytest.raises(VerificationError, match="is no table of negatives"):
        read(tmp_path / "other.parquet")
    pq.write_table(swapped.rows.replace_schema_metadata(None), tmp_path / "bare.parquet")
    with pytest.raises(VerificationError, match="is no table of negatives"):
        read(tmp_path / "bare.parquet")
    data = bytearray(swapped.path.read_bytes())
    data[200] ^= 0xFF
    (tmp_path / "flipped.parquet").write_bytes(data)
    with pytest.raises(VerificationError):
        read(tmp_path / "flipped.parquet")


# --- joining ---------------------------------------------------------------------------------------------


def made_table(*rows):
    columns = [(caption_key(caption), caption, negative, "noun", "swap", "") for caption, negative in rows]
    return Table(Path("made.parquet"), negatives_table._table(columns), {})


def test_negatives_join_items_and_pairs():
    cat, dog, bus = (Item.caption(text) for text in ("a cat", "a dog", "a bus"))
    image = Item("i" * 32, "image", "", Path("x.png"))
    pairs = [Pair(image.key, cat.key, ("own",)), Pair(image.key, dog.key), Pair("j" * 32, bus.key)]
    first = made_table(("a cat", "a dog"), ("a cat", "a fox"), ("a bus", "a car"), ("a lamp", "a lid"))
    second = made_table(("a bus", "a van"), ("a bus", "a car"))
    items, joined = with_negatives([image, cat, dog, bus], pairs, [first, second])
    listed = list(items)
    assert listed[:4] == [image, cat, dog, bus]
    assert [item.content for item in listed[4:]] == ["a fox", "a car", "a van"]  # each once; no lamp in the dataset
    assert {item.source for item in listed[4:]} == {"negatives/made"}
    assert [pair.negatives for pair in joined] == [
        ("own", caption_key("a fox")),  # the dog is a true caption of the image
        (),
        (caption_key("a car"), caption_key("a van")),
    ]


def test_without_tables_nothing_changes():
    pairs = [Pair("i", "c", ("n",), "g", "colour")]
    items, joined = with_negatives([Item.caption("x")], pairs, [])
    assert list(items) == [Item.caption("x")]
    assert list(joined) == pairs


# --- judging ---------------------------------------------------------------------------------------------


def test_the_report_counts(swapped):
    found = report(swapped)
    counts = swapped.meta["counts"]
    assert found["yield"]["captions"] == 20
    assert found["yield"]["with negatives"] == counts["with_negatives"]
    assert found["yield"]["negatives"] == sum(found["yield"]["by type"].values()) == swapped.rows.num_rows
    assert found["length"]["change"] == 0
    assert (found["overlap"]["words kept"], found["overlap"]["same words"]) == (1.0, 1.0)
    assert found["blindness"]["noun"] is None  # too few
    assert len(found["samples"]) == 8
    assert found == report(swapped)
    json.dumps(found)


def test_the_report_sees_bad_grammar_and_lengths():
    table = made_table(("A big dog", "A apple apple"), ("A big cat", "an big old cat sits"))
    found = report(table)
    assert found["grammar"]["wrong articles in negatives"] == 1000.0
    assert found["grammar"]["wrong articles in captions"] == 0.0
    assert found["grammar"]["repeated words in negatives"] == 500.0
    assert found["grammar"]["capitals lost"] == 500.0
    assert (found["length"]["change"], found["length"]["most gained"]) == (1.0, 2)
    assert found["overlap"]["words kept"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-3)


def test_an_empty_table_has_a_report():
    assert report(made_table())["yield"]["negatives"] == 0


def sentences(count, seed):
    rng = np.random.default_rng(seed)
    words = np.array(["dog", "cat", "bus", "red", "blue", "big", "sits", "runs", "near", "tree", "old", "lamp"])
    return [" ".join(rng.choice(words, 7)) + f" {number}" for number in range(count)]


def test_blindness_tells_shortcuts_from_fair_negatives():
    captions = sentences(400, 0)
    marked = blindness(captions, [f"{text} not" for text in sentences(400, 1)])
    fair = blindness(captions, sentences(400, 1))
    assert marked.auc > 0.99
    assert fair.low < 0.5 < fair.high
    assert fair.held_out == 160
    assert blindness(captions, sentences(400, 1)) == fair
    assert dataclasses.astuple(marked) != dataclasses.astuple(fair)
    assert blindness(captions[:39], captions[:39]) is None


def test_the_area_under_the_curve_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    negative, positive = rng.integers(0, 9, 40).astype(float), rng.integers(3, 12, 40).astype(float)
    times = rng.integers(0, 4, 40)
    plain, other = np.repeat(negative, times), np.repeat(positive, times)
    wins = (other[:, None] > plain).mean() + 0.5 * (other[:, None] == plain).mean()
    assert auc(negative, positive, times) == pytest.approx(wins)


def test_the_command_is_kept_without_a_secret(swapped):
    assert swapped.meta["command"] == " ".join(sys.argv)


def test_unreadable_captions_are_left_out_and_counted_and_images_are_hashed_once(tmp_path, monkeypatch):
    rows = [(f"{number}.png", text) for number, text in enumerate(["a red cube on a blue ball", " ", "\ud800", None])]
    for name, _ in rows:
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, (1, 1))
    told = "".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in rows)
    (tmp_path / "set.jsonl").write_text(told)
    work = tmp_path / "work"
    work.mkdir()
    time.sleep(0.05)  # what has just changed is not remembered
    made = negate(work, data=f"table:{tmp_path / 'set.jsonl'}", split="train")
    assert [caption.text for caption in made.captions] == [rows[0][1]]
    left_out = report(read(made.run()))["yield"]["unreadable"]
    assert sum(left_out.values()) >= 2
    assert left_out["empty caption"] == 1
    monkeypatch.setattr("compal.pipeline.listing._read_key", lambda place: pytest.fail("read again"))
    assert negate(work, data=f"table:{tmp_path / 'set.jsonl'}", split="train").plan().exists
