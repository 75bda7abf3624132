"""Segmenters: exact on the embedded world's grammar, checked by hand on captions of COCO, cached beside a store."""

import json
import sys
from pathlib import Path

import pytest

from compal import registry
from compal.errors import InputError, UnknownName
from compal.pipeline import segments
from compal.pipeline.segmenters import rules
from compal.pipeline.segmenters import spacy as by_spacy
from compal.pipeline.segments import load, segmented
from compal.stores.items import Item
from compal.stores.segments import read_segments
from compal.stores.spec import FeatureSpec
from compal.stores.store import Store
from compal.world.splits import plain, quad
from compal.world.vocabulary import JOINTS, SYNONYMS, TEMPLATES, UNSEEN_JOINTS, UNSEEN_TEMPLATES

SPEC = FeatureSpec("none", "none", pooled_dim=4, level="pooled")
DATA = Path(__file__).parent.parent / "data"

# Caption of COCO → (phrases, relations), by hand: what a careful reader would mark, in these rules' terms.
GOLDEN = {
    "A man is holding a suitcase at a city intersection.": (
        ["A man", "a suitcase", "a city intersection"],
        ["A man is holding a suitcase", "a suitcase at a city intersection"],
    ),
    "two men walking down a city streen next to a blue pole.": (
        ["two men", "a city streen", "a blue pole"],
        ["two men walking down a city streen"],
    ),
    "A bathroom with no toilets and a red and green bucket.": (
        ["A bathroom", "no toilets", "a red and green bucket"],
        [],
    ),
    "a couple of buckets in a white room": (
        ["a couple of buckets", "a white room"],
        ["a couple of buckets in a white room"],
    ),
    "A standing toilet in a bathroom next to a window.": (
        ["A standing toilet", "a bathroom", "a window"],
        ["A standing toilet in a bathroom"],
    ),
    "A computer is sitting on a home office work desk.": (
        ["A computer", "a home office work desk"],
        ["A computer is sitting on a home office work desk"],
    ),
    "Computer desk setup with monitor, wireless keyboard, and other electronic devices.": (
        ["Computer desk setup", "monitor", "wireless keyboard", "other electronic devices"],
        [],
    ),
    "A drawing of a young woman with many facial piercings.": (["a young woman", "many facial piercings"], []),
    "Two zebras are battling each other on hind legs.": (["Two zebras", "hind legs"], []),
    "cars are stopped at a traffic light on a highway": (
        ["cars", "a traffic light", "a highway"],
        ["cars are stopped at a traffic light", "a traffic light on a highway"],
    ),
    "Three girls walking down the sidewalk under a sun umbrella.": (
        ["Three girls", "the sidewalk", "a sun umbrella"],
        ["Three girls walking down the sidewalk", "the sidewalk under a sun umbrella"],
    ),
    "A plate is filled with broccoli and noodles.": (
        ["A plate", "broccoli", "noodles"],
        ["A plate is filled with broccoli"],
    ),
    "Several toy animals - a bull, giraffe, deer and parakeet.": (
        ["Several toy animals", "a bull", "giraffe", "deer", "parakeet"],
        [],
    ),
    "An orange and white cat laying on top of a bag of luggage.": (
        ["An orange and white cat", "a bag of luggage"],
        ["An orange and white cat laying on top of a bag of luggage"],
    ),
    "A picture of an animal is on a pole and next to it is a yellow taxi.": (
        ["an animal", "a pole", "a yellow taxi"],
        ["an animal is on a pole"],
    ),
    "THERE ARE WOMEN THAT ARE LAUGHING UNDER THE UMBRELLA": (
        ["WOMEN", "THE UMBRELLA"],
        ["WOMEN THAT ARE LAUGHING UNDER THE UMBRELLA"],
    ),
    "Blue bathroom with two white towels hanging by the shower.": (
        ["Blue bathroom", "two white towels", "the shower"],
        ["two white towels hanging by the shower"],
    ),
    "A baby cow gets milk from its mother while two other cows stand nearby.": (
        ["A baby cow", "milk", "its mother", "two other cows"],
        ["A baby cow gets milk", "milk from its mother"],
    ),
    "A person on a motorcycles driving past a group of people behind a fence.": (
        ["A person", "a motorcycles", "a group of people", "a fence"],
        [
            "A person on a motorcycles",
            "a motorcycles driving past a group of people",
            "a group of people behind a fence",
        ],
    ),
    "a girl holds a baby eating a bagel with a boy standing next to them": (
        ["a girl", "a baby", "a bagel", "a boy"],
        ["a girl holds a baby", "a baby eating a bagel"],
    ),
}
# What the rules get wrong, and what is wrong with it. Kept so that a change shows, for better or worse.
FAILURES = {
    "A very big whit rest room with a shabby looking shower.": (
        "'shabby' is taken for a noun, 'looking' for a verb",
        ["A very big whit rest room", "a shabby", "shower"],
        ["a shabby looking shower"],
    ),
    "A powered on computer monitor sitting on a office desk.": (
        "'powered on' is no adjective here, so the phrase starts late",
        ["computer monitor", "a office desk"],
        ["computer monitor sitting on a office desk"],
    ),
    "A white with red striped bus drives down the slow lane on a freeway surrounded by several other cars.": (
        "an adjective without its noun is no phrase: 'A white with' is lost",
        ["red striped bus", "the slow lane", "a freeway", "several other cars"],
        [
            "red striped bus drives down the slow lane",
            "the slow lane on a freeway",
            "a freeway surrounded by several other cars",
        ],
    ),
    "A man walking down the street carrying a suitcase.": (
        "a verb belongs to the nearest phrase: the street does not carry",
        ["A man", "the street", "a suitcase"],
        ["A man walking down the street", "the street carrying a suitcase"],
    ),
    "A cat and dog napping together on the couch.": (
        "of two subjects only the last one is related",
        ["A cat", "dog", "the couch"],
        ["dog napping together on the couch"],
    ),
    "A bathroom looks clean but is missing tile at the shower stall.": (
        "'but' ends the clause: the bathroom's tile is not related to it",
        ["A bathroom", "tile", "the shower stall"],
        ["tile at the shower stall"],
    ),
}


def parts(caption, found):
    return (
        [caption[start:end] for start, end, kind in found if kind != "relation"],
        [caption[start:end] for start, end, kind in found if kind == "relation"],
    )


def test_segmenters_are_parts_like_others():
    assert registry.names("segmenters") == ["dataset", "rules", "spacy"]
    for name in registry.names("segmenters"):
        module = registry.load("segmenters", name)
        assert callable(module.segment)
        assert callable(module.version)
        assert registry.summary("segmenters", name)


# --- rules ---------------------------------------------------------------------------------------------


def world_captions():
    for split in ("train", "test"):
        for number in range(400):
            yield from plain(split, number)[1]
    for split in ("train", "test", "unseen_combinations", "unseen_counts", "unseen_templates"):
        for number in range(150):
            yield from quad(split, number).captions


def test_rules_find_exactly_the_segments_of_the_embedded_world():
    told = list(world_captions())
    found = rules.segment([caption.text for caption in told])
    wrong = [caption.text for caption, own in zip(told, found, strict=True) if own != caption.segments]
    assert len(told) == 3100
    assert not wrong, wrong[:3]
    texts = " ".join(caption.text for caption in told)
    fixed = [piece.strip() for template in (*TEMPLATES, *UNSEEN_TEMPLATES) for piece in template.split("{0}")]
    joints = {joint for pair in (*JOINTS, *UNSEEN_JOINTS) for joint in pair}
    sides = [word for side in ("left", "right", "above", "below") for word in SYNONYMS[side]]
    assert all(piece in texts for piece in (*fixed, *joints, *sides)), "every template, joint and side came up"
    assert sum(kind == "relation" for caption in told for *_, kind in caption.segments) > 300


@pytest.mark.parametrize("caption", GOLDEN, ids=lambda text: text[:32])
def test_rules_on_natural_captions(caption):
    assert parts(caption, rules.segment([caption])[0]) == GOLDEN[caption]


@pytest.mark.parametrize("caption", FAILURES, ids=lambda text: text[:32])
def test_rules_fail_as_known(caption):
    _, phrases, relations = FAILURES[caption]
    assert parts(caption, rules.segment([caption])[0]) == (phrases, relations)


def test_golden_captions_are_real():
    """All are from the files of `tests/data`: COCO's own, and SugarCrepe's, which are COCO's."""
    annotations = json.loads((DATA / "coco/annotations/captions_val2017.json").read_text())["annotations"]
    known = {entry["caption"].strip() for entry in annotations}
    for path in (DATA / "sugarcrepe").glob("*.json"):
        known |= {row["caption"].strip() for row in json.loads(path.read_text()).values()}
    assert {*GOLDEN, *FAILURES} <= known


def test_kinds_and_spans_of_rules():
    caption = "A  red   cup on grass"
    assert rules.segment([caption]) == [((0, 12, "object"), (16, 21, "phrase"), (0, 21, "relation"))]
    odd = ["", "   ", "!?", "the", "of in on", "and", "a a a", "žluťoučký kůň", "1 2 3", "\n\t", "-", "a" * 300]
    for caption, found in zip(odd, rules.segment(odd), strict=True):
        for start, end, kind in found:
            assert 0 <= start < end <= len(caption)
            assert caption[start:end].strip() == caption[start:end]
            assert kind in segments.KINDS
    assert rules.segment(["žluťoučký kůň on a hill"])[0][0] == (0, 13, "phrase")


# --- spaCy -------------------------------------------------------------------------------------------


def parsed(words, heads, deps, tags):
    """A document as a parser would give it."""
    import spacy
    from spacy.tokens import Doc

    return Doc(spacy.blank("en").vocab, words=words.split(), heads=heads, deps=deps.split(), pos=tags.split())


def test_noun_chunks_and_relations_of_a_parse():
    doc = parsed(
        "A young man riding a big wave on a surfboard .",
        [2, 2, 2, 2, 6, 6, 3, 3, 9, 7, 2],
        "det amod ROOT acl det amod dobj prep det pobj punct",
        "DET ADJ NOUN VERB DET ADJ NOUN ADP DET NOUN PUNCT",
    )
    found = by_spacy.segments_of(doc)
    assert [(doc.text[start:end], kind) for start, end, kind in found] == [
        ("A young man", "object"),
        ("a big wave", "object"),
        ("a surfboard", "phrase"),
        ("A young man riding a big wave", "relation"),
        ("A young man riding a big wave on a surfboard", "relation"),
    ]


def test_subjects_of_verbs_and_pronouns():
    doc = parsed(
        "A cat sits on the mat and it eats fish",
        [1, 2, 2, 2, 5, 3, 2, 8, 2, 8],
        "det nsubj ROOT prep det pobj cc nsubj conj dobj",
        "DET NOUN VERB ADP DET NOUN CCONJ PRON VERB NOUN",
    )
    found = [(doc.text[start:end], kind) for start, end, kind in by_spacy.segments_of(doc)]
    assert found == [
        ("A cat", "phrase"),
        ("the mat", "phrase"),
        ("fish", "phrase"),
        ("A cat sits on the mat", "relation"),
    ]


def test_the_picture_is_no_phrase_and_lists_are_no_relation():
    doc = parsed(
        "A photo of a red cup with tea near a plate",
        [1, 1, 1, 5, 5, 2, 5, 6, 5, 10, 8],
        "det ROOT prep det amod pobj prep pobj prep det pobj",
        "DET NOUN ADP DET ADJ NOUN ADP NOUN ADP DET NOUN",
    )
    found = [(doc.text[start:end], kind) for start, end, kind in by_spacy.segments_of(doc)]
    assert found == [
        ("a red cup", "object"),
        ("tea", "phrase"),
        ("a plate", "phrase"),
        ("a red cup with tea near a plate", "relation"),
    ]


@pytest.fixture
def model(tmp_path):
    """A model on disk whose "parser" is a component that annotates every text alike: det amod ROOT."""
    import spacy
    from spacy.language import Language

    @Language.component("compal_test_parser")
    def annotate(doc):
        for token in doc:
            token.head = doc[len(doc) - 1]
            token.dep_ = "ROOT" if token.i == len(doc) - 1 else "amod"
            token.pos_ = "NOUN" if token.i == len(doc) - 1 else "ADJ"
        return doc

    pipeline = spacy.blank("en")
    pipeline.add_pipe("compal_test_parser", name="parser")
    pipeline.meta["name"], pipeline.meta["version"] = "handmade", "1.2.3"
    pipeline.to_disk(tmp_path / "model")
    by_spacy._pipeline.cache_clear()
    return str(tmp_path / "model")


def test_the_models_version_is_part_of_the_segmenters(model):
    segmenter = load(f"spacy:{model}")
    assert segmenter.title == "spacy 1-en_handmade-1.2.3"
    assert segmenter(["small red cups", "shoes"]) == [((0, 14, "object"),), ((0, 5, "phrase"),)]


def test_a_missing_model_is_named_with_both_cures():
    by_spacy._pipeline.cache_clear()
    with pytest.raises(InputError) as error:
        load("spacy:en_core_web_nothing")
    assert "cannot load the model 'en_core_web_nothing'" in str(error.value)
    assert "python -m spacy download en_core_web_nothing" in str(error.value)
    assert 'pip install "compal[spacy]"' in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_named(monkeypatch):
    by_spacy._pipeline.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match=r'needs spaCy.*pip install "compal\[spacy\]"'):
        load("spacy")


def test_a_model_without_a_parser_is_refused(tmp_path):
    import spacy

    spacy.blank("en").to_disk(tmp_path / "blank")
    by_spacy._pipeline.cache_clear()
    with pytest.raises(InputError, match="has no parser"):
        load(f"spacy:{tmp_path / 'blank'}")


# --- segmented items, and their table --------------------------------------------------------------------


def things():
    return [
        Item.caption("a red cup on a table"),
        Item("k", "image", "k.jpg", None, boxes=((0, 0, 1, 1),)),
        Item.caption("a blue cup", segments=((2, 6, "attribute"),)),
        Item.caption("   "),
        Item("n", "text", "n", None),
        Item.caption("of"),
        Item.caption("a red cup on a table"),
    ]


def test_only_captions_without_segments_get_some():
    items = things()
    assert list(segmented(items, "dataset")) == items
    assert list(segmented(items, "")) == items
    found = list(segmented(iter(items), "rules"))
    assert [item.key for item in found] == [item.key for item in items]
    assert found[0].segments == ((0, 9, "object"), (13, 20, "object"), (0, 20, "relation")) == found[-1].segments
    assert found[1:6] == items[1:6]
    with pytest.raises(UnknownName, match="no segmenter 'ruls'"):
        list(segmented(items, "ruls"))


def test_segments_are_computed_once_per_store(tmp_path, monkeypatch):
    list(segmented(things(), "rules", tmp_path))  # no store yet: nothing is written
    assert not list(tmp_path.iterdir())
    Store.create(tmp_path, SPEC)
    asked = []
    original = rules.segment
    monkeypatch.setattr(rules, "segment", lambda some, argument: asked.extend(some) or original(some, argument))
    monkeypatch.setattr(segments, "AT_ONCE", 2)
    first = list(segmented(things(), "rules", tmp_path))
    assert sorted(asked) == ["a red cup on a table", "of"]
    table = read_segments(tmp_path, "rules", "1")
    assert table == {item.key: item.segments for item in (first[0], first[5])}
    asked.clear()
    more = [*things(), Item.caption("two dogs")]
    assert list(segmented(more, "rules", tmp_path))[:-1] == first
    assert asked == ["two dogs"]
    assert len(read_segments(tmp_path, "rules", "1")) == 3
    monkeypatch.setattr(rules, "VERSION", "2")
    asked.clear()
    list(segmented(things(), "rules", tmp_path))
    assert len(asked) == 2, "another version starts anew"
    assert len(read_segments(tmp_path, "rules", "1")) == 3


def test_a_segmenter_of_another_package_is_checked(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/words_of.py").write_text(
        "def version(argument=''):\n    return 'x' + argument\n"
        "def segment(captions, argument=''):\n"
        "    return [((0, len(text) + (argument == 'long'), argument or 'phrase'),) for text in captions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    Store.create(tmp_path / "store", SPEC)
    items = [Item.caption("a cup")]
    (found,) = segmented(items, "theirs.words_of", tmp_path / "store")
    assert found.segments == ((0, 5, "phrase"),)
    assert next((tmp_path / "store/segments").glob("*.parquet")).name == "theirs_words_of-x.parquet"
    assert load("theirs.words_of:3").version == "x3"
    for wrong in ("long", "verb"):
        with pytest.raises(InputError, match=r"gave \(0, \d, .* for 'a cup'"):
            list(segmented(items, f"theirs.words_of:{wrong}"))
