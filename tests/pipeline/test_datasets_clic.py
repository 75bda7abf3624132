"""Pictures of two: which are joined, how they look, what is said of them, and which word is exchanged."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_roots import COCO, write_image
from PIL import Image

from compal.errors import InputError, UnknownName, UsageError
from compal.pipeline.datasets import clic
from compal.pipeline.decode import Unreadable, open_image
from compal.pipeline.extract import extract_dataset
from compal.pipeline.negatives._tagger import tag
from compal.pipeline.negatives._text import bag
from compal.stores.pairs import read_info, read_pairs
from compal.stores.store import Store
from compal.workspace import Workspace

SIZES = [(40, 20), (20, 40), (30, 30), (10, 30)]
TOLD = [
    "A red bus on a street. It stands still.\nThe bus waits.",
    "Two dogs in the snow.\nDogs that play.\nCold dogs.",
    "A blue cup on a table.\nA cup.\nIt is empty. Mr. Poe left it.",
    "A woman with an umbrella.\nShe walks.",
]


@pytest.fixture
def root(tmp_path):
    """Four pictures: two wide ones (a square counts as wide) and two high ones, a colour each. Of this seed, no two are
    joined in both directions in one order, which would be one picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (size, told) in enumerate(zip(SIZES, TOLD, strict=True)):
        Image.new("RGB", size, (60 * number, 0, 99)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(told)
    return Path(f"folder:{folder}?seed=2")


def listed(root, split="train", limit=None):
    """Items by key, and the pairs of each category in order."""
    items = {item.key: item for item in clic.items(root, split, limit)}
    kinds = {"single": [], "concatenated": [], "further": []}
    for pair in clic.pairs(root, split, limit):
        kinds[pair.category].append(pair)
    return items, kinds


def with_option(root, text):
    return Path(f"{root}{'&' if '?' in str(root) else '?'}{text}")


def test_each_picture_comes_alone_and_joined_to_one_of_its_orientation(root):
    items, kinds = listed(root)
    assert [len(kinds[kind]) for kind in ("single", "concatenated")] == [4, 4]
    assert [items[pair.caption].content for pair in kinds["single"]] == [
        "A red bus on a street.", "Two dogs in the snow.", "A blue cup on a table.", "A woman with an umbrella.",
    ]  # fmt: skip
    for number, pair in enumerate(kinds["concatenated"]):
        other = (number + 2) % 4
        names = re.findall(r"\d\.png", items[pair.image].source)
        assert names == [f"{number}.png", f"{other}.png"]
        picture = np.asarray(open_image(items[pair.image]))
        assert picture.shape == (224, 224, 3)
        halves = np.split(picture, 2, axis=number % 2)  # wide ones stand one above the other
        colours = [set(map(tuple, half.reshape(-1, 3).tolist())) for half in halves]
        assert sorted(colours, key=str) == sorted([{(60 * number, 0, 99)}, {(60 * other, 0, 99)}], key=str)


def test_both_halves_are_squeezed_and_whole():
    """A gradient keeps its ends: nothing is cropped."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 90, 0).repeat(3, 2)
    item = clic.Item.rendered(b"ramp", lambda: ramp, "ramp")
    stacked, beside = (clic._render(item, item, way, 64) for way in (True, False))
    assert stacked.shape == beside.shape == (64, 64, 3)
    assert stacked.dtype == np.uint8
    assert (stacked[:32] == stacked[32:]).all()
    assert (beside[:, :32] == beside[:, 32:]).all()
    for row in (stacked[0, :, 0], beside[0, :32, 0]):
        assert row[0] < 5
        assert row[-1] > 194
    plain = np.asarray(Image.fromarray(ramp).resize((64, 32), Image.Resampling.BICUBIC))
    assert (stacked[:32] == plain).all()


def test_captions_in_both_orders_then_further_ones(root):
    items, kinds = listed(root)
    more = {pair.image: [] for pair in kinds["concatenated"]}
    for pair in kinds["further"]:
        more[pair.image].append(items[pair.caption].content)
    bus, dogs, *_ = (pair.image for pair in kinds["concatenated"])
    first = "A red bus on a street.", "A blue cup on a table."
    assert items[kinds["concatenated"][0].caption].content == " ".join(first)
    assert more[bus][0] == " ".join(reversed(first))
    assert len(more[bus]) == 3, "two further ones: both pictures have at least as many"
    own, theirs = {"It stands still.", "The bus waits."}, {"A cup.", "It is empty.", "Mr. Poe left it."}
    for text in more[bus][1:]:
        halves = {half for half in own | theirs if half in text}
        assert len(halves & own) == len(halves & theirs) == 1
        assert text in (f"{a} {b}" for a in halves for b in halves - {a})
    assert len(more[dogs]) == 2, "one of the two has a single further caption"
    fewer, _ = listed(with_option(root, "more=0"))
    assert len(fewer) < len(items)


def test_the_negative_has_the_words_of_both_and_exchanges_two(root):
    items, kinds = listed(root)
    for pair in kinds["concatenated"]:
        (negative,) = pair.negatives
        own, wrong = items[pair.caption].content, items[negative].content
        assert bag(own) == bag(wrong)
        assert negative not in {other.caption for other in (*kinds["concatenated"], *kinds["further"])}
    by_image = {pair.image: pair.negatives for pair in kinds["concatenated"]}
    assert all(pair.negatives == by_image[pair.image] for pair in kinds["further"])


def negatives(one, other, seeds=60):
    found = Counter(clic._negative(tag(one), tag(other), random.Random(seed)) for seed in range(seeds))
    return {text: count for text, count in found.items() if text is not None}


def test_words_of_a_kind_are_exchanged_wherever_they_stand():
    found = negatives("A dog chases a red dog", "An owl sits.")
    nouns = {"An owl chases a red owl.", "A dog sits."}
    verbs = {"A dog sits a red dog.", "An owl chases."}
    orders = {f"{one} {other}" for kind in (nouns, verbs) for one in kind for other in kind - {one}}
    assert set(found) == orders, "either half comes first"


def test_nouns_keep_their_number_and_common_words_stay():
    found = negatives("two dogs on a mat", "two cups on a tray")
    assert set(found) == {
        "two dogs on a tray. two cups on a mat.", "two cups on a mat. two dogs on a tray.",
    }  # fmt: skip


def test_an_exchange_that_says_the_same_is_no_negative():
    """A cat, a dog: exchanged they are the same two captions, in the other order."""
    assert negatives("A cat sleeps.", "A dog sleeps.") == {}
    assert negatives("A cat.", "A cat.") == {}
    found = negatives("A black cat.", "A white dog.")
    assert {bag(text) == bag("A black cat. A white dog.") for text in found} == {True}
    assert not {"A white dog. A black cat.", "A black cat. A white dog."} & set(found)


def test_sentences_end_where_a_capital_follows():
    text = "A man in St. Louis waits. He has 3.5 kg of J. Smith's rice! Mr. Poe does not. end"
    assert clic._sentences(text) == [
        "A man in St. Louis waits.", "He has 3.5 kg of J. Smith's rice!", "Mr. Poe does not. end",
    ]  # fmt: skip
    assert clic._together([" no stop ", "Why?"]) == "no stop. Why?"


def test_the_seed_decides_and_a_limit_does_not(root):
    shapes = Path("shapes")
    few, more = (list(clic.items(shapes, "validation", limit)) for limit in (5, 9))
    assert [item.key for item in few] == [item.key for item in more[: len(few)]]
    again, other = (
        [item.key for item in clic.items(with_option(shapes, f"seed={seed}"), "validation", 5)] for seed in (0, 1)
    )
    assert again == [item.key for item in few]
    assert again[:2] == other[:2], "the picture itself"
    assert set(again) != set(other)
    large, _ = listed(with_option(root, "side=64"))
    joined = [item for item in large.values() if item.source.startswith("clic/") and item.kind == "image"]
    assert {open_image(item).size for item in joined} == {(64, 64)}


def test_partners_are_drawn_evenly_of_the_pictures_around():
    _, kinds = listed(Path("shapes"), "validation", 300)
    items = {item.key: item for item in clic.items(Path("shapes"), "validation", 300)}
    partners = Counter(items[pair.image].source.split(" + ")[1] for pair in kinds["concatenated"])
    assert len(kinds["concatenated"]) == 300
    assert len(partners) > 150
    assert max(partners.values()) < 10


def test_a_picture_that_cannot_be_read_stays_alone(root, tmp_path):
    (tmp_path / "pictures" / "2.png").write_bytes(b"no picture")
    items, kinds = listed(root)
    assert len(kinds["single"]) == 4
    joined = " ".join(items[pair.image].source for pair in kinds["concatenated"])
    assert "2.png" not in joined
    assert "0.png" not in joined, "no other one of its orientation is left"
    with pytest.raises(Unreadable, match="not an image"):
        open_image(items[kinds["single"][2].image])


def test_a_half_that_is_damaged_further_on_sends_the_picture_to_the_quarantine(root, tmp_path):
    file = tmp_path / "pictures" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    items, kinds = listed(root)
    broken = items[kinds["concatenated"][0].image]
    with pytest.raises(Unreadable):
        open_image(broken)


def test_captions_that_are_no_text_are_left_out(tmp_path):
    folder = tmp_path / "few"
    for number in range(2):
        write_image(folder / f"{number}.png", number)
    (folder / "0.txt").write_text("a cat on a mat\n")
    (folder / "1.txt").write_bytes(b"caf\xe9\n")
    items, kinds = listed(Path(f"folder:{folder}"))
    assert [items[pair.caption].content for pair in kinds["single"]] == ["a cat on a mat"]
    assert len(items) == 2


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("nosuch", UnknownName, "dataset 'nosuch'"),
        ("shapes?sede=1", UnknownName, r"clic option 'sede'.*seed"),
        ("shapes?seed=x", UsageError, "seed = 'x' is no number"),
        ("shapes?side=63", UsageError, "side = 63"),
        ("shapes?tagger=none", UnknownName, "tagger 'none'"),
        ("folder:/no/such/place", InputError, "no folder /no/such/place"),
    ],
)
def test_wrong_words_are_one_line(text, error, message):
    with pytest.raises(error, match=message) as caught:
        list(clic.items(Path(text), "train"))
    assert "\n" not in str(caught.value)


def test_it_needs_a_dataset():
    with pytest.raises(InputError, match=r"dataset 'clic' needs its dataset.*clic:DATASET"):
        list(clic.items(None, "train"))


def test_options_of_the_dataset_within_stay_with_it(tmp_path):
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "t.csv").write_text("file,alt\na.png,a cat\n")
    items, kinds = listed(Path(f"table:{tmp_path}/t.csv?image=file&seed=3&caption=alt"))
    assert [items[pair.caption].content for pair in kinds["single"]] == ["a cat"]
    with pytest.raises(UnknownName, match="table option 'sede'"):
        list(clic.items(Path(f"table:{tmp_path}/t.csv?image=file&sede=3"), "train"))


def test_what_is_extracted_joins_and_says_where_it_comes_from(tmp_path):
    from compal.pipeline.encoder import resolve

    workspace, spec = Workspace(tmp_path), resolve("random:2x8", "pooled")
    data = f"clic:coco:{COCO}"
    extract_dataset(data, "val2017", spec, workspace)
    path = workspace.pairs_path(data, "val2017")
    table, info = read_pairs(path), read_info(path)
    store = Store.open(workspace.find_store(spec))
    assert set(table["category"].to_pylist()) == {"single", "concatenated", "further"}
    assert set(table["image"].to_pylist()) <= store.keys("image")
    assert {key for row in table["negatives"].to_pylist() for key in row} <= store.keys("text")
    assert "CC BY 4.0" in info["licence"]
    assert info["revision"].startswith("coco sha256:")
    assert "seed=0" in info["revision"]
    assert str(COCO) not in " ".join(info.values())
